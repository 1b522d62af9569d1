"""A relay over the simulated provider, made for being broken: what the fault tests share.

`E2E_SEEDS` (numbers separated by commas; 1 by default) and `E2E_LOAD_SECONDS` (2 by default, the time of load before
and after each fault) make runs longer; what each run did is printed with its seed.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import compare
from tests.support.instance import Instance, account, pool, relay_key, secret
from tests.support.load import Load, Seen, count
from tests.support.machine import busy
from tests.support.sim import Simulator
from tests.support.staged import Staged

SEEDS = [int(seed) for seed in os.environ.get("E2E_SEEDS", "1").split(",")]
LOAD_S = float(os.environ.get("E2E_LOAD_SECONDS", "2"))

# What the contract promises, and what a machine busy with other tests may add.
RESTART_LIMIT_S = 2.0
SERVICE_LIMIT_S = 40.0
ORPHAN_LIMIT_S = 60.0
SLACK_S = 3.0

# What callers may see while something is away; nothing else, whatever it is.
OUTAGE = {"scheduler_unavailable", "ledger_unavailable", "overloaded", "pool_limited"}

ACCOUNTS = tuple("abcdefghijkl")
KEY = "sbx_e2e_relay_key_that_nobody_may_ever_see_1"
API_KEY = "sk-ant-e2e-account-key-nobody-may-see-"
MANY = {"per": "Total", "requests": 10_000_000, "tokens": 10**12, "costUSD": "9000000"}


class Rig(Staged):
    """A simulator, a Signalbox with a dozen accounts behind one key, and the checks that follow a fault."""

    def __init__(
        self, directory: Path, *, workers: int = 2, schedulers: int = 1, environment: Mapping[str, str] | None = None,
        documents: list[dict[str, Any]] | None = None, pool_spec: Mapping[str, Any] | None = None,
        key_spec: Mapping[str, Any] | None = None,
    ) -> None:
        self.sim = Simulator({"accounts": [{"name": name, "key": API_KEY + name} for name in ACCOUNTS]}).start()
        own: list[dict[str, Any]] = []
        for name in ACCOUNTS:
            own += [secret(name, **{"api-key": API_KEY + name}), account(name, self.sim.url)]
        own += [pool("default", list(ACCOUNTS), **(pool_spec or {})), secret("ada", **{"relay-key": KEY})]
        own += [relay_key("ada", limits=[MANY], concurrency=1000, **(key_spec or {})), *(documents or [])]
        self.instance = Instance(
            directory, own, workers=workers, schedulers=schedulers,
            environment={"SIGNALBOX_STOP_GRACE_SECONDS": "5", **(environment or {})},
        )
        self.workers = workers
        self.seen: list[Seen] = []
        self._owed_by_s = 0.0    # a settlement that was put off; 0 where none is

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """End both, after whatever settlement is owed still."""
        try:
            if kind is None and self._owed_by_s:
                self.settled(by_s=max(self._owed_by_s, time.monotonic() + 10 + SLACK_S))
        finally:
            super().__exit__(kind, *rest)

    @contextmanager
    def load(self, seed: int, **options: Any) -> Iterator[Load]:
        """Run callers, and keep what they saw."""
        with Load(self.instance.url, KEY, seed=seed, **options) as load:
            yield load
        self.seen += load.seen

    def settled(self, *, by_s: float) -> compare.Findings:
        """Wait until everything that was ever asked of this rig agrees; raise what does not."""
        found = compare.settled(self.instance, self.sim, self.seen, KEY, by_s=by_s)
        self._owed_by_s = 0.0
        return found

    # ------------------------------------------------------------------ breaking and recovering

    @contextmanager
    def under_load(
        self, seed: int, what: str, *, lasts_s: float = 2.0, connections_may_break: bool = False, settle: bool = True,
    ) -> Iterator[float]:
        """Run the body, which breaks something for `lasts_s`, amid load; yield when that began.

        Raises unless callers saw only what they may, were served again in time, streams that were running went on
        (where connections may not break), and everything agrees in the end. That may take as long as a lease lives;
        without `settle` it is left to the next test's settlement, which is of everything, or to the rig's end.
        """
        with self.load(seed) as load:
            held = load.hold(4, for_s=LOAD_S + lasts_s + 1.5)
            time.sleep(LOAD_S)
            broken_s = time.monotonic()
            yield broken_s
            back_s = self.wait_serving(load, broken_s)
            time.sleep(LOAD_S / 2)
            streams = [stream.result(60) for stream in held]
        saw = self.check_callers(load.seen, connections_may_break=connections_may_break)
        if not connections_may_break:
            assert all(s.whole for s in streams), f"running streams were disturbed: {streams}"
            assert all(s.ended_s > broken_s + lasts_s for s in streams), "these streams saw nothing of the fault"
        by_s = max(broken_s + ORPHAN_LIMIT_S, time.monotonic() + 10) + SLACK_S
        all_so_far = dict(self.settled(by_s=by_s).counts) if settle else "not compared yet"
        self._owed_by_s = 0.0 if settle else by_s
        print(f"\n{what}, seed {seed}: back after {back_s:.1f} s; callers {dict(saw)}; all so far {all_so_far}")

    def wait_restarted(self, room: str, old: list[int], since_s: float) -> float:
        """Wait until a room has new processes; return how long after `since_s` that was. Raises where it takes too long."""
        while True:
            now = self.instance.room_pids(room)
            if len(now) >= len(old) and not set(now) & set(old):
                return time.monotonic() - since_s
            if time.monotonic() > since_s + RESTART_LIMIT_S + SLACK_S * busy():
                raise AssertionError(f"{room}: {old} killed, {now} there after {RESTART_LIMIT_S} s and slack")
            time.sleep(0.05)

    def wait_serving(self, load: Load, since_s: float, *, enough: int = 20) -> float:
        """Wait until callers are served again; return how long after `since_s` the last of them was refused.

        Served again means: every room is ready, and `enough` requests begun since then are answered whole after the
        last refusal.
        """
        while True:
            after = [s for s in list(load.seen) if s.began_s > since_s]
            last = max((s.ended_s for s in after if s.kind in OUTAGE), default=since_s)
            whole = sum(s.whole and s.began_s > last for s in after)
            if whole >= enough and self.instance.status()["ready"]:
                return last - since_s
            if time.monotonic() > since_s + SERVICE_LIMIT_S + SLACK_S * busy():
                raise AssertionError(f"not served after {SERVICE_LIMIT_S} s: {count(after)}, {self.instance.status()}")
            time.sleep(0.1)

    # ------------------------------------------------------------------ what callers may see

    def check_callers(self, seen: list[Seen], *, connections_may_break: bool = False) -> Counter[str]:
        """Raise where a caller of a healthy provider saw anything but an answer or an allowed refusal."""
        allowed = OUTAGE | {"whole", "hung up"}
        odd = [s for s in seen if not s.troubled and s.kind not in allowed]
        if connections_may_break:
            odd = [s for s in odd if not s.failed]
        assert not odd, (count(odd), odd[:5], [s.body[-400:] for s in odd[:5]])
        silent = [s for s in seen if s.error_code in OUTAGE and not s.retry_after]
        assert not silent, f"refused without retry-after: {silent[:5]}"
        return count(seen)


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Hold processes still."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def redis_command(address: Path | tuple[str, int], *words: str, password: str = "") -> bytes:
    """Say one command to a Redis and return the raw beginning of its answer."""
    import socket

    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    with socket.socket(family) as connection:
        connection.settimeout(10)
        connection.connect(str(address) if isinstance(address, Path) else address)
        commands = [("AUTH", password)] if password else []
        for command in [*commands, words]:
            parts = [f"${len(word.encode())}\r\n{word}\r\n" for word in command]
            connection.sendall(f"*{len(command)}\r\n{''.join(parts)}".encode())
            answer = connection.recv(1 << 16)
        return answer
