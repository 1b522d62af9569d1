"""One gateway's Session stream: what arrived while the batch before was decided is decided, and answered, as one batch.

Settles that cannot be applied yet are answered later, by a push, once they can. Who carries the stream, the gRPC
library or the listener of our own, is carriers.py's business.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from signalbox.core import logs
from signalbox.scheduler.adapters.dispatch import Dispatcher
from signalbox.scheduler.adapters.gate import Gate
from signalbox.scheduler.adapters.sessions import Sessions
from signalbox.v1.scheduler_pb2 import GatewayBatch, SchedulerBatch, SettleRequest

log = logs.logger(__name__)

_MOST_WAITING = 4096
_NOTHING = SchedulerBatch()


class Carrier(Protocol):
    """What a session asks of whoever carries its stream."""

    def say(self, batch: SchedulerBatch) -> None:
        """Send a batch; one that is gone does not mind."""
        ...

    def changed(self) -> None:
        """Look at `is_full` and `is_idle` again."""
        ...

    def failed(self) -> None:
        """End the stream: a defect kept a batch from being answered; the gateway asks again on another stream."""
        ...


class GatewaySession:
    """Answers one stream, from its first batch to `leave`."""

    def __init__(self, dispatcher: Dispatcher, sessions: Sessions, gate: Gate, carrier: Carrier) -> None:
        self._dispatcher = dispatcher
        self._sessions = sessions
        self._gate = gate
        self._carrier = carrier
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: GatewayBatch | None = None
        self._answering = False
        self.gateway_id = ""

    @property
    def is_full(self) -> bool:
        """Whether so much waits that the gateway should be slowed down."""
        waiting = self._waiting
        return waiting is not None and len(waiting.admits) + len(waiting.settles) > _MOST_WAITING

    @property
    def is_idle(self) -> bool:
        """Whether all that was asked is answered, but for what waits for an account or for Redis."""
        return not self._answering

    def take(self, batch: GatewayBatch) -> None:
        """Take a batch; its answer follows."""
        if batch.HasField("hello"):
            self.gateway_id = batch.hello.gateway_id
            self._carrier.say(SchedulerBatch())
            self._sessions.enter(self)
            log.info("gateway_connected", gateway=self.gateway_id)
        if self._waiting is None:
            self._waiting = batch
        else:
            self._waiting.MergeFrom(batch)
        if not self._answering:
            self._answering = True
            self._spawn(self._answer_all())

    def leave(self) -> None:
        """The stream ended."""
        self._sessions.leave(self)
        self._dispatcher.queue.drop(self)
        for task in self._tasks:
            task.cancel()

    def push(self, batch: SchedulerBatch) -> None:
        """Send something that the gateway did not ask for."""
        self._carrier.say(batch)

    async def _answer_all(self) -> None:
        while self._waiting is not None:
            batch, self._waiting = self._waiting, None
            self._carrier.changed()
            await self._answer(batch)
        self._answering = False
        self._carrier.changed()

    async def _answer(self, batch: GatewayBatch) -> None:
        answer, unsettled = await self._dispatcher.run(batch, self.push, self)
        if unsettled:
            self._spawn(self._settle_later(unsettled))
        if answer != _NOTHING:
            self._carrier.say(answer)
        if batch.HasField("journal_delivered"):
            self._sessions.note_delivered(self, batch.journal_delivered.epoch)

    async def _settle_later(self, settles: list[SettleRequest]) -> None:
        """Apply settles once the gate is open. The gateway's own repetition covers for a scheduler that dies."""
        while settles:
            await self._gate.wait_open()
            answer, settles = await self._dispatcher.run(GatewayBatch(settles=settles), self.push, self)
            if answer != _NOTHING:
                self._carrier.say(answer)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("session_failed", exc_info=error)
            self._carrier.failed()


Begin = Callable[[Carrier], GatewaySession]
