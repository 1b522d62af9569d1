"""Follows an Anthropic event stream on arbitrary chunkings: whole frames out byte for byte, usage noticed on the way.

Only `message_start`, `message_delta` and `error` frames are parsed as JSON; deltas are only measured. What the frames
mean for the caller is the gateway's business. Sources: Anthropic's API documentation (streaming), WHATWG HTML §9.2.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import msgspec

from signalbox.wire.usage import Usage, UsageMeter, serving_model

MAX_PARTIAL_BYTES = 1 << 20

# A blank line. A carriage return that ends the data may be half of a CR LF, so it does not count yet.
_BLANK_LINE = re.compile(rb"(?:\r\n|\r(?!\n)|\n)(?:\r\n|\r(?=[^\n])|\n)")
_BLANK_LINE_AT_REST = re.compile(rb"(?:\r\n|\r(?!\n)|\n)(?:\r\n|\r|\n)")
# A delta as the provider writes it, and an HTTP chunk of one or more of them: what most reads of a stream are.
_DELTA = (
    rb'event: content_block_delta\ndata: \{"type": ?"content_block_delta", ?"index": ?\d++, ?"delta": ?\{'
    rb'"type": ?"[a-z_]++", ?"(?:text|thinking|partial_json)": ?'
    rb'"%s[^"\\\r\n]*+(?:\\[^\r\n][^"\\\r\n]*+)*+)"\} *+\} *+\n\n'
)
_DELTA_CHUNK = re.compile(
    rb"([0-9A-Fa-f]{1,6})\r\n" + _DELTA % b"(" + rb"((?:" + _DELTA % b"(?:" + rb")*+)\r\n"
)
_CHUNK_FRAMING = 4    # bytes around a chunk's content, but for the digits of its size
_DELTA_TEXT = re.compile(rb'"(?:text|thinking|partial_json)"\s*+:\s*+"((?:[^"\\]++|\\.)*+)"', re.DOTALL)
# Frames without these words can only be content deltas, block ends and pings; a delta's text may hold one.
_NOT_PLAIN = (b"message_", b"error", b"content_block_start")
_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"
# The longest blank line is CR LF CR LF; its last byte may be still to come.
_BOUNDARY_TAIL = 3

STATUS_BY_ERROR_TYPE = {
    "invalid_request_error": 400, "authentication_error": 401, "billing_error": 402, "permission_error": 403,
    "not_found_error": 404, "conflict_error": 409, "request_too_large": 413, "rate_limit_error": 429,
    "api_error": 500, "timeout_error": 504, "overloaded_error": 529,
}


@dataclass(frozen=True, slots=True)
class ErrorFrame:
    """An `error` event inside a stream; `raw` is its data, a JSON body in Anthropic's error envelope."""

    type: str
    message: str
    error_code: str
    raw: bytes = field(repr=False)

    @property
    def status(self) -> int:
        """The HTTP status that the error would have had before the stream began."""
        return STATUS_BY_ERROR_TYPE.get(self.type, 500)


