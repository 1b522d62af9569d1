"""One relayed request on a client's connection: its body as it comes in, its answer as it goes out.

The protocol (protocol.py) feeds it from the parser; the relay (relay.py) asks for the body and writes the answer.
"""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol

from signalbox.core.ids import new_id
from signalbox.gateway.domain.buffers import Buffers
from signalbox.gateway.domain.caller import Caller
from signalbox.gateway.domain.refusal import Refusal, overloaded

UNCHECKED_BODY_BYTES = 64 << 10
_JOIN_BELOW = 64 << 10
_SMALL_PIECE_BYTES = 4 << 10    # kept as it came, a piece of two bytes would take fifty

Header = tuple[bytes, bytes]


class ClientGone(Exception):
    """The caller hung up before there was anything to answer."""


class Line(Protocol):
    """What an exchange needs of its connection. `write` writes at once."""

    write: Callable[[bytes], None]

    def write_all(self, parts: list[bytes]) -> None:
        """Write several pieces without joining them."""
        ...

    def hold(self) -> None:
        """Stop reading from the caller."""
        ...

    def go_on(self) -> None:
        """Read on."""
        ...

    def known(self) -> None:
        """Learn that a valid key was presented."""
        ...

    def answered(self, exchange: "Exchange", reusable: bool) -> None:
        """Learn that the answer is written; close unless `reusable`."""
        ...

    def break_off(self) -> None:
        """Cut the connection."""
        ...

    def date(self) -> list[Header]:
        """Return the Date header for answers that no provider dated."""
        ...

    def is_full(self) -> bool:
        """Whether the caller does not keep up with what was written."""
        ...


