"""HTTP/1.1 close to the socket: requests in whole, answers in pieces of the caller's choosing, and every way to break one.

A server library would hide exactly what is wanted here: resets, half-closed connections, lies about lengths.
It knows neither accounts nor messages; the application behind it does.
"""

import asyncio
import hashlib
import http
import logging
import socket
import struct
import time
from collections import deque
from collections.abc import Iterable
from typing import Protocol, cast
from urllib.parse import parse_qsl, unquote

import httptools

WRITE_BUFFER_BYTES = 64 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024
WAITING_REQUESTS = 16
DELIVERY_S = 0.02
"""Time that is given to bytes already written before an RST may overtake them."""

PHRASES = {s.value: s.phrase for s in http.HTTPStatus} | {529: "Overloaded"}

_LINGER_ZERO = struct.pack("ii", 1, 0)

log = logging.getLogger(__name__)


class ClientGoneError(ConnectionError):
    """The client's end of the connection is no longer there."""


class Request:
    """One request as it came: header names and values in their own spelling and order."""

    __slots__ = (
        "body",
        "body_at",
        "body_bytes",
        "complete",
        "hasher",
        "headers",
        "keep_alive",
        "method",
        "named",
        "path",
        "query",
        "received_at",
        "target",
    )

    def __init__(self) -> None:
        self.method = ""
        self.target = ""
        self.path = ""
        self.query: dict[str, str] = {}
        self.headers: list[tuple[str, str]] = []
        self.named: dict[str, str] = {}
        self.body = bytearray()
        self.body_bytes = 0
        self.hasher = hashlib.sha256()
        self.complete = False
        self.keep_alive = True
        self.received_at = 0.0
        self.body_at = 0.0

    def header(self, name: str) -> str:
        """Return a header's last value, an empty string if it was not sent. `name` in lower case."""
        return self.named.get(name, "")


class Application(Protocol):
    """What stands behind the connections. `send_buffer_bytes`: of the kernel, for each of them; 0 leaves it to the kernel."""

    send_buffer_bytes: int

    def connected(self, connection: "Connection") -> None:
        """A connection was accepted."""

    def disconnected(self, connection: "Connection") -> None:
        """A connection is gone."""

    def received(self, exchange: "Exchange") -> bool:
        """Note that a request's headers are here; return True to be asked to handle it before its body is."""

    def abandoned(self, exchange: "Exchange") -> None:
        """Note that the client left before the request was handled."""

    async def handle(self, exchange: "Exchange") -> None:
        """Answer, or not."""


