"""The usage room as the scheduler needs it: counters and facts after a loss, first uses, orphaned attempts."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import grpc
import grpc.aio

from signalbox.core import logs
from signalbox.core.errors import Unavailable
from signalbox.v1.usage_pb2 import (
    AttemptEvent,
    CountersQuery,
    ExplainQuery,
    Fact,
    IngestBatch,
    LedgerRow,
    QueryRequest,
    QueryResponse,
    RememberRequest,
)
from signalbox.v1.usage_pb2_grpc import UsageStub

log = logs.logger(__name__)

_QUERY_S = 30.0
_SHORT_S = 5.0
_RETRY_S = 1.0
_MOST_FACTS = 500


class UsageClient:
    """Calls with deadlines; facts are handed over in the background until they are kept."""

    def __init__(self, channel: grpc.aio.Channel, instance: str) -> None:
        self._stub = UsageStub(channel)
        self._instance = instance
        self._facts: list[Fact] = []
        self._wanted = asyncio.Event()

    async def counters(
        self, now_ms: int, *, ended_since_ms: int = 0, delivered: Sequence[str] = (),
    ) -> QueryResponse:
        """Return all that rebuilds the limit counters as of `now_ms` (Redis time). Raises Unavailable.

        With `ended_since_ms` (Redis time) also the attempts in it that may be settled yet, where the gateways in
        `delivered` have handed in their journals.
        """
        query = QueryRequest(
            counters=CountersQuery(now_ms=now_ms, ended_since_ms=ended_since_ms, delivered=delivered),
        )
        try:
            return await self._stub.Query(query, timeout=_QUERY_S)
        except grpc.aio.AioRpcError as e:
            raise Unavailable("usage", e.details() or e.code().name) from e

    async def attempts(self, request_id: str) -> dict[int, LedgerRow]:
        """Return what the ledger holds of a request, by attempt. Raises Unavailable."""
        try:
            answer = await self._stub.Query(QueryRequest(explain=ExplainQuery(request_id=request_id)), timeout=_SHORT_S)
        except grpc.aio.AioRpcError as e:
            raise Unavailable("usage", e.details() or e.code().name) from e
        return {row.attempt: row for row in answer.rows}

    def remember(self, facts: Sequence[Fact]) -> None:
        """Have facts kept for good; tried until it works."""
        self._facts += facts
        self._wanted.set()

    async def keep_remembering(self) -> None:
        """Hand over facts for ever."""
        while True:
            await self._wanted.wait()
            facts = self._facts[:_MOST_FACTS]
            try:
                await self._stub.Remember(RememberRequest(facts=facts), timeout=_SHORT_S)
            except grpc.aio.AioRpcError as e:
                log.warning("facts_not_kept", count=len(self._facts), why=e.details())
                await asyncio.sleep(_RETRY_S)
                continue
            del self._facts[: len(facts)]
            if not self._facts:
                self._wanted.clear()

    async def ingest(self, events: Sequence[AttemptEvent]) -> None:
        """Put events into the ledger; returns once they are committed. Raises Unavailable."""

        async def batches() -> AsyncIterator[IngestBatch]:
            yield IngestBatch(source=self._instance, batch=1, events=events)

        try:
            call = self._stub.Ingest(batches(), timeout=_SHORT_S)
            async for ack in call:
                if ack.batch == 1:
                    return
        except grpc.aio.AioRpcError as e:
            raise Unavailable("usage", e.details() or e.code().name) from e
        raise Unavailable("usage", "the stream ended before the batch was acknowledged")
