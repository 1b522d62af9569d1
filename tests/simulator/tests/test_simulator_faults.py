"""Every way to fail, seen from a raw socket, and what the truth says of it."""

import gzip
import json
import time
from typing import Any

import pytest

from tests.simulator.tests.rawhttp import Raw, ask, body
from tests.support.caller import eventually
from tests.support.sim import Simulator


def only_row(sim: Simulator) -> dict[str, Any]:
    rows = [r for r in sim.wait_quiet() if r["path"] == "/v1/messages"]
    assert len(rows) == 1
    return rows[0]


STATUSES = [
    ({"status": 400}, 400, "invalid_request_error", None),
    ({"status": 400, "message": "prompt is too long: 250000 tokens > 200000 maximum"}, 400, "invalid_request_error", None),
    ({"status": 400, "error_code": "organization_on_hold"}, 400, "invalid_request_error", "organization_on_hold"),
    ({"status": 401}, 401, "authentication_error", None),
    ({"status": 402}, 402, "billing_error", None),
    ({"status": 403}, 403, "permission_error", None),
    ({"status": 403, "error_type": "billing_error"}, 403, "billing_error", None),
    ({"status": 404}, 404, "not_found_error", None),
    ({"status": 413}, 413, "request_too_large", None),
    ({"status": 429, "error_code": "enforced_spend_limit_reached"}, 429, "rate_limit_error", "enforced_spend_limit_reached"),
    ({"status": 500}, 500, "api_error", None),
    ({"status": 503}, 503, "api_error", None),
    ({"status": 504}, 504, "timeout_error", None),
    ({"status": 529}, 529, "overloaded_error", None),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("behaviour", "status", "kind", "code"), STATUSES)
def test_status_with_the_providers_envelope(sim, behaviour, status, kind, code, stream):
    sim.script(behaviour)
    answer = ask(sim.url, body(stream=stream))
    assert (answer.status, answer.json["error"]["type"]) == (status, kind)
    assert answer.json["error"].get("details", {}).get("error_code") == code
    assert answer.json["request_id"] == answer.headers["request-id"] == only_row(sim)["request_id"]
    assert only_row(sim)["usage"] is None
    assert ask(sim.url, body(stream=stream)).status == 200, "a scripted behaviour is used up"


def test_429_with_and_without_retry_after(sim):
    sim.script({"status": 429, "retry_after": 3}, {"status": 429}, {"status": 429, "headers": {"x-should-retry": "false"}})
    with_it, without, stern = (ask(sim.url, body()) for _ in range(3))
    assert with_it.headers["retry-after"] == "3"
    assert "retry-after" not in without.headers
    assert stern.headers["x-should-retry"] == "false"


def test_body_given_as_it_is(sim):
    sim.script({"status": 502, "body": "<html>Bad gateway</html>", "content_type": "text/html"})
    answer = ask(sim.url, body())
    assert (answer.status, answer.payload) == (502, b"<html>Bad gateway</html>")
    assert answer.headers["content-type"] == "text/html"


@pytest.mark.parametrize("how", ["reset", "close"])
def test_connection_ends_before_headers(sim, how):
    sim.script({"drop": how})
    answer = ask(sim.url, body())
    assert answer.raw == b""
    assert answer.ended == {"reset": "rst", "close": "fin"}[how]
    row = only_row(sim)
    assert (row["status"], row["outcome"], row["request_complete"]) == (0, "cut", True)


def test_accepted_then_silent_until_the_client_leaves(sim):
    sim.script({"drop": "silence"})
    with Raw(sim.url) as raw:
        answer = raw.send(body()).read(0.3)
        assert (answer.raw, answer.ended) == (b"", "open")
        left_at = time.time()
    row = only_row(sim)
    assert row["outcome"] == "client_gone"
    assert row["client_gone_at"] == pytest.approx(left_at, abs=2.0)


