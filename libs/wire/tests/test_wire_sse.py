"""Following streams: byte identity on any chunking, the commit point, usage, what happens to malformed frames."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signalbox.wire import sse
from signalbox.wire.sse import StreamReader


def frame(kind: str, end: str = "\n", **data: object) -> bytes:
    return f"event: {kind}{end}data: {json.dumps({'type': kind, **data}, ensure_ascii=False)}{end}{end}".encode()


def delta(kind: str, field: str, text: str, end: str = "\n") -> bytes:
    return frame("content_block_delta", end, index=0, delta={"type": kind, field: text})


def start(**usage: object) -> bytes:
    return frame("message_start", message={"id": "m", "model": "claude-opus-5", "usage": {"input_tokens": 5, **usage}})


BLOCK = frame("content_block_start", index=0, content_block={"type": "text", "text": ""})
PING = frame("ping")
STOP = frame("message_stop")
ANSWER = [
    start(output_tokens=1), PING, BLOCK, delta("text_delta", "text", 'Grüße "x"\n\\ 世界'), PING,
    delta("thinking_delta", "thinking", "error message_start"), delta("input_json_delta", "partial_json", '{"text":"a"}'),
    frame("content_block_stop", index=0),
    frame("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 42, "input_tokens": None}), STOP,
]
DELTA_BYTES = sum(len(t.encode()) for t in ('Grüße "x"\n\\ 世界', "error message_start", '{"text":"a"}'))


def feed(chunks: list[bytes]) -> tuple[StreamReader, list[bytes]]:
    reader = StreamReader()
    return reader, [reader.feed(c) for c in chunks]


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@given(st.lists(st.integers(0, 10_000), max_size=30), st.sampled_from(["\n", "\r\n", "\r"]))
def test_any_chunking_gives_the_same_bytes_and_the_same_facts(cuts: list[int], end: str) -> None:
    data = b"".join(ANSWER).replace(b"\n", end.encode())
    reader, out = feed(split(data, cuts))
    assert b"".join(out) + reader.flush() == data
    usage, estimated = reader.billed()
    assert (usage.input_tokens, usage.output_tokens, estimated) == (5, 42, False)
    assert (reader.model, reader.stop_reason, reader.error) == ("claude-opus-5", "end_turn", None)
    assert reader.delta_bytes == DELTA_BYTES
    assert reader.stopped


@given(st.lists(st.integers(0, 10_000), max_size=30))
def test_only_whole_frames_are_let_through(cuts: list[int]) -> None:
    data = b"".join(ANSWER)
    ends = {0}
    for f in ANSWER:
        ends.add(max(ends) + len(f))
    reader, sent = StreamReader(), 0
    for chunk in split(data, cuts):
        sent += len(reader.feed(chunk))
        assert sent in ends


def test_the_commit_point() -> None:
    reader, _ = feed([start(), PING, PING])
    assert not reader.content_seen
    reader.feed(BLOCK[:-1])
    assert not reader.content_seen
    reader.feed(BLOCK[-1:])
    assert reader.content_seen


def test_an_error_before_content_is_no_content() -> None:
    error = frame("error", error={"type": "overloaded_error", "message": "busy", "details": {"error_code": "x"}})
    reader, _ = feed([start(), error])
    assert not reader.content_seen
    assert reader.error is not None
    assert (reader.error.status, reader.error.type, reader.error.error_code) == (529, "overloaded_error", "x")
    assert json.loads(reader.error.raw)["error"]["message"] == "busy"


def test_what_follows_an_early_error_is_no_content() -> None:
    reader, _ = feed([start(), frame("error", error={"type": "api_error"}), *ANSWER[2:]])
    assert not reader.content_seen
    assert reader.error is not None


@pytest.mark.parametrize("spaced", [True, False])
@given(text=st.text(), kind=st.sampled_from(["text", "thinking", "partial_json"]), escaped=st.booleans())
def test_a_delta_counts_the_bytes_of_its_text(spaced: bool, text: str, kind: str, escaped: bool) -> None:
    data = {"type": "content_block_delta", "index": 0, "delta": {"type": f"{kind}_delta", kind: text}}
    separators = (", ", ": ") if spaced else (",", ":")
    sent = b"event: content_block_delta\ndata: " + json.dumps(data, ensure_ascii=escaped, separators=separators).encode()
    for chunks in ([sent + b"\n\n"], [(sent + b"\n\n") * 3], [sent, b"\n\n"], [sent.replace(b"\n", b"\r\n") + b"\r\n\r\n"]):
        reader, _ = feed([BLOCK, *chunks])
        assert reader.delta_bytes == len(text.encode()) * (3 if len(chunks[0]) > 2 * len(sent) else 1)


def test_a_cut_stream_is_estimated_by_its_deltas() -> None:
    reader, _ = feed([start(output_tokens=2), BLOCK, delta("text_delta", "text", "x" * 100)])
    usage, estimated = reader.billed()
    assert (usage.output_tokens, estimated) == (34, True)
    reader, _ = feed([start(output_tokens=90), BLOCK, delta("text_delta", "text", "x" * 100)])
    assert reader.billed()[0].output_tokens == 90


def test_a_report_that_content_follows_is_not_final() -> None:
    report = frame("message_delta", delta={}, usage={"output_tokens": 1})
    reader, _ = feed([start(), BLOCK, report, delta("text_delta", "text", "x" * 30)])
    assert reader.billed()[1]
    reader.feed(report)
    assert not reader.billed()[1]


@pytest.mark.parametrize(
    "odd",
    [
        b"event: message_delta\ndata: {nonsense\n\n", b"event: message_start\ndata: []\n\n", b"data: \n\n", b": hi\n\n",
        b"\n\n\n\n", b"event: error\ndata: \xff\n\n", b"data: {\"type\": 5}\n\n", b"\xef\xbb\xbf: bom\n\n",
        b"event: content_block_delta\ndata: {\"delta\":{\"text\":\"a\\\n\n", b"garbage without colon\n\n",
        b"event: message_delta\ndata: {\"usage\": {\"output_tokens\": \"many\", \"iterations\": 7}, \"delta\": 3}\n\n",
    ],
)
def test_malformed_frames_pass_and_disturb_nothing(odd: bytes) -> None:
    chunks = [start(), BLOCK, odd, *ANSWER[-2:]]
    reader, out = feed(chunks)
    assert b"".join(out) == b"".join(chunks)
    assert reader.stopped is (reader.error is None)
    assert reader.billed()[0].output_tokens == 42


def test_frames_without_an_event_line_are_known_by_their_data() -> None:
    bare = b"".join(b"data: " + f.split(b"data: ", 1)[1] for f in ANSWER)
    reader, _ = feed([bare])
    assert reader.stopped
    assert reader.billed()[0].output_tokens == 42


@given(st.integers(1, 400), st.sampled_from(["\n", "\r\n"]))
def test_an_endless_frame_is_let_through_in_bounded_pieces(step: int, end: str) -> None:
    original, sse.MAX_PARTIAL_BYTES = sse.MAX_PARTIAL_BYTES, 1000
    try:
        data = start() + BLOCK + delta("text_delta", "text", "y" * 5000, end) + b"".join(ANSWER[-2:])
        reader, out = StreamReader(), []
        for i in range(0, len(data), step):
            out.append(reader.feed(data[i : i + step]))
            assert reader.held <= 1000 + step
        assert b"".join(out) == data
        assert reader.malformed
        assert reader.stopped
        assert not reader.inside_frame
    finally:
        sse.MAX_PARTIAL_BYTES = original


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_any_bytes_come_out_as_they_went_in(chunks: list[bytes]) -> None:
    reader, out = feed(chunks)
    assert b"".join(out) + reader.flush() == b"".join(chunks)
    reader.billed()
