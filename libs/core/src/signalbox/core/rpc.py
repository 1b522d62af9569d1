"""gRPC between rooms: servers and channels with the shared secret (and mTLS where configured), health, reflection.

Never open: every call but the health check must carry the secret. Deadlines are the callers' duty.
"""

import hmac
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from signalbox.core.certificates import Certificates, Pem
from signalbox.core.errors import StartupError
from signalbox.core.renewing import RenewingChannel
from signalbox.core.settings import RoomSettings

_HEADER = "authorization"
_OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.so_reuseport", 0),
]
_CHANNEL_OPTIONS = [
    *_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 100),
    # How long a connection may take to come about: with less, a peer on a busy machine counts as away.
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.lb_policy_name", "round_robin"),
    # A name of many pods is looked up again at once when one of them goes; the default waits half a minute.
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
]
# Between machines a connection ends after a while, so that callers look the name up again and find pods that came
# later. What runs on it then has the grace to end; streams are opened anew by those who keep them.
_NETWORK_SERVER_OPTIONS = [
    ("grpc.max_connection_age_ms", 600_000),
    ("grpc.max_connection_age_grace_ms", 60_000),
]


class _RequireSecret(grpc.aio.ServerInterceptor):
    def __init__(self, secret: bytes) -> None:
        self._expected = b"Bearer " + secret

        async def refuse(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the shared secret is missing or wrong")

        self._refuse: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(refuse)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        if handler_call_details.method.startswith("/grpc.health.v1.Health/"):
            return await continuation(handler_call_details)
        for key, value in handler_call_details.invocation_metadata or ():
            given = value if isinstance(value, bytes) else value.encode()
            if key == _HEADER and hmac.compare_digest(given, self._expected):
                return await continuation(handler_call_details)
        return self._refuse


class _Secret:
    """What the interceptors below add to each call's metadata. One class a kind of call: a channel files an
    interceptor under the first kind that it finds in it, and no other."""

    def __init__(self, secret: bytes) -> None:
        self._value = "Bearer " + secret.decode()

    def added(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        metadata.add(_HEADER, self._value)
        return grpc.aio.ClientCallDetails(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready,
        )


class _UnaryUnary(_Secret, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self.added(client_call_details), request)


class _UnaryStream(_Secret, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self.added(client_call_details), request)


class _StreamStream(_Secret, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Iterable[Any] | AsyncIterable[Any],
    ) -> Any:
        return await continuation(self.added(client_call_details), request_iterator)


class Server:
    """A room's gRPC server. `start` binds; `stop` lets running calls finish within the grace."""

    def __init__(self, settings: RoomSettings, address: str, services: Sequence[str]) -> None:
        self._settings = settings
        self._address = address
        self._services = services
        options = _OPTIONS if address.startswith("unix:") else [*_OPTIONS, *_NETWORK_SERVER_OPTIONS]
        self.grpc = grpc.aio.server(interceptors=[_RequireSecret(settings.secret)], options=options)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self.grpc)

    async def start(self) -> int:
        """Bind and serve; return the port (0 for a Unix socket). Raises StartupError where the address is unusable."""
        try:
            certificates = None if self._address.startswith("unix:") else Certificates.of(self._settings)
            if certificates is None:
                port = self.grpc.add_insecure_port(self._address)
            else:
                port = self.grpc.add_secure_port(self._address, _server_credentials(certificates))
        except RuntimeError as e:
            raise StartupError(f"address {self._address}", "cannot be bound; is another process using it?") from e
        await self.grpc.start()
        if self._address.startswith("unix:"):
            Path(self._address.removeprefix("unix:")).chmod(0o600)
        return port

    async def set_serving(self, serving: bool) -> None:
        """Answer health checks for all services of this room."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._services):
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """Stop accepting, wait for running calls at most `grace_s` seconds."""
        await self.set_serving(False)
        await self.grpc.stop(grace_s)


def connect(settings: RoomSettings, address: str) -> grpc.aio.Channel:
    """Return a channel to another room that authenticates itself on every call and reconnects within a second.

    Raises StartupError where certificates are configured and can't be read.
    """
    interceptors = [kind(settings.secret) for kind in (_UnaryUnary, _UnaryStream, _StreamStream)]
    certificates = None if address.startswith("unix:") else Certificates.of(settings)
    if certificates is None:
        return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS, interceptors=interceptors)

    def dial(pem: Pem) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(pem.ca, pem.key, pem.cert)
        return grpc.aio.secure_channel(address, credentials, options=_CHANNEL_OPTIONS, interceptors=interceptors)

    return RenewingChannel(certificates, dial)


def _server_credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """Return credentials that show, to each connection anew, what the files hold then."""
    given = certificates.pem

    def configuration(pem: Pem) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(pem.key, pem.cert)], root_certificates=pem.ca)

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal given
        pem = certificates.refresh()
        if pem is given:
            return None
        given = pem
        return configuration(pem)

    return grpc.dynamic_ssl_server_credentials(
        configuration(given), renewed,  # type: ignore[arg-type]  # its types know no "None: as it was"
        require_client_authentication=True,
    )
