"""The attempt's state machine: commit point, time limits, truncation and usage, by table and on any chunking."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signalbox.gateway.domain.attempt import Attempt
from signalbox.gateway.domain.events import Finish, Limits, Lost, ResponseHead, Trouble
from signalbox.v1.common_pb2 import (
    OUTCOME_CLIENT_GONE,
    OUTCOME_OK,
    OUTCOME_TIMEOUT,
    OUTCOME_TRUNCATED,
    OUTCOME_UPSTREAM_ERROR,
)
from signalbox.wire.errors import ErrorClass

LIMITS = Limits(connect_s=5, headers_s=120, headers_unstreamed_s=600, first_content_s=30, idle_s=60, total_s=3600,
                client_stall_s=90)
SSE = ResponseHead(200, [(b"content-type", b"text/event-stream; charset=utf-8")])
JSON = ResponseHead(200, [(b"content-type", b"application/json")])


def attempt(*, streamed=True, counted=True):
    return Attempt(streamed=streamed, counted=counted, limits=LIMITS, request_id="sbx_req_1", now_s=100.0)


def feed(machine, stream, cuts=(), *, whole=True, now_s=101.0, head=SSE):
    """Feed a stream in pieces; return what reached the caller and the last step's finish."""
    out, finish, heads = b"", None, 0
    edges = sorted({0, len(stream), *(c for c in cuts if c < len(stream))})
    pieces = [stream[a:b] for a, b in zip(edges, edges[1:], strict=False)] or [b""]
    for i, piece in enumerate(pieces):
        step = machine.received(head if i == 0 else None, piece, whole and i == len(pieces) - 1, now_s)
        heads += step.head is not None
        assert heads or not step.data, "bytes before the head"
        out += step.data
        finish = step.finish or finish
        if machine.ending is not None:
            break
    return out, finish


def test_nothing_is_forwarded_before_the_first_content(wire):
    machine = attempt()
    step = machine.received(SSE, wire.START + wire.PING, False, 101)
    assert (step.head, step.data, step.finish) == (None, b"", None)
    step = machine.received(None, wire.CONTENT, False, 103)
    assert (step.head, step.data) == (SSE, wire.START + wire.PING + wire.CONTENT)
    assert machine.first_content_s == 103
    assert machine.received(None, wire.DELTA, False, 104).data == wire.DELTA


@given(cuts=st.sets(st.integers(0, 700), max_size=40))
def test_a_whole_stream_is_byte_identical_on_any_chunking(wire, cuts):
    stream = wire.START + wire.PING + wire.CONTENT * 2 + wire.LAST + wire.STOP
    machine = attempt()
    assert feed(machine, stream, cuts) == (stream, Finish.WHOLE)
    assert machine.ending.outcome == OUTCOME_OK
    assert (machine.ending.usage.input_tokens, machine.ending.usage.output_tokens) == (10, 7)
    assert not machine.ending.estimated


@given(cuts=st.sets(st.integers(0, 700), max_size=40), length=st.integers(0, 600), how=st.sampled_from(["end", "cut"]))
def test_a_broken_stream_never_looks_whole(wire, cuts, length, how):
    stream = wire.START + wire.PING + wire.CONTENT * 2 + wire.LAST + wire.STOP
    broken = stream[: min(length, len(stream) - 1)]
    machine = attempt()
    out, finish = feed(machine, broken, cuts, whole=how == "end")
    if how == "cut":
        step = machine.lost(Lost.CUT, 102)
        out, finish = out + step.data, step.finish
    ending = machine.ending
    assert ending.outcome == OUTCOME_TRUNCATED
    frames = broken[: broken.rfind(b"\n\n") + 2] if b"\n\n" in broken else b""
    if wire.frame("content_block_start", index=0, content_block={"type": "text", "text": ""}) not in broken:
        assert (out, finish, ending.trouble, ending.had_content) == (b"", Finish.NOTHING, Trouble.CUT, False)
        return
    assert finish is Finish.WHOLE
    assert out.startswith(frames)
    event, data = out[len(frames):].split(b"\ndata: ")
    assert event == b"event: error"
    error = json.loads(data)
    assert (error["error"]["details"]["error_code"], error["request_id"]) == ("upstream_truncated", "sbx_req_1")
    assert (ending.had_content, ending.trouble) == (True, None)
    if b"message_delta" not in frames:
        assert ending.estimated
        assert ending.usage.output_tokens == max(1, 2 * frames.count(b"text_delta"))  # 6 bytes each, a third


