"""How long one request waits for an account, and for which: what it has found out of when there may be room.

Pure. What it is granted or refused says deciding.py; who waits beside it, and whose turn it is, waiting.py.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from signalbox.scheduler.domain.policies import AccountPolicy, PoolPolicy
from signalbox.scheduler.domain.snapshot import PoolIndex, Snapshot
from signalbox.scheduler.domain.state import LiveState

ALL_FULL = "every account rested or was full"
PIN_FULL = "the account that the conversation is pinned to was full"
BEHIND_MS = 50
"""When one that stands behind others is tried: room that they do not need is its."""
BEHIND_OTHERS = "others were waiting already"
ANY_TIME: Final = frozenset(("full", "probing"))
"""What keeps an account out until some request ends, which may be at any moment."""


@dataclass(frozen=True, slots=True)
class Wait:
    """What a request waits for: in the queue of `pool`, until `until_ms` at most; `wake_ms`: worth a try then anyway.

    `account`: the only one that will do, "" where any of `indexes` will that serves `model` and is not `done_with`.
    `lanes` are those in which newcomers stand behind it.
    """

    pool: PoolPolicy
    until_ms: int
    wake_ms: int
    account: str
    lanes: tuple[str, ...]
    model: str
    indexes: Sequence[PoolIndex]
    done_with: frozenset[str]

    def suits(self, account_id: str, snapshot: Snapshot) -> bool:
        """Whether an account that has room again may be what it waits for."""
        if (self.account and self.account != account_id) or account_id in self.done_with:
            return False
        account = snapshot.accounts.get(account_id)
        return (
            account is not None and account.sends(self.model) is not None
            and any(account_id in i.pool.members for i in self.indexes)
        )


class Patience:
    """What is left of the time that one request may wait, over all its attempts, and what may come of waiting."""

    # What most requests leave as it is lies on the class: fewer things to set up for each.
    over = False
    """The request takes what there is now, or is refused."""
    hurry = False
    """It does not wait for the account that its conversation is pinned to."""
    turn = 0
    """1 once it need not stand behind others."""
    woken_by = ""
    """The account that has room again, "" where none in particular."""
    why = ""
    """Why it waited, "" where it did not."""
    any_time = False
    """Whether some account may have room at any moment."""
    soonest_ms = 0
    """When the first of the accounts that Redis passed over may serve again, 0 for none."""
    revisit: frozenset[str] = frozenset()
    """Accounts that the request has tried and may try again, once they have rested."""
    _heals_soon: frozenset[str] = frozenset()
    _since_ms = 0
    _until_ms = 0

    def __init__(self, asked_ms: int, waited_ms: int) -> None:
        """`asked_ms`: how long the caller waits, 0 for as long as it takes; `waited_ms`: by earlier attempts."""
        self._asked_ms = asked_ms
        self._before_ms = waited_ms

    def waited_ms(self, now_ms: int) -> int:
        """Return how long this attempt has waited."""
        return now_ms - self._since_ms if self._since_ms else 0

    def total_ms(self, now_ms: int) -> int:
        """Return how long all attempts have waited."""
        return self._before_ms + (now_ms - self._since_ms if self._since_ms else 0)

    # ------------------------------------------------------------------------------------------------ what is known

    def found_out(self, reason: str, until_ms: int) -> None:
        """Note why an account cannot serve, and until when (Unix ms; 0: unknown)."""
        self.any_time = self.any_time or reason in ANY_TIME
        if until_ms and (not self.soonest_ms or until_ms < self.soonest_ms):
            self.soonest_ms = until_ms

    def expects(self, account_id: str, until_ms: int) -> None:
        """Note that the account of the attempt before may well serve after all, once it has rested."""
        self._heals_soon = frozenset((account_id,))
        self.any_time = not until_ms

    def look_back(
        self, tried: Collection[str], accounts: dict[str, AccountPolicy], live: LiveState, model: str, now_ms: int,
    ) -> None:
        """Find which of the accounts that were tried may serve after all."""
        self.revisit |= self._heals_soon | _worth_another_try(tried, accounts, live, model, now_ms)

    # ------------------------------------------------------------------------------------------------ waiting

    def allows(self, pool: PoolPolicy, wake_ms: int, now_ms: int) -> bool:
        """Whether the request may wait in a pool's queue, and something may come of it by `wake_ms`."""
        if self.over or not pool.max_wait_ms:
            return False
        until_ms = self._until(pool, now_ms)
        return until_ms > now_ms and (self.any_time or 0 < wake_ms <= until_ms)

    def begin(self, pool: PoolPolicy, now_ms: int, why: str) -> int:
        """Waiting begins, or goes on; return until when at most (Unix ms)."""
        self._since_ms = self._since_ms or now_ms
        self.why = self.why or why
        return self._until(pool, now_ms)

    def _until(self, pool: PoolPolicy, now_ms: int) -> int:
        """Return until when it may wait (Unix ms); the first answer stands."""
        if not self._until_ms:
            budget_ms = max(0, pool.max_wait_ms - self._before_ms)
            self._until_ms = now_ms + (min(budget_ms, self._asked_ms) if self._asked_ms else budget_ms)
        return self._until_ms

    def has_waited(self, woken_by: str) -> None:
        """The request is tried again; what was known of accounts is found out anew."""
        self.turn, self.woken_by = 1, woken_by
        self.any_time, self.soonest_ms = False, 0


def queue_of(indexes: Sequence[PoolIndex], model: str) -> PoolIndex | None:
    """Return whose queue a request stands in: that of the first of its pools with accounts for the model."""
    return next((i for i in indexes if i.tiers(model)), None)


def lanes_of(indexes: Sequence[PoolIndex], model: str) -> tuple[str, ...]:
    """Return the lanes of a request for which any account will do; see lua/3_waiting.lua."""
    return tuple(dict.fromkeys(f"{i.pool.id}|{name}" for i in indexes for name in i.sent_names(model)))


def heals_soon(kind: str, reason: str) -> bool:
    """Whether what keeps an account out passes by itself, and was no failure to answer."""
    return kind == "limited" or reason == "Overloaded"


def _worth_another_try(
    tried: Collection[str], accounts: dict[str, AccountPolicy], live: LiveState, model: str, now_ms: int,
) -> frozenset[str]:
    """Return which of the accounts that a request has tried may serve it after all, once they have rested.

    Those that a limit or a lasting overload keeps out for a while; one that hung or broke off is not asked again.
    """
    found = []
    for account_id in tried:
        account = accounts.get(account_id)
        out = live.kept_out_as(account, model, now_ms) if account is not None else None
        if out is not None and heals_soon(out.kind, out.reason):
            found.append(account_id)
    return frozenset(found)
