"""The two ways in which a gateway's Session stream reaches this room: by a listener of our own on the event loop, and
by the gRPC library, as everything else does. Both hand the same batches to the same session (session.py).
"""

import asyncio
from collections.abc import AsyncIterator

import grpc.aio
from google.protobuf.message import DecodeError

from signalbox.core.grpc_listener import INTERNAL, INVALID_ARGUMENT, OK, Call
from signalbox.scheduler.api.session import Begin
from signalbox.v1.scheduler_pb2 import GatewayBatch, SchedulerBatch

_MOST_UNWRITTEN = 256    # batches; a gateway that reads no answers is not asked for questions

Context = grpc.aio.ServicerContext[GatewayBatch, SchedulerBatch]


class CalledDirectly:
    """A session on a call of the listener."""

    def __init__(self, call: Call, begin: Begin) -> None:
        self._call = call
        self._session = begin(self)
        self._paused = False
        self._nothing_more = False
        call.ended.add_done_callback(lambda _: self._session.leave())

    def take(self, message: bytes) -> None:
        """Take one serialised batch."""
        try:
            batch = GatewayBatch.FromString(message)
        except DecodeError:
            self._call.finish(INVALID_ARGUMENT, "the batch is unreadable")
            return
        self._session.take(batch)
        if self._session.is_full and not self._paused:
            self._paused = True
            self._call.pause_reading()

    def take_end(self) -> None:
        """Learn that the gateway asks nothing more."""
        self._nothing_more = True
        self.changed()

    def say(self, batch: SchedulerBatch) -> None:
        """Send a batch."""
        self._call.send(batch.SerializeToString())

    def changed(self) -> None:
        """Read on where there is room again, and end where all is answered."""
        if self._paused and not self._session.is_full:
            self._paused = False
            self._call.resume_reading()
        if self._nothing_more and self._session.is_idle:
            self._call.finish(OK)

    def failed(self) -> None:
        """End the call."""
        self._call.finish(INTERNAL, "the scheduler failed to answer")


class CalledThroughLibrary:
    """A session on a call of the gRPC library."""

    def __init__(self, begin: Begin) -> None:
        self._session = begin(self)
        self._unwritten: list[SchedulerBatch] = []
        self._to_do = asyncio.Event()    # for the writer
        self._has_room = asyncio.Event()  # for the reader
        self._nothing_more = False
        self._has_failed = False

    async def serve(self, batches: AsyncIterator[GatewayBatch], context: Context) -> None:
        """Answer batches until the gateway leaves."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write_all(context))
                async for batch in batches:
                    self._session.take(batch)
                    while self._session.is_full or len(self._unwritten) > _MOST_UNWRITTEN:
                        self._has_room.clear()
                        await self._has_room.wait()  # gRPC's flow control slows the gateway down meanwhile
                self._nothing_more = True
                self._to_do.set()
        finally:
            self._session.leave()

    async def _write_all(self, context: Context) -> None:
        while self._unwritten or not (self._nothing_more and self._session.is_idle):
            if not self._unwritten:
                self._to_do.clear()
                await self._to_do.wait()
            if self._has_failed:
                raise RuntimeError("a batch could not be answered")
            batches, self._unwritten = self._unwritten, []
            self._has_room.set()
            for batch in batches:
                await context.write(batch)

    def say(self, batch: SchedulerBatch) -> None:
        """Send a batch."""
        self._unwritten.append(batch)
        self._to_do.set()

    def changed(self) -> None:
        """Let the reader and the writer look again."""
        self._has_room.set()
        self._to_do.set()

    def failed(self) -> None:
        """End the call."""
        self._has_failed = True
        self._to_do.set()
