"""Carries the journal to the usage service: batches, acknowledged after commit, sent again until then.

Also adopts the journals of gateway processes that died, so that their attempts reach the ledger as orphans.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import grpc
import grpc.aio

from signalbox.core import logs
from signalbox.core.embedding import embedded
from signalbox.gateway.adapters.journal import Deliverable, FileJournal, adopt
from signalbox.gateway.adapters.journal_file import SUFFIX, DirectoryLock, read_attempts
from signalbox.v1.usage_pb2 import DESCRIPTOR, IngestAck, IngestBatch

log = logs.logger(__name__)

LINGER_S = 0.5
MAX_BATCH = 1000
ACK_LIMIT_S = 60.0
RETRY_FIRST_S = 0.1
RETRY_MOST_S = 2.0
ADOPT_EVERY_S = 2.0

_METHOD: Final = f"/{DESCRIPTOR.services_by_name['Usage'].full_name}/Ingest"


class _IngestStream:
    """One open Ingest call; one batch in flight at a time."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        # Not by the stub, which takes batches that are built: records are on hand as they were written.
        ingest: grpc.aio.StreamStreamMultiCallable[bytes, IngestAck] = channel.stream_stream(
            _METHOD, response_deserializer=IngestAck.FromString,
        )
        self._call = ingest()
        self._acks: AsyncIterator[IngestAck] = aiter(self._call)
        self._batch = 0

    async def send(self, source: str, events: list[bytes]) -> None:
        """Return once the ledger has committed these events. Raises grpc.aio.AioRpcError, TimeoutError, EOFError."""
        self._batch += 1
        head = IngestBatch(source=source, batch=self._batch).SerializeToString()
        await self._call.write(head + embedded(IngestBatch.EVENTS_FIELD_NUMBER, events))
        async with asyncio.timeout(ACK_LIMIT_S):
            async for ack in self._acks:
                if ack.batch >= self._batch:
                    return
        raise EOFError("the usage service ended the stream")

    def close(self) -> None:
        self._call.cancel()


class JournalDelivery:
    """Runs until closed; `journal` is bound after construction because it wants `wake`."""

    def __init__(self, channel: grpc.aio.Channel, directory: Path, instance: str) -> None:
        self._channel = channel
        self._directory = directory
        self._source = instance
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._stream: _IngestStream | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._urgent = False
        self._busy = asyncio.Lock()
        self._adopting = asyncio.Lock()
        self.journal = FileJournal(directory, instance, self.wake)

    def start(self) -> None:
        """Begin delivering and adopting."""
        self._tasks = [asyncio.create_task(self._deliver()), asyncio.create_task(self._adopt())]

    def wake(self) -> None:
        """Note that the journal has something to deliver."""
        self._wanted.set()

    async def drain(self, limit_s: float) -> bool:
        """Deliver all that is journalled now; return whether that worked within `limit_s` seconds."""
        self._urgent = True
        self._wanted.set()
        try:
            async with asyncio.timeout(limit_s):
                while self.journal.pending or self.journal.spilled or self._busy.locked():
                    self._wanted.set()
                    await asyncio.sleep(0.01)
        except TimeoutError:
            return False
        finally:
            self._urgent = False
        return True

    async def hand_over(self, limit_s: float) -> bool:
        """Deliver all that is journalled, journals of the dead first; return whether that worked in `limit_s` seconds.

        Whoever asks takes the ledger's answer for complete afterwards.
        """
        end_s = asyncio.get_running_loop().time() + limit_s
        try:
            async with asyncio.timeout_at(end_s):
                await self._adopt_all()
        except TimeoutError:
            return False
        return await self.drain(end_s - asyncio.get_running_loop().time())

    async def close(self, limit_s: float) -> None:
        """Deliver what is there, stop, close the journal. What could not be delivered stays on disk."""
        if not await self.drain(limit_s):
            log.warning("journal_left_on_disk", pending=self.journal.pending)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._stream is not None:
            self._stream.close()
        self.journal.close()

    # ------------------------------------------------------------------ delivery

    async def _deliver(self) -> None:
        pause_s = RETRY_FIRST_S
        while True:
            await self._wanted.wait()
            if not self._urgent:
                await asyncio.sleep(LINGER_S)
            self._wanted.clear()
            async with self._busy:
                while records := self.journal.take(MAX_BATCH):
                    if not await self._send_records(records):
                        self.journal.put_back(records)
                        self._wanted.set()
                        await asyncio.sleep(pause_s)
                        pause_s = min(pause_s * 2, RETRY_MOST_S)
                        break
                    pause_s = RETRY_FIRST_S
                    if len(records) < MAX_BATCH and not self._urgent and not self.journal.spilled:
                        break    # what has come meanwhile waits for more: a commit costs as much as many rows

    async def _send_records(self, records: list[Deliverable]) -> bool:
        if not await self._send([record for record, _ in records]):
            return False
        self.journal.delivered(records)
        return True

    async def _send(self, events: list[bytes]) -> bool:
        stream = self._stream or _IngestStream(self._channel)
        self._stream = None
        try:
            await stream.send(self._source, events)
        except (grpc.aio.AioRpcError, TimeoutError, EOFError, asyncio.InvalidStateError) as e:
            stream.close()
            why = e.details() if isinstance(e, grpc.aio.AioRpcError) else str(e)
            log.warning("journal_delivery_failed", why=why, events=len(events))
            return False
        except BaseException:
            stream.close()
            raise
        self._stream = stream
        return True

    # ------------------------------------------------------------------ journals of the dead

    async def _adopt(self) -> None:
        while True:
            await self._adopt_all()
            await asyncio.sleep(ADOPT_EVERY_S)

    async def _adopt_all(self) -> None:
        async with self._adopting:
            with contextlib.suppress(OSError):
                while (found := adopt(self._directory, self.journal.directory)) is not None:
                    await self._deliver_adopted(*found)

    async def _deliver_adopted(self, lock: DirectoryLock, directory: Path) -> None:
        try:
            for path in sorted(directory.glob(f"*{SUFFIX}")):
                attempts = [event.SerializeToString() for event in await asyncio.to_thread(read_attempts, path)]
                for start in range(0, len(attempts), MAX_BATCH):
                    await self._send_until_taken(attempts[start : start + MAX_BATCH])
                path.unlink(missing_ok=True)
            (directory / "lock").unlink(missing_ok=True)
            directory.rmdir()
        finally:
            lock.release()

    async def _send_until_taken(self, events: list[bytes]) -> None:
        pause_s = RETRY_FIRST_S
        while True:
            async with self._busy:
                if await self._send(events):
                    return
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RETRY_MOST_S)
