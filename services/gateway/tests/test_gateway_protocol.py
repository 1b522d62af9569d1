"""Requests at the public port over raw sockets: routes, keys and admission, rules and bounds of bodies."""

import asyncio
import hashlib
import json

import pytest

from signalbox.core import keys
from signalbox.gateway.domain import buffers
from signalbox.v1.common_pb2 import Amount, LimitState
from signalbox.v1.scheduler_pb2 import Denial

BIG = 64 * 1024 + 1


# -------------------------------------------------------------------------------- routes


@pytest.mark.parametrize("path", [
    "/v1/messages", "/api/v1/messages", "/claude/v1/messages", "/anthropic/v1/messages", "//v1//messages",
    "/api//v1/messages?beta=true", "http://relay.example/v1/messages", "/api/v1/%6Dessages?beta=true",
])
async def test_every_spelling_of_the_route_reaches_the_provider_under_its_own(gate, wire, ok, path):
    provider = await gate.provider(ok)
    assert (await gate.client.post(wire.BODY, path)).status == 200
    target = b"/v1/messages" + (b"?beta=true" if "beta" in path else b"")
    assert provider.requests[0][0].startswith(b"POST " + target + b" HTTP/1.1\r\n")


async def test_tokens_are_counted_at_no_cost(gate, wire):
    async def count(w):
        w.answer(200, b'{"input_tokens": 14}')

    provider = await gate.provider(count)
    reply = await gate.client.post({**wire.BODY, "stream": True}, "/claude/v1/messages/count_tokens")
    assert (reply.status, reply.body) == (200, b'{"input_tokens": 14}')
    assert provider.requests[0][0].startswith(b"POST /v1/messages/count_tokens ")
    await gate.quiet()
    [row] = gate.journal.rows
    assert (row.route, row.had_content, row.HasField("usage"), row.streamed) == ("count_tokens", False, False, False)
    assert gate.scheduler.admits[0].route == "count_tokens"


async def test_what_the_client_sent_goes_upstream_and_nothing_else(gate, wire, ok):
    provider = await gate.provider(ok)
    await gate.client.post(
        wire.BODY, "/v1/messages?beta=true&key=sbx_secret", user_agent="claude-cli/2.1", anthropic_beta="a,b",
        x_unknown="kept", cookie="c=1", x_forwarded_for="9.9.9.9", accept_encoding="gzip, br", connection="x-hop",
        x_hop="1", te="trailers", authorization=f"Bearer {wire.KEY}",
    )
    head = provider.requests[0][0]
    assert head.startswith(b"POST /v1/messages?beta=true HTTP/1.1\r\n")
    names = {line.partition(b":")[0] for line in head.strip().split(b"\r\n")[1:]}
    assert names == {b"host", b"content-type", b"anthropic-version", b"user-agent", b"anthropic-beta", b"x-unknown",
                     b"accept-encoding", b"content-length", b"x-api-key"}
    assert b"accept-encoding: identity\r\n" in head
    assert wire.KEY.encode() not in head


async def test_a_mapped_model_changes_only_the_models_bytes(gate, wire, ok):
    provider = await gate.provider(ok)
    gate.scheduler.send_model = "claude-opus-5-5"
    raw = b'{ "max_tokens":1 , "model" :  "claude-sonnet-5-5","messages":[{"role":"user","content":"\\u00e9"}]}'
    await gate.client.post(raw)
    assert provider.requests[0][1] == raw.replace(b"claude-sonnet-5-5", b"claude-opus-5-5")
    await gate.quiet()
    assert (gate.journal.rows[0].model, gate.journal.rows[0].sent_model) == ("claude-sonnet-5-5", "claude-opus-5-5")


# -------------------------------------------------------------------------------- keys and admission


