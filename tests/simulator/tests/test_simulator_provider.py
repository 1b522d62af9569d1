"""A healthy provider: replies and their usage, limits that count, caching, tools, resources, and the recorded truth."""

import hashlib
import json
import threading
import time

import pytest

from tests.simulator.tests.rawhttp import KEY, MODEL, Raw, ask, body
from tests.support.caller import eventually
from tests.support.sim import Simulator


def merged_usage(events):
    usage = dict(events[0][1]["message"]["usage"])
    for name, data in events:
        if name == "message_delta":
            usage.update({k: v for k, v in data["usage"].items() if v is not None})
    return usage


# ---------------------------------------------------------------------- replies


def test_stream_has_the_grammar_and_adds_up_to_a_message(sim):
    answer = ask(sim.url, body(stream=True, thinking={"type": "adaptive"}))
    types = answer.types
    assert (types[0], types[-2:]) == ("message_start", ["message_delta", "message_stop"])
    assert types.count("content_block_start") == types.count("content_block_stop") == 2
    assert "ping" in types
    assert all(name == data["type"] for name, data in answer.events)
    kinds = {d["delta"]["type"] for n, d in answer.events if n == "content_block_delta"}
    assert kinds == {"thinking_delta", "signature_delta", "text_delta"}
    assert answer.headers["content-type"].startswith("text/event-stream")


@pytest.mark.slow
def test_same_request_same_words_on_any_simulator(sim):
    first, second = (ask(sim.url, body("words")).json for _ in range(2))
    assert first["content"] == second["content"]
    assert first["usage"] == second["usage"]
    assert first["id"] != second["id"]
    with Simulator() as other:
        assert ask(other.url, body("words")).json["content"] == first["content"]


