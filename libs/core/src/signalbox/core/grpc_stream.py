"""One bidirectional gRPC stream on a connection of its own, entirely on the event loop's thread.

For the one call that every request waits for. gRPC's own library hands each message from thread to thread, twice; over
a long-lived stream that costs ten times what the message itself does. This is the part of HTTP/2 (RFC 9113) and of
gRPC's protocol that one stream needs: frames, both flow-control windows, settings, pings. Calls of any other kind go
through rpc.py.
"""

import asyncio
import random
import socket
import ssl
import struct
from collections.abc import Callable
from typing import cast
from urllib.parse import unquote

from hpack import Decoder, Encoder, NeverIndexedHeaderTuple
from hpack.exceptions import HPACKError

from signalbox.core.settings import RoomSettings

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 3, 4, 6, 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_ENABLE_PUSH, _INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 2, 4, 5
_CONNECTION, _STREAM = 0, 1
_FIRST_WINDOW = 65_535
_OWN_WINDOW = 16 << 20
_WINDOW_STEP = _OWN_WINDOW // 4
_LARGEST_FRAME = 16_384    # that we accept; the smallest limit the protocol allows
_LARGEST_MESSAGE = 64 << 20
_LARGEST_HEADERS = 64 << 10
_FRAME_HEAD, _MESSAGE_HEAD = 9, 5

OnMessage = Callable[[bytes], None]


class Endpoint:
    """Where a service listens (`unix:/path` or `host:port`), with the secret, and mTLS where it is configured."""

    def __init__(self, settings: RoomSettings, address: str) -> None:
        self._address = address
        self._authorization = "Bearer " + settings.secret.decode()
        self._tls: ssl.SSLContext | None = None
        if settings.tls_cert_file is not None and not address.startswith("unix:"):
            self._tls = ssl.create_default_context(cafile=settings.tls_ca_file)
            self._tls.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
            self._tls.set_alpn_protocols(["h2"])

    async def open(self, method: str, on_message: OnMessage) -> "Stream":
        """Begin a call of `method` (/package.Service/Method); each message of the answer goes to `on_message`.

        A name with several addresses (a headless service) gives one of them at random. Raises OSError.
        """
        loop = asyncio.get_running_loop()
        if self._address.startswith("unix:"):
            stream = Stream(self._head(method, "localhost"), on_message)
            await loop.create_unix_connection(lambda: stream, self._address.removeprefix("unix:"))
            return stream
        host, _, port = self._address.rpartition(":")
        host = host.strip("[]")
        found = await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        address = random.choice(found)[4]
        stream = Stream(self._head(method, self._address), on_message)
        name = host if self._tls else None
        await loop.create_connection(
            lambda: stream, str(address[0]), int(address[1]), ssl=self._tls, server_hostname=name,
        )
        return stream

    def _head(self, method: str, authority: str) -> bytes:
        """Return the call's header block."""
        return Encoder().encode([
            (":method", "POST"), (":scheme", "https" if self._tls else "http"), (":path", method),
            (":authority", authority), ("te", "trailers"), ("content-type", "application/grpc"),
            NeverIndexedHeaderTuple("authorization", self._authorization),
        ])


