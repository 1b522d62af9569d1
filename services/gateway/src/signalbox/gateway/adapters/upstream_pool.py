"""Connections to providers, kept per account, base URL and proxy, so that accounts never share a connection.

Dialling is a seam: proxies get a dialler of their own beside `dial_direct`.
"""

import asyncio
import contextlib
import errno
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

from signalbox.gateway.adapters.upstream import Connection

_SWEEP_S = 5.0
# Out of file descriptors, of memory, or of local ports: true of this machine, whoever is dialled.
_OWN_FAULTS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL))


class Unreachable(Exception):
    """No connection could be made. `timed_out` tells silence from refusal; `own_fault`: this process has no room."""

    def __init__(self, why: str, *, timed_out: bool = False, own_fault: bool = False) -> None:
        super().__init__(why)
        self.timed_out = timed_out
        self.own_fault = own_fault


@dataclass(frozen=True, slots=True)
class Origin:
    """A base URL taken apart. `path` has no trailing slash; `authority` is the Host header's value."""

    host: str
    port: int
    tls: bool
    path: bytes
    authority: bytes


@lru_cache(maxsize=4096)
def origin_of(base_url: str) -> Origin:
    """Take a document's base URL apart (already validated by the documents' rules)."""
    url = urlsplit(base_url)
    tls = url.scheme == "https"
    host = url.hostname or ""
    port = url.port or (443 if tls else 80)
    authority = url.netloc.rpartition("@")[2].encode()
    return Origin(host, port, tls, url.path.rstrip("/").encode(), authority)


class Route(NamedTuple):
    """What a connection is good for: nothing else may use it."""

    account_id: str
    base_url: str
    proxy_url: str = ""


Dial = Callable[[Route, Callable[[], Connection], ssl.SSLContext | None], Awaitable[Connection]]


async def dial_direct(route: Route, factory: Callable[[], Connection], tls: ssl.SSLContext | None) -> Connection:
    """Connect without a proxy. Raises OSError; never goes direct where a proxy is asked for."""
    if route.proxy_url:
        raise OSError("proxies are not supported yet")
    origin = origin_of(route.base_url)
    _, connection = await asyncio.get_running_loop().create_connection(
        factory, origin.host, origin.port, ssl=tls, server_hostname=origin.host if tls else None,
    )
    return connection


def system_tls() -> ssl.SSLContext:
    """Trust the system's authorities and speak HTTP/1.1. Reading them takes long: once a process is enough."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class UpstreamPool:
    """Idle connections by route, newest first. Single-threaded: belongs to one event loop."""

    def __init__(
        self, *, idle_s: float, idle_per_route: int, tls: ssl.SSLContext, dial: Dial = dial_direct,
    ) -> None:
        self._idle_s = idle_s
        self._idle_per_route = idle_per_route
        self._dial = dial
        self._tls = tls
        self._idle: dict[Route, deque[Connection]] = {}
        self._routes: dict[Connection, Route] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    def take(self, route: Route, max_idle_s: float | None = None) -> Connection | None:
        """Return an open idle connection that idled for less than `max_idle_s` seconds, or None."""
        idle = self._idle.get(route)
        oldest_s = time.monotonic() - min(self._idle_s, self._idle_s if max_idle_s is None else max_idle_s)
        while idle:
            connection = idle.pop()
            if connection.closed:
                continue
            if connection.idle_since_s >= oldest_s:
                return connection
            idle.append(connection)  # all others idled longer; the sweeper closes them in time
            return None
        return None

    def put_back(self, connection: Connection) -> None:
        """Return a connection that was taken and not used."""
        self._release(connection)

    async def connect(self, route: Route, timeout_s: float) -> Connection:
        """Open a new connection within `timeout_s` seconds, TLS included. Raises Unreachable."""
        tls = self._tls if origin_of(route.base_url).tls else None
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._dial(route, self._new_connection, tls)
        except TimeoutError as e:
            raise Unreachable("no connection in time", timed_out=True) from e
        except (OSError, ssl.SSLError, UnicodeError) as e:
            own_fault = isinstance(e, OSError) and e.errno in _OWN_FAULTS
            raise Unreachable(type(e).__name__, own_fault=own_fault) from e
        if connection.closed:
            raise Unreachable("closed at once")
        self._routes[connection] = route
        return connection

    def close(self) -> None:
        """Close every connection, idle or not."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._routes):
            connection.close()

    def _new_connection(self) -> Connection:
        return Connection(self._release, self._forget)

    def _release(self, connection: Connection) -> None:
        route = self._routes[connection]
        idle = self._idle.get(route)
        if idle is None:
            idle = self._idle[route] = deque()
        if len(idle) >= self._idle_per_route:
            connection.close()
            return
        connection.idle_since_s = time.monotonic()
        idle.append(connection)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)

    def _forget(self, connection: Connection) -> None:
        route = self._routes.pop(connection, None)
        if route is not None and (idle := self._idle.get(route)):
            with contextlib.suppress(ValueError):
                idle.remove(connection)

    def _sweep(self) -> None:
        self._sweeper = None
        oldest_s = time.monotonic() - self._idle_s
        for route, idle in list(self._idle.items()):
            while idle and (idle[0].closed or idle[0].idle_since_s < oldest_s):
                connection = idle.popleft()
                if not connection.closed:
                    connection.close()
            if not idle:
                del self._idle[route]
        if self._idle:
            self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)