def test_before_content_only_its_own_limit_counts_and_not_the_one_between_bytes(wire):
    slow = dataclasses.replace(LIMITS, first_content_s=90, idle_s=60)
    machine = Attempt(streamed=True, counted=True, limits=slow, request_id="sbx_req_1", now_s=100.0)
    machine.received(SSE, wire.START, False, 101)
    assert machine.deadline_s == 101 + 90
    machine.received(None, wire.CONTENT, False, 180)
    assert machine.deadline_s == 180 + 60


@pytest.mark.parametrize(("data", "whole"), [("START", True), ("PING", False)])
def test_an_error_frame_before_content_counts_as_its_status(wire, data, whole):
    machine = attempt()
    out, finish = feed(machine, getattr(wire, data) + wire.ERROR, whole=whole)
    assert (out, finish) == (b"", Finish.NOTHING)
    ending = machine.ending
    assert (ending.outcome, ending.status, ending.trouble) == (OUTCOME_UPSTREAM_ERROR, 529, Trouble.PROVIDER)
    assert ending.verdict.error_class is ErrorClass.OVERLOADED
    assert json.loads(ending.answer_body)["error"]["type"] == "overloaded_error"
    assert (b"content-type", b"application/json") in ending.answer.headers
    assert not ending.had_content


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("after", ["end", "cut", "silence"])
def test_an_error_frame_after_content_is_passed_on_and_recorded(wire, after, closed):
    machine = attempt()
    stream = wire.START + wire.CONTENT + wire.ERROR + (wire.STOP if closed else b"")
    out, finish = feed(machine, stream, whole=after == "end")
    if after == "cut":
        finish = machine.lost(Lost.CUT, 102).finish
    if after == "silence":
        finish = machine.tick(101 + LIMITS.idle_s).finish
    assert (out, finish) == (stream, Finish.WHOLE)
    ending = machine.ending
    assert (ending.outcome, ending.verdict.error_class) == (OUTCOME_UPSTREAM_ERROR, ErrorClass.OVERLOADED)
    assert ending.estimated
    assert ending.committed


@pytest.mark.parametrize(("streamed", "progress", "silent_for_s", "reason"), [
    (True, "", 120, "headers_timeout"),
    (False, "", 600, "headers_timeout"),
    (True, "head", 30, "first_content_timeout"),
    (True, "content", 60, "idle_timeout"),
    (False, "head", 60, "idle_timeout"),
])
def test_silence_ends_an_attempt_at_its_limit(wire, streamed, progress, silent_for_s, reason):
    machine = attempt(streamed=streamed)
    since_s = 100.0
    if progress:
        since_s = 110.0
        data = wire.START + (wire.CONTENT if progress == "content" else b"") if streamed else b"{"
        machine.received(SSE if streamed else JSON, data, False, since_s)
    assert machine.deadline_s == since_s + silent_for_s
    assert machine.tick(since_s + silent_for_s - 0.1).finish is None
    step = machine.tick(since_s + silent_for_s)
    assert (machine.ending.outcome, machine.ending.reason) == (OUTCOME_TIMEOUT, reason)
    if progress == "content":
        assert (step.finish, machine.ending.had_content) == (Finish.WHOLE, True)
        assert b"upstream_truncated" in step.data
    else:
        assert (step.finish, machine.ending.trouble) == (Finish.NOTHING, Trouble.SILENT)