def test_half_closed_before_headers_swallows_what_follows(sim):
    sim.script({"drop": "half_close"})
    with Raw(sim.url) as raw:
        assert raw.send(body()).read().ended == "fin"
        raw.send(body("to nobody"))
        first, second = eventually(sim.truth, within_s=30, wanted=lambda rows: len(rows) == 2)
    assert (first["outcome"], second["outcome"]) == ("cut", "swallowed")


@pytest.mark.parametrize("stream", [False, True])
def test_headers_then_no_first_token(sim, stream):
    sim.script({"stall": {"at": "start"}})
    with Raw(sim.url) as raw:
        answer = raw.send(body(stream=stream)).read(0.3)
    assert (answer.status, answer.payload, answer.ended) == (200, b"", "open")
    assert only_row(sim)["outcome"] == "client_gone"


def test_message_start_then_no_first_token(sim):
    sim.script({"stall": {"at": "message_start"}})
    with Raw(sim.url) as raw:
        assert raw.send(body(stream=True)).read(0.3).types == ["message_start"]
    row = only_row(sim)
    assert row["usage"]["output_tokens"] == 1
    assert row["usage_final"] is False


@pytest.mark.parametrize(("how", "ended"), [("fin", "fin"), ("rst", "rst"), ("half", "fin")])
@pytest.mark.parametrize("stream", [False, True])
def test_cut_half_way(sim, how, ended, stream):
    sim.script({"cut": how, "deltas": 10})
    with Raw(sim.url) as raw:
        answer = raw.send(body(stream=stream)).read()
        assert answer.ended == ended
        row = next(r for r in sim.truth() if r["outcome"] != "open")
    assert answer.status == 200
    assert answer.payload
    assert not answer.whole
    assert row["outcome"] == "cut"
    assert row["sent_bytes"] == len(answer.payload)
    if stream:
        assert "content_block_delta" in answer.types
        assert "message_delta" not in answer.types
        assert (row["frames_sent"], row["usage_final"]) == (len(answer.types), False)
    else:
        assert row["usage"] is None


@pytest.mark.parametrize(("at", "last"), [
    ("message_start", "message_start"), ("content", "content_block_delta"), ("usage", "content_block_stop"),
    ("stop", "message_delta"), (3, "ping"), (0.5, "content_block_delta"),
])
def test_cut_at_every_place(sim, at, last):
    sim.script({"cut": {"at": at}, "deltas": 10})
    answer = ask(sim.url, body(stream=True))
    assert answer.types[-1] == last
    assert not answer.whole


def test_cut_inside_a_frame(sim):
    sim.script({"cut": {"how": "fin", "at": "content", "mid_frame": True}})
    answer = ask(sim.url, body(stream=True))
    assert answer.payload.rpartition(b"\n\n")[2].startswith(b"event: content_block_delta\ndata: ")
    assert only_row(sim)["frames_sent"] == len(answer.events)


def test_only_message_stop_is_missing_and_http_ends_well(sim):
    sim.script({"omit": ["message_stop"]})
    answer = ask(sim.url, body(stream=True))
    assert answer.types[-1] == "message_delta"
    assert answer.whole
    assert only_row(sim)["outcome"] == "complete"


@pytest.mark.parametrize("stream", [False, True])
def test_stalls_half_way_then_goes_on(sim, stream):
    sim.script({"stall": {"s": 0.3, "at": "half"}})
    answer = ask(sim.url, body(stream=stream))
    gaps = [b[0] - a[0] for a, b in zip(answer.pieces, answer.pieces[1:], strict=False)]
    assert max(gaps) > 0.25
    assert answer.whole


@pytest.mark.parametrize(("at", "before"), [("start", []), ("message_start", ["message_start"])])
def test_error_event_before_content(sim, at, before):
    sim.script({"error_event": {"at": at, "type": "overloaded_error", "message": "Overloaded"}})
    answer = ask(sim.url, body(stream=True))
    assert (answer.status, answer.types) == (200, [*before, "error"])
    assert answer.events[-1][1] == {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}