class Exchange:
    """Request side: `read_body`, `body`. Answer side: `start`, `send`, `respond`, `break_off`."""

    def __init__(
        self, line: Line, buffers: Buffers, *, route: str, query: bytes, caller: Caller, length: int | None,
        max_body: int, expects_continue: bool, keep_alive: bool, http10: bool, now_s: float,
    ) -> None:
        self._line = line
        self._buffers = buffers
        self.route = route
        self.query = query
        self.caller = caller
        self.request_id = new_id("sbx_req_")
        self.started_s = now_s
        self.keep_alive = keep_alive
        self._http10 = http10
        # the body
        self._length = length
        self._max_body = max_body
        self._expects_continue = expects_continue
        self._parts: list[bytes | bytearray] = []
        self._received = 0
        self._counted = 0
        self._admitted_body = False
        self._trouble: Exception | None = None
        self._waiting: asyncio.Future[None] | None = None
        self.complete = False
        self.begun = False  # somebody answers it already
        # the caller
        self.gone = False
        self.on_gone: Callable[[], object] | None = None
        self.on_full: Callable[[], None] | None = None
        self.on_drained: Callable[[], None] | None = None
        # the answer
        self._head: bytes | None = None
        self.chunked = False
        self.started = False
        self.status = 0      # none yet
        self.response_complete = False

    # ---------------------------------------------------------------- the request's body

    @property
    def unread(self) -> bool:
        """Whether the key must be checked before the body is read on: it is large, or waits for 100 Continue."""
        return not self.complete and (
            self._expects_continue or (self._length or self._received) > UNCHECKED_BODY_BYTES
        )

    @property
    def plain(self) -> bool:
        """Whether it is of HTTP/1.1, states its length, wants no word in between and keeps the connection."""
        return self.keep_alive and not self._http10 and self._length is not None and not self._expects_continue

    @property
    def body(self) -> bytes:
        """The whole body, once it is complete."""
        if len(self._parts) != 1:
            self._parts = [b"".join(self._parts)]
        return bytes(self._parts[0])

    @property
    def received(self) -> int:
        """How many bytes of the body have come."""
        return self._received

    def feed(self, data: bytes) -> None:
        """Take a piece of the body; holds the connection where it may not be read yet."""
        if self._trouble is not None or self.response_complete:
            return
        self._received += len(data)
        if self._received > self._max_body:
            self._fail(_too_large(self._max_body))
            return
        if self._admitted_body and not self._count_to(self._received):
            return
        if len(data) >= _SMALL_PIECE_BYTES or not self._parts:
            self._parts.append(data)
        elif isinstance(last := self._parts[-1], bytearray):
            last += data
        else:
            self._parts.append(bytearray(data))
        if not self._admitted_body and self._received > UNCHECKED_BODY_BYTES:
            self._line.hold()

    def feed_end(self) -> None:
        """Learn that the body is whole."""
        self.complete = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def read_body(self) -> None:
        """Let the body in and wait until it is whole.

        Raises Refusal (`request_too_large`, `overloaded`, `request_invalid` when it stalls or breaks) or ClientGone.
        """
        self._admitted_body = True
        if self._length is not None and self._length > self._max_body:
            self._fail(_too_large(self._max_body))
        elif self._trouble is None:
            self._count_to(self._length or self._received)
        if self._trouble is None and not self.gone and not self.complete:
            if self._expects_continue and not self._received:
                self._line.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._waiting = asyncio.get_running_loop().create_future()
            self._line.go_on()
            self._buffers.arrives(self)
            try:
                await self._waiting
            finally:
                self._buffers.arrived(self)
        if self._trouble is not None:
            raise self._trouble
        if self.gone:
            raise ClientGone

    def broken(self, why: str) -> None:
        """Learn that the body will never be whole."""
        self._fail(Refusal("request_invalid", why))

    def make_room(self) -> None:
        """Give the body up: it trickles, and others find no room."""
        self._fail(overloaded())
        self.release_body()

    def release_body(self) -> None:
        """Forget the body: it can't be needed any more."""
        self._parts = []
        self._buffers.give_back(self._counted)
        self._counted = 0

    def _count_to(self, count: int) -> bool:
        if count <= self._counted:
            return True
        try:
            self._buffers.take(count - self._counted)
        except Refusal as e:
            self._fail(e)
            return False
        self._counted = count
        return True

    def _fail(self, trouble: Exception) -> None:
        self._trouble = trouble
        self._parts = []
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    # ---------------------------------------------------------------- the caller

    @property
    def full(self) -> bool:
        """Whether the caller does not keep up with what was written."""
        return self._line.is_full()

    def known(self) -> None:
        """Note that the caller's key is a valid one."""
        self._line.known()

    def hung_up(self) -> None:
        """Learn that the caller's connection is gone."""
        self.gone = True
        self.response_complete = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
        if self.on_gone is not None:
            self.on_gone()

    # ---------------------------------------------------------------- the answer

    def start(self, status: int, fields: bytes, length: int | None) -> None:
        """Begin the answer; its head leaves with the first bytes. `fields` are lines of it, each with its end.

        `length` None: as many bytes as come.
        """
        self.started = True
        self.status = status
        parts = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status, fields]
        if length is not None:
            parts.append(b"content-length: %d\r\n" % length)
        elif self._http10:
            self.keep_alive = False
        else:
            self.chunked = True
            parts.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive or not self.complete:
            self.keep_alive = False
            parts.append(b"connection: close\r\n")
        elif self._http10:
            parts.append(b"connection: keep-alive\r\n")
        parts.append(b"\r\n")
        self._head = b"".join(parts)

    def send(self, data: bytes, *, last: bool) -> None:
        """Write bytes of the answer, and its end where they are the last."""
        if self.gone or self.response_complete:
            return
        parts = []
        if self._head is not None:
            parts.append(self._head)
            self._head = None
        if data:
            parts += (b"%x\r\n" % len(data), data, b"\r\n") if self.chunked else (data,)
        if last and self.chunked:
            parts.append(b"0\r\n\r\n")
        if len(data) < _JOIN_BELOW:
            self._line.write(b"".join(parts))
        else:
            self._line.write_all(parts)
        if last:
            self.response_complete = True
            self._line.answered(self, self.keep_alive)

    @property
    def onward(self) -> Callable[[bytes], None]:
        """Where pieces of a begun answer can be written that are framed already."""
        return self._line.write

    def respond(self, status: int, fields: bytes, body: bytes) -> None:
        """Write a whole answer; `fields` as for `start`."""
        self.start(status, fields, len(body))
        self.send(body, last=True)

    def break_off(self) -> None:
        """Cut the connection, so that a broken answer does not look whole."""
        self.response_complete = True
        self._line.break_off()

    def date(self) -> list[Header]:
        """Return the Date header for answers of our own."""
        return self._line.date()


def _too_large(most: int) -> Refusal:
    return Refusal("request_too_large", f"The request's body is larger than {most} bytes.")


_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
