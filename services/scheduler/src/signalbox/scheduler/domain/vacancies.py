"""Which accounts have room, and which of those that wait here each is for.

Every scheduler is told of an account with room, and of the keys whose turn it is before others', wherever they wait.
One that finds an earlier key that may use the account and does not wait here leaves it the first try: what is not taken
within a moment is anybody's. Pure; adapters/queue.py carries it out. Times in Unix milliseconds.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from signalbox.scheduler.domain.waiting import Waiting, WaitingRoom

GRACE_MS: Final = 20
_MOST_KEPT = 10_000


class Taker(Waiting, Protocol):
    """Who waits, and for what."""

    def could_use(self, account_id: str) -> bool:
        """Whether the account may be what it waits for."""


W = TypeVar("W", bound=Taker)
MayUse = Callable[[str, str], bool]
"""Whether a key may use an account, as far as documents say."""


@dataclass(slots=True)
class _Vacancy:
    account: str
    line: Sequence[str]
    """Keys in the order of their turns."""
    not_before_ms: int = 0


class Vacancies(Generic[W]):
    """Accounts with room, each for one request."""

    def __init__(self, may_use: MayUse) -> None:
        self._may_use = may_use
        self._all: list[_Vacancy] = []

    def add(self, account_id: str, line: Sequence[str] = (), not_before_ms: int = 0) -> None:
        """Note room for one request; `line`: the keys whose turn it is, in order, where that is known."""
        if len(self._all) < _MOST_KEPT:
            self._all.append(_Vacancy(account_id, line, not_before_ms))

    def next_due_ms(self) -> int:
        """Return when something that was left to others is anybody's, 0 where nothing is."""
        return min((v.not_before_ms for v in self._all), default=0)

    def assign(self, room: WaitingRoom[W], now_ms: int, most: int) -> list[tuple[W, str]]:
        """Return who takes which account now, `most` at once; what nobody here may use is forgotten."""
        assigned: list[tuple[W, str]] = []
        chosen: set[str] = set()
        had_turn: list[str] = []
        vacancies, self._all = self._all, []
        for vacancy in vacancies:
            if vacancy.not_before_ms > now_ms or len(assigned) == most:
                self._all.append(vacancy)
                continue
            taker, is_first = self._taker(room, vacancy, chosen, had_turn)
            if taker is not None and is_first:
                assigned.append((taker, vacancy.account))
                chosen.add(taker.id)
                had_turn.append(taker.key_id)
            elif taker is not None:
                self._all.append(_Vacancy(vacancy.account, (), now_ms + GRACE_MS))
        return assigned

    def _taker(
        self, room: WaitingRoom[W], vacancy: _Vacancy, chosen: Collection[str], had_turn: Sequence[str],
    ) -> tuple[W | None, bool]:
        """Return who here may take it, and whether nobody who waits elsewhere goes first."""
        account = vacancy.account

        def find(waiters: Iterator[W]) -> W | None:
            return next((w for w in waiters if w.id not in chosen and w.could_use(account)), None)

        later = [k for k in had_turn if k in vacancy.line]
        for key in (*(k for k in vacancy.line if k not in later), *later):
            if room.has(key):
                if (taker := find(room.of(key))) is not None:
                    return taker, True
            elif self._may_use(key, account):
                return find(room.in_turn()), False
        return find(room.in_turn()), True
