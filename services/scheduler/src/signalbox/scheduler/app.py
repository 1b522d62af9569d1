"""Puts the scheduler together and runs it: Redis, registry, recovery, reaper, gRPC, telemetry; stops in good order."""

import asyncio

from prometheus_client import REGISTRY, CollectorRegistry

from signalbox.core import logs, rpc
from signalbox.core.errors import StartupError
from signalbox.core.grpc_listener import Listener
from signalbox.core.ids import instance_id
from signalbox.core.lifecycle import patiently, within_start_limit
from signalbox.core.telemetry import Readiness, TelemetryServer
from signalbox.core.tracing import Tracing
from signalbox.scheduler.adapters.census import Census
from signalbox.scheduler.adapters.dispatch import Dispatcher, Traces
from signalbox.scheduler.adapters.gate import NEED, Gate
from signalbox.scheduler.adapters.live import LiveRefresher
from signalbox.scheduler.adapters.owed import Owed
from signalbox.scheduler.adapters.prices import BookPrices
from signalbox.scheduler.adapters.reaper import Reaper
from signalbox.scheduler.adapters.recovery import Recovery
from signalbox.scheduler.adapters.registry import Registry
from signalbox.scheduler.adapters.samples import Samples
from signalbox.scheduler.adapters.sessions import Sessions
from signalbox.scheduler.adapters.store import Store
from signalbox.scheduler.adapters.usage import UsageClient
from signalbox.scheduler.api.service import SchedulerService
from signalbox.scheduler.domain.view import View
from signalbox.scheduler.metrics import Metrics, StateCollector
from signalbox.scheduler.settings import SchedulerSettings
from signalbox.v1 import scheduler_pb2
from signalbox.v1.scheduler_pb2_grpc import add_SchedulerServicer_to_server
from signalbox.wire.prices import PriceBook, PriceDataError

log = logs.logger(__name__)

ROOM = "scheduler"
SERVICE = scheduler_pb2.DESCRIPTOR.services_by_name["Scheduler"].full_name
SESSION = f"/{SERVICE}/Session"
_DRAIN_S = 0.2
_STOP_S = 5.0
_CANCEL_AGAIN_S = 0.2
_TRACES_S = 2.0


async def main(settings: SchedulerSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Raises StartupError."""
    logs.configure(ROOM, settings.log_level, settings.log_format)
    settings.announce(log)
    room = Room(settings, REGISTRY)
    await room.start()
    log.info("listening", listen=settings.listen)
    stopping = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([stopping, *room.work], return_when=asyncio.FIRST_COMPLETED)
    log.info("stopping")
    await room.stop()
    for task in done - {stopping}:
        task.result()  # a defect in the background work ends the process rather than half of it
    log.info("stopped")


class Room:
    """One scheduler with all its parts."""

    def __init__(self, settings: SchedulerSettings, metrics_registry: CollectorRegistry) -> None:
        self._settings = settings
        self._readiness = Readiness(NEED)
        self._telemetry = TelemetryServer(settings.telemetry_address, self._readiness, metrics_registry)
        self.store = Store(settings)
        self.view = View(BookPrices(_prices(settings)))
        self.gate = Gate(self._readiness)
        self._sessions = Sessions()
        self._channel = rpc.connect(settings, settings.usage_address)
        instance = instance_id()
        usage = UsageClient(self._channel, instance)
        metrics = Metrics(metrics_registry)
        self._tracing = Tracing(ROOM, instance, settings.traces_url) if settings.traces_url else None
        owed = Owed(self.store)
        registry = Registry(self.store, self.view, usage, owed)
        self.dispatcher = dispatcher = Dispatcher(
            self.store, self.view, registry, usage=usage, gate=self.gate, observe=metrics.decided,
            waited=metrics.waited, traces=_traces(self._tracing),
        )
        census = Census(self.view, registry, gate=self.gate, every_s=settings.census_s)
        metrics_registry.register(StateCollector(self.view, self.store, dispatcher.queue, census))
        reaper = Reaper(
            self.store, self.view, usage=usage, gate=self.gate, reap_s=settings.reap_s, reaped=metrics.orphans.inc,
        )
        recovery = Recovery(
            self.store, self.view, registry=registry, usage=usage, sessions=self._sessions, gate=self.gate,
            reaper=reaper, owed=owed, journal_wait_s=settings.journal_wait_s,
        )
        live = LiveRefresher(
            self.store, self.view, registry, samples=Samples(self.store, self.view.estimates, instance),
            gate=self.gate, queue=dispatcher.queue, refresh_s=settings.refresh_s,
        )
        self._service = SchedulerService(
            dispatcher, registry, live, sessions=self._sessions, gate=self.gate, store=self.store,
        )
        self._server = rpc.Server(settings, settings.listen, [SERVICE])
        add_SchedulerServicer_to_server(self._service, self._server.grpc)
        self._listener: Listener | None = None
        if settings.session_listen is not None:
            self._listener = Listener(settings, settings.session_listen, SESSION, self._service.serve_call)
        self._background = (
            recovery.keep_open, live.keep_fresh, live.listen, dispatcher.queue.keep_moving, reaper.keep_reaping,
            usage.keep_remembering, census.keep_counting,
        )
        self.work: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Check Redis, bind, and begin to open admission. Raises StartupError."""
        what = f"Redis at {self.store.where}"
        warnings = await patiently(
            self._settings.start_patience_s, lambda: within_start_limit(what, self.store.check()),
        )
        for warning in warnings:
            log.warning("redis_setting", what=warning)
        await self._telemetry.start()
        if self._listener is not None:
            await self._listener.start()  # first: a gateway that finds only the other address stays there
        await self._server.start()
        await self._server.set_serving(True)
        self.work = [asyncio.create_task(work()) for work in self._background]

    async def stop(self) -> None:
        """Send the gateways elsewhere, let what runs end, stop."""
        self._service.stopping.set()
        if self._sessions.drain():
            await asyncio.sleep(_DRAIN_S)
        grace_s = min(self._settings.stop_grace_s, _STOP_S)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._server.stop(grace_s))
            if self._listener is not None:
                group.create_task(self._listener.stop(grace_s))
        await _end(self.work)
        if self._tracing is not None:
            await self._tracing.close(_TRACES_S)
        await self._channel.close()
        await self.store.close()
        await self._telemetry.close()


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended: a gRPC call that is cancelled may report that as an error of the call."""
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=_CANCEL_AGAIN_S)


def _traces(tracing: Tracing | None) -> Traces | None:
    if tracing is None:
        return None
    from signalbox.scheduler.spans import Spans  # noqa: PLC0415  # costs nothing where nobody wants traces

    return Spans(tracing.tracer())


def _prices(settings: SchedulerSettings) -> PriceBook:
    try:
        return PriceBook.load(settings.prices_file)
    except (OSError, PriceDataError) as e:
        raise StartupError("SIGNALBOX_PRICES_FILE", str(e)) from e