class StreamReader:
    """One stream. Feed it chunks; what it returns is what may be forwarded now: whole frames, unchanged."""

    __slots__ = (
        "_inside", "_meter", "_partial", "content_seen", "delta_bytes", "error", "malformed", "message_start_seen",
        "model", "stop_reason", "stopped",
    )

    def __init__(self) -> None:
        self._partial = b""
        self._inside = False
        self._meter = UsageMeter()
        self.content_seen = False        # a frame other than message_start, ping, error is complete: the commit point
        self.stopped = False             # message_stop is complete, and no error came before it
        self.error: ErrorFrame | None = None
        self.message_start_seen = False
        self.malformed = False           # some frame was not what the grammar says; its bytes passed untouched
        self.model = ""                  # that serves: message_start's, or the fallback's that took over
        self.stop_reason = ""
        self.delta_bytes = 0             # UTF-8 bytes of text, thinking and JSON deltas so far

    def feed(self, chunk: bytes) -> bytes:
        """Return the bytes of all frames that are complete now and were not returned before."""
        data = self._partial + chunk if self._partial else chunk
        if self._inside:
            return self._feed_oversized(data)
        end = _last_boundary(data)
        if end < len(data):
            self._partial = data[end:]
            data = data[:end]
            if len(self._partial) > MAX_PARTIAL_BYTES:
                return data + self._let_through()
        else:
            self._partial = b""
        if data:
            self._read(data)
        return data

    def skim(self, raw: bytes) -> int:
        """Return how many bytes of `raw` are whole HTTP chunks that hold whole deltas and nothing else.

        These are measured, need not be fed and can go on with their framing; `raw` must begin where a chunk does.
        0 where the general way must be taken. Such chunks are what a running stream is made of.
        """
        if self._partial or not self.content_seen:
            return 0
        end, there = 0, len(raw)
        while end < there:
            chunk = _DELTA_CHUNK.match(raw, end)
            if chunk is None:
                break
            size, text, more = chunk.group(1, 2, 3)
            after = chunk.end()
            if int(size, 16) != after - end - len(size) - _CHUNK_FRAMING:
                break
            if more:
                self._measure(raw[end:after])
            else:
                self.delta_bytes += _unescaped_length(text) if b"\\" in text else len(text)
            end = after
        if end:
            self._meter.final = False    # content_after_report() without a call: this runs for every read of a stream
        return end

    def flush(self) -> bytes:
        """Return what is held back at the end of the stream; a frame without its blank line does not count."""
        rest, self._partial = self._partial, b""
        self._read(rest)
        return rest

    @property
    def held(self) -> int:
        """Bytes of the frame that is not complete."""
        return len(self._partial)

    @property
    def inside_frame(self) -> bool:
        """Whether what was returned so far ends inside an oversized frame."""
        return self._inside

    @property
    def usage(self) -> Usage:
        """What the provider has reported so far."""
        return self._meter.usage(self.model)

    def billed(self) -> tuple[Usage, bool]:
        """Return what counts when the stream ends here, and whether its output had to be estimated."""
        return self._meter.billed(self.model, self.delta_bytes)

    # ------------------------------------------------------------------ frames

    def _read(self, data: bytes) -> None:
        plain = b"\r" not in data
        marks = _Marks(data)
        start = 0
        while start < len(data):
            if self.content_seen and plain:
                start = self._measure_run(data, start, marks.after(start))
            end, following = _blank_line(data, start, plain)
            if end < 0:
                return
            self._read_frame(data[start:end])
            start = following

    def _measure_run(self, data: bytes, start: int, limit: int) -> int:
        """Measure the content frames from `start` that end before `limit` at once; return where they end."""
        end = data.rfind(b"\n\n", start, limit) + 2
        if end <= start + 1:
            return start
        self._measure(data[start:end])
        return end

    def _read_frame(self, frame: bytes) -> None:
        kind, content = _parse_frame(frame)
        if not kind and not content:
            return
        if kind == "error":
            self._read_error(content)
            return
        if kind == "message_start":
            self._read_start(content)
            return
        if kind == "ping":
            return
        self.content_seen = self.content_seen or self.error is None   # what follows an early error is no answer
        if kind == "content_block_delta":
            self._measure(content)
        elif kind == "message_delta":
            self._read_delta(content)
        elif kind == "message_stop":
            self.stopped = self.stopped or self.error is None    # an error was its end, whatever follows

    def _measure(self, data: bytes) -> None:
        texts = _DELTA_TEXT.findall(data)
        if not texts:
            return
        self._meter.content_after_report()
        escaped = b"\\" in data
        self.delta_bytes += sum(map(_unescaped_length, texts)) if escaped else sum(map(len, texts))

    def _read_start(self, content: bytes) -> None:
        self.message_start_seen = True
        message = self._object(content).get("message")
        if not isinstance(message, dict):
            self.malformed = True
            return
        model = message.get("model")
        self.model = model if isinstance(model, str) else ""
        self._meter.start(message.get("usage"))

    def _read_delta(self, content: bytes) -> None:
        parsed = self._object(content)
        delta = parsed.get("delta")
        if isinstance(delta, dict) and isinstance(delta.get("stop_reason"), str):
            self.stop_reason = delta["stop_reason"]
        usage = parsed.get("usage")
        if isinstance(usage, dict):
            self._meter.report(usage)
            self.model = serving_model(usage, self.model)

    def _read_error(self, content: bytes) -> None:
        error = self._object(content).get("error")
        error = error if isinstance(error, dict) else {}
        details = error.get("details")
        code = details.get("error_code") if isinstance(details, dict) else ""
        self.error = ErrorFrame(_text(error.get("type")), _text(error.get("message")), _text(code), content)

    def _object(self, content: bytes) -> dict[str, Any]:
        try:
            parsed = msgspec.json.decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            parsed = None
        if isinstance(parsed, dict):
            return parsed
        self.malformed = True
        return {}

    # ------------------------------------------------------------------ a frame beyond all bounds

    def _let_through(self) -> bytes:
        self.malformed = True
        self._inside = True
        self.content_seen = True
        keep = len(self._partial) - _BOUNDARY_TAIL
        through, self._partial = self._partial[:keep], self._partial[keep:]
        return through

    def _feed_oversized(self, data: bytes) -> bytes:
        blank = _BLANK_LINE.search(data)
        if blank is None:
            self._partial = data[-_BOUNDARY_TAIL:]
            return data[:-_BOUNDARY_TAIL]
        self._inside = False
        self._partial = b""
        return data[: blank.end()] + self.feed(data[blank.end() :])


