"""Many small relays in one: for each case a pool, accounts and a key of its own, so that no fault disturbs another's.

Accounts of a stand are tried in the order of their letters (by priority). One `signalbox up` and one simulator serve
all stands; what a stand asked is found again by the model names that no other request bears.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import compare
from tests.support.caller import eventually
from tests.support.instance import Instance, account, pool, relay_key
from tests.support.load import MESSAGES, MODEL, Load, Seen, message, model_of_its_own
from tests.support.sim import Simulator
from tests.support.staged import Staged

# Short, so that silence is soon too long, and long enough for a machine that other tests hold up for seconds.
TIMEOUTS = {
    "connect": "5s", "headers": "6s", "headersUnstreamed": "6s", "firstContent": "4s", "idle": "6s", "total": "15s",
}
BRIEFLY = "50ms"
LEDGER_LIMIT_S = 15.0


@dataclass(frozen=True)
class Layout:
    """What a stand is made of: an account a letter, and what their documents and the pool's say beside the usual."""

    accounts: str = "ab"
    account_spec: dict[str, dict[str, Any]] = field(default_factory=dict)
    pool_spec: dict[str, Any] = field(default_factory=dict)


@dataclass
class Stand:
    """One pool with its key."""

    name: str
    layout: Layout
    stands: "Stands"

    @property
    def key(self) -> str:
        """The relay key's text."""
        return f"sbx_e2e_key_of_stand_{self.name}"

    def account(self, letter: str) -> str:
        """Return an account's name."""
        return f"{self.name}-{letter}"

    def script(self, letter: str, *behaviours: dict[str, Any], standing: dict[str, Any] | None = None, **rule: Any) -> None:
        """Let an account's next requests meet these behaviours, and all later ones the standing one."""
        self.stands.sim.script(*behaviours, standing=standing, account=self.account(letter), **rule)

    def heal(self, letter: str) -> None:
        """Make an account well again."""
        self.stands.sim.clear_script(self.account(letter))

    def begin(
        self, load: Load, prompt: str = "Hello", *, stream: bool = False, base: str = MODEL, path: str = MESSAGES, **fields: Any,
    ) -> Future[Seen]:
        """Begin a request for a model like `base` and return its future."""
        return load.ask(message(prompt, stream=stream, model=model_of_its_own(base), **fields), key=self.key, path=path)

    def ask(self, load: Load, prompt: str = "Hello", **fields: Any) -> Seen:
        """Make a request and return what was seen of it."""
        return self.begin(load, prompt, **fields).result(60)

    def received(self, letter: str, *, after_s: float = 0.0) -> list[compare.Row]:
        """Return what the provider received for one of the accounts, after a Unix time."""
        rows = self.stands.sim.truth(path=None, account=self.account(letter))
        return [row for row in rows if row["received_at"] > after_s]

    def server(self, seen: Seen) -> str:
        """Return the letter of the account whose answer a caller got, an empty string where none did."""
        for letter in self.layout.accounts:
            if any(row["request_id"] == seen.upstream_request_id for row in self.received(letter)):
                return letter
        return ""


class Stands(Staged):
    """The simulator and the instance behind all stands. `take` hands out a stand that nobody used."""

    def __init__(self, directory: Path, layouts: dict[str, Layout]) -> None:
        self._stands = {name: Stand(name, layout, self) for name, layout in layouts.items()}
        names = [stand.account(letter) for stand in self._stands.values() for letter in stand.layout.accounts]
        self.sim = Simulator({"accounts": [{"name": name, "key": _api_key(name)} for name in names]}).start()
        secrets = {
            "accounts": {name: _api_key(name) for name in names},
            "keys": {stand.name: stand.key for stand in self._stands.values()},
        }
        documents: list[dict[str, Any]] = [
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values}
            for name, values in secrets.items()
        ]
        for stand in self._stands.values():
            documents += self._documents(stand)
        self.instance = Instance(directory, documents, environment={"SIGNALBOX_STOP_GRACE_SECONDS": "2"})

    def _documents(self, stand: Stand) -> list[dict[str, Any]]:
        layout = stand.layout
        made = []
        for priority, letter in enumerate(layout.accounts):
            own = account(stand.account(letter), self.sim.url, priority=priority)
            own["spec"] |= layout.account_spec.get(letter, {})
            own["spec"]["credential"] = {"apiKey": {"secretRef": {"name": "accounts", "key": stand.account(letter)}}}
            made.append(own)
        members = [stand.account(letter) for letter in layout.accounts]
        key = relay_key(stand.name, pools=[stand.name])
        key["spec"]["secretRef"] = {"name": "keys", "key": stand.name}
        usual: dict[str, Any] = {"timeouts": TIMEOUTS, "queue": {"maxWait": BRIEFLY}, "affinity": {"mode": "None"}}
        return [*made, key, pool(stand.name, members, **usual | layout.pool_spec)]

    def __getitem__(self, name: str) -> Stand:
        return self._stands[name]

    def truth(self) -> list[compare.Row]:
        """Return what the provider received, once nothing is in flight; on any route."""
        return [row for row in self.sim.wait_quiet(30) if row["path"].startswith("/v1/messages")]

    def rows(self, seen: Sequence[Seen]) -> list[compare.Row]:
        """Return the ledger's attempts, each request's in their order, once it has as many of each request as its caller was told of."""
        told = {s.request_id: s.attempts for s in seen if s.request_id}
        rows: list[compare.Row] = []

        def missing() -> dict[str, int]:
            rows[:] = [row for row in self.instance.requests() if row["attempt"] > 0]
            have = Counter(row["request_id"] for row in rows)
            return {request_id: n - have[request_id] for request_id, n in told.items() if have[request_id] != n}

        eventually(missing, within_s=LEDGER_LIMIT_S, wanted=lambda left: not left)
        return sorted(rows, key=lambda row: int(row["attempt"]))


def _api_key(name: str) -> str:
    return f"sk-ant-e2e-stand-{name}"

