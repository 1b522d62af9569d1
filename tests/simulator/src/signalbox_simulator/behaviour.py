"""What a provider may be told to do with one request: one validated value, read from JSON or from a marker in a prompt.

It says what is wanted; `plan` turns it into steps and `http1` makes them happen. README.md lists the fields.
"""

import dataclasses
import json
import shlex
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

MARKER_OPEN = "[[sim "
MARKER_CLOSE = "]]"

How = Literal["fin", "rst", "half"]
Drop = Literal["reset", "close", "silence", "half_close"]
At = int | float | str


class BehaviourError(ValueError):
    """A behaviour names a field that does not exist or gives one a value of the wrong kind."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Break the connection after `at`: a clean FIN, an RST, or a FIN that leaves our receiving side open."""

    how: How = "fin"
    at: At = "half"
    mid_frame: bool = False


@dataclass(frozen=True, slots=True)
class Stall:
    """Say nothing for `s` seconds at `at`, or only a ping every `ping_s`; without `s` until the client leaves."""

    s: float | None = None
    at: At = "half"
    ping_s: float | None = None


@dataclass(frozen=True, slots=True)
class ErrorEvent:
    """Send an SSE `error` event at `at`, and end the stream there unless `then` is `continue`."""

    type: str = "overloaded_error"
    message: str = "Overloaded"
    error_code: str | None = None
    at: At = "start"
    then: Literal["end", "continue"] = "end"


@dataclass(frozen=True, slots=True)
class Inject:
    """Send these bytes at `at`, between two frames."""

    text: str = "event: content_block_delta\ndata: {not json\n\n"
    at: At = "half"


@dataclass(frozen=True, slots=True)
class Endless:
    """Begin a frame at `at` that never ends: `bytes` bytes in all (without it until the client leaves), `piece` at a time."""

    bytes: int | None = None
    at: At = "half"
    piece: int = 65536
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Flood:
    """Send one text delta of `bytes` bytes `times` times at `at`, as fast as the client takes them."""

    times: int = 100
    bytes: int = 8192
    at: At = "content"


@dataclass(frozen=True, slots=True)
class BadChunk:
    """Send a chunk header at `at` that is not a number, then close."""

    text: str = "zz\r\n"
    at: At = "half"


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How one request is answered. The default answers well, at once, and keeps the connection."""

    name: str = ""
    # --- instead of an answer
    drop: Drop | None = None
    apply_first: bool = False
    # --- an error (or any other status) instead of a message
    status: int | None = None
    error_type: str | None = None
    error_code: str | None = None
    message: str | None = None
    details: dict[str, Any] | None = None
    body: Any = None
    retry_after: int | float | str | None = None
    # --- when
    early: bool = False
    unread_s: float = 0.0
    delay_s: float = 0.0
    header_line_delay_s: float = 0.0
    first_delay_s: float = 0.0
    delta_delay_s: float = 0.0
    # --- how it goes over the wire
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str | None = None
    gzip: bool = False
    length_off_by: int = 0
    split: int | list[int] | Literal["utf8"] | None = None
    split_delay_s: float = 0.0
    after: Literal["close", "reset", "half_close"] | None = None
    # --- what breaks
    cut: Cut | None = None
    stall: Stall | None = None
    error_event: ErrorEvent | None = None
    malformed: Inject | None = None
    endless: Endless | None = None
    bad_chunk: BadChunk | None = None
    flood: Flood | None = None
    omit: list[str] = field(default_factory=list)
    # --- what is said
    model: str | None = None
    text: str | None = None
    deltas: int | None = None
    text_bytes: int | None = None
    thinking: bool | None = None
    tool: bool | str | None = None
    tool_input: dict[str, Any] | None = None
    blocks: list[dict[str, Any]] | None = None
    pings: int = 1
    extra_events: list[dict[str, Any]] = field(default_factory=list)
    stop_reason: str | None = None
    stop_details: dict[str, Any] | None = None
    # --- what is billed
    usage: dict[str, Any] = field(default_factory=dict)
    start_usage: dict[str, Any] = field(default_factory=dict)
    delta_usages: list[dict[str, Any]] | None = None
    # --- token endpoint
    oauth_error: str | None = None
    rotate: bool = True
    omit_refresh_token: bool = False
    expires_in: int | None = None
    # --- only a marker: how many requests with this very body it applies to
    times: int | None = None

    @property
    def breaks_before_reply(self) -> bool:
        """Whether no message is produced at all."""
        return self.drop is not None or (self.status is not None and self.status != 200)

    def over(self, base: "Behaviour") -> "Behaviour":
        """Return `base` with every field that this behaviour sets laid over it."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        default = Behaviour()
        changed = {name: value for name, value in own.items() if value != getattr(default, name)}
        return dataclasses.replace(base, **changed)