def test_pings_do_not_put_off_the_first_content_limit(wire):
    machine = attempt()
    machine.received(SSE, wire.START, False, 101)
    machine.received(None, wire.PING, False, 130)
    assert machine.tick(131).finish is Finish.NOTHING
    assert machine.ending.reason == "first_content_timeout"


def test_the_total_limit_holds_whatever_happens(wire):
    machine = attempt()
    machine.received(SSE, wire.START + wire.CONTENT, False, 101)
    machine.received(None, wire.DELTA, False, 3690)
    assert machine.deadline_s == 3700
    assert b"upstream_truncated" in machine.tick(3700).data
    assert machine.ending.reason == "total_timeout"


def test_a_caller_that_does_not_read_is_not_the_providers_silence(wire):
    machine = attempt()
    machine.received(SSE, wire.START + wire.CONTENT, False, 101)
    machine.paused(110)
    assert machine.deadline_s == 110 + LIMITS.client_stall_s
    machine.resumed(150)
    assert machine.deadline_s == 150 + LIMITS.idle_s
    machine.paused(160)
    assert machine.tick(250).finish is Finish.NOTHING
    assert machine.ending.outcome == OUTCOME_CLIENT_GONE


def test_a_hang_up_after_the_last_frame_is_no_hang_up(wire):
    machine = attempt()
    feed(machine, wire.START + wire.CONTENT + wire.LAST + wire.STOP, whole=False)
    machine.client_gone()
    assert (machine.ending.outcome, machine.ending.estimated) == (OUTCOME_OK, False)


def test_a_cut_after_the_last_frame_is_no_cut(wire):
    machine = attempt()
    feed(machine, wire.START + wire.CONTENT + wire.LAST + wire.STOP, whole=False)
    assert machine.lost(Lost.CUT, 102).finish is Finish.WHOLE
    assert machine.ending.outcome == OUTCOME_OK


@pytest.mark.parametrize(("content", "billed"), [(False, False), (True, True)])
def test_hanging_up_bills_what_was_seen(wire, content, billed):
    machine = attempt()
    feed(machine, wire.START + (wire.CONTENT if content else b""), whole=False)
    assert machine.client_gone().finish is Finish.NOTHING
    ending = machine.ending
    assert (ending.outcome, ending.had_content, ending.estimated) == (OUTCOME_CLIENT_GONE, billed, billed)
    if billed:
        assert (ending.usage.input_tokens, ending.usage.output_tokens) == (10, 2)  # 6 bytes of text, a third


def test_an_endless_frame_passes_in_bounded_memory_and_is_not_ended_as_if_whole(wire):
    machine = attempt()
    sent = wire.START + wire.CONTENT
    out, _ = feed(machine, sent, whole=False)
    for _ in range(40):
        sent += b"x" * 65536
        out += machine.received(None, b"x" * 65536, False, 102).data
        assert machine.reader.held <= (1 << 20) + 65536
    step = machine.lost(Lost.CUT, 103)
    assert sent.startswith(out)
    assert step.finish is Finish.BREAK
    assert machine.ending.outcome == OUTCOME_TRUNCATED


def test_a_whole_answer_waits_until_it_is_whole(wire):
    machine = attempt(streamed=False)
    assert machine.received(JSON, wire.MESSAGE[:20], False, 101).data == b""
    assert machine.held_bytes == 20
    step = machine.received(None, wire.MESSAGE[20:], True, 102)
    assert (step.head, step.data, step.finish) == (JSON, wire.MESSAGE, Finish.WHOLE)
    assert (machine.ending.outcome, machine.ending.usage.output_tokens) == (OUTCOME_OK, 5)


def test_counting_tokens_costs_nothing():
    machine = attempt(streamed=False, counted=False)
    machine.received(JSON, b'{"input_tokens": 14}', True, 101)
    assert (machine.ending.outcome, machine.ending.had_content, machine.ending.usage) == (OUTCOME_OK, False, None)


