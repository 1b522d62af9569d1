"""HTTP calls through an account's proxy: over a tunnel, whatever the proxy's kind, for plain http too.

As the gateway does it, so that one proxy serves both. What the proxy is asked is core/tunnels.py's business; names are
looked up here for a `socks5` proxy alone.
"""

import asyncio
import ssl
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import httpcore2
import httpx2

from signalbox.core.names import address_of
from signalbox.core.tunnels import Proxy, TunnelRefused, proxy_of

_READ_BYTES = 16 << 10


@lru_cache(maxsize=1)
def trust() -> ssl.SSLContext:
    """Return the machine's certificate authorities; reading them takes a while."""
    return httpx2.create_ssl_context()


def client(proxy_url: str, tls: ssl.SSLContext, timeout_s: float) -> httpx2.AsyncClient:
    """Return a client that knows no environment, no redirects and no cookies; `proxy_url` "" goes directly.

    Raises ValueError for what is no proxy's URL. A proxy at fault raises httpx2.ProxyError or httpx2.ConnectError.
    """
    transport = httpx2.AsyncHTTPTransport(verify=tls, trust_env=False)
    if proxy_url:
        # There is no public way to it; the library's own proxies forward what is plain http.
        transport._pool = httpcore2.AsyncConnectionPool(
            ssl_context=tls, network_backend=_Tunnels(proxy_of(proxy_url), tls),
        )
    return httpx2.AsyncClient(transport=transport, trust_env=False, timeout=timeout_s)


class _Tunnels(httpcore2.AnyIOBackend):
    """Connects through a proxy. Errors are of the library's kinds and quote nothing that the proxy said."""

    def __init__(self, proxy: Proxy, tls: ssl.SSLContext) -> None:
        super().__init__()
        self._proxy = proxy
        self._tls = tls

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Return a stream whose other end is `host`."""
        try:
            async with asyncio.timeout(timeout):
                handshake = self._proxy.handshake(await self._target(host, port), port)
                stream = await super().connect_tcp(
                    self._proxy.host, self._proxy.port, None, local_address, socket_options,
                )
                try:
                    if self._proxy.tls:
                        stream = await stream.start_tls(self._tls, self._proxy.host)
                    await stream.write(handshake.begin())
                    while not handshake.done:
                        came = await stream.read(_READ_BYTES)
                        if not came:
                            raise TunnelRefused("the proxy hung up")
                        if answer := handshake.received(came):
                            await stream.write(answer)
                except BaseException:
                    await stream.aclose()
                    raise
        except TunnelRefused as e:
            raise httpcore2.ProxyError(str(e)) from e
        except TimeoutError as e:
            raise httpcore2.ConnectTimeout("the proxy opens no tunnel in time") from e
        except OSError as e:
            raise httpcore2.ConnectError(type(e).__name__) from e
        return stream

    async def _target(self, host: str, port: int) -> str:
        if self._proxy.resolves:
            return host
        return await address_of(host, port)
