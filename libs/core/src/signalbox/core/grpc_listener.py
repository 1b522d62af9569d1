"""Serves one bidirectional gRPC call on the event loop's thread, beside a room's gRPC server: the end that is called.

For the one call that every request waits for; grpc_stream.py says why. Any gRPC client can call it. A connection
carries one call; another on it, or a call of another method, is refused in gRPC's own way. Like rpc.py never open:
a call must carry the secret, and with mTLS a connection a certificate.
"""

import asyncio
import hmac
import random
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, cast
from urllib.parse import quote

from hpack import Encoder

from signalbox.core.certificates import Certificates
from signalbox.core.errors import StartupError
from signalbox.core.http2 import (
    CONNECTION,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    LARGEST_HEADERS,
    MAX_HEADER_LIST,
    MOST_STREAMS,
    NO_ERROR,
    PREFACE,
    REFUSED_STREAM,
    RESET,
    Connection,
    ProtocolError,
    first_frames,
    frame,
)
from signalbox.core.settings import RoomSettings

OK, INVALID_ARGUMENT, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, UNAUTHENTICATED = 0, 3, 12, 13, 14, 16
"""gRPC's status codes, as far as they are used here."""

_BACKLOG = 512
# Before the secret was shown: how long that may take, and what may gather for a peer that does not read.
_PROOF_S = 10.0
_MOST_UNSENT_UNPROVED = 64 << 10
_MOST_UNSENT = 64 << 20
_LINGER_S = 10.0   # for a peer to read all answers and why its call ended; it closes then, as gRPC's library does
# Between machines a call ends after a while, as in rpc.py, so that callers look the name up again and find pods that
# came later. Not all at the same moment.
_OLDEST_S = 600.0
_OLDEST_SPREAD_S = 60.0
_RESPONSE: Final = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-accept-encoding", "identity")]


class Served(Protocol):
    """Who answers one call. Both are called on the event loop and must not block."""

    def take(self, message: bytes) -> None:
        """Take one message."""
        ...

    def take_end(self) -> None:
        """Learn that the caller says nothing more; `Call.finish` is due when all is answered."""
        ...


Serve = Callable[["Call"], Served]


