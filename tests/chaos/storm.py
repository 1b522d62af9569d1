"""One run: a relay of two gateways and two schedulers under mixed load, blow after blow, until all is quiet again.

What to break comes from schedule.py; whether what came of it is right is judged in verdict.py.
"""

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from tests.chaos.schedule import Ailment, Blow, ailments, blows
from tests.support.instance import Instance, account, pool, relay_key, secret
from tests.support.load import (
    COUNT_TOKENS,
    MODELS,
    PLAIN_TROUBLES,
    STREAM_TROUBLES,
    Seen,
    ask,
    message,
    model_of_its_own,
)
from tests.support.rig import MANY, redis_command
from tests.support.sim import Simulator
from tests.support.staged import Staged

API_KEY = "sk-ant-chaos-account-key-nobody-may-see-"
# Never ill; ill now and then; with a provider's limit that is soon reached; with a grant that is renewed all the time.
WELL, ILL, TIGHT, GRANTED = "abcd", "ef", "g", "o"
REFRESH_TOKEN = "sk-ant-ort-chaos-seed-nobody-may-see"
CLIENT_SECRET = "chaos-client-secret-nobody-may-see"
ACCESS_S = 15           # how long an access token is valid
REUSE_GRACE_S = 120     # how long the provider forgives a token whose answer was lost
PROMPT = "The-prompt-of-the-storm-that-nobody-may-read"
CALLERS = 14
TIMEOUTS = {
    "connect": "2s", "headers": "3s", "headersUnstreamed": "4s", "firstContent": "3s", "idle": "3s", "total": "30s",
}
MAX_ATTEMPTS = 4
MAX_TOKENS = 512
SLOW_BYTES, SLOW_TOKENS = 400_000, 200_000
SLOTS = 3


@dataclass(frozen=True)
class Key:
    """A relay key of the run, and how large a share of the requests it makes."""

    name: str
    share: int
    spec: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What callers present."""
        return f"sbx_chaos_relay_key_nobody_may_see_{self.name}"


def keys(seconds: float) -> list[Key]:
    """Return the keys; limits are such that they are reached some way into the run."""
    return [
        Key("free", 8, {"limits": [MANY]}),
        Key("requests", 3, {"limits": [{"per": "Total", "requests": int(seconds)}, {"per": "Day", "requests": int(2 * seconds)}]}),
        Key("minute", 2, {"limits": [{"per": "Minute", "requests": 25}]}),
        Key("strict-cost", 3, {"limits": [{"per": "Total", "costUSD": f"{0.0006 * seconds:.6f}", "admission": "Strict"}]}),
        Key("strict-tokens", 2, {"limits": [{"per": "Total", "tokens": int(60 * seconds), "admission": "Strict"}]}),
        Key("estimated", 2, {"limits": [{"per": "Total", "costUSD": f"{0.0003 * seconds:.6f}"}], "concurrency": 8}),
        Key("slots", 3, {"concurrency": SLOTS}),
    ]


@dataclass
class Struck:
    """A blow that was dealt: between which monotonic times."""

    blow: Blow
    began_s: float
    ended_s: float


@dataclass
class Call:
    """What one caller asked and saw."""

    key: str
    route: str
    slow: bool
    seen: Seen


class Storm(Staged):
    """The relay, its callers and its misfortunes. After `rage`, `calls` and `struck` tell what happened."""

    def __init__(self, directory: Path, seed: int, seconds: float) -> None:
        self.seed, self.seconds = seed, seconds
        self.keys = keys(seconds)
        self.calls: list[Call] = []
        self.struck: list[Struck] = []
        names = [*WELL, *ILL, *TIGHT]
        accounts: list[dict[str, Any]] = [{"name": name, "key": API_KEY + name} for name in names]
        accounts[-1] |= {"limits": {"requests": 40, "output_tokens": 4000}, "per_s": 20}
        grants = {
            "clients": [{"id": "chaos", "secret": CLIENT_SECRET}], "expires_in": ACCESS_S, "reuse_grace_s": REUSE_GRACE_S,
            "grants": [{"account": GRANTED, "client_id": "chaos", "refresh_token": REFRESH_TOKEN}],
        }
        self.sim = Simulator({
            "accounts": [*accounts, {"name": GRANTED}], "settings": {"seed": seed}, "oauth": grants,
        }).start()
        documents = [document for name in names for document in (
            secret(name, **{"api-key": API_KEY + name}), account(name, self.sim.url))]
        documents += [
            secret(GRANTED, **{"refresh-token": REFRESH_TOKEN, "client-secret": CLIENT_SECRET}),
            account(GRANTED, self.sim.url, credential={"oauth": {
                "tokenURL": self.sim.url + "/oauth/token", "clientID": "chaos",
                "clientSecretRef": {"name": GRANTED, "key": "client-secret"},
                "refreshTokenRef": {"name": GRANTED, "key": "refresh-token"}}}),
        ]
        documents.append(pool(
            "default", [*names, GRANTED], timeouts=TIMEOUTS, failover={"maxAttempts": MAX_ATTEMPTS}, queue={"maxWait": "2s"}))
        for key in self.keys:
            documents += [secret(key.name, **{"relay-key": key.text}), relay_key(key.name, **key.spec)]
        self.instance = Instance(
            directory, documents, workers=2, schedulers=2, environment={"SIGNALBOX_STOP_GRACE_SECONDS": "5"})

    def rage(self, say: Callable[[str], None]) -> None:
        """Let the load run and strike every blow; return when all callers have gone."""
        self._began_s = time.monotonic()
        callers = _Callers(self)
        ailing = threading.Thread(target=self._ail, daemon=True)
        with callers:
            ailing.start()
            for blow in blows(self.seed, self.seconds):
                self._wait_until(blow.at_s)
                say(str(blow))
                self._strike(blow)
            self._wait_until(self.seconds)
        ailing.join()
        self.sim.clear_script()

    def _wait_until(self, at_s: float) -> None:
        time.sleep(max(0.0, self._began_s + at_s - time.monotonic()))

    # ------------------------------------------------------------------ misfortunes

    def _ail(self) -> None:
        for one in ailments(self.seed, self.seconds, ILL):
            self._wait_until(one.at_s)
            self.fall_ill(one)

    def fall_ill(self, one: Ailment) -> None:
        """Let an account be ill for a while."""
        self.sim.script(standing=one.behaviour, account=one.account, lasts_s=one.lasts_s, match={"path": "/v1/messages"})

    def _strike(self, blow: Blow) -> None:
        pids = {room: self.instance.room_pids(room) for room in ("gateway", "scheduler", "usage", "token-refresher", "redis")}
        began_s = time.monotonic()
        kind = blow.kind
        if "flush" in kind:
            redis_command(self._redis, "FLUSHALL")
        if kind == "cut connections to the provider":
            self.sim.cut_connections()
        elif kind == "cut connections to redis":
            redis_command(self._redis, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        hit = [pid for room, all_pids in pids.items() for pid in _chosen(kind, room, all_pids, blow.which)]
        if kind.startswith("stop"):
            for pid in hit:
                _signal(pid, signal.SIGSTOP)
            time.sleep(blow.lasts_s)
            for pid in hit:
                _signal(pid, signal.SIGCONT)
        else:
            for pid in hit:
                _signal(pid, signal.SIGKILL)
        self.struck.append(Struck(blow, began_s, time.monotonic()))

    @property
    def _redis(self) -> Path:
        return self.instance.data / "run" / "redis.sock"


def _chosen(kind: str, room: str, pids: list[int], which: int) -> list[int]:
    """Return which of a room's processes a blow hits."""
    if kind.startswith(("flush", "cut")) and f"kill {room}" not in kind:
        return []
    if room not in kind or not pids:
        return []
    return pids if which < 0 else [pids[which % len(pids)]]


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):   # it may have died meanwhile, as things do
        os.kill(pid, number)


