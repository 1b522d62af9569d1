"""Puts the token-refresher together and runs it: store, keeper, renewals, gRPC, telemetry; stops in good order."""

import asyncio

from signalbox.core import logs, rpc
from signalbox.core.clock import Clock, SystemClock
from signalbox.core.errors import StartupError
from signalbox.core.ids import instance_id
from signalbox.core.telemetry import Readiness, TelemetryServer
from signalbox.core.tracing import Tracing
from signalbox.token_refresher.adapters.file_store import FileStore
from signalbox.token_refresher.adapters.identity import IdentityFiles
from signalbox.token_refresher.api.authorizations import Authorizations
from signalbox.token_refresher.api.keeper import Keeper
from signalbox.token_refresher.api.renewals import Renewals
from signalbox.token_refresher.api.service import TokenRefresherService
from signalbox.token_refresher.domain.oauth import Answer, TokenRequest
from signalbox.token_refresher.domain.ports import Endpoints, GrantStore, StoreUnavailable, Traces
from signalbox.token_refresher.domain.schedule import Ahead
from signalbox.token_refresher.metrics import Metrics
from signalbox.token_refresher.settings import TokenRefresherSettings
from signalbox.v1 import token_refresher_pb2
from signalbox.v1.token_refresher_pb2_grpc import add_TokenRefresherServicer_to_server

log = logs.logger(__name__)

SERVICE = token_refresher_pb2.DESCRIPTOR.services_by_name["TokenRefresher"].full_name
NEED = "grants"
ROOM = "token-refresher"
_TRACES_S = 2.0


class Room:
    """The token-refresher's parts, put together over one store."""

    def __init__(
        self, settings: TokenRefresherSettings, store: GrantStore, clock: Clock, metrics: Metrics,
        traces: Traces | None = None,
    ) -> None:
        self._store = store
        endpoint = _Endpoints(clock, settings.request_limit_s)
        ahead = Ahead(int(settings.refresh_ahead_s * 1000))
        self.keeper = Keeper(store, clock, metrics)
        self.renewals = Renewals(
            store=store, endpoint=endpoint, identities=IdentityFiles(settings.identity_token_root), clock=clock,
            metrics=metrics, ahead=ahead, lease_patience_s=settings.lease_patience_s, learned=self.keeper.learned,
            traces=traces,
        )
        authorizations = Authorizations(self.keeper, endpoint, settings.keyring(), clock)
        self.service = TokenRefresherService(self.keeper, authorizations, ahead, settings.probe_limit_s)
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the store, encrypt it anew where a new key asks for that, and begin to renew. Raises StartupError."""
        try:
            if resealed := await self._store.reseal():
                log.info("grants_resealed", grants=resealed)
            await self.keeper.load()
        except StoreUnavailable as e:
            raise StartupError("grant store", e.why) from e
        self.keeper.begin(self.renewals.arm, self.renewals.demand)
        self._following = asyncio.create_task(self.keeper.follow())

    async def close(self, grace_s: float) -> None:
        """Let the renewals that run come to their end."""
        await self.renewals.close(grace_s)
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)


class _Endpoints:
    """Calls to token endpoints by what is imported with the first of them.

    An HTTP client and the machine's authorities are a quarter of a start, and API keys need neither.
    """

    def __init__(self, clock: Clock, limit_s: float) -> None:
        self._clock = clock
        self._limit_s = limit_s
        self._caller: Endpoints | None = None

    async def ask(self, request: TokenRequest) -> Answer:
        """Return what came of it."""
        if self._caller is None:
            from signalbox.token_refresher.adapters.token_endpoint import TokenEndpoint  # noqa: PLC0415

            self._caller = TokenEndpoint(self._clock, self._limit_s)
        return await self._caller.ask(request)


def _store(settings: TokenRefresherSettings) -> GrantStore:
    if settings.store == "files":
        assert settings.store_dir is not None, "settings demand it"
        return FileStore(settings.store_dir, settings.keyring())
    # Imported where it is used: the Kubernetes client costs a third of this room's memory.
    from signalbox.kube import connect  # noqa: PLC0415
    from signalbox.token_refresher.adapters.secret_store import SecretStore  # noqa: PLC0415

    margin_s = 2 * settings.request_limit_s
    return SecretStore(
        connect("signalbox-token-refresher"), settings.keyring(), settings.store_owner, lease_s=30 + 2 * margin_s,
        margin_s=margin_s,
    )


def _traces(tracing: Tracing | None) -> Traces | None:
    if tracing is None:
        return None
    from signalbox.token_refresher.spans import Spans  # noqa: PLC0415  # costs nothing where nobody wants traces

    return Spans(tracing.tracer())


async def main(settings: TokenRefresherSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Raises StartupError."""
    logs.configure(ROOM, settings.log_level, settings.log_format)
    settings.announce(log)
    clock = SystemClock()
    readiness = Readiness(NEED)
    telemetry = TelemetryServer(settings.telemetry_address, readiness)
    await telemetry.start()
    tracing = Tracing(ROOM, instance_id(), settings.traces_url) if settings.traces_url else None
    room = Room(settings, _store(settings), clock, Metrics(clock), _traces(tracing))
    await room.start()
    server = rpc.Server(settings, settings.listen, [SERVICE])
    add_TokenRefresherServicer_to_server(room.service, server.grpc)
    await server.start()
    await server.set_serving(True)
    readiness.ok(NEED)
    log.info("ready", listen=settings.listen, grants=len(room.keeper.accounts()))

    await stop.wait()
    log.info("stopping")
    room.service.stop()
    await server.stop(settings.stop_grace_s)
    await room.close(settings.stop_grace_s)
    if tracing is not None:
        await tracing.close(_TRACES_S)
    await telemetry.close()
    log.info("stopped")
