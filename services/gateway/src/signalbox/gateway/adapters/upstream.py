"""One connection to a provider: writes a request, parses the answer with httptools, hands bytes on as they come.

What the bytes mean is the attempt's business (domain/attempt.py); which connection serves is the pool's.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

import httptools

from signalbox.gateway.domain.events import Lost, ResponseHead

MAX_HEAD_BYTES = 32 << 10     # of an answer's head: callers' clients stop at twice that and earlier
MAX_HEADERS = 128
MAX_BARE_BYTES = 256 << 10    # of trailers and framing in a row, without any of the body
_JOIN_BELOW = 64 << 10


Skim = Callable[[bytes], int]
Onward = Callable[[bytes], None]


class _HeadTooLarge(Exception):
    """Stops the parser: this head is not passed on."""


class Receiver(Protocol):
    """Who gets an answer. Calls come in order and end with `whole=True` or with `lost`, never both."""

    def received(self, head: ResponseHead | None, data: bytes, whole: bool) -> None:
        """Take what one read from the socket gave: the head (once), body bytes, and whether the message is whole."""
        ...

    def lost(self, how: Lost) -> None:
        """Learn that no more bytes will come."""
        ...


class Connection(asyncio.Protocol):
    """A keep-alive HTTP/1.1 connection; one request at a time."""

    def __init__(self, release: Callable[["Connection"], None], forget: Callable[["Connection"], None]) -> None:
        self._release = release
        self._forget = forget
        self._transport: asyncio.Transport
        self._receiver: Receiver | None = None
        self._paused = False
        self.closed = False
        self.idle_since_s = 0.0
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []
        self._whole_parts = 0
        self.on_body = self._parts.append    # as most of a stream's calls do no more, they are spared a frame
        self._new_head: ResponseHead | None = None
        self._in_body = False
        self._until_close = False
        self._keep_alive = False
        self._informational = False
        self._complete = False
        self._surplus = False
        self._bare_bytes = 0
        self._chunk_ended = self._between_chunks = False
        self._skim: Skim | None = None
        self._onward: Onward
        self.moved = False    # something went the short way since this was last set to False
        self._parser = httptools.HttpResponseParser(self)   # last: it looks up the callbacks above once

    def send(self, head: bytes, body: bytes, receiver: Receiver) -> None:
        """Write a whole request; its answer goes to `receiver`."""
        self._receiver = receiver
        if len(body) < _JOIN_BELOW:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    def pass_on(self, skim: Skim, onward: Onward) -> None:
        """Let what `skim` recognises in a read go to `onward` at once, past parser and receiver, until the answer ends.

        `skim` sees only what begins where a chunk does, and returns how many bytes of it are whole chunks to pass on.
        """
        self._skim, self._onward = skim, onward

    def abandon(self) -> None:
        """Close at once and tell nobody; the answer is not wanted any more."""
        self._receiver = None
        self.close()

    def close(self) -> None:
        """Close without waiting for the peer."""
        self.closed = True
        self._transport.abort()

    def pause(self) -> None:
        """Stop reading until `resume`: the caller does not keep up."""
        if not self._paused and not self.closed:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            if not self.closed:
                self._transport.resume_reading()

    # ---------------------------------------------------------------- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._receiver is None:
            self.close()  # nothing was asked: whatever this is, the next answer could not be trusted
            return
        if self._skim is not None and self._between_chunks and (end := self._skim(data)):
            self.moved = True
            if end == len(data):
                self._onward(data)
                return
            self._onward(data[:end])
            data = data[end:]
        self._bare_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._hand_over()
            self._lose(Lost.MALFORMED)
            return
        self._between_chunks = self._chunk_ended and data.endswith(b"\r\n")   # else the next size has begun
        if self._parts:
            self._bare_bytes = 0
        elif self._bare_bytes > (MAX_BARE_BYTES if self._in_body else MAX_HEAD_BYTES) and not self._complete:
            self._lose(Lost.MALFORMED)
            return
        self._hand_over()

    def eof_received(self) -> bool:
        return False  # asyncio closes the transport; connection_lost tells the rest

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._forget(self)
        if self._until_close and exc is None and self._in_body:
            self._complete = True
            self._hand_over()
            return
        self._lose(Lost.CUT if self._in_body else Lost.RESET)

    # ---------------------------------------------------------------- httptools

    def on_message_begin(self) -> None:
        if self._complete:
            self._surplus = True  # a second answer to one request
            return
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        self._informational = status < 200
        if self._informational or self._complete:
            return
        if len(self._headers) > MAX_HEADERS:
            raise _HeadTooLarge
        if self._bare_bytes > MAX_HEAD_BYTES and self._head_size() > MAX_HEAD_BYTES:
            raise _HeadTooLarge
        head = ResponseHead(status, self._headers)
        self._headers = []    # trailers go there, nobody's headers
        framed = (
            b"content-length" in head.fields or status in (204, 304)
            or b"chunked" in head.fields.get(b"transfer-encoding", b"").lower()
        )
        head.until_close = self._until_close = not framed
        self._in_body = True
        self._keep_alive = framed and self._parser.should_keep_alive()  # the parser forgets it at the message's end
        self._new_head = head

    def _head_size(self) -> int:
        return sum(len(name) + len(value) + 4 for name, value in self._headers)

    def on_chunk_header(self) -> None:
        self._chunk_ended = False

    def on_chunk_complete(self) -> None:
        self._chunk_ended = True

    def on_message_complete(self) -> None:
        if not self._informational and not self._complete:
            self._complete = True
            self._whole_parts = len(self._parts)

    # ---------------------------------------------------------------- inside

    def _hand_over(self) -> None:
        receiver, head, parts, whole = self._receiver, self._new_head, self._parts, self._complete
        if receiver is None or (head is None and not parts and not whole):
            return
        if self._surplus:
            del parts[self._whole_parts:]
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._new_head = None
        if whole:
            self._retire()
        receiver.received(head, data, whole)

    def _retire(self) -> None:
        """End the exchange: back to the pool where nothing is left over in either direction, else close."""
        self._receiver = None
        reusable = (
            not self.closed
            and not self._surplus
            and self._keep_alive
            and self._transport.get_write_buffer_size() == 0  # an early answer leaves the request half sent
        )
        self._in_body = self._until_close = self._complete = self._surplus = False
        self._between_chunks = self._chunk_ended = self.moved = False
        self._skim = None
        self._bare_bytes = 0
        if reusable:
            self.resume()
            self._release(self)
        elif not self.closed:
            self.close()

    def _lose(self, how: Lost) -> None:
        receiver, self._receiver = self._receiver, None
        if not self.closed:
            self.close()
        if receiver is not None:
            receiver.lost(how)
