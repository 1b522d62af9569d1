"""A caller's own usage, asked of the ledger."""

from typing import TYPE_CHECKING

import grpc
import grpc.aio

from signalbox.core.errors import Unavailable
from signalbox.v1.usage_pb2 import QueryRequest, UsageQuery, UsageRow
from signalbox.v1.usage_pb2_grpc import UsageStub

if TYPE_CHECKING:
    from signalbox.v1.usage_pb2_grpc import UsageAsyncStub

CALL_LIMIT_S = 10.0


class UsageReports:
    """Questions to the usage service."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: UsageAsyncStub = UsageStub(channel)

    async def of_key(self, key_id: str, by: str, since_ms: int, until_ms: int) -> list[UsageRow]:
        """Return the key's usage, grouped by `by` ("" for one row). Raises Unavailable."""
        query = UsageQuery(by=[by] if by else [], since_ms=since_ms, until_ms=until_ms, key_id=key_id)
        try:
            answer = await self._stub.Query(QueryRequest(usage=query), timeout=CALL_LIMIT_S)
        except grpc.aio.AioRpcError as e:
            raise Unavailable("usage", e.details() or e.code().name) from e
        return list(answer.usage)