def test_error_event_after_content(sim):
    sim.script({"error_event": {"at": "content", "type": "api_error"}})
    answer = ask(sim.url, body(stream=True))
    assert answer.types[-2:] == ["content_block_delta", "error"]
    assert answer.whole
    assert only_row(sim)["usage_final"] is False


def test_error_event_after_which_the_stream_goes_on(sim):
    sim.script({"error_event": {"at": "content", "then": "continue"}})
    answer = ask(sim.url, body(stream=True))
    assert "error" in answer.types
    assert answer.types[-1] == "message_stop"


def test_malformed_frame_and_usage_after_it(sim):
    sim.script({"malformed": {"at": "content"}})
    answer = ask(sim.url, body(stream=True))
    assert ("content_block_delta", "{not json") in answer.events
    assert answer.types[-1] == "message_stop"
    row = only_row(sim)
    assert row["usage_final"] is True
    assert row["frames_sent"] == len(answer.events) - 1


def test_endless_frame_up_to_a_size(sim):
    sim.script({"endless": {"bytes": 300_000, "at": "content"}})
    answer = ask(sim.url, body(stream=True))
    assert len(answer.payload) > 300_000
    assert b"\n\n" not in answer.payload[-300_000:]
    assert answer.ended == "fin"
    assert not answer.whole


def test_endless_frame_until_the_client_leaves(sim):
    sim.script({"endless": {"at": "start"}})
    with Raw(sim.url) as raw:
        assert len(raw.send(body(stream=True)).read(0.2).raw) > 1_000_000
    assert only_row(sim)["outcome"] == "client_gone"


def test_a_flood_of_text_in_an_otherwise_usual_stream(sim):
    sim.script({"flood": {"times": 50, "bytes": 4096}})
    answer = ask(sim.url, body(stream=True))
    assert answer.whole
    row = only_row(sim)
    assert row["usage_final"] is True
    assert row["delta_bytes"] > 50 * 4096
    assert row["frames_sent"] == len(answer.events)


def test_malformed_chunking(sim):
    sim.script({"bad_chunk": {"at": "content"}})
    answer = ask(sim.url, body(stream=True))
    assert answer.raw.endswith(b"\r\nzz\r\n")
    assert answer.ended == "fin"


def test_context_too_long_and_refusal_as_stop_reasons(sim):
    sim.script({"stop_reason": "model_context_window_exceeded"},
               {"stop_reason": "refusal", "stop_details": {"type": "refusal", "category": "cyber"}, "blocks": []})
    assert ask(sim.url, body()).json["stop_reason"] == "model_context_window_exceeded"
    refused = ask(sim.url, body(stream=True))
    assert refused.types == ["message_start", "ping", "message_delta", "message_stop"]
    assert refused.events[-2][1]["delta"]["stop_reason"] == "refusal"


def test_early_answer_before_the_body_is_read(sim):
    sim.script({"early": True, "status": 413, "after": "close"})
    with Raw(sim.url) as raw:
        raw.sock.sendall(raw.head(1_000_000) + b"{")
        answer = raw.read()
    assert (answer.status, answer.ended) == (413, "open")
    assert only_row(sim)["request_complete"] is False


def test_early_answer_while_the_body_stays_unread(sim):
    sim.script({"early": True, "status": 401, "unread_s": 0.4})
    data = b"x" * 20_000_000
    with Raw(sim.url) as raw:
        raw.sock.sendall(raw.head(len(data)))
        assert raw.read().status == 401
        begun_s = time.monotonic()
        raw.sock.sendall(data)
        assert time.monotonic() - begun_s > 0.2
        assert raw.send(body()).read().status == 200, "the connection goes on after the body has been taken"


