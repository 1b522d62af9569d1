"""Whose turn it is among the requests that wait for an account in this scheduler: fair among keys, bounded in time.

Keys take turns, and within a key who came first goes first. Pure; adapters/queue.py carries it out.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What the room needs to know of a request."""

    id: str
    key_id: str
    lanes: tuple[str, ...]


W = TypeVar("W", bound=Waiting)


@dataclass(slots=True)
class _Place(Generic[W]):
    waiter: W
    number: int
    due_ms: int = 0


@dataclass
class WaitingRoom(Generic[W]):
    """All that wait. Times in Unix milliseconds."""

    _by_key: "OrderedDict[str, OrderedDict[str, _Place[W]]]" = field(default_factory=OrderedDict)
    _places: dict[str, _Place[W]] = field(default_factory=dict)
    _due: list[tuple[int, int, str]] = field(default_factory=list)
    _in_lane: dict[str, int] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=count)

    def __len__(self) -> int:
        return len(self._places)

    def get(self, request: str) -> W | None:
        """Return who waits under this id."""
        place = self._places.get(request)
        return place.waiter if place is not None else None

    def enter(self, waiter: W, due_ms: int) -> bool:
        """Let somebody wait who is to be looked at by `due_ms`; return whether somebody else is in one of its lanes."""
        self.leave(waiter.id)
        place = _Place(waiter, next(self._numbers))
        self._places[waiter.id] = place
        self._by_key.setdefault(waiter.key_id, OrderedDict())[waiter.id] = place
        behind = any(lane in self._in_lane for lane in waiter.lanes)
        for lane in waiter.lanes:
            self._in_lane[lane] = self._in_lane.get(lane, 0) + 1
        self.look_again(waiter, due_ms)
        return behind

    def leave(self, request: str) -> W | None:
        """Let somebody go."""
        place = self._places.pop(request, None)
        if place is None:
            return None
        waiter = place.waiter
        of_key = self._by_key[waiter.key_id]
        del of_key[waiter.id]
        if not of_key:
            del self._by_key[waiter.key_id]
        for lane in waiter.lanes:
            self._in_lane[lane] -= 1
            if not self._in_lane[lane]:
                del self._in_lane[lane]
        return waiter

    def served(self, waiter: W) -> None:
        """Note that the key had its turn: the others' come first now. To be called before it leaves."""
        if waiter.key_id in self._by_key:
            self._by_key.move_to_end(waiter.key_id)

    def in_turn(self) -> Iterator[W]:
        """Yield all in the order of their turns. The room must not change meanwhile."""
        rows = [iter(of_key.values()) for of_key in self._by_key.values()]
        while rows:
            going_on = []
            for row in rows:
                place = next(row, None)
                if place is not None:
                    yield place.waiter
                    going_on.append(row)
            rows = going_on

    def has(self, key_id: str) -> bool:
        """Return whether any of a key waits here."""
        return key_id in self._by_key

    def of(self, key_id: str) -> Iterator[W]:
        """Yield all of one key, who came first first. The room must not change meanwhile."""
        return (place.waiter for place in self._by_key.get(key_id, {}).values())

    def look_again(self, waiter: W, due_ms: int) -> None:
        """Have somebody looked at by `due_ms`, and not before unless there is news."""
        place = self._places[waiter.id]
        place.due_ms = due_ms
        heapq.heappush(self._due, (due_ms, place.number, waiter.id))

    def all_due(self, now_ms: int) -> None:
        """Have all looked at now: anything may have changed."""
        for place in self._places.values():
            self.look_again(place.waiter, now_ms)

    def take_due(self, now_ms: int) -> set[str]:
        """Return the ids of those that are to be looked at by now; each once, until `look_again`."""
        found = set()
        while self._due and self._due[0][0] <= now_ms:
            due_ms, number, request = heapq.heappop(self._due)
            if self._is_valid(due_ms, number, request):
                found.add(request)
        return found

    def next_due_ms(self) -> int:
        """Return when somebody is to be looked at, 0 where nobody waits."""
        while self._due and not self._is_valid(*self._due[0]):
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else 0

    def _is_valid(self, due_ms: int, number: int, request: str) -> bool:
        place = self._places.get(request)
        return place is not None and place.number == number and place.due_ms == due_ms
