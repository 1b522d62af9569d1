"""The Scheduler service: unary calls as batches of one, the Session stream, the registry."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio

from signalbox.core.errors import Refused, Unavailable
from signalbox.core.grpc_listener import Call
from signalbox.scheduler.adapters.dispatch import Dispatcher
from signalbox.scheduler.adapters.gate import Gate
from signalbox.scheduler.adapters.live import LiveRefresher
from signalbox.scheduler.adapters.registry import Registry, Watcher
from signalbox.scheduler.adapters.sessions import Sessions
from signalbox.scheduler.adapters.store import LostState, Store
from signalbox.scheduler.api.carriers import CalledDirectly, CalledThroughLibrary
from signalbox.scheduler.api.session import Carrier, GatewaySession
from signalbox.v1 import scheduler_pb2 as pb
from signalbox.v1.scheduler_pb2_grpc import SchedulerServicer

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

_WATCH_POLL_S = 1.0


class SchedulerService(SchedulerServicer):
    """Implements scheduler.proto."""

    def __init__(
        self, dispatcher: Dispatcher, registry: Registry, live: LiveRefresher, *, sessions: Sessions, gate: Gate,
        store: Store,
    ) -> None:
        self._live = live
        self._dispatcher = dispatcher
        self._registry = registry
        self._sessions = sessions
        self._gate = gate
        self._store = store
        self.stopping = asyncio.Event()

    # ------------------------------------------------------------------ requests

    async def Inspect(self, request: pb.InspectRequest, context: "Context") -> pb.InspectResponse:  # noqa: N802
        """Answer one Inspect."""
        answer, _ = await self._dispatcher.run(pb.GatewayBatch(inspects=[request]), _nothing, self)
        return answer.inspects[0]

    async def Admit(self, request: pb.AdmitRequest, context: "Context") -> pb.AdmitResponse:  # noqa: N802
        """Answer one Admit."""
        return await self._decide(pb.GatewayBatch(admits=[request]))

    async def Retry(self, request: pb.RetryRequest, context: "Context") -> pb.AdmitResponse:  # noqa: N802
        """Answer one Retry; where nothing could be settled the caller must settle itself."""
        return await self._decide(pb.GatewayBatch(retries=[request]))

    async def _decide(self, batch: pb.GatewayBatch) -> pb.AdmitResponse:
        """Answer a batch of one admission, after it has waited where it must."""
        decided: asyncio.Future[pb.AdmitResponse] = asyncio.get_running_loop().create_future()

        def later(said: pb.SchedulerBatch) -> None:
            if said.admits and not decided.done():
                decided.set_result(said.admits[0])

        answer, _ = await self._dispatcher.run(batch, later, decided)
        if answer.admits:
            return answer.admits[0]
        try:
            return await decided
        finally:
            self._dispatcher.queue.drop(decided)

    async def Settle(self, request: pb.SettleRequest, context: "Context") -> pb.SettleResponse:  # noqa: N802
        """Answer one Settle."""
        answer, unsettled = await self._dispatcher.run(pb.GatewayBatch(settles=[request]), _nothing, self)
        if unsettled:
            await _unavailable(context)
        return answer.settles[0]

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: "Context") -> pb.HeartbeatResponse:  # noqa: N802
        """Answer one Heartbeat."""
        answer, _ = await self._dispatcher.run(pb.GatewayBatch(heartbeats=[request]), _nothing, self)
        return answer.heartbeats[0]

    async def Session(self, request_iterator: AsyncIterator[pb.GatewayBatch], context: "Context") -> None:  # type: ignore[override]  # noqa: N802
        """Serve one gateway's stream."""
        await CalledThroughLibrary(self._begin_session).serve(request_iterator, context)

    def serve_call(self, call: Call) -> CalledDirectly:
        """Serve one gateway's stream that comes to the session listener."""
        return CalledDirectly(call, self._begin_session)

    def _begin_session(self, carrier: Carrier) -> GatewaySession:
        return GatewaySession(self._dispatcher, self._sessions, self._gate, carrier)

    # ------------------------------------------------------------------ registry

    async def PutObjects(self, request: pb.PutObjectsRequest, context: "Context") -> pb.PutObjectsResponse:  # noqa: N802
        """Create or replace objects."""
        try:
            return pb.PutObjectsResponse(
                changed=await self._registry.put(request.writer, request.fence, request.objects),
            )
        except Refused as e:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, e.message)
        except (Unavailable, LostState) as e:
            await self._lost(e, context)

    async def DeleteObjects(self, request: pb.DeleteObjectsRequest, context: "Context") -> pb.DeleteObjectsResponse:  # noqa: N802
        """Delete objects."""
        try:
            return pb.DeleteObjectsResponse(
                changed=await self._registry.delete(request.writer, request.fence, request.objects),
            )
        except Refused as e:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, e.message)
        except (Unavailable, LostState) as e:
            await self._lost(e, context)

    async def ListObjects(self, request: pb.ListObjectsRequest, context: "Context") -> pb.ListObjectsResponse:  # noqa: N802
        """List objects, with their live status if asked."""
        try:
            if request.with_status:
                await self._live.refresh()
            objects = await self._registry.listing(request.kinds, request.ids, with_status=request.with_status)
        except (Unavailable, LostState) as e:
            await self._lost(e, context)
        return pb.ListObjectsResponse(objects=objects, epoch=self._store.epoch)

    async def WatchObjects(  # noqa: N802
        self, request: pb.WatchObjectsRequest, context: "Context",
    ) -> AsyncIterator[pb.ObjectEvent]:
        """Yield all objects, SYNCED, and then what changes."""
        watcher = Watcher(request.kinds)
        self._registry.watchers.add(watcher)
        try:
            await self._registry.loaded.wait()  # not for admission: that may wait for whoever puts documents
            for whole in await self._registry.listing(request.kinds, (), with_status=True):
                yield pb.ObjectEvent(type=pb.ObjectEvent.PUT, object=whole, epoch=self._store.epoch)
            yield pb.ObjectEvent(type=pb.ObjectEvent.SYNCED, epoch=self._store.epoch)
            while not watcher.overrun and not self.stopping.is_set():
                try:
                    async with asyncio.timeout(_WATCH_POLL_S):
                        event = await watcher.events.get()
                except TimeoutError:
                    continue
                yield event
        except (Unavailable, LostState) as e:
            await self._lost(e, context)
        finally:
            self._registry.watchers.discard(watcher)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "watch again")

    async def _lost(self, error: Exception, context: "Context") -> NoReturn:
        self._gate.close(str(error) or "Redis lost its state; counters are being rebuilt")
        await _unavailable(context)


def _nothing(_: pb.SchedulerBatch) -> None:
    """Take what is said later, where nothing can be."""


async def _unavailable(context: "Context") -> NoReturn:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "the scheduler cannot reach its state right now; try again")
    raise AssertionError("abort always raises")
