"""Opening a connection to a provider, directly or through the account's proxy, TLS included; the caller has a deadline.

TLS to the provider runs inside the tunnel, so a proxy sees where a request goes and how long it is, no more. What the
proxy is asked is core/tunnels.py's business.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import cast

from signalbox.core.names import address_of
from signalbox.core.tunnels import Handshake, Proxy, TunnelRefused, proxy_of
from signalbox.gateway.adapters.origins import Route, origin_of
from signalbox.gateway.adapters.upstream import Connection

# What the kernel receives ahead for a caller who does not read, of which it takes twice as much: it would let that grow
# to tens of megabytes. An answer comes at this much a round trip at least: 1.3 MB/s over 100 ms.
_RECEIVED_IN_KERNEL = 128 << 10


class ProxyUnreachable(OSError):
    """The account's proxy could not be reached, or opens no tunnel. The text holds no secret."""

    def __init__(self, why: str, *, timed_out: bool = False) -> None:
        super().__init__(why)
        self.timed_out = timed_out


async def dial(
    route: Route, factory: Callable[[], Connection], tls: ssl.SSLContext, timeout_s: float,
) -> Connection:
    """Open a connection within `timeout_s` seconds; who gives up by cancelling leaves nothing open.

    Raises ProxyUnreachable where it is the proxy's fault, else TimeoutError, OSError, SSLError, UnicodeError.
    """
    origin = origin_of(route.base_url)
    until_s = asyncio.get_running_loop().time() + timeout_s
    if not route.proxy_url:
        async with asyncio.timeout_at(until_s):
            transport, connection = await asyncio.get_running_loop().create_connection(
                factory, origin.host, origin.port, ssl=tls if origin.tls else None,
                server_hostname=origin.host if origin.tls else None,
            )
        _bound(transport)
        return connection
    host = origin.host
    proxy = proxy_of(route.proxy_url)
    if not proxy.resolves:
        async with asyncio.timeout_at(until_s):
            host = await address_of(host, origin.port)
    try:
        async with asyncio.timeout_at(until_s):
            transport = await _tunnel(proxy, proxy.handshake(host, origin.port), tls)
    except TimeoutError as e:
        raise ProxyUnreachable("the proxy opens no tunnel in time", timed_out=True) from e
    connection = factory()
    _bound(transport)
    try:
        if origin.tls:
            async with asyncio.timeout_at(until_s):
                transport = await _start_tls(transport, connection, tls, origin.host)
        else:
            transport.set_protocol(connection)
        connection.connection_made(transport)
    except BaseException:
        transport.abort()
        raise
    return connection


def _bound(transport: asyncio.Transport) -> None:
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVED_IN_KERNEL)


async def _start_tls(
    transport: asyncio.Transport, protocol: asyncio.BaseProtocol, tls: ssl.SSLContext, host: str,
) -> asyncio.Transport:
    secured = await asyncio.get_running_loop().start_tls(transport, protocol, tls, server_hostname=host)
    if secured is None:
        raise ConnectionResetError("closed during the handshake")
    return secured


async def _tunnel(proxy: Proxy, handshake: Handshake, tls: ssl.SSLContext) -> asyncio.Transport:
    """Return a transport whose other end is the provider. Raises ProxyUnreachable."""
    hello = handshake.begin()
    try:
        transport, negotiation = await asyncio.get_running_loop().create_connection(
            lambda: _Negotiation(handshake, hello), proxy.host, proxy.port, ssl=tls if proxy.tls else None,
            server_hostname=proxy.host if proxy.tls else None,
        )
    except (OSError, ssl.SSLError) as e:
        raise ProxyUnreachable(type(e).__name__) from e
    try:
        await negotiation.opened
    except TunnelRefused as e:
        transport.abort()
        raise ProxyUnreachable(str(e)) from e
    except BaseException:
        transport.abort()
        raise
    return transport


class _Negotiation(asyncio.Protocol):
    """Speaks with the proxy until the tunnel is open; then the transport gets another protocol."""

    def __init__(self, handshake: Handshake, hello: bytes) -> None:
        self._handshake = handshake
        self._hello = hello
        self._transport: asyncio.Transport
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._hello)

    def data_received(self, data: bytes) -> None:
        if self.opened.done():
            return
        try:
            answer = self._handshake.received(data)
        except TunnelRefused as e:
            self.opened.set_exception(e)
            return
        if self._handshake.done:
            self.opened.set_result(None)
        elif answer:
            self._transport.write(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            with contextlib.suppress(asyncio.InvalidStateError):
                self.opened.set_exception(TunnelRefused("the proxy hung up"))
