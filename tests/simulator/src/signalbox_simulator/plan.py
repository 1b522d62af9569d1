"""From a reply and a behaviour to steps: what to send, when to wait, where to break. Pure; `play` carries it out.

A position is a number of frames (of a body: bytes) already sent, a fraction of them, or a name.
"""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from signalbox_simulator.behaviour import At, Behaviour, BehaviourError, Endless, How
from signalbox_simulator.content import Reply
from signalbox_simulator.errors import ApiError, dumps

BODY_PIECE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Frame:
    """One SSE event: its bytes, the bytes of text, thinking or JSON in its delta, and the usage that it tells."""

    type: str
    data: bytes
    delta_bytes: int = 0
    usage: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Send:
    """Send bytes; `done` are the frames that are whole with them."""

    data: bytes
    done: tuple[Frame, ...] = ()


@dataclass(frozen=True, slots=True)
class Raw:
    """Send bytes outside the body's framing."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait; for ever without `s`, and with a ping every `ping_s` seconds where that is given."""

    s: float | None
    ping_s: float | None = None


@dataclass(frozen=True, slots=True)
class Break:
    """End the connection in the given way; nothing follows."""

    how: How


@dataclass(frozen=True, slots=True)
class Pour:
    """Send an endless frame."""

    endless: Endless


@dataclass(frozen=True, slots=True)
class Repeat:
    """Send one frame so many times: a long stream that is never in memory as a whole."""

    frame: Frame
    times: int


@dataclass(frozen=True, slots=True)
class End:
    """End the body as it should end."""


Step = Send | Raw | Wait | Break | Pour | Repeat | End


def frame(kind: str, document: dict[str, Any], *, delta_bytes: int = 0, usage: dict[str, Any] | None = None) -> Frame:
    """Return an SSE event whose name is its document's type."""
    data = b"event: " + kind.encode() + b"\ndata: " + dumps(document) + b"\n\n"
    return Frame(kind, data, delta_bytes, usage)


PING = frame("ping", {"type": "ping"})


def _text_delta(text: str) -> Frame:
    delta = {"type": "text_delta", "text": text}
    document = {"type": "content_block_delta", "index": 0, "delta": delta}
    return frame("content_block_delta", document, delta_bytes=len(text.encode()))


def frames(reply: Reply, b: Behaviour) -> list[Frame]:
    """Return the reply as a whole stream, less the types that the behaviour omits."""
    made = [f for f in _frames(reply, b) if f.type not in b.omit]
    for number, event in enumerate(b.extra_events):
        made.insert(2 + number, frame(str(event.get("type", "unknown")), event))
    return made


def _frames(reply: Reply, b: Behaviour) -> Iterator[Frame]:
    start = {
        **reply.message(), "content": [], "stop_reason": None, "stop_sequence": None, "usage": reply.start_usage,
    }
    yield frame("message_start", {"type": "message_start", "message": start}, usage=reply.start_usage)
    pings = b.pings
    for index, block in enumerate(reply.blocks):
        yield frame("content_block_start",
                    {"type": "content_block_start", "index": index, "content_block": block.start})
        if pings > 0:
            pings -= 1
            yield PING
        for kind, name, piece in block.deltas:
            document = {"type": "content_block_delta", "index": index, "delta": {"type": kind, name: piece}}
            size = 0 if kind == "signature_delta" else len(piece.encode())
            yield frame("content_block_delta", document, delta_bytes=size)
        yield frame("content_block_stop", {"type": "content_block_stop", "index": index})
    for _ in range(pings):
        yield PING
    delta = {
        "stop_reason": reply.stop_reason, "stop_sequence": reply.stop_sequence, "stop_details": reply.stop_details,
    }
    for usage in _delta_usages(reply, b):
        yield frame("message_delta", {"type": "message_delta", "delta": delta, "usage": usage}, usage=usage)
    yield frame("message_stop", {"type": "message_stop"})


def _delta_usages(reply: Reply, b: Behaviour) -> list[dict[str, Any]]:
    """Return what the closing events say: fields that the provider types only in `message_start` are left out."""
    if b.delta_usages is not None:
        return b.delta_usages
    only_start = {"cache_creation", "service_tier", "inference_geo", "speed"}
    return [{name: value for name, value in reply.usage.items() if name not in only_start}]


def stream_steps(reply: Reply, b: Behaviour) -> list[Step]:
    """Return the steps of a streamed answer after its head."""
    whole = frames(reply, b)
    steps: list[Step] = []
    if b.first_delay_s:
        steps.append(Wait(b.first_delay_s))
    events = _events(b, lambda at: _frame_position(at, whole), mid=lambda i: whole[i].data if i < len(whole) else b"")
    for index in range(len(whole) + 1):
        for event in events.get(index, ()):
            steps.append(event)
            if isinstance(event, Break | End):
                return _split(steps, b)
        if index < len(whole):
            if b.delta_delay_s and whole[index].type == "content_block_delta":
                steps.append(Wait(b.delta_delay_s))
            steps.append(Send(whole[index].data, (whole[index],)))
    return _split([*steps, End()], b)


def body_steps(body: bytes, b: Behaviour) -> list[Step]:
    """Return the steps of an answer in one piece after its head; positions count bytes."""
    steps: list[Step] = [Wait(b.first_delay_s)] if b.first_delay_s else []
    events = _events(b, lambda at: _byte_position(at, body), mid=lambda _: b"")
    done = 0
    for position in sorted(events):
        steps += _pieces(body[done:position])
        done = max(done, position)
        for event in events[position]:
            steps.append(event)
            if isinstance(event, Break | End):
                return _split(steps, b)
    return _split([*steps, *_pieces(body[done:]), End()], b)