def test_early_rule_that_must_see_the_body_waits_for_it(sim):
    sim.script({"early": True, "status": 500}, match={"body": "needle"})
    with Raw(sim.url) as raw:
        data = json.dumps(body("needle")).encode()
        raw.sock.sendall(raw.head(len(data)) + data[:10])
        assert raw.read(0.2).raw == b""
        raw.sock.sendall(data[10:])
        assert raw.read().status == 500


@pytest.mark.parametrize(("after", "ended"), [("close", "fin"), ("reset", "rst"), ("half_close", "fin")])
def test_connection_is_broken_after_a_whole_answer(sim, after, ended):
    sim.script({"after": after})
    with Raw(sim.url) as raw:
        assert raw.send(body()).read().status == 200
        assert raw.read(1.0).ended == ended


def test_wrong_content_type(sim):
    sim.script({"content_type": "text/html"})
    assert ask(sim.url, body(stream=True)).headers["content-type"] == "text/html"


def test_slow_headers_arrive_line_by_line(sim):
    sim.script({"header_line_delay_s": 0.05})
    answer = ask(sim.url, body())
    assert len(answer.pieces) > 4
    assert answer.status == 200


def test_slow_first_token_and_slow_deltas(sim):
    sim.script({"delay_s": 0.1, "first_delay_s": 0.1, "delta_delay_s": 0.05, "deltas": 4})
    begun_s = time.monotonic()
    answer = ask(sim.url, body(stream=True))
    assert answer.pieces[0][0] - begun_s > 0.09
    assert time.monotonic() - begun_s > 0.38
    assert answer.types.count("content_block_delta") == 4


@pytest.mark.parametrize("stream", [False, True])
def test_gzip_though_nobody_asked(sim, stream):
    sim.script({"gzip": True})
    answer = ask(sim.url, body(stream=stream))
    assert answer.headers["content-encoding"] == "gzip"
    assert b'"usage"' in gzip.decompress(answer.payload)


@pytest.mark.parametrize("off_by", [-10, 10])
def test_content_length_that_is_not_true(sim, off_by):
    sim.script({"length_off_by": off_by, "after": "close"})
    with Raw(sim.url) as raw:
        answer = raw.send(body()).read(0.5)
    assert int(answer.headers["content-length"]) == only_row(sim)["sent_bytes"] + off_by


@pytest.mark.parametrize("split", [1, 7, [1, 2, 3, 500], "utf8"])
def test_split_anywhere_even_inside_characters(sim, split):
    prompt = "same words"
    plain = ask(sim.url, body(prompt, stream=True))
    sim.script({"split": split})
    cut = ask(sim.url, body(prompt, stream=True))
    without_ids = [p.payload.replace(p.headers["request-id"][4:].encode(), b"") for p in (plain, cut)]
    assert without_ids[0] == without_ids[1]
    if split == "utf8":
        assert len(cut.chunks) > 3
    else:
        sizes = split if isinstance(split, list) else [split]
        assert cut.chunks[: len(sizes)] == sizes
    assert sim.truth()[1]["frames_sent"] == len(cut.types)


def test_flapping_by_count(sim):
    sim.script(standing={"status": 529}, flap={"ill": 2, "well": 3})
    assert [ask(sim.url, body()).status for _ in range(7)] == [529, 529, 200, 200, 200, 529, 529]


@pytest.mark.slow
def test_flapping_by_time(sim):
    sim.script(standing={"status": 529}, flap={"ill_s": 1.5, "well_s": 30})
    assert ask(sim.url, body()).status == 529
    time.sleep(1.6)
    assert ask(sim.url, body()).status == 200


@pytest.mark.slow
def test_a_standing_illness_that_passes(sim):
    sim.script(standing={"status": 500}, lasts_s=1.5)
    assert [ask(sim.url, body()).status for _ in range(3)] == [500, 500, 500]
    time.sleep(1.6)
    assert ask(sim.url, body()).status == 200


def test_big_bodies(sim):
    sim.script({"text_bytes": 3_000_000}, {"text_bytes": 3_000_000})
    for stream in (False, True):
        answer = ask(sim.url, body(stream=stream, max_tokens=1_000_000))
        assert answer.whole
        assert len(answer.payload) > 3_000_000


