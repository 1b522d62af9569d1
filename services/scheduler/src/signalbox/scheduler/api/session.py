"""One gateway's Session stream: what arrived while the batch before was decided is decided, and answered, as one batch.

Settles that cannot be applied yet are answered later, by a push, once they can.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine

import grpc.aio

from signalbox.core import logs
from signalbox.scheduler.adapters.dispatch import Dispatcher
from signalbox.scheduler.adapters.gate import Gate
from signalbox.scheduler.adapters.sessions import Sessions
from signalbox.v1.scheduler_pb2 import GatewayBatch, SchedulerBatch, SettleRequest

log = logs.logger(__name__)

_MOST_WAITING = 4096

Context = grpc.aio.ServicerContext[GatewayBatch, SchedulerBatch]


class GatewaySession:
    """Serves one stream until it ends."""

    def __init__(self, dispatcher: Dispatcher, sessions: Sessions, gate: Gate, context: Context) -> None:
        self._dispatcher = dispatcher
        self._sessions = sessions
        self._gate = gate
        self._context = context
        self._writing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = GatewayBatch()
        self._changed = asyncio.Event()
        self._taken = asyncio.Event()
        self._ended = False
        self.gateway_id = ""

    async def serve(self, batches: AsyncIterator[GatewayBatch]) -> None:
        """Answer batches until the gateway leaves."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._answer_all())
                async for batch in batches:
                    await self._take(batch)
                self._ended = True
                self._changed.set()
        finally:
            self._sessions.leave(self)
            self._dispatcher.queue.drop(self)
            for task in self._tasks:
                task.cancel()

    async def _take(self, batch: GatewayBatch) -> None:
        if batch.HasField("hello"):
            self.gateway_id = batch.hello.gateway_id
            await self._write(SchedulerBatch())
            self._sessions.enter(self)
            log.info("gateway_connected", gateway=self.gateway_id)
        self._waiting.MergeFrom(batch)
        self._changed.set()
        while len(self._waiting.admits) + len(self._waiting.settles) > _MOST_WAITING:
            self._taken.clear()
            await self._taken.wait()  # gRPC's flow control slows the gateway down meanwhile

    async def _answer_all(self) -> None:
        while not self._ended or self._waiting.ByteSize():
            await self._changed.wait()
            self._changed.clear()
            batch, self._waiting = self._waiting, GatewayBatch()
            self._taken.set()
            await self._answer(batch)

    async def _answer(self, batch: GatewayBatch) -> None:
        answer, unsettled = await self._dispatcher.run(batch, self.push, self)
        if unsettled:
            self._spawn(self._settle_later(unsettled))
        if answer.ByteSize():
            await self._write(answer)
        if batch.HasField("journal_delivered"):
            self._sessions.note_delivered(self, batch.journal_delivered.epoch)

    async def _settle_later(self, settles: list[SettleRequest]) -> None:
        """Apply settles once the gate is open. The gateway's own repetition covers for a scheduler that dies."""
        while settles:
            await self._gate.wait_open()
            answer, settles = await self._dispatcher.run(GatewayBatch(settles=settles), self.push, self)
            if answer.ByteSize():
                await self._write(answer)

    async def _write(self, batch: SchedulerBatch) -> None:
        async with self._writing:
            await self._context.write(batch)

    def push(self, batch: SchedulerBatch) -> None:
        """Send something unasked; a stream that is gone does not mind."""
        self._spawn(self._push(batch))

    async def _push(self, batch: SchedulerBatch) -> None:
        with contextlib.suppress(grpc.aio.UsageError, asyncio.InvalidStateError):
            await self._write(batch)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
