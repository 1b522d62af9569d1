"""Connections to providers, kept per account, base URL and proxy, so that accounts never share a connection.

How one is opened, through a proxy or not, is dialling.py's business.
"""

import asyncio
import contextlib
import errno
import ssl
import time
from collections import deque

from signalbox.gateway.adapters.dialling import ProxyUnreachable, dial
from signalbox.gateway.adapters.origins import Route
from signalbox.gateway.adapters.upstream import Connection

_SWEEP_S = 5.0
# Out of file descriptors, of memory, or of local ports: true of this machine, whoever is dialled.
_OWN_FAULTS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL))


class Unreachable(Exception):
    """No connection could be made.

    `timed_out` tells silence from refusal; `proxy`: the account's is at fault; `own_fault`: this process has no room.
    """

    def __init__(
        self, why: str, *, timed_out: bool = False, proxy: bool = False, own_fault: bool = False,
    ) -> None:
        super().__init__(why)
        self.timed_out = timed_out
        self.proxy = proxy
        self.own_fault = own_fault


def _is_own(cause: BaseException | None) -> bool:
    return isinstance(cause, OSError) and cause.errno in _OWN_FAULTS


def system_tls() -> ssl.SSLContext:
    """Trust the system's authorities and speak HTTP/1.1. Reading them takes long: once a process is enough."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class UpstreamPool:
    """Idle connections by route, newest first. Single-threaded: belongs to one event loop."""

    def __init__(self, *, idle_s: float, idle_per_route: int, tls: ssl.SSLContext) -> None:
        self._idle_s = idle_s
        self._idle_per_route = idle_per_route
        self._tls = tls
        self._dial = dial
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
        """Open a new connection within `timeout_s` seconds, proxy and TLS included. Raises Unreachable."""
        try:
            connection = await self._dial(route, self._new_connection, self._tls, timeout_s)
        except ProxyUnreachable as e:
            raise Unreachable(str(e), timed_out=e.timed_out, proxy=True, own_fault=_is_own(e.__cause__)) from e
        except TimeoutError as e:
            raise Unreachable("no connection in time", timed_out=True) from e
        except (OSError, ssl.SSLError, UnicodeError) as e:
            raise Unreachable(type(e).__name__, own_fault=_is_own(e)) from e
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
