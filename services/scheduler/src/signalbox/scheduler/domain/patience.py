"""How long one request waits for an account, and for which: the numbers behind `queue` of a pool.

Pure. Who waits beside it, and whose turn it is, is waiting.py's business.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from signalbox.scheduler.domain.policies import AccountPolicy, PoolPolicy
from signalbox.scheduler.domain.snapshot import PoolIndex
from signalbox.scheduler.domain.state import LiveState

ALL_FULL = "every account rested or was full"
PIN_FULL = "the account that the conversation is pinned to was full"
BEHIND_MS = 50
"""When one that stands behind others is tried: room that they do not need is its."""
BEHIND_OTHERS = "others were waiting already"


@dataclass(frozen=True, slots=True)
class Wait:
    """What a request waits for: in the queue of `pool`, until `until_ms` at most; `wake_ms`: worth a try then anyway.

    `account`: the only one that will do, "" where any will. `lanes` are those in which newcomers stand behind it.
    """

    pool: PoolPolicy
    until_ms: int
    wake_ms: int
    account: str
    lanes: tuple[str, ...]
    why: str


class Patience:
    """What is left of the time that one request may wait, over all its attempts."""

    def __init__(self, asked_ms: int, waited_ms: int) -> None:
        """`asked_ms`: how long the caller waits, 0 for as long as it takes; `waited_ms`: by earlier attempts."""
        self._asked_ms = asked_ms
        self._before_ms = waited_ms
        self._since_ms = 0
        self._until_ms = 0
        self.over = False
        """The request takes what there is now, or is refused."""

    def waited_ms(self, now_ms: int) -> int:
        """Return how long this attempt has waited."""
        return now_ms - self._since_ms if self._since_ms else 0

    def total_ms(self, now_ms: int) -> int:
        """Return how long all attempts have waited."""
        return self._before_ms + self.waited_ms(now_ms)

    def until(self, pool: PoolPolicy, now_ms: int) -> int:
        """Return until when it may wait (Unix ms); the first answer stands."""
        if not self._until_ms:
            budget_ms = max(0, pool.max_wait_ms - self._before_ms)
            self._until_ms = now_ms + (min(budget_ms, self._asked_ms) if self._asked_ms else budget_ms)
        return self._until_ms

    def begin(self, now_ms: int) -> None:
        """Waiting begins, or goes on."""
        self._since_ms = self._since_ms or now_ms


def queue_of(indexes: Sequence[PoolIndex], model: str) -> PoolIndex | None:
    """Return whose queue a request stands in: that of the first of its pools with accounts for the model."""
    return next((i for i in indexes if i.tiers(model)), None)


def lanes_of(indexes: Sequence[PoolIndex], model: str) -> tuple[str, ...]:
    """Return the lanes of a request for which any account will do; see lua/3_waiting.lua."""
    return tuple(dict.fromkeys(f"{i.pool.id}|{name}" for i in indexes for name in i.sent_names(model)))


def worth_another_try(
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


def heals_soon(kind: str, reason: str) -> bool:
    """Whether what keeps an account out passes by itself, and was no failure to answer."""
    return kind == "limited" or reason == "Overloaded"