NOTHING = Behaviour()
"""The behaviour of a healthy provider."""


def parse(document: object, path: str = "behaviour") -> Behaviour:
    """Build a behaviour from JSON. Raises BehaviourError with the field's path."""
    return typing.cast(Behaviour, _build(Behaviour, document, path))


def parse_marker(text: str) -> Behaviour | None:
    """Return the behaviour that the last `[[sim …]]` in `text` asks for, None if there is none.

    Inside stand `field=value` pairs; a value is JSON where it parses as such, else a string; `a.b=c` reaches into a
    nested field; a bare word stands for `word=true`, `once` for `times=1`. Raises BehaviourError.
    """
    start = text.rfind(MARKER_OPEN)
    if start < 0:
        return None
    end = text.find(MARKER_CLOSE, start)
    if end < 0:
        return None
    document: dict[str, Any] = {}
    try:
        words = shlex.split(text[start + len(MARKER_OPEN) : end])
    except ValueError as e:
        raise BehaviourError(f"marker: {e}") from e
    for word in words:
        name, _, value = ("times", "=", "1") if word == "once" else word.partition("=")
        _put(document, name.split("."), _value(value))
    return parse(document, "marker")


def as_json(behaviour: Behaviour) -> dict[str, Any]:
    """Return the fields that differ from a healthy provider's."""
    if behaviour is NOTHING:
        return {}
    whole = dataclasses.asdict(behaviour)
    healthy = dataclasses.asdict(NOTHING)
    return {name: value for name, value in whole.items() if value != healthy[name]}


def _value(text: str) -> Any:
    if not text:
        return True
    try:
        return json.loads(text)
    except ValueError:
        return text


def _put(document: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        inner = document.get(name)
        if not isinstance(inner, dict):  # `cut=rst cut.at=3`: what stood there first is the short form
            inner = {} if inner is None or inner is True else {_SHORT.get(name, "how"): inner}
        document[name] = inner
        document = inner
    document[path[-1]] = value


_SHORT = {"cut": "how", "stall": "s", "error_event": "type", "malformed": "text", "endless": "bytes", "bad_chunk": "text", "flood": "times"}
"""The field that is meant where a nested behaviour is given as a plain value."""


def _build(kind: type, document: object, path: str) -> Any:
    if not isinstance(document, dict):
        raise BehaviourError(f"{path}: an object is expected")
    hints = typing.get_type_hints(kind)
    values = {}
    for name, value in document.items():
        if name not in hints:
            raise BehaviourError(f"{path}.{name}: no such field")
        values[name] = _convert(hints[name], value, f"{path}.{name}")
    return kind(**values)


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(typing.get_args(hint), value, path)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise BehaviourError(f"{path}: one of {', '.join(map(str, typing.get_args(hint)))} is expected")
        return value
    if hint is Any:
        return value
    expected: Any = origin or hint
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise BehaviourError(f"{path}: {expected.__name__} is expected")
    return value


def _convert_union(options: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and types.NoneType in options:
        return None
    for nested in (o for o in options if dataclasses.is_dataclass(o)):
        short = _SHORT[path.rsplit(".", 1)[-1]]
        document = value if isinstance(value, dict) else {} if value is True else {short: value}
        return _build(typing.cast(type, nested), document, path)
    for option in options:
        if option is types.NoneType:
            continue
        try:
            return _convert(option, value, path)
        except BehaviourError:
            continue
    names = ", ".join(getattr(o, "__name__", str(o)) for o in options if o is not types.NoneType)
    raise BehaviourError(f"{path}: {names} is expected")
