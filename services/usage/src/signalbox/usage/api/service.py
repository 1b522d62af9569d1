"""The contract's Usage service: ingest streams, queries, watches, facts. Decisions and SQL are elsewhere."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
import grpc.aio
from sqlalchemy.exc import SQLAlchemyError

from signalbox.core import logs
from signalbox.core.clock import Clock
from signalbox.core.errors import Unavailable
from signalbox.usage.adapters.queries import Queries
from signalbox.usage.adapters.sums import check_dimensions
from signalbox.usage.api.recorder import Recorder, cause
from signalbox.usage.api.watchers import Watchers
from signalbox.usage.domain.rows import OUTCOME_BY_NAME
from signalbox.v1 import usage_pb2 as pb
from signalbox.v1.usage_pb2_grpc import UsageServicer

log = logs.logger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")
MAX_FACTS = 10_000


class UsageService(UsageServicer):
    """Serves the ledger. `stop` ends the long-lived streams after what they have handed in."""

    def __init__(
        self, recorder: Recorder, queries: Queries, readers: ThreadPoolExecutor, watchers: Watchers, clock: Clock,
    ) -> None:
        self._recorder = recorder
        self._queries = queries
        self._readers = readers
        self._watchers = watchers
        self._clock = clock
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End ingest streams once their last batch is acknowledged, and all watches at once."""
        self._stopping.set()
        self._watchers.close()

    async def Ingest(self, request_iterator: AsyncIterator[pb.IngestBatch], context: Context) -> Any:  # noqa: N802
        batches = aiter(request_iterator)
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            while (batch := await _next_unless(stopping, batches)) is not None:
                await self._recorder.record(batch.events)
                yield pb.IngestAck(batch=batch.batch)
        except Unavailable as e:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(e))
        finally:
            stopping.cancel()

    async def Query(self, request: pb.QueryRequest, context: Context) -> pb.QueryResponse:  # noqa: N802
        kind = request.WhichOneof("query")
        as_of_ms = self._clock.now_ms()
        if kind == "requests":
            if request.requests.outcome and request.requests.outcome not in OUTCOME_BY_NAME:
                await _refuse(context, f"outcome is one of {', '.join(OUTCOME_BY_NAME)}")
            rows = await self._read(context, lambda: self._queries.requests(request.requests))
            return pb.QueryResponse(rows=rows, as_of_ms=as_of_ms)
        if kind == "explain":
            rows = await self._read(context, lambda: self._queries.explain(request.explain))
            return pb.QueryResponse(rows=rows, as_of_ms=as_of_ms)
        if kind == "usage":
            try:
                check_dimensions(request.usage.by)
            except ValueError as e:
                await _refuse(context, str(e))
            usage = await self._read(context, lambda: self._queries.usage(request.usage))
            return pb.QueryResponse(usage=usage, as_of_ms=as_of_ms)
        if kind == "counters":
            answer = await self._read(context, lambda: self._queries.counters(request.counters))
            answer.as_of_ms = as_of_ms
            return answer
        await _refuse(context, "a query asks for requests, usage, explain or counters")
        raise AssertionError("abort raises")

    async def Watch(self, request: pb.WatchRowsRequest, context: Context) -> Any:  # noqa: N802
        try:
            with self._watchers.watch(request.key_id) as watch:
                # Tells the caller that from here on nothing is missed.
                await context.send_initial_metadata(())
                while (row := await watch.next()) is not None:
                    yield row
        except Unavailable as e:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(e))

    async def Remember(self, request: pb.RememberRequest, context: Context) -> pb.RememberResponse:  # noqa: N802
        facts = list(request.facts)
        if len(facts) > MAX_FACTS or not all(fact.kind and fact.key_id and fact.at_ms > 0 for fact in facts):
            await _refuse(context, f"at most {MAX_FACTS} facts, each with kind, key_id and at_ms")
        try:
            return pb.RememberResponse(facts=await self._recorder.remember(facts))
        except Unavailable as e:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(e))
            raise AssertionError("abort raises") from e

    async def _read(self, context: Context, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, work)
        except SQLAlchemyError as e:
            log.warning("ledger_read_failed", error=type(e).__name__, why=cause(e))
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the ledger's database does not answer")
            raise AssertionError("abort raises") from e


async def _refuse(context: Context, message: str) -> None:
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)


async def _next_unless(
    stopping: "asyncio.Future[Any]", batches: AsyncIterator[pb.IngestBatch],
) -> pb.IngestBatch | None:
    """Return the next batch; None at the end of the stream or when `stopping` is done first."""
    reading: asyncio.Future[pb.IngestBatch | None] = asyncio.ensure_future(_next(batches))
    await asyncio.wait((reading, stopping), return_when=asyncio.FIRST_COMPLETED)
    if reading.done():
        return reading.result()
    reading.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await reading
    return None


async def _next(batches: AsyncIterator[pb.IngestBatch]) -> pb.IngestBatch | None:
    return await anext(batches, None)
