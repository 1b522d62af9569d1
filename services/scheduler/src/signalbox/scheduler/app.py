"""Puts the scheduler together and runs it: Redis, registry, recovery, reaper, gRPC, telemetry; stops in good order."""

import asyncio
from collections.abc import Coroutine

from prometheus_client import REGISTRY

from signalbox.core import logs, rpc
from signalbox.core.errors import StartupError
from signalbox.core.ids import instance_id
from signalbox.core.lifecycle import within_start_limit
from signalbox.core.settings import load
from signalbox.core.telemetry import Readiness, TelemetryServer
from signalbox.scheduler.adapters.dispatch import Dispatcher
from signalbox.scheduler.adapters.gate import NEED, Gate
from signalbox.scheduler.adapters.live import LiveRefresher
from signalbox.scheduler.adapters.prices import BookPrices
from signalbox.scheduler.adapters.reaper import Reaper
from signalbox.scheduler.adapters.recovery import Recovery
from signalbox.scheduler.adapters.registry import Registry
from signalbox.scheduler.adapters.sessions import Sessions
from signalbox.scheduler.adapters.store import Store
from signalbox.scheduler.adapters.usage import UsageClient
from signalbox.scheduler.api.service import SchedulerService
from signalbox.scheduler.domain.view import View
from signalbox.scheduler.metrics import AccountCollector, Metrics
from signalbox.scheduler.settings import SchedulerSettings
from signalbox.v1 import scheduler_pb2
from signalbox.v1.scheduler_pb2_grpc import add_SchedulerServicer_to_server
from signalbox.wire.prices import PriceBook, PriceDataError

log = logs.logger(__name__)

SERVICE = scheduler_pb2.DESCRIPTOR.services_by_name["Scheduler"].full_name
_DRAIN_S = 0.2


async def main(stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Raises StartupError."""
    settings = load(SchedulerSettings)
    logs.configure("scheduler", settings.log_level, settings.log_format)
    log.info("starting", **settings.masked())
    store = Store(settings)
    for warning in await within_start_limit(f"Redis at {store.where}", store.check()):
        log.warning("redis", what=warning)
    readiness = Readiness(NEED)
    telemetry = TelemetryServer(settings.telemetry_address, readiness)
    await telemetry.start()

    view = View(BookPrices(_prices(settings)))
    gate, sessions, metrics = Gate(readiness), Sessions(), Metrics()
    REGISTRY.register(AccountCollector(view, store))
    channel = rpc.connect(settings, settings.usage_address)
    usage = UsageClient(channel, instance_id())
    registry = Registry(store, view, usage)
    dispatcher = Dispatcher(store, view, registry, usage, gate, metrics.decided)
    reaper = Reaper(store, view, usage, gate, settings.reap_s, metrics.orphans.inc)
    recovery = Recovery(store, view, registry, usage, sessions, gate, reaper, settings.journal_wait_s)
    live = LiveRefresher(store, view, registry, gate, settings.refresh_s)
    service = SchedulerService(dispatcher, registry, sessions, gate, store)
    server = rpc.Server(settings, settings.listen, [SERVICE])
    add_SchedulerServicer_to_server(service, server.grpc)
    await server.start()
    await server.set_serving(True)
    log.info("listening", listen=settings.listen)

    work = [recovery.keep_open(), live.keep_fresh(), live.listen(), reaper.keep_reaping(), usage.keep_remembering()]
    await _run_until(stop, work)

    log.info("stopping")
    service.stopping.set()
    sessions.drain()
    await asyncio.sleep(_DRAIN_S)
    await server.stop(min(settings.stop_grace_s, _STOP_S))
    await channel.close()
    await store.close()
    await telemetry.close()
    log.info("stopped")


_STOP_S = 5.0


def _prices(settings: SchedulerSettings) -> PriceBook:
    try:
        return PriceBook.load(settings.prices_file)
    except (OSError, PriceDataError) as e:
        raise StartupError("SIGNALBOX_PRICES_FILE", str(e)) from e


async def _run_until(stop: asyncio.Event, work: list[Coroutine[None, None, None]]) -> None:
    """Run the background work until `stop`; a defect in any of it ends the process rather than half of it."""
    tasks = [asyncio.create_task(w) for w in work]
    stopping = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopping}:
            task.result()
    finally:
        for task in (stopping, *tasks):
            task.cancel()
        await asyncio.gather(stopping, *tasks, return_exceptions=True)