def test_input_tokens_are_the_bodys_bytes_by_four(sim):
    request = body("x" * 1000)
    answer = ask(sim.url, request)
    assert answer.json["usage"]["input_tokens"] == -(-len(json.dumps(request)) // 4)


def test_max_tokens_is_kept(sim):
    answer = ask(sim.url, body(max_tokens=9)).json
    assert (answer["stop_reason"], answer["usage"]["output_tokens"] <= 9) == ("max_tokens", True)
    nothing = ask(sim.url, body(max_tokens=0, stream=True))
    assert nothing.types == ["message_start", "ping", "message_delta", "message_stop"]
    assert merged_usage(nothing.events)["output_tokens"] == 0


def test_any_usage_can_be_told(sim):
    iterations = [{"type": "compaction", "input_tokens": 5, "output_tokens": 6}]
    told = {"input_tokens": 7, "iterations": iterations, "speed": "fast", "inference_geo": "us",
            "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0}}
    sim.script({"usage": told}, {"usage": told}, {"start_usage": {"output_tokens": 3},
                                                  "delta_usages": [{"output_tokens": 10}, {"output_tokens": 20}]})
    assert told.items() <= ask(sim.url, body()).json["usage"].items()
    assert told.items() <= merged_usage(ask(sim.url, body(stream=True)).events).items()
    cumulative = ask(sim.url, body(stream=True))
    assert [d["usage"]["output_tokens"] for n, d in cumulative.events if n == "message_delta"] == [10, 20]
    assert cumulative.events[0][1]["message"]["usage"]["output_tokens"] == 3
    assert sim.truth()[2]["usage"]["output_tokens"] == 20


def test_given_blocks_and_unknown_events_are_sent_as_they_are(sim):
    blocks = [{"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "q"}},
              {"type": "text", "text": "found"}]
    sim.script({"blocks": blocks}, {"blocks": blocks, "extra_events": [{"type": "news", "n": 1}]})
    assert ask(sim.url, body()).json["content"] == blocks
    assert "news" in ask(sim.url, body(stream=True)).types


# ---------------------------------------------------------------------- requests


@pytest.mark.parametrize(("change", "status", "message"), [
    ({"model": None}, 400, "model: Input should be a valid str"),
    ({"max_tokens": "5"}, 400, "max_tokens: Input should be a valid int"),
    ({"messages": []}, 400, "messages: at least one message is required"),
    ({"model": "gpt-6"}, 404, "model: gpt-6"),
])
def test_bad_requests(sim, change, status, message):
    answer = ask(sim.url, {**body(), **change})
    assert (answer.status, answer.json["error"]["message"]) == (status, message)


def test_not_json_no_version_no_key_unknown_key_disabled_account(sim):
    sim.accounts({"name": "off", "key": "sk-off", "disabled": "organization_disabled"}, add=True)
    assert ask(sim.url, b"{").status == 400
    assert "anthropic-version" in ask(sim.url, body(), headers={"anthropic-version": ""}).json["error"]["message"]
    assert ask(sim.url, body(), key=None).status == 401
    unknown = ask(sim.url, body(), key="sk-nobody")
    assert (unknown.status, unknown.json["error"]["type"]) == (401, "authentication_error")
    off = ask(sim.url, body(), key="sk-off")
    assert (off.status, off.json["error"]["details"]["error_code"]) == (403, "organization_disabled")


def test_key_as_bearer_and_open_mode(sim):
    bearer = {"authorization": f"Bearer {KEY}"}
    assert ask(sim.url, body(), key=None, headers=bearer).headers["anthropic-organization-id"] == "org-one"
    sim.accounts(open=True)
    assert ask(sim.url, body(), key="anything").status == 200
    assert ask(sim.url, body(), key=None).status == 401


def test_too_large_body_is_refused(sim):
    answer = ask(sim.url, b"x" * (33 * 1024 * 1024), limit_s=10)
    assert (answer.status, answer.json["error"]["type"]) == (413, "request_too_large")


# ---------------------------------------------------------------------- limits


def test_request_limit_counts_per_organization_and_model_class(sim):
    limits = {"requests": 2}
    sim.accounts({"name": "a", "key": "sk-a", "organization": "o", "limits": limits},
                 {"name": "b", "key": "sk-b", "organization": "o", "limits": limits},
                 {"name": "c", "key": "sk-c", "organization": "other", "limits": limits})
    remaining = [ask(sim.url, body(), key=k).headers["anthropic-ratelimit-requests-remaining"] for k in ("sk-a", "sk-b")]
    assert remaining == ["1", "0"]
    refused = ask(sim.url, body(), key="sk-a")
    assert (refused.status, refused.json["error"]["type"]) == (429, "rate_limit_error")
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert ask(sim.url, body(), key="sk-c").status == 200
    assert ask(sim.url, body(model="claude-opus-5-5"), key="sk-b").status == 200


def test_request_limit_refills(sim):
    sim.accounts({"name": "a", "key": KEY, "limits": {"requests": 2}, "per_s": 1.0})
    assert [ask(sim.url, body()).status for _ in range(3)] == [200, 200, 429]
    time.sleep(0.6)
    assert [ask(sim.url, body()).status for _ in range(2)] == [200, 429]


def test_input_tokens_count_before_and_output_tokens_after(sim):
    sim.accounts({"name": "a", "key": KEY, "limits": {"input_tokens": 1000, "output_tokens": 100}})
    sim.script({"usage": {"output_tokens": 500}})
    first = ask(sim.url, body("x" * 3200))
    assert first.headers["anthropic-ratelimit-input-tokens-remaining"] == "0", "rounded to thousands"
    assert first.headers["anthropic-ratelimit-output-tokens-remaining"] == "100"
    assert first.headers["anthropic-ratelimit-tokens-limit"] == "1000", "the tightest of them"
    in_debt = ask(sim.url, body())
    assert in_debt.status == 429
    assert int(in_debt.headers["retry-after"]) > 200
    assert in_debt.headers["anthropic-ratelimit-output-tokens-reset"].endswith("Z")


def test_limits_hold_under_many_at_once(sim):
    sim.accounts({"name": "a", "key": KEY, "limits": {"requests": 20}, "per_s": 3600})
    statuses = []
    threads = [threading.Thread(target=lambda: statuses.extend(ask(sim.url, body()).status for _ in range(10)))
               for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert (statuses.count(200), statuses.count(429)) == (20, 40)


def test_unified_headers_as_scripted(sim):
    sim.accounts({"name": "a", "key": KEY, "unified": {"status": "allowed_warning", "5h-utilization": 0.91,
                                                       "5h-reset": "+3600"}})
    headers = ask(sim.url, body()).headers
    assert headers["anthropic-ratelimit-unified-5h-utilization"] == "0.91"
    assert int(headers["anthropic-ratelimit-unified-5h-reset"]) == pytest.approx(time.time() + 3600, abs=5)


# ---------------------------------------------------------------------- cache, thinking, tools


def system(text, ttl="5m"):
    return [{"type": "text", "text": text, "cache_control": {"type": "ephemeral", "ttl": ttl}}]


def test_first_request_writes_the_cache_and_the_next_reads_it(sim):
    sim.accounts({"name": "two", "key": "sk-two"}, add=True)
    prefix = system("s" * 4000, ttl="1h")
    first = ask(sim.url, body("one", system=prefix)).json["usage"]
    second = ask(sim.url, body("two", system=prefix)).json["usage"]
    elsewhere = ask(sim.url, body("two", system=prefix), key="sk-two").json["usage"]
    assert first["cache_creation"]["ephemeral_1h_input_tokens"] == first["cache_creation_input_tokens"] > 1000
    assert first["cache_read_input_tokens"] == 0
    assert (second["cache_read_input_tokens"], second["cache_creation_input_tokens"]) == (
        first["cache_creation_input_tokens"], 0)
    assert second["input_tokens"] < 100
    assert elsewhere["cache_read_input_tokens"] == 0, "the cache is the organisation's"


def test_cache_of_a_growing_conversation(sim):
    prefix = system("t" * 2000)
    user = {"role": "user", "content": [{"type": "text", "text": "u" * 800, "cache_control": {"type": "ephemeral"}}]}
    ask(sim.url, body(system=prefix))
    usage = ask(sim.url, {**body(system=prefix), "messages": [user]}).json["usage"]
    assert usage["cache_read_input_tokens"] > 500
    assert 200 <= usage["cache_creation"]["ephemeral_5m_input_tokens"] < 250


def test_thinking_of_another_organization_is_noticed(sim):
    sim.accounts({"name": "two", "key": "sk-two"}, add=True)
    thinking = ask(sim.url, body(thinking={"type": "adaptive"})).json["content"]
    history = [*body()["messages"], {"role": "assistant", "content": thinking}, {"role": "user", "content": "and?"}]
    ask(sim.url, {**body(), "messages": history})
    ask(sim.url, {**body(), "messages": history}, key="sk-two")
    assert [r["foreign_thinking"] for r in sim.truth()] == [0, 0, 1]


TOOL = {"name": "weather", "input_schema": {"type": "object", "required": ["city", "days"], "properties": {
    "city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"type": "string"}}}}


def test_tool_is_called_when_asked_for_and_answered_after_its_result(sim):
    called = ask(sim.url, body(tools=[TOOL], tool_choice={"type": "any"})).json
    use = called["content"][-1]
    assert (called["stop_reason"], use["type"], set(use["input"])) == ("tool_use", "tool_use", {"city", "days"})
    turns = [*body()["messages"], {"role": "assistant", "content": called["content"]},
             {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use["id"], "content": "sunny"}]}]
    final = ask(sim.url, {**body(tools=[TOOL], tool_choice={"type": "any"}), "messages": turns}).json
    assert (final["stop_reason"], [b["type"] for b in final["content"]]) == ("end_turn", ["text"])


def test_tool_with_scripted_input_streams_as_json_deltas(sim):
    asked = {"city": "Zürich", "days": 3}
    answer = ask(sim.url, body(f"[[sim tool=weather tool_input='{json.dumps(asked)}']]", tools=[TOOL], stream=True))
    pieces = [d["delta"]["partial_json"] for _, d in answer.events if d.get("delta", {}).get("type") == "input_json_delta"]
    assert json.loads("".join(pieces)) == asked
    assert ask(sim.url, body(tools=[TOOL])).json["stop_reason"] == "end_turn", "no tool unless somebody wants one"


# ---------------------------------------------------------------------- resources


def get(sim, path, key=KEY):
    return ask(sim.url, path=path, method="GET", key=key)


def test_count_tokens(sim):
    request = {k: v for k, v in body().items() if k != "max_tokens"}
    assert ask(sim.url, request, path="/v1/messages/count_tokens?beta=true").json == {
        "input_tokens": -(-len(json.dumps(request)) // 4)}


def test_models_by_pages(sim):
    whole = get(sim, "/v1/models").json
    ids = [m["id"] for m in whole["data"]]
    assert MODEL in ids
    first = get(sim, "/v1/models?limit=3").json
    second = get(sim, f"/v1/models?limit=1000&after_id={first['last_id']}").json
    assert (first["has_more"], second["has_more"]) == (True, False)
    assert [m["id"] for m in [*first["data"], *second["data"]]] == ids
    before = get(sim, f"/v1/models?limit=2&before_id={first['last_id']}").json
    assert [m["id"] for m in before["data"]] == ids[:2]
    assert get(sim, f"/v1/models/{MODEL}").json["id"] == MODEL
    assert get(sim, "/v1/models/claude-none").status == 404
    assert get(sim, "/v1/models?limit=0").status == 400


def test_files_belong_to_their_organization(sim):
    sim.accounts({"name": "two", "key": "sk-two"}, add=True)
    form = (b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.txt"\r\n'
            b"content-type: text/plain\r\n\r\nhello\r\n--b--\r\n")
    created = ask(sim.url, form, path="/v1/files", headers={"content-type": "multipart/form-data; boundary=b"}).json
    path = f"/v1/files/{created['id']}"
    assert (created["filename"], created["size_bytes"]) == ("a.txt", 5)
    assert get(sim, path + "/content").payload == b"hello"
    assert get(sim, path, key="sk-two").status == 404
    assert [f["id"] for f in get(sim, "/v1/files").json["data"]] == [created["id"]]
    assert ask(sim.url, path=path, method="DELETE").json["type"] == "file_deleted"
    assert get(sim, path).status == 404


def test_batches_end_at_once_with_results(sim):
    requests = [{"custom_id": str(i), "params": body(str(i))} for i in range(3)]
    batch = ask(sim.url, {"requests": requests}, path="/v1/messages/batches").json
    assert (batch["processing_status"], batch["request_counts"]["succeeded"]) == ("ended", 3)
    lines = get(sim, f"/v1/messages/batches/{batch['id']}/results").payload.splitlines()
    assert [json.loads(line)["custom_id"] for line in lines] == ["0", "1", "2"]
    assert get(sim, "/v1/messages/batches/none").status == 404


def test_probes_need_no_key(sim):
    with Raw(sim.url) as raw:
        assert raw.send(path="/", method="HEAD", key=None).read(until=b"\r\n\r\n").status == 200
    assert get(sim, "/nowhere").status == 404


# ---------------------------------------------------------------------- truth


def test_truth_has_what_was_received_and_sent(sim):
    request = json.dumps(body("Größe", stream=True)).encode()
    answer = ask(sim.url, request, path="/v1/messages?beta=true", headers={"X-Odd-Case": "1"})
    row = sim.wait_quiet()[0]
    assert ["X-Odd-Case", "1"] in row["headers"]
    assert (row["method"], row["path"], row["query"], row["account"]) == ("POST", "/v1/messages", "beta=true", "one")
    assert (row["request_bytes"], row["request_sha256"]) == (len(request), hashlib.sha256(request).hexdigest())
    assert row["request_body"] == request.decode()
    assert (row["model"], row["stream"], row["status"], row["outcome"]) == (MODEL, True, 200, "complete")
    assert row["request_id"] == answer.headers["request-id"]
    assert row["message_id"] == answer.events[0][1]["message"]["id"]
    assert row["sent_sha256"] == hashlib.sha256(answer.payload).hexdigest()
    assert row["sent_bytes"] == len(answer.payload)
    assert row["frames_sent"] == len(answer.events)
    texts = [d["delta"].get("text", "") for n, d in answer.events if n == "content_block_delta"]
    assert row["delta_bytes"] == len("".join(texts).encode())
    assert row["usage"] == merged_usage(answer.events)
    assert row["usage_final"] is True
    assert row["received_at"] <= row["body_at"] <= row["ended_at"]


def test_truth_of_a_client_that_leaves_in_the_middle(sim):
    sim.script({"delta_delay_s": 0.05, "deltas": 100})
    with Raw(sim.url) as raw:
        seen = raw.send(body(stream=True, max_tokens=10_000)).read(until=b"content_block_delta")
    left_at = time.time()
    row = sim.wait_quiet()[0]
    assert row["outcome"] == "client_gone"
    assert row["client_gone_at"] == pytest.approx(left_at, abs=2.0)
    assert len(seen.events) <= row["frames_sent"] < 50
    assert (row["usage_final"], row["usage"]["output_tokens"]) == (False, 1)
    assert row["ended_at"] - row["client_gone_at"] < 2.0


def test_truth_of_a_client_that_leaves_before_its_body_is_whole(sim):
    with Raw(sim.url) as raw:
        raw.sock.sendall(raw.head(1000) + b"{")
        eventually(sim.concurrent, within_s=30, wanted=lambda seen: seen.get("one", {}).get("current") == 1)
    row = sim.wait_quiet()[0]
    assert (row["outcome"], row["request_complete"], row["request_bytes"], row["status"]) == ("client_gone", False, 1, 0)


def test_truth_since_summary_and_concurrency(sim):
    sim.script({"delay_s": 1.5}, {"delay_s": 1.5}, {"status": 500})
    threads = [threading.Thread(target=ask, args=(sim.url, body())) for _ in range(2)]
    for t in threads:
        t.start()
    eventually(sim.concurrent, within_s=30, wanted=lambda seen: seen.get("one") == {"current": 2, "max": 2})
    assert [r["outcome"] for r in sim.truth()] == ["open", "open"]
    assert sim.truth(closed="true") == []
    for t in threads:
        t.join()
    ask(sim.url, body())
    rows = sim.truth()
    assert [r["seq"] for r in sim.truth(since=rows[1]["seq"])] == [r["seq"] for r in rows[1:]]
    summary = sim.summary()
    assert (summary["requests"], summary["by_status"], summary["in_flight"]) == (3, {"200": 2, "500": 1}, 0)
    account = summary["accounts"][0]
    assert account["output_tokens"] == sum(r["usage"]["output_tokens"] for r in rows[:2])
    assert (account["requests"], account["billed"]) == (3, 2)
    sim.clear_truth()
    assert (sim.truth(), sim.summary()["requests"], sim.concurrent()) == ([], 0, {})


def test_many_requests_on_one_connection_in_order(sim):
    with Raw(sim.url) as raw:
        for n in range(5):
            raw.send(body(str(n)))  # the next one is sent before the answer to the last has been read
        data = b""
        while data.count(b"HTTP/1.1 200") < 5 or not data.endswith(b"}"):
            data += raw.sock.recv(65536)
    rows = sim.wait_quiet()
    assert [r["ordinal"] for r in rows] == [1, 2, 3, 4, 5]
    assert [json.loads(r["request_body"])["messages"][0]["content"] for r in rows] == list("01234")


@pytest.mark.slow
def test_ring_and_capture_budget_are_bounded():
    config = {"open": True, "settings": {"truth_rows": 10, "capture_budget_bytes": 20_000}}
    with Simulator(config) as small:
        for n in range(25):
            ask(small.url, body(f"{n} " + "y" * 2000))
        rows = small.wait_quiet()
        assert [r["seq"] for r in rows] == list(range(15, 25))
        assert rows[0]["headers"] is None
        assert rows[-1]["request_body"].count("y") == 2000
        assert small.summary()["requests"] == 25, "the sums outlive the rows"
        small.clear_truth()
        for _ in range(12):
            ask(small.url, body())
        assert len(small.wait_quiet()) == 10


@pytest.mark.slow
def test_asking_for_the_truth_holds_nobody_up(sim):
    with Raw(sim.url) as asking, Raw(sim.url) as calling:
        for _ in range(1500):
            assert calling.send(body("y" * 8000)).read().status == 200
        begun = asking.send(path="/_sim/truth", method="GET").read(until=b'"seq"')
        assert calling.send(body()).read().status == 200, "whoever asks and does not read on holds up only himself"
        rest = asking.read(30, until=b"\r\n0\r\n\r\n")
    begun.raw += rest.raw
    rows = begun.json
    assert [r["seq"] for r in rows] == list(range(rows[0]["seq"], rows[0]["seq"] + len(rows)))
    assert len(rows) >= 1500


@pytest.mark.slow
def test_process_says_what_is_wrong_and_stops_well():
    sim = Simulator({"accounts": [{"name": "a", "colour": "red"}]})
    with pytest.raises(AssertionError, match=r"accounts\.a\.colour: no such field"):
        sim.start()
    running = Simulator().start()
    with Raw(running.url) as raw:
        raw.send(body("[[sim drop=silence]]")).read(0.1)
        assert running.stop() == 0