def _pieces(data: bytes) -> list[Step]:
    return [Send(data[i : i + BODY_PIECE_BYTES]) for i in range(0, len(data), BODY_PIECE_BYTES)]


def _events(b: Behaviour, position: Any, mid: Any) -> dict[int, list[Step]]:
    """Return what happens before which frame or byte; of what happens at one place, stalls come first and breaks last."""
    events: dict[int, list[Step]] = {}

    def at(where: At, *steps: Step) -> None:
        events.setdefault(position(where), []).extend(steps)

    if b.stall is not None:
        at(b.stall.at, Wait(b.stall.s, b.stall.ping_s))
    if b.malformed is not None:
        at(b.malformed.at, Send(b.malformed.text.encode()))
    if b.error_event is not None:
        e = b.error_event
        document = ApiError(500, e.message, error_type=e.type, error_code=e.error_code).document(None)
        at(e.at, Send((f := frame("error", document)).data, (f,)), *([End()] if e.then == "end" else []))
    if b.endless is not None:
        at(b.endless.at, Pour(b.endless), Break("fin"))
    if b.flood is not None:
        at(b.flood.at, Repeat(_text_delta("a" * b.flood.bytes), b.flood.times))
    if b.bad_chunk is not None:
        at(b.bad_chunk.at, Raw(b.bad_chunk.text.encode()), Break("fin"))
    if b.cut is not None:
        torn = mid(position(b.cut.at)) if b.cut.mid_frame else b""
        at(b.cut.at, *([Send(torn[: len(torn) // 2])] if torn else []), Break(b.cut.how))
    return events


def _frame_position(at: At, whole: list[Frame]) -> int:
    types = [f.type for f in whole]
    if isinstance(at, str):
        first_delta = types.index("content_block_delta") if "content_block_delta" in types else 1
        named = {
            "start": 0, "message_start": 1, "content": first_delta + 1, "half": len(whole) // 2,
            "usage": types.index("message_delta") if "message_delta" in types else len(whole),
            "stop": types.index("message_stop") if "message_stop" in types else len(whole), "end": len(whole),
        }
        return _named(at, named)
    return min(len(whole), int(at * len(whole)) if isinstance(at, float) else at)


def _byte_position(at: At, body: bytes) -> int:
    if isinstance(at, str):
        last = max(0, len(body) - 1)
        named = {"start": 0, "message_start": min(1, last), "content": len(body) // 2, "half": len(body) // 2,
                 "usage": last, "stop": last, "end": len(body)}
        return _named(at, named)
    return min(len(body), int(at * len(body)) if isinstance(at, float) else at)


def _named(at: str, positions: dict[str, int]) -> int:
    if at not in positions:
        raise BehaviourError(f"at: a number or one of {', '.join(positions)} is expected")
    return positions[at]


def _split(steps: list[Step], b: Behaviour) -> list[Step]:
    """Cut runs of sends into pieces of the wanted sizes, whatever frames they cut through."""
    if b.split is None:
        return steps
    out: list[Step] = []
    run: list[Send] = []
    for step in [*steps, Wait(0.0)]:
        if isinstance(step, Send):
            run.append(step)
            continue
        out += _resized(run, b)
        run = []
        out.append(step)
    return out[:-1]


def _resized(run: list[Send], b: Behaviour) -> list[Step]:
    data = b"".join(s.data for s in run)
    ends: list[tuple[int, tuple[Frame, ...]]] = []
    end = 0
    for send in run:
        end += len(send.data)
        ends.append((end, send.done))
    out: list[Step] = []
    start = 0
    for stop in _stops(data, b):
        done: tuple[Frame, ...] = ()
        while ends and ends[0][0] <= stop:
            done += ends.pop(0)[1]
        out += [Send(data[start:stop], done), Wait(b.split_delay_s)]
        start = stop
    return out


def _stops(data: bytes, b: Behaviour) -> Iterator[int]:
    if b.split == "utf8":
        # after the first byte of each character of several bytes: the cruellest place
        yield from (i + 1 for i, byte in enumerate(data) if byte >= 0xC0)
        yield len(data)
        return
    sizes = b.split if isinstance(b.split, list) else [b.split]
    position = turn = 0
    while position < len(data):
        size = sizes[turn % len(sizes)]
        position = min(len(data), position + max(1, int(size or 1)))
        turn += 1
        yield position


def compressed(body: bytes, b: Behaviour) -> tuple[bytes, list[tuple[str, str]]]:
    """Return a body as it is sent, gzipped where the behaviour says so although nobody asked."""
    if not b.gzip:
        return body, []
    return gzip.compress(body, mtime=0), [("content-encoding", "gzip")]


def compressed_stream(steps: list[Step]) -> list[Step]:
    """Gzip a stream so that each piece can be decoded as it comes."""
    packer = zlib.compressobj(wbits=31)
    out: list[Step] = []
    for step in steps:
        if isinstance(step, Send):
            out.append(replace(step, data=packer.compress(step.data) + packer.flush(zlib.Z_SYNC_FLUSH)))
            continue
        if isinstance(step, End):
            out.append(Send(packer.flush()))
        out.append(step)
    return out
