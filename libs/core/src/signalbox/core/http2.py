"""One end of an HTTP/2 connection (RFC 9113) that carries one stream of gRPC messages, on the event loop's thread.

What both ends need: frames, both flow-control windows, settings, pings, header blocks. grpc_stream.py is the calling
end, grpc_listener.py the one that is called.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import Final, cast

from hpack import Decoder
from hpack.exceptions import HPACKError

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, HAS_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
ENABLE_PUSH, MOST_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST = 2, 3, 4, 5, 6
NO_ERROR, PROTOCOL_ERROR, REFUSED_STREAM = 0, 1, 7
CONNECTION: Final = 0

LARGEST_HEADERS: Final = 64 << 10
LARGEST_MESSAGE: Final = 64 << 20
_FIRST_WINDOW = 65_535
_LARGEST_WINDOW = (1 << 31) - 1
_OWN_WINDOW = 16 << 20
_WINDOW_STEP = _OWN_WINDOW // 4
_SMALLEST_MAX_FRAME = 16_384    # also the largest frame that we accept: nobody may send larger ones unasked
_LARGEST_MAX_FRAME = (1 << 24) - 1
_MOST_UNSENT = 64 << 20         # a peer that reads less than it is answered is given up
_FRAME_HEAD, _MESSAGE_HEAD, _PING_SIZE = 9, 5, 8
# Who says nothing for so long is asked for a sign of life, and given up where none comes.
_QUIET_S = 20.0
_SIGN_OF_LIFE_S = 5.0

OnMessage = Callable[[bytes], None]


class ProtocolError(Exception):
    """The peer does not speak HTTP/2 or gRPC as it must."""


class Connection(asyncio.Protocol):
    """The connection from the first byte to the last. `ended` says why it is over; it is never an exception.

    Subclasses begin it (`_begin`), read header blocks (`_take_headers`) and learn of the peer's last message
    (`_take_end`). `_stream` is the one stream's number, 0 until there is one.
    """

    def __init__(self, on_message: OnMessage) -> None:
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._on_message = on_message
        self._stream = 0
        self._transport: asyncio.Transport | None = None
        self._decoder = Decoder(max_header_list_size=LARGEST_HEADERS)
        self._unread = b""            # an incomplete frame
        self._partial = bytearray()   # an incomplete message
        self._wanted = _MESSAGE_HEAD  # how much of it must be there to go on
        self._block = bytearray()     # an incomplete header block
        self._block_of = 0            # the stream that it belongs to, until it is whole
        self._block_ends = False      # whether that stream ends with it
        self._consumed = 0            # since the peer's windows were last opened
        self._unsent = bytearray()    # what the peer's windows have no room for
        self._of_connection = self._of_stream = _FIRST_WINDOW
        self._their_first_window = _FIRST_WINDOW
        self._largest_frame = _SMALLEST_MAX_FRAME
        self._heard = False           # since somebody last looked
        self._asked = False           # for a sign of life
        self._watch: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------ what the owner does

    def send(self, message: bytes) -> None:
        """Send one message; what the peer's windows do not admit yet waits here. After the end it goes nowhere."""
        if self._transport is None or self.ended.done():
            return
        size = _MESSAGE_HEAD + len(message)
        if not self._unsent and size <= min(self._largest_frame, self._of_connection, self._of_stream):
            self._of_connection -= size
            self._of_stream -= size
            head = struct.pack(">HBBBIBI", size >> 8, size & 0xFF, DATA, 0, self._stream, 0, len(message))
            self._transport.write(head + message)
            return
        if len(self._unsent) > _MOST_UNSENT:
            self.close("the peer does not read what it is sent")
            return
        self._unsent += struct.pack(">BI", 0, len(message)) + message
        self._send_unsent()

    def close(self, why: str = "closed") -> None:
        """End it at once."""
        self._end(why)
        if self._transport is not None:
            self._transport.abort()

    def _end(self, why: str) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if not self.ended.done():
            self.ended.set_result(why)

    # ------------------------------------------------------------------ what subclasses do

    def _begin(self) -> None:
        """Say what comes first, and read what the peer says first."""
        raise NotImplementedError

    def _take_headers(self, stream: int, headers: dict[str, str], *, ends: bool) -> None:
        """Read one whole header block of whatever stream."""
        raise NotImplementedError

    def _take_end(self) -> None:
        """The peer has said its last message."""
        raise NotImplementedError

    def _take_goaway(self, last: int) -> None:
        """The peer takes no streams after number `last`; one that runs goes on."""

    def _all_sent(self) -> None:
        """The windows have let pass all that waited."""

    # ------------------------------------------------------------------ the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin. A peer that asks and does not read the answers is given up when too much has gathered."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_MOST_UNSENT)
        self._watch = asyncio.get_running_loop().call_later(_QUIET_S, self._look)
        self._begin()

    def pause_writing(self) -> None:
        """The transport holds more than it may."""
        self.close("the peer does not read what it is sent")

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        self._end(str(exc) if exc else "the connection was closed")

    def data_received(self, data: bytes) -> None:
        """Take frames, whole ones only."""
        self._heard = True
        if self._unread:
            data = self._unread + data
        at, there = 0, len(data)
        try:
            while there - at >= _FRAME_HEAD:
                high, low, kind, flags, stream = struct.unpack_from(">HBBBI", data, at)
                size = high << 8 | low
                if size > _SMALLEST_MAX_FRAME:
                    raise ProtocolError("a frame is larger than it may be")
                begin = at + _FRAME_HEAD
                at = begin + size
                if there < at:
                    at = begin - _FRAME_HEAD
                    break
                self._take(kind, flags, stream & _LARGEST_WINDOW, data[begin:at])
                if self._transport is None or self._transport.is_closing():
                    break
        except (ProtocolError, HPACKError, struct.error, IndexError, UnicodeError) as e:
            self._write(frame(GOAWAY, 0, CONNECTION, struct.pack(">II", self._stream, PROTOCOL_ERROR)))
            self.close(f"not gRPC: {e}")
        self._unread = data[at:]

    def _look(self) -> None:
        """Give up a peer that is not there any more, though the network has not said so."""
        wait_s = _QUIET_S
        if self._heard:
            self._heard = self._asked = False
        elif self._asked:
            self.close("the peer gave no sign of life")
            return
        else:
            self._asked, wait_s = True, _SIGN_OF_LIFE_S
            self._write(frame(PING, 0, CONNECTION, bytes(_PING_SIZE)))
        self._watch = asyncio.get_running_loop().call_later(wait_s, self._look)

    # ------------------------------------------------------------------ frames

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if self._block_of and (kind != CONTINUATION or stream != self._block_of):
            raise ProtocolError("a header block is interrupted")
        if kind == DATA:
            self._take_data(stream, flags, payload)
        elif kind == HEADERS:
            payload = _unpadded(payload, flags)
            self._block_of, self._block_ends = stream, bool(flags & END_STREAM)
            self._take_block(payload[5:] if flags & HAS_PRIORITY else payload, flags)
        elif kind == CONTINUATION:
            self._take_block(payload, flags)
        elif kind == WINDOW_UPDATE:
            self._open_window(stream, _number(payload) & _LARGEST_WINDOW)
        elif kind == SETTINGS and not flags & ACK:
            self._take_settings(payload)
        elif kind == PING and not flags & ACK:
            if len(payload) != _PING_SIZE:
                raise ProtocolError("a ping is not of eight bytes")
            self._write(frame(PING, ACK, CONNECTION, payload))
        elif kind == RESET and stream == self._stream:
            self.close(f"the peer gave the call up (HTTP/2 error {_number(payload)})")
        elif kind == GOAWAY:
            self._take_goaway(struct.unpack_from(">I", payload)[0])

    def _take_data(self, stream: int, flags: int, payload: bytes) -> None:
        if not self._stream or stream == CONNECTION:
            raise ProtocolError("data of no stream")
        self._consumed += len(payload)
        if self._consumed >= _WINDOW_STEP:
            more = self._consumed.to_bytes(4, "big")
            self._consumed = 0
            self._write(frame(WINDOW_UPDATE, 0, CONNECTION, more) + frame(WINDOW_UPDATE, 0, self._stream, more))
        if stream != self._stream:
            return  # of a stream that was refused; it counts for the connection's window only
        self._take_messages(_unpadded(payload, flags))
        if flags & END_STREAM:
            self._take_end()

    def _take_messages(self, payload: bytes) -> None:
        if self._partial:
            self._partial += payload
            if len(self._partial) < self._wanted:
                return
            payload = bytes(self._partial)
        at, there, self._wanted = 0, len(payload), _MESSAGE_HEAD
        while there - at >= _MESSAGE_HEAD:
            compressed, size = struct.unpack_from(">BI", payload, at)
            if compressed or size > LARGEST_MESSAGE:
                raise ProtocolError("a message is compressed or too long")
            end = at + _MESSAGE_HEAD + size
            if there < end:
                self._wanted += size
                break
            if not self.ended.done():
                self._on_message(payload[at + _MESSAGE_HEAD : end])
            at = end
        self._partial = bytearray(payload[at:])

    def _take_block(self, part: bytes, flags: int) -> None:
        self._block += part
        if not self._block_of or len(self._block) > LARGEST_HEADERS:
            raise ProtocolError("the headers are too long or of no stream")
        if not flags & END_HEADERS:
            return
        headers = {str(name): str(value) for name, value in self._decoder.decode(bytes(self._block))}
        stream, self._block_of = self._block_of, 0
        self._block.clear()
        self._take_headers(stream, headers, ends=self._block_ends)

    def _take_settings(self, payload: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", payload):
            if name == INITIAL_WINDOW_SIZE:
                self._of_stream += value - self._their_first_window
                self._their_first_window = value
                self._check_windows(value)
            elif name == MAX_FRAME_SIZE:
                if not _SMALLEST_MAX_FRAME <= value <= _LARGEST_MAX_FRAME:
                    raise ProtocolError("a frame may be neither so small nor so large")
                self._largest_frame = value
        self._write(frame(SETTINGS, ACK, CONNECTION, b""))
        self._send_unsent()

    def _open_window(self, stream: int, more: int) -> None:
        if not more:
            raise ProtocolError("a window is opened by nothing")
        if stream == CONNECTION:
            self._of_connection += more
        elif stream == self._stream:
            self._of_stream += more
        self._check_windows(0)
        self._send_unsent()

    def _check_windows(self, size: int) -> None:
        if max(size, self._of_connection, self._of_stream) > _LARGEST_WINDOW:
            raise ProtocolError("a window is opened too far")

    def _send_unsent(self) -> None:
        waited = bool(self._unsent)
        while self._unsent:
            size = min(len(self._unsent), self._largest_frame, self._of_connection, self._of_stream)
            if size <= 0:
                return
            self._of_connection -= size
            self._of_stream -= size
            self._write(frame(DATA, 0, self._stream, bytes(self._unsent[:size])))
            del self._unsent[:size]
        if waited:
            self._all_sent()

    def _write(self, frames: bytes) -> None:
        if self._transport is not None:
            self._transport.write(frames)


def first_frames(*settings: tuple[int, int]) -> bytes:
    """Return an end's own settings (number and value), with windows that are wide open."""
    all_settings = b"".join(struct.pack(">HI", *s) for s in (*settings, (INITIAL_WINDOW_SIZE, _OWN_WINDOW)))
    more = (_OWN_WINDOW - _FIRST_WINDOW).to_bytes(4, "big")
    return frame(SETTINGS, 0, CONNECTION, all_settings) + frame(WINDOW_UPDATE, 0, CONNECTION, more)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return one frame."""
    size = len(payload)
    return struct.pack(">HBBBI", size >> 8, size & 0xFF, kind, flags, stream) + payload


def _number(payload: bytes) -> int:
    number: int = struct.unpack(">I", payload)[0]
    return number


def _unpadded(payload: bytes, flags: int) -> bytes:
    if not flags & PADDED:
        return payload
    if payload[0] >= len(payload):
        raise ProtocolError("a frame has more padding than bytes")
    return payload[1 : len(payload) - payload[0]]