@pytest.mark.parametrize(("headers", "code"), [
    ({"x-api-key": "-"}, "key_missing"),
    ({"x-api-key": ""}, "key_missing"),
    ({"x-api-key": "-", "authorization": "Basic YTpi"}, "key_missing"),
    ({"authorization": "Bearer another-key-of-some-length"}, "key_conflict"),
    ({"x-goog-api-key": "another-key-of-some-length"}, "key_conflict"),
    ({"x-api-key": "short"}, "key_invalid"),
])
async def test_unusable_keys_are_refused_without_asking_anybody(gate, wire, headers, code):
    reply = await gate.client.send(gate.client.message(wire.body(), headers=headers))
    assert (reply.status, reply.error_code) == (401, code)
    assert json.loads(reply.body)["error"]["type"] == "authentication_error"
    assert reply.headers["x-should-retry"] == "false"
    assert gate.scheduler.admits == []
    await gate.quiet()
    [denial] = gate.journal.denials
    assert (denial.attempt, denial.reason, denial.status, denial.key_id) == (0, code, 401, "")


@pytest.mark.parametrize("headers", [
    {"x-api-key": "-", "authorization": "Bearer a-relay-key-of-some-length"},
    {"x-api-key": "-", "authorization": "bearer  a-relay-key-of-some-length "},
    {"authorization": "Bearer a-relay-key-of-some-length"},
    {"x-api-key": "-", "x-goog-api-key": "a-relay-key-of-some-length"},
    {"x-api-key": "-", "api-key": "a-relay-key-of-some-length"},
])
async def test_a_key_is_found_in_each_of_its_headers(gate, wire, ok, headers):
    await gate.provider(ok)
    reply = await gate.client.send(gate.client.message(wire.body(), headers=headers))
    assert reply.status == 200
    assert gate.scheduler.admits[0].key_hash == keys.digest(wire.KEY)


async def test_a_key_in_the_query_does_not_count(gate, wire):
    raw = gate.client.message(wire.body(), f"/v1/messages?key={wire.KEY}", {"x-api-key": "-"})
    assert (await gate.client.send(raw)).error_code == "key_missing"


async def test_a_denial_is_told_and_recorded_as_the_scheduler_put_it(gate, wire):
    gate.scheduler.denial = Denial(
        error_code="key_limit_cost", message="Your daily budget is spent.", retry_after_ms=1500, never_fits=True,
        key_id="default/ada", owner="ada",
    )
    reply = await gate.client.post({**wire.BODY, "metadata": {"user_id": "u"}}, user_agent="claude-cli/2.1")
    assert (reply.status, reply.error_code) == (429, "key_limit_cost")
    assert (reply.headers["retry-after"], reply.headers["x-should-retry"]) == ("2", "false")
    assert reply.headers["x-signalbox-attempts"] == "0"
    assert "date" in reply.headers
    await gate.quiet()
    [denial] = gate.journal.denials
    assert (denial.reason, denial.status, denial.retry_after_ms) == ("key_limit_cost", 429, 1500)
    assert (denial.key_id, denial.owner, denial.model) == ("default/ada", "ada", "claude-sonnet-5-5")
    assert (denial.client, denial.decision, denial.outcome) == ("ClaudeCode", b"why", 7)
    assert denial.request_id == reply.headers["x-signalbox-request-id"]


async def test_an_unknown_key_is_remembered_for_two_seconds_only(gate, wire):
    gate.scheduler.denial = Denial(error_code="key_invalid", message="No such key.")
    for _ in range(3):
        assert (await gate.client.post(wire.BODY)).error_code == "key_invalid"
    assert len(gate.scheduler.admits) == 1
    gate.keys._unknown = {k: (at_s - 2, d) for k, (at_s, d) in gate.keys._unknown.items()}
    await gate.client.post(wire.BODY)
    assert len(gate.scheduler.admits) == 2


@pytest.mark.parametrize(("end", "told"), [("", "No such key."), ("x", "mistyped"), (None, "mistyped")])
async def test_a_mistyped_key_is_told_from_a_revoked_one(gate, wire, end, told):
    gate.scheduler.denial = Denial(error_code="key_invalid", message="No such key.")
    key = keys.new_key()
    presented = key[:-1] if end is None else key + end
    for _ in range(2):   # asked, and remembered
        refused = await gate.client.post(wire.BODY, x_api_key=presented)
        assert refused.error_code == "key_invalid"
        assert told in json.loads(refused.body)["error"]["message"]


