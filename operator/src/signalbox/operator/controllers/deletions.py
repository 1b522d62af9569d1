"""Holds accounts until they are drained: puts our finalizer on them, and takes it off when they may go."""

import asyncio
from datetime import UTC, datetime, timedelta

from signalbox.core import logs
from signalbox.core.errors import Refused, SignalboxError
from signalbox.operator.adapters.writing import Writer
from signalbox.operator.controllers.board import Board
from signalbox.operator.domain.deletion import Step, step
from signalbox.operator.domain.events import DRAIN_LIMIT_REACHED, WARNING, Event
from signalbox.operator.domain.world import Seen, read
from signalbox.operator.metrics import Metrics
from signalbox.resources.compiled import CompiledAccount
from signalbox.resources.models import AccountState
from signalbox.rooms.client import Rooms

log = logs.logger(__name__)

_EVERY_S = 0.5
_GONE = ("NotFound", "Conflict", "Invalid")


class Deletions:
    """Looks after the accounts' finalizers until cancelled."""

    def __init__(
        self, board: Board, rooms: Rooms, writer: Writer, *, limit: timedelta, metrics: Metrics,
    ) -> None:
        self._board = board
        self._rooms = rooms
        self._writer = writer
        self._limit = limit
        self._metrics = metrics

    async def keep_holding(self) -> None:
        """Hold new accounts, let drained ones go."""
        while True:
            self._metrics.beat("deletions")
            if self._board.complete:
                await self._look()
            await asyncio.sleep(_EVERY_S)

    async def _look(self) -> None:
        accounts = self._board.world.of_kinds(["ClaudeAccount"])
        leaving = [seen for seen in accounts if seen.deleting_since is not None and seen.held]
        in_flight = await self._in_flight(leaving) if leaving else {}
        now = datetime.now(UTC)
        for seen in accounts:
            self._metrics.beat("deletions")
            try:
                await self._take(step(seen, in_flight.get(seen.identity.id), now=now, limit=self._limit), seen)
            except Refused as e:
                if e.code not in _GONE:
                    log.warning("finalizer_not_written", id=seen.identity.id, why=str(e))
            except SignalboxError:
                return  # the API server is away

    async def _take(self, chosen: Step, seen: Seen) -> None:
        match chosen:
            case Step.HOLD:
                after = await self._writer.hold(seen)
            case Step.RELEASE | Step.GIVE_UP:
                after = await self._writer.release(seen)
            case _:
                return
        if (newer := read(after, seen)) is not None:
            self._board.notice(newer)
        if chosen is Step.GIVE_UP:
            await self._tell(seen)

    async def _tell(self, seen: Seen) -> None:
        """Post that an account went without being idle; where its namespace goes too, nobody can be told."""
        note = f"not known to be idle after {self._limit.total_seconds():g} s; deleted all the same"
        try:
            await self._writer.event(seen, Event(WARNING, DRAIN_LIMIT_REACHED, note))
        except SignalboxError as e:
            log.warning("event_not_posted", reason=DRAIN_LIMIT_REACHED, why=str(e))

    async def _in_flight(self, leaving: list[Seen]) -> dict[str, int]:
        """Return how many requests run on accounts that are known to take no new conversation; {} where unknown."""
        try:
            found = await self._rooms.list_objects("ClaudeAccount", [seen.identity.id for seen in leaving])
        except SignalboxError:
            return {}
        counted = {seen.identity.id: 0 for seen in leaving}  # what is not in the registry runs nothing
        for item in found:
            if CompiledAccount.read(item.object.spec_json).state is AccountState.ACTIVE:
                del counted[item.object.id]
            else:
                counted[item.object.id] = item.account.in_flight
        return counted