class _Callers:
    """People with keys, in a thread of their own, until the block ends."""

    def __init__(self, storm: Storm) -> None:
        self._storm = storm
        self._rng = random.Random(f"callers {storm.seed}")
        self._stopping = False
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> None:
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        limits = httpx2.Limits(max_connections=200, max_keepalive_connections=CALLERS)
        self._http = httpx2.AsyncClient(base_url=self._storm.instance.url, timeout=60, limits=limits)
        self._working: list[Future[None]] = [
            asyncio.run_coroutine_threadsafe(self._caller(random.Random(self._rng.random())), self._loop)
            for _ in range(CALLERS)
        ]

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        for caller in self._working:
            caller.result(120)
        asyncio.run_coroutine_threadsafe(self._http.aclose(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _caller(self, rng: random.Random) -> None:
        keys_, shares = self._storm.keys, [key.share for key in self._storm.keys]
        while not self._stopping:
            (key,) = rng.choices(keys_, shares)
            stream, drawn = rng.random() < 0.6, rng.random()
            options: dict[str, Any] = {}
            slow = stream and key.name == "free" and drawn < 0.1
            route = COUNT_TOKENS if drawn > 0.93 else "/v1/messages"
            body = message(_prompt(rng, stream, slow=slow), stream=stream, model=model_of_its_own(rng.choice(MODELS)),
                           max_tokens=SLOW_TOKENS if slow else MAX_TOKENS)
            if route == COUNT_TOKENS:
                body = {**message(PROMPT, model=body["model"])}
            elif slow:
                options["pause_s"] = 0.05
            elif drawn < 0.2:
                options = ({"hang_up_after_s": rng.uniform(0.001, 0.4)} if rng.random() < 0.5
                           else {"hang_up_after_bytes": rng.randrange(1, 3000)})
            seen = await ask(self._http, key.text, body, path=route, **options)
            self._storm.calls.append(Call(key.name, route, slow, seen))
            if seen.failed or seen.status >= 429:
                await asyncio.sleep(0.15)
            await asyncio.sleep(rng.uniform(0, 0.15))


def _prompt(rng: random.Random, stream: bool, *, slow: bool) -> str:
    words = f"{PROMPT} {rng.random()} " + "and so on " * rng.randrange(60)
    if slow:
        return words + f"[[sim text_bytes={SLOW_BYTES} deltas=100]]"
    drawn = rng.randrange(100)
    for share, marker in STREAM_TROUBLES if stream else PLAIN_TROUBLES:
        if drawn < share:
            return words + marker
        drawn -= share
    return words + f"[[sim deltas={rng.randrange(2, 25)} delta_delay_s=0.03]]"