async def test_the_keys_own_limits_are_shown(gate, wire, ok):
    await gate.provider(ok)
    gate.scheduler.limits = [
        LimitState(name="day", per="Day", requests=Amount(limit=100, used=10, reserved=1), resets_at_ms=1_790_000_000_000),
        LimitState(name="min", per="Minute", requests=Amount(limit=60, used=58, reserved=1)),
        LimitState(name="t", per="Day", tokens=Amount(limit=1000, used=2000), resets_at_ms=1_790_000_000_000),
    ]
    headers = (await gate.client.post(wire.BODY)).headers
    shown = {k.removeprefix("anthropic-ratelimit-"): v for k, v in headers.items() if k.startswith("anthropic-rate")}
    assert shown == {"requests-limit": "60", "requests-remaining": "1", "tokens-limit": "1000",
                     "tokens-remaining": "0", "tokens-reset": "2026-09-21T14:13:20Z"}


async def test_a_moved_pin_is_told(gate, wire, ok):
    await gate.provider(ok)
    gate.scheduler.repinned = True
    assert (await gate.client.post(wire.BODY)).headers["x-signalbox-repinned"] == "true"


async def test_sessions_are_named_by_a_keyed_digest(gate, wire, ok):
    provider = await gate.provider()
    provider.standing = ok
    await gate.client.post(wire.BODY, x_claude_code_session_id="s1")
    await gate.client.post(wire.BODY, x_claude_code_session_id="s1", x_session_id="other")
    await gate.client.post(wire.BODY, x_claude_code_session_id="s2")
    await gate.client.post(wire.BODY)
    await gate.client.post({**wire.BODY, "max_tokens": 17})
    await gate.client.post({**wire.BODY, "system": "you are"})
    await gate.client.post(wire.BODY, x_api_key="another-key-of-some-length", x_claude_code_session_id="s1")
    asked = gate.scheduler.admits
    digests = [a.session for a in asked]
    assert all(len(d) == 16 for d in digests)
    assert digests[0] == digests[1]
    assert digests[3] == digests[4]
    assert len(set(digests)) == 5
    assert [a.session_derived for a in asked] == [False, False, False, True, True, True, False]


async def test_each_request_of_a_connection_speaks_for_itself(gate, wire, ok):
    provider = await gate.provider()
    provider.standing = ok
    bodies = [{**wire.BODY, "max_tokens": n} for n in (1, 1000, 1, 7, 7)]
    keys = ["the-first-relay-key", "the-first-relay-key", "the-second-relay-key", "the-second-relay-key", "the-first-relay-key"]
    agents = ["claude-cli/2", "claude-cli/2", "claude-cli/2", "Anthropic/Python", "claude-cli/2"]
    reader, writer = await gate.client.connect()
    for n, (body, key, agent) in enumerate(zip(bodies, keys, agents, strict=True)):
        gate.credentials.versions["default/a1"] = n
        writer.write(gate.client.message(json.dumps(body).encode(), headers={"x-api-key": key, "user-agent": agent}))
        assert (await gate.client.read(reader)).status == 200
    writer.close()
    assert [json.loads(body) for _, body in provider.requests] == bodies
    asked = gate.scheduler.admits
    assert [a.key_hash for a in asked] == [hashlib.sha256(key.encode()).digest() for key in keys]
    assert [a.client for a in asked] == ["ClaudeCode"] * 3 + ["AnthropicSDK", "ClaudeCode"]
    for n, (head, _) in enumerate(provider.requests):
        assert b"x-api-key: secret-default/a1-%d\r\n" % n in head
        assert b"user-agent: %b\r\n" % agents[n].encode() in head
        assert b"relay-key" not in head


