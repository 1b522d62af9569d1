"""Writes statuses, and the Events that go with them, at the pace of domain/rates.py.

A status that cannot be written is a nuisance, never a reason to stop: it is counted, told once, and tried again.
"""

import asyncio
import heapq
import itertools
import time
from datetime import UTC, datetime
from typing import Any

from signalbox.core import logs
from signalbox.core.errors import Refused, SignalboxError, Unavailable
from signalbox.operator.adapters.writing import Writer
from signalbox.operator.controllers.board import Board
from signalbox.operator.domain.events import events
from signalbox.operator.domain.rates import Written, due_in_s
from signalbox.operator.domain.statuses import Facts, status_of
from signalbox.operator.domain.world import Seen, read
from signalbox.operator.metrics import Metrics
from signalbox.resources import conditions as c
from signalbox.resources.conditions import Condition
from signalbox.resources.reading import Identity
from signalbox.v1 import scheduler_pb2

log = logs.logger(__name__)

_BACK_OFF_S = 2.0
# After its start the operator says nothing until the rooms have told it how things are, but for so long at most: what
# was said before it started still holds, and to take it back for a second would tell of changes that there were not.
_HEAR_FIRST_S = 10.0
_TIDY_EVERY_S = 60.0
_GONE = ("NotFound", "Conflict")


class Statuses:
    """Keeps statuses true until cancelled."""

    def __init__(self, board: Board, writer: Writer, *, writers: int, every_s: float, metrics: Metrics) -> None:
        self._board = board
        self._writer = writer
        self._writers = writers
        self._every_s = every_s
        self._metrics = metrics
        self._later: list[tuple[float, int, Identity]] = []
        self._order = itertools.count()
        self._waiting: dict[Identity, float] = {}
        self._last: dict[Identity, Written] = {}
        self._busy: set[Identity] = set()
        self._told: set[str] = set()
        self._hears_until_s = 0.0

    async def keep_true(self) -> None:
        """Write what is due."""
        self._hears_until_s = time.monotonic() + _HEAR_FIRST_S
        async with asyncio.TaskGroup() as group:
            for _ in range(self._writers):
                group.create_task(self._work())
            group.create_task(self._wake())

    async def _wake(self) -> None:
        """Bring back what was put off, forget what is gone."""
        tidy_at_s = 0.0
        while True:
            self._metrics.beat("statuses")
            now_s = time.monotonic()
            while self._later and self._later[0][0] <= now_s:
                _, _, identity = heapq.heappop(self._later)
                self._waiting.pop(identity, None)
                self._board.mark([identity])
            if now_s >= tidy_at_s:
                self._last = {i: last for i, last in self._last.items() if self._board.world.get(i) is not None}
                tidy_at_s = now_s + _TIDY_EVERY_S
            await asyncio.sleep(min(1.0, max(0.05, self._later[0][0] - now_s)) if self._later else 1.0)

    async def _work(self) -> None:
        while True:
            if not self._board.dirty:
                self._board.some_dirty.clear()
                await self._board.some_dirty.wait()
                continue
            identity = next(iter(self._board.dirty))
            del self._board.dirty[identity]
            if identity in self._busy:
                self._put_off(identity, 0.5)
            elif self._can_tell():
                self._busy.add(identity)
                try:
                    await self._write_if_due(identity)
                finally:
                    self._busy.discard(identity)
            else:
                self._put_off(identity, 0.5)
            await asyncio.sleep(0)

    def _can_tell(self) -> bool:
        heard = not self._board.unheard or time.monotonic() >= self._hears_until_s
        return self._board.complete and heard

    async def _write_if_due(self, identity: Identity) -> None:
        seen = self._board.world.get(identity)
        if seen is None:
            return
        old = seen.status
        status = self._status(seen, old)
        if status is None:
            return
        due_s = due_in_s(old, status, self._last.get(identity), time.monotonic(), every_s=self._every_s)
        if due_s is None:
            return
        if due_s > 0:
            self._put_off(identity, due_s)
            return
        await self._write(seen, old, status)

    def _status(self, seen: Seen, old: dict[str, Any]) -> dict[str, Any] | None:
        """Return what the status should be, None where there is nothing to say yet.

        Whoever reads that a document is in force may rely on it. So a status tells of the document that was planned
        with, not of a newer one that has only been seen, and of no state that an earlier document gave the object.
        """
        identity = seen.identity
        desired = self._board.desired.get(identity)
        generation = seen.generation
        if desired is not None:
            of = self._board.judged.get(identity)
            if of is None or of.uid != seen.uid or self._board.awaits_registry(identity):
                return None
            judged, generation = desired.conditions, of.generation
            if generation < old.get("observedGeneration", 0) <= seen.generation:
                return None  # a newer one was refused already
        elif seen.document.problems:
            first = seen.document.problems[0]
            message = f"{first.path}: {first.reason}"
            judged = (Condition(c.READY, False, c.INVALID, message), Condition(c.ACCEPTED, False, c.INVALID, message))
        else:
            return None
        told = self._board.live.get(identity)
        packed = told.packed if told is not None else None
        facts = Facts(
            generation=generation, judged=judged, old=old, now=datetime.now(UTC),
            account=_unpack(scheduler_pb2.AccountStatus, packed if identity.kind == "ClaudeAccount" else None),
            pool=_unpack(scheduler_pb2.PoolStatus, packed if identity.kind == "AccountPool" else None),
            key=_unpack(scheduler_pb2.KeyStatus, packed if identity.kind == "RelayKey" else None),
            grant=self._board.grants.get(identity.id) if identity.kind == "ClaudeAccount" else None,
            refused=self._board.refused.get(identity.id, "") if identity.kind == "ClaudeAccount" else "",
        )
        return status_of(identity.kind, facts)

    async def _write(self, seen: Seen, old: dict[str, Any], status: dict[str, Any]) -> None:
        identity = seen.identity
        try:
            after = await self._writer.status(seen, status)
        except Refused as e:
            if e.code in _GONE:
                return
            self._metrics.statuses.labels(identity.kind, "refused").inc()
            if e.code not in self._told:
                log.warning("status_refused", kind=identity.kind, id=identity.id, code=e.code, why=e.message[:500])
                self._told.add(e.code)
            self._put_off(identity, self._every_s)
            return
        except Unavailable:
            self._metrics.statuses.labels(identity.kind, "failed").inc()
            self._put_off(identity, _BACK_OFF_S)
            await asyncio.sleep(_BACK_OFF_S)
            return
        self._metrics.statuses.labels(identity.kind, "done").inc()
        self._last[identity] = Written.of(status, time.monotonic())
        if (newer := read(after, seen)) is not None:
            self._board.notice(newer)
        await self._tell(seen, old, status)

    async def _tell(self, seen: Seen, old: dict[str, Any], status: dict[str, Any]) -> None:
        """Post Events. They are for people: one that cannot be posted is not posted later."""
        for event in events(seen.identity.kind, old, status):
            try:
                await self._writer.event(seen, event)
                self._metrics.events.labels(event.reason).inc()
            except SignalboxError as e:
                log.warning("event_not_posted", reason=event.reason, why=str(e))

    def _put_off(self, identity: Identity, by_s: float) -> None:
        at_s = time.monotonic() + by_s
        if self._waiting.get(identity, float("inf")) <= at_s:
            return
        self._waiting[identity] = at_s
        heapq.heappush(self._later, (at_s, next(self._order), identity))


def _unpack(kind: Any, packed: bytes | None) -> Any:
    return kind.FromString(packed) if packed is not None else None
