"""Puts the usage service together and runs it: ledger, recorder, queries, gRPC, telemetry; stops in good order."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from signalbox.core import logs, rpc
from signalbox.core.clock import SystemClock
from signalbox.core.errors import StartupError
from signalbox.core.lifecycle import patience_left_s, patiently, within_start_limit
from signalbox.core.telemetry import Readiness, TelemetryServer
from signalbox.usage.adapters.engines import open_reader, open_writer
from signalbox.usage.adapters.ledger import Ledger
from signalbox.usage.adapters.migrate import NewerLedger, migrate
from signalbox.usage.adapters.prices import LedgerPrices
from signalbox.usage.adapters.queries import Queries
from signalbox.usage.adapters.urls import read_database_url, shown
from signalbox.usage.api.recorder import NEED, Kept, Recorder, cause
from signalbox.usage.api.service import UsageService
from signalbox.usage.api.watchers import Watchers
from signalbox.usage.metrics import Metrics
from signalbox.usage.settings import UsageSettings
from signalbox.v1 import usage_pb2
from signalbox.v1.usage_pb2_grpc import add_UsageServicer_to_server

log = logs.logger(__name__)

T = TypeVar("T")

SERVICE = usage_pb2.DESCRIPTOR.services_by_name["Usage"].full_name
RETRY_EVERY_S = 0.2
MARGIN_S = 1.5    # of the patience, for one more try to end


async def main(settings: UsageSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Raises StartupError."""
    logs.configure("usage", settings.log_level, settings.log_format)
    settings.announce(log)
    clock = SystemClock()
    prices = LedgerPrices.load(settings.prices_file)
    writer, reader = await patiently(settings.start_patience_s, lambda: _open_ledger(settings))
    readiness = Readiness(NEED)
    readiness.ok(NEED)
    telemetry = TelemetryServer(settings.telemetry_address, readiness)
    await telemetry.start()

    watchers = Watchers()
    recorder = Recorder(
        Ledger(writer, prices), clock, readiness=readiness, metrics=Metrics(prices),
        max_rows=settings.max_transaction_rows, published=watchers.publish,
        kept=Kept(settings.attempts_kept_days, settings.denials_kept_days),
    )
    recorder.start()
    readers = ThreadPoolExecutor(settings.readers, thread_name_prefix="ledger-reader")
    service = UsageService(recorder, Queries(reader), readers, watchers, clock)
    server = rpc.Server(settings, settings.listen, [SERVICE])
    add_UsageServicer_to_server(service, server.grpc)
    await server.start()
    await server.set_serving(True)
    log.info("ready", listen=settings.listen)

    await stop.wait()
    log.info("stopping")
    recorder.stop()
    service.stop()
    await server.stop(settings.stop_grace_s)
    await recorder.close()
    readers.shutdown(wait=False, cancel_futures=True)
    writer.dispose()
    reader.dispose()
    await telemetry.close()
    log.info("stopped")


async def _open_ledger(settings: UsageSettings) -> tuple[Engine, Engine]:
    url = read_database_url(settings.database_url.get_secret_value())
    what = f"ledger {shown(url)}"
    try:
        writer = open_writer(url)
        await within_start_limit(what, _insist(lambda: writer.connect().close()))
        # Not under the limit: what is reached and takes long is being made, on a machine with much else to do.
        if await _insist(lambda: migrate(writer)):
            log.info("ledger_migrated", ledger=shown(url))
        return writer, open_reader(url, settings.readers)
    except SQLAlchemyError as e:
        raise StartupError(what, cause(e)) from e
    except (NewerLedger, OSError) as e:
        raise StartupError(what, str(e)) from e


async def _insist(work: Callable[[], T]) -> T:
    """Do `work` in a thread; a database that is still starting, or locked by another replica, gets a moment."""
    until_s = time.monotonic() + patience_left_s() - MARGIN_S
    while True:
        try:
            return await asyncio.to_thread(work)
        except OperationalError:
            if time.monotonic() > until_s:
                raise
            await asyncio.sleep(RETRY_EVERY_S)