async def test_admission_is_told_what_the_body_says(gate, wire, ok):
    await gate.provider(ok)
    body = {**wire.BODY, "stream": False, "container": "c_1", "fallbacks": [{"model": "claude-haiku-5-5"}]}
    await gate.client.post(body, user_agent="Anthropic/Python 2.10")
    [asked] = gate.scheduler.admits
    assert list(asked.models) == ["claude-sonnet-5-5", "claude-haiku-5-5"]
    assert (asked.state_bound, asked.client, asked.max_tokens) == (True, "AnthropicSDK", 16)
    assert (asked.input_bytes, asked.source_address) == (len(json.dumps(body)), "127.0.0.1")


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"null", b'{"messages":[]}', b'{"model":1}', b'{"model":"a","model":"b"}',
    b'{"model":"a","m\\u006fdel":"b"}', b'{"model":"a","stream":"yes"}', b'{"model":"\xff"}',
    b'{"model":"a","x":' + b"[" * 100_000, b"\x00" * 10,
])
async def test_a_body_that_cannot_be_read_is_refused_once_the_key_is_known(gate, wire, body):
    reply = await gate.client.post(body)
    assert (reply.status, reply.error_code) == (400, "request_invalid")
    await gate.quiet()
    assert gate.journal.denials[0].key_id == "default/ada"
    gate.scheduler.inspect_denial = Denial(error_code="key_invalid", message="No such key.")
    gate.scheduler.inspect_response.Clear()
    assert (await gate.client.post(body)).error_code == "key_invalid"
    assert gate.scheduler.admits == []


# -------------------------------------------------------------------------------- large bodies


async def test_a_large_body_is_read_after_the_key_is_checked(gate, wire, ok):
    provider = await gate.provider(ok)
    body = wire.body(5_000_000)
    assert (await gate.client.post(body)).status == 200
    assert len(gate.scheduler.inspects) == 1
    assert provider.requests[0][1] == body
    await gate.quiet()
    assert gate.buffers.held == 0


@pytest.mark.parametrize("declared", [True, False])
async def test_a_large_body_of_an_unknown_key_is_not_read(gate, wire, declared):
    gate.scheduler.inspect_denial = Denial(error_code="key_invalid", message="No such key.")
    gate.scheduler.inspect_response.Clear()
    reader, writer = await gate.client.connect()
    if declared:
        writer.write(gate.client.message(b"", headers={"content-length": "30000000"}))
    else:
        writer.write(gate.client.message(b"", headers={"content-length": "-", "transfer-encoding": "chunked"}))
        writer.write(b"10001\r\n" + b" " * BIG + b"\r\n")
    reply = await gate.client.read(reader)
    assert (reply.status, reply.error_code, reply.headers["connection"]) == (401, "key_invalid", "close")
    assert await reader.read() == b""
    writer.close()


async def test_a_body_over_the_limit_is_refused_without_reading_on(gate, wire):
    reader, writer = await gate.client.connect()
    writer.write(gate.client.message(b"", headers={"content-length": str(33 << 20)}))
    reply = await gate.client.read(reader)
    assert (reply.status, reply.error_code) == (413, "request_too_large")
    writer.close()
    await gate.quiet()
    assert gate.journal.denials[0].reason == "request_too_large"
    assert gate.journal.denials[0].key_id == "default/ada"


@pytest.mark.gateway_settings(max_body_bytes=100_000)
async def test_a_chunked_body_over_the_limit_is_refused_when_it_gets_there(gate, wire):
    reader, writer = await gate.client.connect()
    writer.write(gate.client.message(b"", headers={"content-length": "-", "transfer-encoding": "chunked"}))
    for _ in range(2):
        writer.write(b"ea60\r\n" + b" " * 60_000 + b"\r\n")
    reply = await gate.client.read(reader)
    assert (reply.status, reply.error_code) == (413, "request_too_large")
    writer.close()
    await gate.quiet()
    assert gate.buffers.held == 0


