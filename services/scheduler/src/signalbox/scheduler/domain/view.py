"""All that a decision looks at, in one place: snapshot, live numbers, turns, estimates, pins as last seen, prices."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Protocol

from signalbox.scheduler.domain.estimates import Amount, Estimates
from signalbox.scheduler.domain.rank import Turns
from signalbox.scheduler.domain.snapshot import Snapshot
from signalbox.scheduler.domain.state import LiveState
from signalbox.wire.usage import Usage

_MOST_PINS = 200_000


class Prices(Protocol):
    """What tokens cost, in nano-dollars."""

    def worst_case(self, model: str, input_bytes: int, max_tokens: int) -> Amount:
        """Return the most that a request may use: tokens and nano-dollars."""
        ...

    def cost(self, usage: Usage, model: str, at_ms: int) -> int:
        """Return what an attempt cost, as the ledger will have it."""
        ...


class Pins:
    """Which account a conversation was last seen pinned to. A hint: Redis holds the pin, a wrong hint costs a round."""

    def __init__(self) -> None:
        self._accounts: OrderedDict[str, str] = OrderedDict()

    def get(self, session: str) -> str:
        """Return the account, "" where none is known."""
        account = self._accounts.get(session, "")
        if account:
            self._accounts.move_to_end(session)
        return account

    def put(self, session: str, account_id: str) -> None:
        """Note where a conversation is pinned."""
        self._accounts[session] = account_id
        self._accounts.move_to_end(session)
        if len(self._accounts) > _MOST_PINS:
            self._accounts.popitem(last=False)


@dataclass
class View:
    """One scheduler's view of the world."""

    prices: Prices
    snapshot: Snapshot = field(default_factory=Snapshot)
    live: LiveState = field(default_factory=LiveState)
    turns: Turns = field(default_factory=Turns)
    estimates: Estimates = field(default_factory=Estimates)
    pins: Pins = field(default_factory=Pins)
    since_ms: dict[str, int] = field(default_factory=dict)
    """When limits over Total without a `since` were first seen, by `key|limit`."""

    def set_running(self, account_id: str, number: int) -> bool:
        """Note how many requests an account has in flight; return whether there are fewer than before."""
        account = self.snapshot.accounts.get(account_id)
        fell = self.live.set_running(account_id, account.group if account is not None else account_id, number)
        if fell:
            self.snapshot.release(account_id)
        return fell
