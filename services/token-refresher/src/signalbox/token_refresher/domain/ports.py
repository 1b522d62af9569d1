"""What the token-refresher needs of the world: a grant store with leases, and token endpoints. Adapters implement them.

The store is the truth, several processes share it, and any of them can die at any instant. Whoever renews a grant
holds its lease, from before the grant is read until its successor is kept. A lease may be of the kind that dies with
its process (a file lock) or of the kind that runs out (a Secret): a holder whose lease ran out finds out when its next
write conflicts, because taking a lease of that kind moves the revision.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from signalbox.core.errors import SignalboxError, Unavailable
from signalbox.token_refresher.domain.grants import Grant
from signalbox.token_refresher.domain.oauth import Answer, TokenRequest


class Conflict(SignalboxError):
    """Somebody else wrote since the revision that was expected: read again and decide anew."""


class LeaseBusy(SignalboxError):
    """Another process held the grant's lease for longer than one waits."""


class StoreUnavailable(Unavailable):
    """The store can't be read or written now; what it held it still holds."""

    def __init__(self, why: str) -> None:
        super().__init__("grant store", why)


@dataclass(frozen=True, slots=True)
class Stored:
    """A grant as the store has it. `revision` names this very state; its text means something to the store alone."""

    grant: Grant
    revision: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What is stored for an account and can't be opened now. It is left alone: its key may come back."""

    account_id: str
    why: str


Found = Stored | Unreadable | None


class GrantStore(Protocol):
    """Grants by account. Every method may raise StoreUnavailable."""

    async def everything(self) -> list[Stored | Unreadable]:
        """Return everything that is there."""
        ...

    async def read(self, account_id: str) -> Found:
        """Return what is stored for one account."""
        ...

    async def write(self, grant: Grant, expected: str) -> Stored:
        """Replace the state of that revision ("": nothing, or something unreadable, which is set aside) by `grant`.

        Once this returns, the grant survives the process and the power. Raises Conflict where the state is another.
        """
        ...

    async def delete(self, account_id: str, expected: str) -> None:
        """Forget the state of that revision ("": something unreadable, which is set aside). Raises Conflict."""
        ...

    def lease(self, account_id: str, patience_s: float) -> AbstractAsyncContextManager[Callable[[], bool]]:
        """Hold the account's lease, which one process at a time can. Raises LeaseBusy after `patience_s` seconds.

        What it yields tells whether the lease can still be relied upon for as long as one request takes.
        """
        ...

    def changes(self) -> AsyncIterator[str]:
        """Yield, soon after, the accounts whose state anybody changed (one's own changes may be among them)."""
        ...

    async def reseal(self) -> int:
        """Encrypt with the newest key what an older one encrypts; return how many grants that were."""
        ...


class Endpoints(Protocol):
    """The token endpoints of all accounts."""

    async def ask(self, request: TokenRequest) -> Answer:
        """Return what came of it, within a limit. Never raises for what the endpoint or the network does."""
        ...


class Traces(Protocol):
    """Where traces go, if an operator wants them. Never raises, never blocks."""

    def renewed(self, account_id: str, outcome: str, took_s: float) -> None:
        """Add a renewal that has ended now, as the metric's label says."""
        ...