async def test_a_caller_that_sends_all_before_it_reads_still_gets_its_413(gate, wire):
    reply = await gate.client.send(gate.client.message(b" " * (33 << 20)))
    assert (reply.status, reply.error_code) == (413, "request_too_large")


async def test_chunked_bodies_are_whole_upstream(gate, wire, ok):
    provider = await gate.provider(ok, ok)
    for size in (0, 200_000):
        body = wire.body(size)
        raw = gate.client.message(b"", headers={"content-length": "-", "transfer-encoding": "chunked"})
        raw += b"".join(b"%x\r\n" % len(body[i:i + 50_000]) + body[i:i + 50_000] + b"\r\n" for i in range(0, len(body), 50_000))
        assert (await gate.client.send(raw + b"0\r\nx-api-key: trailer\r\n\r\n")).status == 200
        assert provider.requests[-1][1] == body
        assert b"content-length: %d\r\n" % len(body) in provider.requests[-1][0]
        assert b"transfer-encoding" not in provider.requests[-1][0]


async def test_100_continue_comes_only_after_the_key_check(gate, wire, ok):
    await gate.provider(ok)
    body = wire.body()
    reader, writer = await gate.client.connect()
    writer.write(gate.client.message(b"", headers={"content-length": str(len(body)), "expect": "100-continue"}))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert len(gate.scheduler.inspects) == 1
    writer.write(body)
    assert (await gate.client.read(reader)).status == 200
    writer.close()
    gate.scheduler.inspect_denial = Denial(error_code="key_paused", message="Paused.")
    refused = await gate.client.send(
        gate.client.message(b"", headers={"content-length": str(len(body)), "expect": "100-continue"}),
    )
    assert (refused.status, refused.error_code) == (401, "key_paused")


@pytest.mark.gateway_settings(max_buffered_bytes=1 << 20)
async def test_all_bytes_in_memory_are_bounded(gate, wire):
    async def slow(w):
        await w.reader.read(1)

    await gate.provider(slow)
    reader, writer = await gate.client.connect()
    writer.write(gate.client.message(wire.body(800_000)))
    while gate.buffers.held < 800_000:
        await asyncio.sleep(0.01)
    refused = await gate.client.post(wire.body(400_000))
    assert (refused.status, refused.error_code, refused.headers["retry-after"]) == (503, "overloaded", "1")
    writer.transport.abort()
    await gate.quiet()
    assert gate.buffers.held == 0


@pytest.mark.slow
@pytest.mark.gateway_settings(max_buffered_bytes=1 << 20)
async def test_a_body_that_trickles_makes_room_for_others(gate, wire, ok, monkeypatch):
    monkeypatch.setattr(buffers, "PACE_S", 1.0)
    await gate.provider(ok)
    body = wire.body(800_000)
    reader, writer = await gate.client.connect()
    writer.write(gate.client.message(body)[:-1000])
    while not gate.buffers.held:
        await asyncio.sleep(0.01)
    assert (await gate.client.post(body)).error_code == "overloaded", "as long as it has come at a good pace"
    await asyncio.sleep(1.2)
    assert (await gate.client.post(body)).error_code == "overloaded", "its pace is judged from here"
    await asyncio.sleep(1.2)
    writer.write(b"x")
    assert (await gate.client.post(body)).status == 200
    made_room = await gate.client.read(reader)
    assert (made_room.status, made_room.error_code) == (503, "overloaded")
    writer.close()
    await gate.quiet()
    assert gate.buffers.held == 0


@pytest.mark.gateway_settings(max_buffered_bytes=1 << 20)
async def test_an_answer_that_does_not_fit_in_memory_is_not_passed_on(gate, wire):
    async def huge(w):
        w.answer(200, b'{"a": "' + b"x" * (2 << 20) + b'"}')
        await w.writer.drain()

    await gate.provider(huge)
    reply = await gate.client.post(wire.BODY)
    assert (reply.status, reply.error_code) == (503, "overloaded")
    await gate.quiet()
    assert gate.buffers.held == 0