def test_rules_match_by_account_model_stream_header_and_body(sim):
    sim.accounts({"name": "two", "key": "sk-two"}, add=True)
    sim.script({"status": 500}, account="two")
    sim.script({"status": 501}, match={"model": "claude-opus-*"})
    sim.script({"status": 502}, match={"stream": True})
    sim.script({"status": 503}, match={"header": {"x-test": "a*"}})
    sim.script({"status": 504}, match={"body": "needle"})
    assert ask(sim.url, body()).status == 200
    assert ask(sim.url, body(), key="sk-two").status == 500
    assert ask(sim.url, body(model="claude-opus-5-5")).status == 501
    assert ask(sim.url, body(stream=True)).status == 502
    assert ask(sim.url, body(), headers={"x-test": "abc"}).status == 503
    assert ask(sim.url, body("a needle here")).status == 504
    assert sim.call("GET", "script") == []


def test_markers_in_the_last_turn(sim):
    answer = ask(sim.url, body("[[sim status=429 retry_after=3 error_code=ramp_limit_exceeded]]"))
    assert (answer.status, answer.headers["retry-after"]) == (429, "3")
    cut = ask(sim.url, body('please [[sim cut=rst cut.at=content text="two words"]]', stream=True))
    assert cut.ended == "rst"
    assert cut.events[-1][1]["delta"]["text"] == "tw"
    history = body()
    history["messages"] = [{"role": "user", "content": "[[sim status=500]]"}, {"role": "assistant", "content": "no"},
                           {"role": "user", "content": "go on"}]
    assert ask(sim.url, history).status == 200
    reminded = body("[[sim status=500]]")
    reminded["messages"].append({"role": "system", "content": "The time is noon."})
    assert ask(sim.url, reminded).status == 500
    wrong = ask(sim.url, body("[[sim colour=red]]"))
    assert (wrong.status, wrong.json["error"]["message"]) == (400, "simulator: marker.colour: no such field")


def test_marker_for_the_first_request_with_this_body_only(sim):
    assert [ask(sim.url, body("[[sim once status=500]]")).status for _ in range(3)] == [500, 200, 200]
    assert [ask(sim.url, body("[[sim times=2 drop=reset]]")).status for _ in range(3)] == [0, 0, 200]


def test_default_lies_under_what_is_scripted(sim):
    sim.default({"deltas": 3, "pings": 0})
    sim.script({"model": "claude-served"})
    events = ask(sim.url, body(stream=True)).events
    assert events[0][1]["message"]["model"] == "claude-served"
    assert [name for name, _ in events].count("content_block_delta") == 3


@pytest.mark.parametrize("document", [
    {"behaviours": [{"colour": "red"}]}, {"behaviours": [{"status": "500"}]}, {"behaviours": [{"cut": {"how": "fun"}}]},
    {"standing": {"drop": "maybe"}}, {"match": {"nose": "x"}}, {"flop": {}},
])
def test_wrong_scripts_are_refused(sim, document):
    with pytest.raises(AssertionError, match="400"):
        sim.call("POST", "script", document)
    assert ask(sim.url, body()).status == 200


def test_malformed_request_gets_a_400(sim):
    with Raw(sim.url) as raw:
        raw.sock.sendall(b"NOT HTTP AT ALL\r\n\r\n")
        assert raw.read().status == 400


def test_all_connections_are_cut_at_once(sim: Simulator) -> None:
    sim.default({"drop": "silence"})
    with Raw(sim.url) as first, Raw(sim.url) as second:
        for raw in (first, second):
            raw.send(body())
        while sim.summary()["in_flight"] < 2:
            time.sleep(0.01)
        assert sim.cut_connections() >= 2
    assert [r["outcome"] for r in sim.wait_quiet()] == ["cut", "cut"]