@pytest.mark.parametrize(("body", "outcome"), [(b'{"a": 1}', OUTCOME_OK), (b'{"a": ', OUTCOME_TRUNCATED)])
def test_an_answer_that_ends_with_its_connection_must_be_whole_json(body, outcome):
    machine = attempt(streamed=False)
    machine.received(ResponseHead(200, JSON.headers, until_close=True), body, True, 101)
    assert machine.ending.outcome == outcome


@pytest.mark.parametrize(("streamed", "head"), [
    (True, JSON),
    (False, SSE),
    (True, ResponseHead(200, [])),
    (False, ResponseHead(200, [(b"content-type", b"text/html")])),
    (False, ResponseHead(302, [(b"location", b"https://elsewhere.example")])),
    (False, ResponseHead(200, [*JSON.headers, (b"content-encoding", b"gzip")])),
])
def test_an_answer_that_was_not_asked_for_is_not_passed_on(streamed, head):
    machine = attempt(streamed=streamed)
    step = machine.received(head, b"{}", True, 101)
    assert (step.data, step.finish, machine.ending.trouble) == (b"", Finish.NOTHING, Trouble.BROKEN)


@pytest.mark.parametrize(("how", "reused", "trouble"), [
    (Lost.RESET, False, Trouble.RESET),
    (Lost.RESET, True, Trouble.STALE),
    (Lost.MALFORMED, False, Trouble.BROKEN),
])
def test_a_connection_lost_before_the_head(how, reused, trouble):
    machine = attempt()
    machine.reused = reused
    assert machine.lost(how, 101).finish is Finish.NOTHING
    assert (machine.ending.outcome, machine.ending.trouble) == (OUTCOME_UPSTREAM_ERROR, trouble)


def test_a_stopping_gateway_says_so(wire):
    machine = attempt()
    feed(machine, wire.START + wire.CONTENT, whole=False)
    assert b"upstream_truncated" in machine.stop().data
    assert (machine.ending.outcome, machine.ending.reason) == (OUTCOME_TRUNCATED, "gateway_stopping")
    early = attempt()
    early.stop()
    assert early.ending.trouble is Trouble.STOPPING


def test_an_ended_attempt_hears_nothing_more(wire):
    machine = attempt()
    feed(machine, wire.START + wire.CONTENT + wire.LAST + wire.STOP)
    ending = machine.ending
    for step in (machine.received(None, b"x", True, 200), machine.lost(Lost.CUT, 200), machine.client_gone(),
                 machine.stop(), machine.tick(1e9)):
        assert (step.data, step.finish) == (b"", None)
    assert machine.ending is ending
    assert machine.deadline_s == float("inf")


def test_endless_pings_before_content_are_bounded(wire):
    machine = attempt()
    step = machine.received(SSE, wire.START, False, 101)
    for _ in range(100):
        step = machine.received(None, wire.PING * 1000, False, 102)
        if step.finish is not None:
            break
    assert machine.ending.trouble is Trouble.BROKEN


@pytest.mark.parametrize("counted", [True, False])
def test_a_whole_answer_that_is_no_json_is_broken(counted):
    machine = attempt(streamed=False, counted=counted)
    assert feed(machine, b'{"content": [], "usage": {"inp', head=JSON) == (b"", Finish.NOTHING)
    assert (machine.ending.trouble, machine.ending.reason, machine.ending.had_content) == (Trouble.BROKEN, "not_json", False)


@pytest.mark.parametrize("content", [b'"\\ud800"', b"[" * 5000 + b"]" * 5000])
def test_a_whole_answer_that_parsers_stumble_over_is_passed_on_and_billed(content):
    body = b'{"model": "m", "content": %s, "usage": {"input_tokens": 11, "output_tokens": 7}}' % content
    machine = attempt(streamed=False)
    assert feed(machine, body, head=JSON) == (body, Finish.WHOLE)
    assert (machine.ending.usage.input_tokens, machine.ending.usage.output_tokens) == (11, 7)


def test_a_whole_answer_of_brackets_alone_is_broken():
    machine = attempt(streamed=False)
    assert feed(machine, b"[" * 99_999, head=JSON) == (b"", Finish.NOTHING)
    assert machine.ending.reason == "not_json"