class Stream(asyncio.Protocol):
    """The call from the first byte to the last. `ended` says why it is over; it is never an exception."""

    def __init__(self, head: bytes, on_message: OnMessage) -> None:
        self._head = head
        self._on_message = on_message
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._decoder = Decoder(max_header_list_size=_LARGEST_HEADERS)
        self._unread = b""            # an incomplete frame
        self._partial = bytearray()   # an incomplete message
        self._wanted = _MESSAGE_HEAD  # how much of it must be there to go on
        self._headers = bytearray()   # an incomplete header block
        self._ends = False            # whether that block is the call's last
        self._consumed = 0            # since the peer's windows were last opened
        self._unsent = bytearray()    # what the peer's windows have no room for
        self._windows = [_FIRST_WINDOW, _FIRST_WINDOW]
        self._their_first_window = _FIRST_WINDOW
        self._largest_frame = _LARGEST_FRAME

    # ------------------------------------------------------------------ the caller's side

    def send(self, message: bytes) -> None:
        """Send one message; what the peer's windows do not admit yet waits here. After the end it goes nowhere."""
        if self._transport is None or self.ended.done():
            return
        size = _MESSAGE_HEAD + len(message)
        if not self._unsent and size <= min(self._largest_frame, *self._windows):
            self._spend(size)
            head = struct.pack(">HBBBIBI", size >> 8, size & 0xFF, _DATA, 0, _STREAM, 0, len(message))
            self._transport.write(head + message)
            return
        self._unsent += struct.pack(">BI", 0, len(message)) + message
        self._send_unsent()

    def close(self, why: str = "closed") -> None:
        """End the call at once."""
        self._end(why)
        if self._transport is not None:
            self._transport.abort()

    def _end(self, why: str) -> None:
        if not self.ended.done():
            self.ended.set_result(why)

    # ------------------------------------------------------------------ the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask at once, without waiting for the peer's settings: the protocol's defaults hold until they come."""
        self._transport = transport = cast("asyncio.Transport", transport)
        settings = struct.pack(">HIHI", _ENABLE_PUSH, 0, _INITIAL_WINDOW_SIZE, _OWN_WINDOW)
        transport.write(b"".join((
            _PREFACE,
            _frame(_SETTINGS, 0, _CONNECTION, settings),
            _frame(_WINDOW_UPDATE, 0, _CONNECTION, (_OWN_WINDOW - _FIRST_WINDOW).to_bytes(4, "big")),
            _frame(_HEADERS, _END_HEADERS, _STREAM, self._head),
        )))

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        self._end(str(exc) if exc else "the connection was closed")

    def data_received(self, data: bytes) -> None:
        """Take frames, whole ones only."""
        if self._unread:
            data = self._unread + data
        at, there = 0, len(data)
        try:
            while there - at >= _FRAME_HEAD:
                high, low, kind, flags, stream = struct.unpack_from(">HBBBI", data, at)
                size = high << 8 | low
                if size > _LARGEST_FRAME:
                    raise _ProtocolError("the peer sent a frame larger than it may")
                begin, end = at + _FRAME_HEAD, at + _FRAME_HEAD + size
                if there < end:
                    break
                self._take(kind, flags, stream, data[begin:end])
                at = end
        except (_ProtocolError, HPACKError, struct.error, IndexError) as e:
            self.close(f"not gRPC: {e}")
            return
        self._unread = data[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _DATA:
            self._take_data(_unpadded(payload, flags), len(payload))
            if flags & _END_STREAM:
                self.close("the answer ended")
        elif kind == _HEADERS:
            payload = _unpadded(payload, flags)
            self._take_headers(payload[5:] if flags & _PRIORITY else payload, flags)
        elif kind == _CONTINUATION:
            self._take_headers(payload, flags | (_END_STREAM if self._ends else 0))
        elif kind == _WINDOW_UPDATE and stream <= _STREAM:
            self._windows[stream] += int.from_bytes(payload, "big") & 0x7FFF_FFFF
            self._send_unsent()
        elif kind == _SETTINGS and not flags & _ACK:
            self._take_settings(payload)
        elif kind == _PING and not flags & _ACK:
            self._write(_frame(_PING, _ACK, _CONNECTION, payload))
        elif kind == _RESET:
            self.close(f"the peer gave the call up (HTTP/2 error {int.from_bytes(payload, 'big')})")

    def _take_data(self, payload: bytes, size: int) -> None:
        self._consumed += size
        if self._consumed >= _WINDOW_STEP:
            more = self._consumed.to_bytes(4, "big")
            self._consumed = 0
            self._write(_frame(_WINDOW_UPDATE, 0, _CONNECTION, more) + _frame(_WINDOW_UPDATE, 0, _STREAM, more))
        if self._partial:
            self._partial += payload
            if len(self._partial) < self._wanted:
                return
            payload = bytes(self._partial)
        at, there, self._wanted = 0, len(payload), _MESSAGE_HEAD
        while there - at >= _MESSAGE_HEAD:
            compressed, size = struct.unpack_from(">BI", payload, at)
            if compressed or size > _LARGEST_MESSAGE:
                raise _ProtocolError("a message is compressed or too long")
            end = at + _MESSAGE_HEAD + size
            if there < end:
                self._wanted += size
                break
            if not self.ended.done():
                self._on_message(payload[at + _MESSAGE_HEAD : end])
            at = end
        self._partial = bytearray(payload[at:])

    def _take_headers(self, block: bytes, flags: int) -> None:
        self._headers += block
        self._ends = bool(flags & _END_STREAM)
        if len(self._headers) > _LARGEST_HEADERS:
            raise _ProtocolError("the headers are too long")
        if not flags & _END_HEADERS:
            return
        headers = {str(name): str(value) for name, value in self._decoder.decode(bytes(self._headers))}
        self._headers.clear()
        if self._ends:
            self.close(unquote(headers.get("grpc-message", "")) or f"gRPC status {headers.get('grpc-status', '?')}")
        elif headers.get(":status") not in (None, "200"):
            self.close(f"HTTP status {headers[':status']}")

    def _take_settings(self, payload: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", payload):
            if name == _INITIAL_WINDOW_SIZE:
                self._windows[_STREAM] += value - self._their_first_window
                self._their_first_window = value
            elif name == _MAX_FRAME_SIZE:
                self._largest_frame = value
        self._write(_frame(_SETTINGS, _ACK, _CONNECTION, b""))
        self._send_unsent()

    def _send_unsent(self) -> None:
        while self._unsent and (size := min(len(self._unsent), self._largest_frame, *self._windows)) > 0:
            self._spend(size)
            self._write(_frame(_DATA, 0, _STREAM, bytes(self._unsent[:size])))
            del self._unsent[:size]

    def _spend(self, size: int) -> None:
        self._windows[_CONNECTION] -= size
        self._windows[_STREAM] -= size

    def _write(self, frames: bytes) -> None:
        if self._transport is not None:
            self._transport.write(frames)


class _ProtocolError(Exception):
    """The peer does not speak HTTP/2 or gRPC as it must."""


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    size = len(payload)
    return struct.pack(">HBBBI", size >> 8, size & 0xFF, kind, flags, stream) + payload


def _unpadded(payload: bytes, flags: int) -> bytes:
    if not flags & _PADDED:
        return payload
    return payload[1 : len(payload) - payload[0]]
