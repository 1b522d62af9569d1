"""An admission: decided at once, or put off for as long as its request may wait, and decided anew when there is news.

How one decision comes about says deciding.py, how long a request waits and what may come of it patience.py; who waits
beside it, and whose turn it is, waiting.py.
"""

from signalbox.scheduler.domain import patience
from signalbox.scheduler.domain.deciding import Deciding
from signalbox.scheduler.domain.patience import Wait
from signalbox.scheduler.domain.snapshot import PoolIndex


class Admission(Deciding):
    """One attempt of a request: where there is a `wait`, it is kept, and tried again until its patience is over."""

    @property
    def key_id(self) -> str:
        """The key's id, "" where it is not known."""
        return self._key.id if self._key is not None else ""

    @property
    def held(self) -> str:
        """The failed lease whose slot is kept meanwhile, "" for none."""
        return self._failed.id if self._failed is not None else ""

    def could_use(self, account_id: str) -> bool:
        """Whether an account that has room again may be what it waits for."""
        return self.wait is not None and self.wait.suits(account_id, self.view.snapshot)

    def try_again(self, now_ms: int, woken_by: str = "") -> None:
        """Plan anew after having waited; `woken_by` is the account that has room again, "" where none in particular."""
        self._patience.has_waited(woken_by)
        self._reasons, self._rounds, self._offers, self._foreseen = {}, 0, 0, None
        if self._tried:
            self._look_back(now_ms)
        self.replan(now_ms)

    def lose_patience(self, now_ms: int) -> None:
        """Plan a last time: what cannot be had now is refused."""
        self._patience.over = True
        self.try_again(now_ms)

    def _waits(self, index: PoolIndex | None, wake_ms: int, why: str, account: str = "") -> bool:
        """Begin to wait in a pool's queue if something may come of it by `wake_ms`; return whether it does."""
        waits, now_ms = self._patience, self._now_ms
        if index is None or not waits.allows(index.pool, wake_ms, now_ms):
            return False
        if self._failed is not None and not self._is_settled:
            self._ask_for_nothing(last=False)
            return True
        lanes: tuple[str, ...] = (f"@{account}",) if account else ()
        if not account and self._attempt == 1:  # what a later attempt has tried may well do for others
            lanes = patience.lanes_of(self._reach.indexes, self.request.model)
        until_ms = waits.begin(index.pool, now_ms, why)
        self.operation, self.wait = None, Wait(
            index.pool, until_ms, wake_ms or until_ms, account, lanes, self.request.model, self._reach.indexes,
            frozenset(self._tried) - waits.revisit,
        )
        return True