class _Marks:
    """Where in `data` the next frame may stand that is more than content; each word is looked for once."""

    __slots__ = ("_data", "_next")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._next = [-1] * len(_NOT_PLAIN)

    def after(self, start: int) -> int:
        """Return the place of the first such word from `start` on, or the end."""
        for i, word in enumerate(_NOT_PLAIN):
            if self._next[i] < start:
                found = self._data.find(word, start)
                self._next[i] = found if found >= 0 else len(self._data)
        return min(self._next)


def _blank_line(data: bytes, start: int, plain: bool) -> tuple[int, int]:
    """Return where the next blank line begins and ends, -1 twice if there is none; `plain` data has no CR."""
    if plain:
        end = data.find(b"\n\n", start)
        return (end, end + 2) if end >= 0 else (-1, -1)
    blank = _BLANK_LINE_AT_REST.search(data, start)
    return blank.span() if blank is not None else (-1, -1)


def _last_boundary(data: bytes) -> int:
    """Return where the last complete frame ends, 0 if there is none."""
    if b"\r" not in data:
        return data.rfind(b"\n\n") + 2 if b"\n\n" in data else 0
    end = 0
    for blank in _BLANK_LINE.finditer(data):
        end = blank.end()
    return end


def _parse_frame(frame: bytes) -> tuple[str, bytes]:
    """Return a frame's event type and data. Without an `event:` line the type is the data's own."""
    if frame.startswith(b"event: ") and frame.count(b"\n") == 1 and b"\r" not in frame:   # as the provider writes it
        event, _, content = frame[7:].partition(b"\ndata: ")
        if content:
            return event.decode(errors="replace"), content
    event = b""
    data: list[bytes] = []
    for raw in _LINE_END.split(frame):
        line = raw.removeprefix(_BOM)
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"event":
            event = value
    content = b"\n".join(data)
    if event:
        return event.decode(errors="replace"), content
    return _type_of(content), content


def _type_of(content: bytes) -> str:
    try:
        return msgspec.json.decode(content, type=_Typed).type
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


class _Typed(msgspec.Struct):
    type: str = ""


def _unescaped_length(text: bytes) -> int:
    if b"\\" not in text:
        return len(text)
    try:
        return len(msgspec.json.decode(b'"' + text + b'"', type=str).encode())
    except (msgspec.DecodeError, UnicodeError):
        return len(text)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
