"""Follows what the rooms say of objects and grants: at once by the registry's watch, numbers now and then."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable

from signalbox.core import logs
from signalbox.core.errors import SignalboxError
from signalbox.operator.controllers.board import Board
from signalbox.operator.metrics import Metrics
from signalbox.resources.reading import Identity
from signalbox.rooms.client import Rooms
from signalbox.v1.scheduler_pb2 import ObjectEvent

log = logs.logger(__name__)

GRANTS_EVERY_S = 5.0
_PAGE = 500
_BETWEEN_PAGES_S = 0.2
_GATHER_S = 0.2
_AGAIN_S = 1.0
_REWATCH_S = 0.5


class Live:
    """Keeps `board.live` and `board.grants` true. `lost` is called when a room may have lost what it was told.

    `every_s` is how often numbers are read.
    """

    def __init__(
        self, board: Board, rooms: Rooms, *, every_s: float, metrics: Metrics, lost: Callable[[], None],
    ) -> None:
        self._every_s = every_s
        self._board = board
        self._rooms = rooms
        self._metrics = metrics
        self._lost = lost
        self._asked: set[Identity] = set()
        self._some_asked = asyncio.Event()

    async def keep_watching(self) -> None:
        """Follow the registry's watch; it begins with everything.

        It has no heartbeat, for it may rightly be silent for hours: gRPC's keep-alive tells when it is dead, and
        what it missed is counted soon anyway.
        """
        while True:
            synced = False
            async for event in self._rooms.watch_objects():
                if event.type == ObjectEvent.SYNCED:
                    synced = True
                    self._board.unheard.discard("registry")
                self._take(event, first=not synced)
            await asyncio.sleep(_REWATCH_S)

    async def keep_asking(self) -> None:
        """Ask again for what changed: a pool after its accounts did, a key's counters after its document did.

        What was not answered, and what is in doubt, is asked for until it is told.
        """
        while True:
            self._metrics.beat("registry_questions")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._some_asked.wait(), _AGAIN_S)
                await asyncio.sleep(_GATHER_S)
            self._some_asked.clear()
            asked, self._asked = self._asked, set()
            asked.update(i for i in list(self._board.doubtful) if self._board.awaits_registry(i))
            try:
                await self._ask(asked)
            except SignalboxError:
                self._asked |= asked
                await asyncio.sleep(_AGAIN_S)

    async def keep_counting(self) -> None:
        """Read the numbers of everything, a page at a time."""
        while True:
            await asyncio.sleep(self._every_s)
            self._metrics.beat("numbers")
            with contextlib.suppress(SignalboxError):
                await self._ask(list(self._board.desired), pause_s=_BETWEEN_PAGES_S)
            self._board.mark(list(self._board.desired))

    async def keep_grants(self) -> None:
        """Read the grants' states."""
        while True:
            self._metrics.beat("grants")
            with contextlib.suppress(SignalboxError):
                found = await self._rooms.grants()
                self._board.unheard.discard("grants")
                if any(account not in found for account in self._board.grants):
                    self._lost()
                healings = self._board.healings
                old, self._board.grants = self._board.grants, found
                if self._board.healings != healings:
                    self._board.changed.set()
                self._board.mark(
                    Identity("ClaudeAccount", *account.split("/", 1))
                    for account, grant in found.items() if old.get(account) != grant
                )
            await asyncio.sleep(GRANTS_EVERY_S)

    # ------------------------------------------------------------------ inside

    def _take(self, event: ObjectEvent, *, first: bool) -> None:
        if event.type in (ObjectEvent.RESYNC, ObjectEvent.SYNCED):
            self._lost()
            return
        item = event.object
        identity = Identity(item.object.kind, *item.object.id.split("/", 1))
        if event.type == ObjectEvent.DELETED:
            self._board.live.pop(identity, None)
        elif first or identity.kind == "ClaudeAccount":
            self._board.learn(item)
        else:
            self._question([identity])  # the event has no counters
        if identity.kind == "ClaudeAccount" and not first:
            self._question(
                i for i in self._board.desired if i.kind == "AccountPool" and i.namespace == identity.namespace
            )

    def _question(self, identities: Iterable[Identity]) -> None:
        self._asked.update(identities)
        self._some_asked.set()

    async def _ask(self, identities: Iterable[Identity], *, pause_s: float = 0.0) -> None:
        by_kind: dict[str, list[str]] = {}
        for identity in identities:
            by_kind.setdefault(identity.kind, []).append(identity.id)
        for kind, ids in by_kind.items():
            for start in range(0, len(ids), _PAGE):
                for item in await self._rooms.list_objects(kind, ids[start : start + _PAGE]):
                    self._board.learn(item)
                await asyncio.sleep(pause_s)