class Exchange:
    """One request on one connection and what is sent for it."""

    def __init__(self, connection: "Connection", request: Request, ordinal: int) -> None:
        self.connection = connection
        self.request = request
        self.ordinal = ordinal
        self.status = 0
        self.response_headers: list[tuple[str, str]] = []
        self.sent_bytes = 0
        self.sent_hasher = hashlib.sha256()
        self.gone_at: float | None = None
        self.keep_alive = True
        self.chunked = False
        self.claimed = False

    # ------------------------------------------------------------------ answering

    def head(self, status: int, headers: Iterable[tuple[str, str]], *, length: int | None) -> list[bytes]:
        """Return the head's lines; without a `length` the body will be chunked. Nothing is sent yet."""
        self.status = status
        self.response_headers = list(headers)
        self.chunked = length is None and self.request.method != "HEAD"
        framing = ("transfer-encoding", "chunked") if length is None else ("content-length", str(length))
        lines = [f"HTTP/1.1 {status} {PHRASES.get(status, 'Unknown')}\r\n"]
        lines += [f"{name}: {value}\r\n" for name, value in [*self.response_headers, framing]]
        return [line.encode("latin-1") for line in [*lines, "\r\n"]]

    def send(self, data: bytes) -> None:
        """Send a piece of the body, as a chunk of its own where the body is chunked. Raises ClientGoneError."""
        if not data or self.request.method == "HEAD":
            return
        self.raw(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data)
        self.sent_bytes += len(data)
        self.sent_hasher.update(data)

    def raw(self, data: bytes) -> None:
        """Put bytes on the wire as they are. Raises ClientGoneError."""
        if self.connection.transport.is_closing():
            raise ClientGoneError
        self.connection.transport.write(data)

    async def drain(self) -> None:
        """Wait until the client has taken enough of what was sent."""
        await self.connection.writable.wait()

    def end(self) -> None:
        """End the body."""
        if self.chunked:
            self.raw(b"0\r\n\r\n")

    async def respond(self, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        """Send a whole answer with its length."""
        self.raw(b"".join(self.head(status, headers, length=len(body))))
        self.send(body)
        await self.drain()

    # ------------------------------------------------------------------ breaking

    async def reset(self) -> None:
        """Let what was written arrive, then end the connection with an RST."""
        await asyncio.sleep(DELIVERY_S)
        self.keep_alive = False
        self.connection.reset()

    def close(self) -> None:
        """End the connection with a FIN after what was written."""
        self.keep_alive = False
        self.connection.transport.close()

    def half_close(self) -> None:
        """Send a FIN but keep accepting bytes, and never answer them."""
        self.connection.deaf = True
        if self.connection.transport.can_write_eof():
            self.connection.transport.write_eof()

    async def silence(self) -> None:
        """Say nothing until the client leaves (which cancels the caller)."""
        await asyncio.Event().wait()


class Connection(asyncio.Protocol):
    """A client's connection: its requests are handled one after another; its leaving cancels what is under way."""

    transport: asyncio.Transport

    def __init__(self, application: Application, number: int) -> None:
        self.application = application
        self.number = number
        self.connected_at = 0.0
        self.received_bytes = 0
        self.deaf = False
        self.was_cut = False
        self.writable = asyncio.Event()
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Exchange] = deque()
        self._arriving: Exchange | None = None
        self._handling: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._ordinal = 0
        self._reading = True
        self._request = Request()
        self._url = b""

    # ------------------------------------------------------------------ transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        sock = cast(socket.socket | None, transport.get_extra_info("socket"))
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.application.send_buffer_bytes:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.application.send_buffer_bytes)
        self.connected_at = time.time()
        self.writable.set()
        self.application.connected(self)

    def data_received(self, data: bytes) -> None:
        """Read on, unless a script has made this connection deaf."""
        self.received_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not self.transport.is_closing():
                self.transport.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                self.transport.close()

    def eof_received(self) -> bool:
        """Take a half-closed client for a gone one, as most servers do."""
        self._client_gone()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """End what is under way."""
        del exc
        self._client_gone()
        self.application.disconnected(self)

    def pause_writing(self) -> None:
        """Hold the body back."""
        self.writable.clear()

    def resume_writing(self) -> None:
        """Let the body go on."""
        self.writable.set()

    def read(self, wanted: bool) -> None:
        """Stop or go on taking bytes from the client."""
        if wanted == self._reading or self.transport.is_closing():
            return
        self._reading = wanted
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def reset(self) -> None:
        """End the connection with an RST, whatever goes on."""
        sock = cast(socket.socket | None, self.transport.get_extra_info("socket"))
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self.transport.abort()

    def cut(self) -> None:
        """Reset the connection as if the network had: what it carried counts as cut, not as given up by its client."""
        self.was_cut = True
        self.reset()

    # ------------------------------------------------------------------ parser

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._request = Request()
        self._url = b""

    def on_url(self, url: bytes) -> None:
        """Collect the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header as it came."""
        text = value.decode("latin-1")
        self._request.headers.append((name.decode("latin-1"), text))
        self._request.named[name.decode("latin-1").lower()] = text

    def on_headers_complete(self) -> None:
        """Tell the application, which may want to answer now."""
        request = self._request
        request.method = self._parser.get_method().decode("latin-1")
        request.target = self._url.decode("latin-1")
        path, _, query = request.target.partition("?")
        request.path = unquote(path)
        request.query = dict(parse_qsl(query, keep_blank_values=True))
        request.keep_alive = self._parser.should_keep_alive()
        request.received_at = time.time()
        self._ordinal += 1
        self._arriving = exchange = Exchange(self, request, self._ordinal)
        early = self.application.received(exchange)
        if early and not self.deaf:
            self._enqueue(exchange)
        elif request.header("expect").lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Keep the body, and its digest however long it grows."""
        request = self._request
        request.hasher.update(body)
        request.body_bytes += len(body)
        if request.body_bytes <= MAX_BODY_BYTES:
            request.body += body

    def on_message_complete(self) -> None:
        """Hand the request over, unless that was done when its headers came."""
        exchange, self._arriving = self._arriving, None
        if exchange is None:
            return
        exchange.request.complete = True
        exchange.request.body_at = time.time()
        if self.deaf:
            self.application.abandoned(exchange)
        elif not exchange.claimed:
            self._enqueue(exchange)

    # ------------------------------------------------------------------ one after another

    def _enqueue(self, exchange: Exchange) -> None:
        exchange.claimed = True
        self._waiting.append(exchange)
        if len(self._waiting) >= WAITING_REQUESTS:
            self.read(False)
        self._next()

    def _next(self) -> None:
        if self._handling is not None or not self._waiting:
            return
        self._handling = exchange = self._waiting.popleft()
        self._task = asyncio.get_running_loop().create_task(self._handle(exchange))

    async def _handle(self, exchange: Exchange) -> None:
        try:
            await self.application.handle(exchange)
        except (ClientGoneError, asyncio.CancelledError):
            exchange.keep_alive = False
        except Exception:
            log.exception("a fault of the simulator's own at %s %s", exchange.request.method, exchange.request.path)
            self.transport.abort()
        finally:
            self._handling = None
            if self.transport.is_closing() or self.deaf:
                pass
            elif exchange.keep_alive and exchange.request.keep_alive:
                self.read(True)
                self._next()
            else:
                self.transport.close()

    def _client_gone(self) -> None:
        now = time.time()
        if self._handling is not None and self._handling.gone_at is None:
            self._handling.gone_at = now
            assert self._task is not None
            self._task.cancel()
        left = list(self._waiting)
        if self._arriving is not None and not self._arriving.claimed:
            left.append(self._arriving)
        self._waiting.clear()
        self._arriving = None
        for exchange in left:
            exchange.gone_at = now
            self.application.abandoned(exchange)
