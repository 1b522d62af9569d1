"""The gateway's composition root: what it is made of, how it starts, and how it stops without losing anything."""

import asyncio
import contextlib
import ctypes
from itertools import zip_longest

from prometheus_client import REGISTRY

from signalbox.core import ids, logs, rpc
from signalbox.core.clock import SystemClock
from signalbox.core.grpc_stream import Endpoint
from signalbox.core.telemetry import Readiness, TelemetryServer
from signalbox.core.tracing import Tracing
from signalbox.gateway.adapters.credentials import CredentialCache
from signalbox.gateway.adapters.journal_delivery import JournalDelivery
from signalbox.gateway.adapters.model_lists import ModelLists
from signalbox.gateway.adapters.scheduler_session import SchedulerSession
from signalbox.gateway.adapters.upstream_pool import UpstreamPool, system_tls
from signalbox.gateway.adapters.usage_reports import UsageReports
from signalbox.gateway.api.keycheck import KeyCheck
from signalbox.gateway.api.protocol import RelayProtocol
from signalbox.gateway.api.relay import RequestRelay
from signalbox.gateway.api.seldom import Application, OnDemand
from signalbox.gateway.api.sender import Sender
from signalbox.gateway.api.server import PublicServer
from signalbox.gateway.domain.buffers import Buffers
from signalbox.gateway.domain.ports import Traces
from signalbox.gateway.metrics import BUFFERED, Metrics
from signalbox.gateway.settings import GatewaySettings

log = logs.logger(__name__)

ROOM = "gateway"
READINESS_EVERY_S = 0.2
CUT_GRACE_S = 1.0          # for callers to take the last bytes of streams that were cut
DELIVERY_LIMIT_S = 5.0
FOLLOW_UP_S = 5.0
TRACES_LIMIT_S = 2.0
LARGE_BLOCK_BYTES = 1 << 20
_M_MMAP_THRESHOLD = -3    # of glibc's malloc.h


def give_large_blocks_back() -> None:
    """Have glibc map what is larger than this by itself, so that it is gone from memory once it is freed.

    Left alone, the allocator learns from the first large body to keep such blocks on its heap, between small ones.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


async def main(config: GatewaySettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Raises StartupError."""
    logs.configure(ROOM, config.log_level, config.log_format)
    config.announce(log)
    give_large_blocks_back()
    gateway = Gateway(config)
    await gateway.start()
    log.info("serving", port=gateway.public.port)
    await stop.wait()
    log.info("stopping")
    await gateway.stop()
    log.info("stopped")


class Gateway:
    """All parts of one gateway process."""

    def __init__(self, config: GatewaySettings) -> None:
        clock = SystemClock()
        gateway_id = ids.instance_id()
        usage = rpc.connect(config, config.usage_address)
        refresher = rpc.connect(config, config.token_refresher_address)
        faster = config.scheduler_session_address
        schedulers = [
            Endpoint(config, *addresses) for addresses in zip_longest(config.scheduler_address, faster, fillvalue="")
        ]
        self._config = config
        self._channels = [usage, refresher]
        self.readiness = Readiness("scheduler", "token-refresher")
        self.telemetry = TelemetryServer(config.telemetry_address, self.readiness)
        self.delivery = JournalDelivery(usage, config.journal_dir, gateway_id)
        self.session = SchedulerSession(schedulers, gateway_id, self._deliver_journal)
        self.credentials = CredentialCache(refresher)
        self.pool = UpstreamPool(
            idle_s=config.upstream_idle_s, idle_per_route=config.upstream_idle_per_account, tls=system_tls(),
        )
        self.models = ModelLists(self.credentials, self.pool)
        buffers = Buffers(config.max_buffered_bytes)
        BUFFERED.set_function(lambda: buffers.held)
        keys = KeyCheck(self.session, config.trusted_proxies, clock)
        journal = self.delivery.journal
        self.sender = Sender(
            clock=clock, scheduler=self.session, credentials=self.credentials, journal=journal, pool=self.pool,
            buffers=buffers, client_stall_s=config.client_stall_s,
        )
        metrics = Metrics()
        REGISTRY.register(metrics)
        self.tracing = Tracing(ROOM, gateway_id, config.traces_url) if config.traces_url else None
        relay = RequestRelay(
            clock=clock, scheduler=self.session, credentials=self.credentials, journal=journal, keys=keys,
            sender=self.sender, metrics=metrics, secret=config.secret, traces=_traces(self.tracing),
        )
        reports = UsageReports(usage)

        def routes() -> Application:
            from signalbox.gateway.api.http import CallerRoutes  # noqa: PLC0415

            return CallerRoutes(
                clock=clock, keys=keys, journal=journal, models=self.models, reports=reports, readiness=self.readiness,
            ).application()

        self.public = PublicServer(config, OnDemand(routes), RelayProtocol.bind(relay, config, buffers))
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Find out first whether the gateway can start; open the doors last. Raises StartupError."""
        self.public.bind()
        await self.telemetry.start()
        self.delivery.start()
        self.session.start()
        self.credentials.start()
        self._watching = asyncio.create_task(self._watch_readiness())
        await self.public.start()

    async def stop(self) -> None:
        """Accept nothing more, let answers end within the grace, cut the rest truthfully, deliver everything."""
        self.readiness.missing("running", "stopping")
        if not await self.public.stop(self._config.stop_grace_s):
            log.warning("streams_cut", grace_s=self._config.stop_grace_s)
            self.sender.stop()
            if not await self.public.stop(CUT_GRACE_S):
                self.public.cut()
                await self.public.stop(CUT_GRACE_S)
        await self.session.close(FOLLOW_UP_S)
        await self.delivery.close(DELIVERY_LIMIT_S)
        if self.tracing is not None:
            await self.tracing.close(TRACES_LIMIT_S)
        await self.credentials.close()
        self.pool.close()
        if self._watching is not None:
            self._watching.cancel()
        await self.telemetry.close()
        for channel in self._channels:
            await channel.close()

    async def _deliver_journal(self) -> bool:
        return await self.delivery.hand_over(FOLLOW_UP_S)

    async def _watch_readiness(self) -> None:
        while True:
            self._note("scheduler", self.session.connected)
            self._note("token-refresher", self.credentials.synced.is_set())
            await asyncio.sleep(READINESS_EVERY_S)

    def _note(self, need: str, there: bool) -> None:
        if there:
            self.readiness.ok(need)
        else:
            self.readiness.missing(need, "not connected")


def _traces(tracing: Tracing | None) -> Traces | None:
    if tracing is None:
        return None
    from signalbox.gateway.spans import Spans  # noqa: PLC0415  # costs nothing where nobody wants traces

    return Spans(tracing.tracer())
