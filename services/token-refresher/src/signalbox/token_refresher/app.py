"""Puts the token-refresher together and runs it: store, keeper, gRPC, telemetry; stops in good order."""

import asyncio

from signalbox.core import logs, rpc
from signalbox.core.clock import SystemClock
from signalbox.core.telemetry import Readiness, TelemetryServer
from signalbox.token_refresher.adapters.store import FileStore
from signalbox.token_refresher.api.keeper import Keeper
from signalbox.token_refresher.api.service import TokenRefresherService
from signalbox.token_refresher.metrics import Metrics
from signalbox.token_refresher.settings import TokenRefresherSettings
from signalbox.v1 import token_refresher_pb2
from signalbox.v1.token_refresher_pb2_grpc import add_TokenRefresherServicer_to_server

log = logs.logger(__name__)

SERVICE = token_refresher_pb2.DESCRIPTOR.services_by_name["TokenRefresher"].full_name
NEED = "grants"


async def main(settings: TokenRefresherSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Raises StartupError."""
    logs.configure("token-refresher", settings.log_level, settings.log_format)
    log.info("starting", **settings.masked())
    clock = SystemClock()
    readiness = Readiness(NEED)
    telemetry = TelemetryServer(settings.telemetry_address, readiness)
    await telemetry.start()
    keeper = Keeper(FileStore(settings.store_dir, settings.keyring()), clock, Metrics(clock))
    service = TokenRefresherService(keeper, settings.probe_limit_s)
    server = rpc.Server(settings, settings.listen, [SERVICE])
    add_TokenRefresherServicer_to_server(service, server.grpc)
    await server.start()
    await server.set_serving(True)
    readiness.ok(NEED)
    log.info("ready", listen=settings.listen, grants=len(keeper.accounts()))

    await stop.wait()
    log.info("stopping")
    service.stop()
    await server.stop(settings.stop_grace_s)
    await telemetry.close()
    log.info("stopped")