class Listener:
    """Answers calls of `method` (/package.Service/Method) at `address`; `serve` is asked who answers each of them."""

    def __init__(self, settings: RoomSettings, address: str, method: str, serve: Serve) -> None:
        self._address = address
        self._method = method
        self._serve = serve
        self._authorization = b"Bearer " + settings.secret
        self._tls: ssl.SSLContext | None = None
        self._oldest_s: float | None = None
        if not address.startswith("unix:"):
            self._oldest_s = _OLDEST_S
            self._tls = _server_tls(settings)
        self._server: asyncio.Server | None = None
        self._calls: set[Call] = set()

    async def start(self) -> int:
        """Bind and serve; return the port (0 for a Unix socket). Raises StartupError where the address is unusable."""
        loop = asyncio.get_running_loop()
        try:
            if self._address.startswith("unix:"):
                bound = _bound(Path(self._address.removeprefix("unix:")))
                self._server = await loop.create_unix_server(self._connected, sock=bound, backlog=_BACKLOG)
                return 0
            host, _, port = self._address.rpartition(":")
            self._server = await loop.create_server(
                self._connected, host.strip("[]"), int(port), ssl=self._tls, backlog=_BACKLOG,
                ssl_handshake_timeout=_PROOF_S if self._tls else None,
            )
        except OSError as e:
            raise StartupError(f"address {self._address}", "cannot be bound; is another process using it?") from e
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, wait for those that run at most `grace_s` seconds, end the others."""
        if self._server is not None:
            self._server.close()
        if running := [call.ended for call in self._calls if call.is_served]:
            await asyncio.wait(running, timeout=grace_s)
        for call in list(self._calls):
            call.finish(UNAVAILABLE, "the service is stopping")

    def _connected(self) -> "Call":
        oldest_s = self._oldest_s and self._oldest_s + random.uniform(0, _OLDEST_SPREAD_S)
        call = Call(self._method, self._authorization, self._serve, oldest_s, encrypted=self._tls is not None)
        self._calls.add(call)
        call.ended.add_done_callback(lambda _: self._calls.discard(call))
        return call


class Call(Connection):
    """One connection and the call that it carries. `ended` says why it is over, whoever ended it."""

    def __init__(
        self, method: str, authorization: bytes, serve: Serve, oldest_s: float | None, *, encrypted: bool,
    ) -> None:
        super().__init__(_out_of_place)
        self._method = method
        self._authorization = authorization
        self._serve = serve
        self._oldest_s = oldest_s
        self._encrypted = encrypted
        self._served: Served | None = None
        self._preface = PREFACE         # what of it is still to come
        self._encoder = Encoder()
        self._last = b""                # the frames that end the call, once all answers are out
        self._limit: asyncio.TimerHandle | None = None

    @property
    def is_served(self) -> bool:
        """Whether a call was made, and taken."""
        return self._served is not None

    def finish(self, status: int, message: str = "") -> None:
        """End the call with a gRPC status once what was sent before is out; without a call, the connection."""
        if self.ended.done() or self._transport is None:
            return
        self._end(message or f"gRPC status {status}")
        trailers = [("grpc-status", str(status))]
        if message:
            trailers.append(("grpc-message", quote(message)))
        # Whoever was not heard yet is told the head together with the status, as gRPC wants it.
        head = trailers if self.is_served else [*_RESPONSE, *trailers]
        if self._stream:
            self._last = frame(HEADERS, END_HEADERS | END_STREAM, self._stream, self._encoder.encode(head))
        else:
            self._last = _no_call_after(0)
        self._limit = asyncio.get_running_loop().call_later(_LINGER_S, self._transport.close)
        if not self.is_served:
            self._transport.pause_reading()  # nobody takes what a refused caller goes on saying
        if not self._unsent:
            self._all_sent()

    def pause_reading(self) -> None:
        """Read no more until `resume_reading`: TCP slows the caller down. Pings go unanswered meanwhile."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # ------------------------------------------------------------------ the connection

    def _begin(self) -> None:
        transport = cast("asyncio.Transport", self._transport)
        transport.set_write_buffer_limits(high=_MOST_UNSENT_UNPROVED)
        if self._encrypted and transport.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
            self.close("the peer does not offer HTTP/2")
            return
        self._reset_limit(_PROOF_S, lambda: self.close("the peer asked for nothing"))
        self._write(first_frames((MOST_STREAMS, 1), (MAX_HEADER_LIST, LARGEST_HEADERS)))

    def data_received(self, data: bytes) -> None:
        """Read the preface, then frames."""
        if self._preface:
            begins = data[: len(self._preface)]
            if not self._preface.startswith(begins):
                self.close("not HTTP/2")
                return
            self._preface, data = self._preface[len(begins) :], data[len(begins) :]
        if not self.ended.done():
            super().data_received(data)

    def _take_headers(self, stream: int, headers: dict[str, str], *, ends: bool) -> None:
        if not stream % 2 or stream < self._stream:
            raise ProtocolError("a call has a number that it may not have")
        if stream == self._stream:  # trailers, which end the caller's side
            if not ends:
                raise ProtocolError("a call begins twice")
            self._take_end()
        elif self._stream:  # the caller had not read that it may have one call only; it repeats this one elsewhere
            self._write(frame(RESET, 0, stream, REFUSED_STREAM.to_bytes(4, "big")))
        else:
            self._stream = stream
            self._write(_no_call_after(stream))
            self._answer_head(headers)
            if ends:
                self._take_end()

    def _answer_head(self, headers: dict[str, str]) -> None:
        given = headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, self._authorization):
            self.finish(UNAUTHENTICATED, "the shared secret is missing or wrong")
        elif headers.get(":path") != self._method or headers.get(":method") != "POST":
            self.finish(UNIMPLEMENTED, "Method not found! Only one is served at this address")
        elif headers.get("grpc-encoding", "identity") != "identity":
            self.finish(UNIMPLEMENTED, "messages must not be compressed")
        else:
            cast("asyncio.Transport", self._transport).set_write_buffer_limits(high=_MOST_UNSENT)
            self._write(frame(HEADERS, END_HEADERS, self._stream, self._encoder.encode(_RESPONSE)))
            self._served = self._serve(self)
            self._on_message = self._served.take
            if self._oldest_s is None:
                self._cancel_limit()
            else:
                self._reset_limit(self._oldest_s, lambda: self.finish(UNAVAILABLE, "look the name up again"))

    def _take_end(self) -> None:
        self._on_message = _out_of_place
        if self._served is not None and not self.ended.done():
            self._served.take_end()

    def _all_sent(self) -> None:
        if self._last:
            self._write(self._last)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end, and that nothing more is due."""
        self._cancel_limit()
        super().connection_lost(exc)

    def _end(self, why: str) -> None:
        self._cancel_limit()
        super()._end(why)

    def _reset_limit(self, wait_s: float, what: Callable[[], None]) -> None:
        self._cancel_limit()
        self._limit = asyncio.get_running_loop().call_later(wait_s, what)

    def _cancel_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None


def _out_of_place(_: bytes) -> None:
    raise ProtocolError("a message where there can be none")


def _no_call_after(stream: int) -> bytes:
    """Tell the caller to make its other calls on other connections; the one that it has goes on."""
    return frame(GOAWAY, 0, CONNECTION, struct.pack(">II", stream, NO_ERROR))


def _bound(path: Path) -> socket.socket:
    """Return a Unix socket that only this user can open; what an earlier process left there goes. Raises OSError."""
    if path.is_socket():
        path.unlink()
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(str(path))
        path.chmod(0o600)  # before anybody can connect, which takes `listen`
    except OSError:
        sock.close()
        raise
    return sock


def _server_tls(settings: RoomSettings) -> ssl.SSLContext | None:
    """Return a context that shows, to each connection anew, what the certificates' files hold then."""
    certificates = Certificates.of(settings)
    if certificates is None:
        return None
    given, current = certificates.pem, certificates.serving()

    def renew(connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context_of: ssl.SSLContext) -> None:
        nonlocal given, current
        pem = certificates.refresh()
        if pem is not given:
            current = certificates.serving()
            given = pem
        connection.context = current

    tls = certificates.serving()
    tls.sni_callback = renew
    return tls
