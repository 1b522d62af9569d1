"""One bidirectional gRPC stream on a connection of its own, entirely on the event loop's thread: the calling end.

For the one call that every request waits for. gRPC's own library hands each message from thread to thread, twice; over
a long-lived stream that costs ten times what the message itself does. Calls of any other kind go through rpc.py.
"""

import asyncio
import random
import socket
import ssl
from urllib.parse import unquote

from hpack import Encoder, NeverIndexedHeaderTuple

from signalbox.core.certificates import Certificates
from signalbox.core.http2 import (
    ENABLE_PUSH,
    END_HEADERS,
    HEADERS,
    PREFACE,
    Connection,
    OnMessage,
    first_frames,
    frame,
)
from signalbox.core.settings import RoomSettings

_ONLY_STREAM = 1
# A port that nobody answers for, as behind a network policy, must not use up the caller's whole patience.
_FASTER_WAIT_S = 1.0


class Endpoint:
    """Where a service listens (`unix:/path` or `host:port`), with the secret, and mTLS where it is configured.

    `faster` is an address of the same service that serves this one call more cheaply (grpc_listener.py); where it does
    not answer, as with a service of the version before, the call goes to `address`.
    """

    def __init__(self, settings: RoomSettings, address: str, faster: str = "") -> None:
        self._address = address
        self._faster = faster
        self._authorization = "Bearer " + settings.secret.decode()
        self._certificates = Certificates.of(settings)

    async def open(self, method: str, on_message: OnMessage) -> "Stream":
        """Begin a call of `method` (/package.Service/Method); each message of the answer goes to `on_message`.

        A name with several addresses (a headless service) gives one at random of those that are listened on.
        Raises OSError.
        """
        if self._faster:
            try:
                async with asyncio.timeout(_FASTER_WAIT_S):
                    return await self._open(self._faster, method, on_message)
            except (OSError, TimeoutError):
                pass
        return await self._open(self._address, method, on_message)

    async def _open(self, where: str, method: str, on_message: OnMessage) -> "Stream":
        loop = asyncio.get_running_loop()
        if where.startswith("unix:"):
            stream = Stream(self._head(method, "http", "localhost"), on_message)
            await loop.create_unix_connection(lambda: stream, where.removeprefix("unix:"))
            return stream
        host, _, port = where.rpartition(":")
        host = host.strip("[]")
        found = await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        tls: ssl.SSLContext | None = None
        if self._certificates is not None:
            try:
                tls = self._certificates.context()
            except ssl.SSLError as e:  # the files are just being replaced
                raise ConnectionError(f"certificates: {e}") from e
        stream = Stream(self._head(method, "https" if tls else "http", where), on_message)
        addresses = [str(address[0]) for *_, address in random.sample(found, len(found))]
        while True:
            try:
                await loop.create_connection(
                    lambda: stream, addresses.pop(), int(port), ssl=tls, server_hostname=host if tls else None,
                )
            except ConnectionRefusedError:  # nobody listens there, as where a replica has just ended
                if not addresses:
                    raise
            else:
                return stream

    def _head(self, method: str, scheme: str, authority: str) -> bytes:
        """Return the call's header block."""
        return Encoder().encode([
            (":method", "POST"), (":scheme", scheme), (":path", method),
            (":authority", authority), ("te", "trailers"), ("content-type", "application/grpc"),
            NeverIndexedHeaderTuple("authorization", self._authorization),
        ])


class Stream(Connection):
    """The call from the first byte to the last. `ended` says why it is over."""

    def __init__(self, head: bytes, on_message: OnMessage) -> None:
        super().__init__(on_message)
        self._head = head
        self._stream = _ONLY_STREAM

    def _begin(self) -> None:
        """Ask at once, without waiting for the peer's settings: the protocol's defaults hold until they come."""
        self._write(PREFACE + first_frames((ENABLE_PUSH, 0)) + frame(HEADERS, END_HEADERS, _ONLY_STREAM, self._head))

    def _take_headers(self, stream: int, headers: dict[str, str], *, ends: bool) -> None:
        if ends:
            self.close(unquote(headers.get("grpc-message", "")) or f"gRPC status {headers.get('grpc-status', '?')}")
        elif headers.get(":status") not in (None, "200"):
            self.close(f"HTTP status {headers[':status']}")

    def _take_end(self) -> None:
        self.close("the answer ended")

    def _take_goaway(self, last: int) -> None:
        if last < _ONLY_STREAM:
            self.close("the peer takes no calls any more")
