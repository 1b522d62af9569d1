"""Calls from the command line and the reconcilers to the rooms of one instance, by gRPC.

Any scheduler will do: one that is away is passed over. What an answer means is the callers' business.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar

import grpc
import grpc.aio

from signalbox.core import rpc
from signalbox.core.errors import Refused, Unavailable
from signalbox.core.settings import RoomSettings
from signalbox.rooms.addresses import Addresses
from signalbox.v1 import scheduler_pb2, token_refresher_pb2, usage_pb2
from signalbox.v1.scheduler_pb2_grpc import SchedulerStub
from signalbox.v1.token_refresher_pb2_grpc import TokenRefresherStub
from signalbox.v1.usage_pb2_grpc import UsageStub

_PATIENCE_S = 8.0
_CALL_LIMIT_S = 30.0
# With others to ask, a replica that hangs is not waited for that long.
_REPLICA_LIMIT_S = 3.0
_PAUSE_S = 0.1
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)

Answer = TypeVar("Answer")


class Rooms:
    """Channels to the rooms of one instance, open within `async with`.

    Every call raises Unavailable when the room stays away for several seconds, Refused when it says no.
    """

    def __init__(self, addresses: Addresses, settings: RoomSettings) -> None:
        ledger = addresses.usage or addresses.token_refresher
        self._channels = [
            rpc.connect(settings, address) for address in (*addresses.scheduler, addresses.token_refresher, ledger)
        ]
        *schedulers, refresher, usage = self._channels
        self._schedulers = [SchedulerStub(channel) for channel in schedulers]
        self._refresher = TokenRefresherStub(refresher)
        self._usage = UsageStub(usage)

    async def __aenter__(self) -> Self:
        """Return the rooms; channels connect at the first call."""
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None,
    ) -> None:
        """Close the channels."""
        await asyncio.gather(*(channel.close() for channel in self._channels))

    # ------------------------------------------------------------------ registry

    async def list_objects(
        self, kind: str = "", ids: Sequence[str] = (), *, with_status: bool = True,
    ) -> list[scheduler_pb2.ObjectWithStatus]:
        """Return registry objects, all kinds where none is named, all ids where none are."""
        request = scheduler_pb2.ListObjectsRequest(kinds=[kind] if kind else [], ids=ids, with_status=with_status)
        methods = [stub.ListObjects for stub in self._schedulers]
        return list((await _call("scheduler", methods, request)).objects)

    async def put_objects(self, objects: Sequence[scheduler_pb2.Object], writer: str, fence: int) -> None:
        """Create or replace registry objects."""
        request = scheduler_pb2.PutObjectsRequest(writer=writer, fence=fence, objects=objects)
        await _call("scheduler", [stub.PutObjects for stub in self._schedulers], request)

    async def delete_objects(self, refs: Sequence[scheduler_pb2.ObjectRef], writer: str, fence: int) -> None:
        """Remove registry objects; those that are gone already are no error."""
        request = scheduler_pb2.DeleteObjectsRequest(writer=writer, fence=fence, objects=refs)
        await _call("scheduler", [stub.DeleteObjects for stub in self._schedulers], request)

    async def watch_objects(self) -> AsyncIterator[scheduler_pb2.ObjectEvent]:
        """Yield the registry's events from the first scheduler that answers, until it goes away."""
        for stub in self._schedulers:
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for event in stub.WatchObjects(scheduler_pb2.WatchObjectsRequest()):
                    yield event
                return

    # ------------------------------------------------------------------ credentials

    async def grants(self, account_ids: Sequence[str] = ()) -> dict[str, token_refresher_pb2.GrantStatus]:
        """Return the state of the grants by account id, all where none are named."""
        request = token_refresher_pb2.GrantStatusRequest(account_ids=account_ids)
        answer = await _call("token-refresher", [self._refresher.Status], request)
        return {grant.account_id: grant for grant in answer.grants}

    async def watch_credentials(self) -> AsyncIterator[token_refresher_pb2.CredentialEvent]:
        """Yield the token-refresher's events until it goes away."""
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for event in self._refresher.Watch(token_refresher_pb2.WatchCredentialsRequest()):
                yield event

    async def put_grant(self, request: token_refresher_pb2.PutGrantRequest) -> None:
        """Create or replace a grant."""
        await _call("token-refresher", [self._refresher.PutGrant], request)

    async def delete_grant(self, account_id: str) -> None:
        """Remove a grant."""
        request = token_refresher_pb2.DeleteGrantRequest(account_id=account_id)
        await _call("token-refresher", [self._refresher.DeleteGrant], request)

    async def begin_authorization(
        self, account_id: str, redirect_uri: str,
    ) -> token_refresher_pb2.BeginAuthorizationResponse:
        """Return where an operator signs in for the account, and the state that comes back with the code."""
        request = token_refresher_pb2.BeginAuthorizationRequest(account_id=account_id, redirect_uri=redirect_uri)
        return await _call("token-refresher", [self._refresher.BeginAuthorization], request)

    async def complete_authorization(self, state: str, code: str) -> token_refresher_pb2.GrantStatus:
        """Have the code exchanged and the grant kept."""
        request = token_refresher_pb2.CompleteAuthorizationRequest(state=state, code=code)
        return await _call("token-refresher", [self._refresher.CompleteAuthorization], request)

    async def probe(self, request: token_refresher_pb2.ProbeRequest) -> token_refresher_pb2.ProbeResponse:
        """Make one count_tokens call with an account's credential."""
        return await _call("token-refresher", [self._refresher.Probe], request)

    # ------------------------------------------------------------------ ledger

    async def query(self, request: usage_pb2.QueryRequest) -> usage_pb2.QueryResponse:
        """Ask the ledger."""
        return await _call("usage", [self._usage.Query], request)


async def _call(room: str, methods: Sequence[Callable[..., Awaitable[Answer]]], request: object) -> Answer:
    """Try each replica in turn until one answers or patience ends. A replica that is away mostly refuses at once."""
    patient_until_s = time.monotonic() + _PATIENCE_S
    limit_s = _CALL_LIMIT_S if len(methods) == 1 else _REPLICA_LIMIT_S
    while True:
        for method in methods:
            try:
                return await method(request, timeout=limit_s)
            except grpc.aio.AioRpcError as e:
                if e.code() not in _AWAY:
                    raise _as_ours(room, e) from e
                error = e
        if time.monotonic() > patient_until_s:
            raise _as_ours(room, error) from error
        await asyncio.sleep(_PAUSE_S)


def _as_ours(room: str, error: grpc.aio.AioRpcError) -> Unavailable | Refused:
    details = error.details() or error.code().name
    if error.code() in _AWAY:
        return Unavailable(room, details)
    return Refused(error.code().name.lower(), f"{room}: {details}")
