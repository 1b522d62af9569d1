"""What callers, accounts and the ledger see when providers misbehave: the fault table, over real sockets."""

import asyncio
import errno
import json

import pytest

from signalbox.gateway.domain.ports import CredentialUnusable
from signalbox.v1.common_pb2 import (
    OUTCOME_CLIENT_GONE,
    OUTCOME_OK,
    OUTCOME_TIMEOUT,
    OUTCOME_TRUNCATED,
    OUTCOME_UPSTREAM_ERROR,
)
from signalbox.v1.scheduler_pb2 import AccountEffect, Denial
from tests.support.machine import busy

NONE, REST, BENCH, COOL = AccountEffect.NONE, AccountEffect.REST, AccountEffect.BENCH, AccountEffect.COOL


def error(status, kind, *headers, code=None, body=None):
    details = {"details": {"error_code": code}} if code else {}
    data = body or json.dumps({"type": "error", "error": {"type": kind, "message": "no", **details}}).encode()

    async def answer(w):
        w.answer(status, data, *headers)

    answer.body = data
    return answer


async def reset(w):
    w.reset()


@pytest.fixture
def ok(wire):
    async def answer(w):
        w.answer(200, wire.MESSAGE)

    return answer


@pytest.fixture
def whole_stream(wire):
    async def answer(w):
        w.stream_head()
        w.chunk(wire.START + wire.CONTENT + wire.LAST + wire.STOP)
        w.end()

    return answer


def outcomes(gate):
    return [(r.attempt, r.account_id, r.outcome, r.status) for r in gate.journal.rows]


def effects(gate):
    return [(s.failed.effect.kind, s.failed.effect.reason, s.same_account) for s in gate.scheduler.retries]


FAILOVERS = [
    # fault, retried in place first?, effect on the account, reason of the effect, outcome, status
    (error(429, "rate_limit_error", b"retry-after: 7"), False, REST, "Limited", OUTCOME_UPSTREAM_ERROR, 429),
    (error(429, "rate_limit_error"), False, REST, "Limited", OUTCOME_UPSTREAM_ERROR, 429),
    (error(500, "api_error"), True, COOL, "Failing", OUTCOME_UPSTREAM_ERROR, 500),
    (error(529, "overloaded_error"), False, COOL, "Overloaded", OUTCOME_UPSTREAM_ERROR, 529),
    (error(402, "billing_error"), False, BENCH, "BillingError", OUTCOME_UPSTREAM_ERROR, 402),
    (error(401, "authentication_error"), False, BENCH, "CredentialInvalid", OUTCOME_UPSTREAM_ERROR, 401),
    (reset, True, COOL, "Unreachable", OUTCOME_UPSTREAM_ERROR, 0),
]


@pytest.mark.parametrize(("fault", "in_place", "kind", "reason", "outcome", "status"), FAILOVERS)
async def test_another_account_serves(gate, wire, ok, fault, in_place, kind, reason, outcome, status):
    first = await gate.provider()
    first.standing = fault
    await gate.provider(ok)
    reply = await gate.client.post(wire.BODY)
    assert (reply.status, reply.body) == (200, wire.MESSAGE)
    await gate.quiet()
    sends = 2 if in_place else 1
    assert reply.headers["x-signalbox-attempts"] == str(sends + 1)
    failed = [(n + 1, "default/a1", outcome, status) for n in range(sends)]
    assert outcomes(gate) == [*failed, (sends + 1, "default/a2", OUTCOME_OK, 200)]
    assert effects(gate) == ([(NONE, "", True)] if in_place else []) + [(kind, reason, False)]
    assert all(not row.had_content for row in gate.journal.rows[:-1])
    assert all(retry.failed.more_attempts for retry in gate.scheduler.retries)
    [settle] = gate.scheduler.settles
    assert (settle.outcome, settle.more_attempts) == (OUTCOME_OK, False)


async def test_a_rest_lasts_as_long_as_the_provider_says(gate, wire, ok):
    await gate.provider(error(429, "rate_limit_error", b"retry-after: 7"))
    await gate.provider(ok)
    await gate.client.post(wire.BODY)
    [retry] = gate.scheduler.retries
    assert 6500 < retry.failed.effect.until_ms - gate.clock.now_ms() <= 7000
    assert retry.failed.retry_after_ms == 7000
    assert gate.journal.rows[0].retry_after_ms == 7000


@pytest.mark.parametrize(("status", "kind"), [
    (400, "invalid_request_error"), (403, "permission_error"), (404, "not_found_error"), (413, "request_too_large"),
])
async def test_the_callers_own_errors_reach_it_verbatim_and_hurt_nobody(gate, wire, status, kind):
    fault = error(status, kind, b"x-should-retry: false")
    await gate.provider(fault)
    await gate.provider()
    reply = await gate.client.post(wire.BODY)
    assert (reply.status, reply.body) == (status, fault.body)
    assert (reply.headers["request-id"], reply.headers["x-should-retry"]) == ("req_1", "false")
    await gate.quiet()
    assert gate.scheduler.retries == []
    assert gate.scheduler.settles[0].effect.kind == NONE
    assert outcomes(gate) == [(1, "default/a1", OUTCOME_UPSTREAM_ERROR, status)]
    assert gate.journal.denials == []


async def test_an_organisation_on_hold_is_benched_and_its_request_is_replayed_nowhere(gate, wire):
    fault = error(400, "invalid_request_error", code="organization_on_hold")
    await gate.provider(fault)
    second = await gate.provider()
    reply = await gate.client.post(wire.BODY)
    assert (reply.status, reply.body) == (400, fault.body)
    await gate.quiet()
    assert (gate.scheduler.settles[0].effect.kind, second.requests) == (BENCH, [])


async def test_a_rejected_credential_is_refreshed_once_and_used(gate, wire, ok):
    gate.credentials.refreshable = True
    provider = await gate.provider(error(401, "authentication_error"), ok)
    reply = await gate.client.post(wire.BODY)
    assert reply.status == 200
    assert gate.credentials.rejected == [("default/a1", "1")]
    assert [b"secret-default/a1-1" in h for h, _ in provider.requests] == [True, False]
    assert b"secret-default/a1-2" in provider.requests[1][0]
    assert effects(gate) == [(NONE, "", True)]


async def test_a_credential_rejected_twice_benches_its_account(gate, wire, ok):
    gate.credentials.refreshable = True
    await gate.provider(error(401, "authentication_error"), error(401, "authentication_error"))
    await gate.provider(ok)
    reply = await gate.client.post(wire.BODY)
    assert reply.status == 200
    assert effects(gate) == [(NONE, "", True), (BENCH, "NeedsAuthorization", False)]


@pytest.mark.parametrize("fault", [
    error(401, "authentication_error"), error(402, "billing_error"),
    error(403, "permission_error", code="account_disabled"),
])
async def test_an_accounts_own_errors_never_reach_the_caller(gate, wire, fault):
    await gate.provider(fault)
    reply = await gate.client.post(wire.BODY)
    assert (reply.status, reply.error_code) == (503, "pool_unavailable")
    assert fault.body not in reply.body


async def test_without_a_credential_another_account_serves_and_the_attempt_is_on_record(gate, wire, ok):
    await gate.provider()
    await gate.provider(ok)
    gate.credentials.unusable["default/a1"] = CredentialUnusable("NeedsAuthorization", "gone", transient=False)
    reply = await gate.client.post(wire.BODY)
    assert reply.status == 200
    await gate.quiet()
    first = gate.journal.rows[0]
    assert (first.outcome, first.reason, first.sent) == (OUTCOME_UPSTREAM_ERROR, "NeedsAuthorization", False)
    assert effects(gate) == [(BENCH, "NeedsAuthorization", False)]


async def test_a_last_429_becomes_pool_limited_with_the_soonest_time(gate, wire):
    await gate.provider(error(429, "rate_limit_error", b"retry-after: 30"))
    gate.scheduler.retry_denial = Denial(error_code="pool_limited", message="all rest", retry_after_ms=12_000)
    reply = await gate.client.post(wire.BODY)
    assert (reply.status, reply.error_code, reply.headers["retry-after"]) == (429, "pool_limited", "12")
    body = json.loads(reply.body)
    assert body["error"]["type"] == "rate_limit_error"
    assert body["request_id"] == reply.headers["x-signalbox-request-id"]


@pytest.mark.parametrize(("told_s", "retry_after"), [((5, 3600), "5"), ((3600, None), "1"), ((None, 3600), "1")])
async def test_the_soonest_time_is_that_of_any_account_that_was_tried(gate, wire, told_s, retry_after):
    gate.scheduler.max_attempts = 2
    for seconds in told_s:
        await gate.provider(error(429, "rate_limit_error", *([b"retry-after: %d" % seconds] if seconds else [])))
    reply = await gate.client.post(wire.BODY)
    assert (reply.error_code, reply.headers["x-signalbox-attempts"]) == ("pool_limited", "2")
    assert reply.headers["retry-after"] == retry_after


async def test_the_last_5xx_reaches_the_caller_byte_for_byte(gate, wire):
    gate.scheduler.max_attempts = 2
    fault = error(529, "overloaded_error", b"retry-after: 3")
    await gate.provider(fault)
    await gate.provider(fault)
    reply = await gate.client.post(wire.BODY)
    assert (reply.status, reply.body, reply.headers["retry-after"]) == (529, fault.body, "3")
    assert reply.headers["x-signalbox-attempts"] == "2"


@pytest.mark.parametrize("fault", [error(529, "overloaded_error"), error(429, "rate_limit_error"), reset, error(402, "billing_error")])
async def test_when_nobody_can_say_who_else_could_serve_the_caller_is_told_so(gate, wire, fault):
    gate.scheduler.retry_denial = Denial(error_code="scheduler_unavailable", message="later", retry_after_ms=1000)
    provider = await gate.provider()
    provider.standing = fault
    reply = await gate.client.post(wire.BODY)
    assert (reply.status, reply.error_code, reply.headers["retry-after"]) == (503, "scheduler_unavailable", "1")


async def test_all_sends_count_against_the_pools_attempts(gate, wire):
    first, second, third = [await gate.provider() for _ in range(3)]
    for provider in (first, second, third):
        provider.standing = error(500, "api_error")
    reply = await gate.client.post(wire.BODY)
    assert reply.status == 500
    assert [len(p.requests) for p in (first, second, third)] == [2, 1, 0]


# -------------------------------------------------------------------------------- silence and cuts


async def silent(w):
    await asyncio.sleep(30)


async def head_only(w):
    w.stream_head()
    await asyncio.sleep(30)


@pytest.mark.parametrize(("fault", "limit"), [(silent, "headers"), (head_only, "first_content")])
async def test_a_silent_provider_is_left_for_another(gate, wire, whole_stream, fault, limit):
    setattr(gate.scheduler.timeouts, limit, 500)
    first = await gate.provider(fault)
    second = await gate.provider(whole_stream)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    reply = await gate.client.post(wire.STREAM)
    assert loop.time() - began_s < 2.5 * busy()
    assert (reply.status, len(first.requests), len(second.requests)) == (200, 1, 1)
    assert effects(gate) == [(COOL, "Failing", False)]
    assert gate.journal.rows[0].outcome == OUTCOME_TIMEOUT


async def test_a_provider_that_nobody_replaces_is_a_timeout(gate, wire):
    gate.scheduler.timeouts.headers_unstreamed = 200
    await gate.provider(silent)
    reply = await gate.client.post(wire.BODY)
    assert (reply.status, reply.error_code) == (504, "upstream_timeout")


async def test_an_unreachable_provider_is_left_for_another(gate, wire, ok):
    gone = await gate.provider()
    gone.stop()
    await gone._server.wait_closed()
    await gate.provider(ok)
    reply = await gate.client.post(wire.BODY)
    assert reply.status == 200
    await gate.quiet()
    assert effects(gate) == [(COOL, "Unreachable", False)]
    assert [r.sent for r in gate.journal.rows] == [False, True]


@pytest.mark.parametrize("body", ["BODY", "STREAM"])
async def test_an_answer_cut_before_the_commit_point_is_made_elsewhere(gate, wire, ok, whole_stream, body):
    async def cut(w):
        if body == "BODY":
            w.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{\"a\":")
        else:
            w.stream_head()
            w.chunk(wire.START)
        await w.writer.drain()
        w.writer.close()

    await gate.provider(cut)
    await gate.provider(ok if body == "BODY" else whole_stream)
    reply = await gate.client.post(getattr(wire, body))
    assert reply.status == 200
    await gate.quiet()
    assert [r.outcome for r in gate.journal.rows] == [OUTCOME_TRUNCATED, OUTCOME_OK]


@pytest.mark.parametrize("how", ["close", "reset", "chunks_end", "stall", "mid_frame"])
async def test_a_stream_broken_after_content_ends_with_a_typed_error(gate, wire, how):
    gate.scheduler.timeouts.idle = 300 if how == "stall" else 30_000

    async def broken(w):
        w.stream_head()
        w.chunk(wire.START + wire.CONTENT)
        if how == "mid_frame":
            w.chunk(wire.DELTA[:-9])
        await w.writer.drain()
        await asyncio.sleep(0.05)
        if how == "chunks_end":
            w.end()
        elif how == "reset":
            w.reset()
        elif how == "stall":
            await asyncio.sleep(30)
        else:
            w.writer.close()

    await gate.provider(broken)
    await gate.provider()
    reply = await gate.client.post(wire.STREAM)
    assert reply.status == 200
    assert reply.body.startswith(wire.START + wire.CONTENT + b"event: error\ndata: ")
    tail = json.loads(reply.body[len(wire.START + wire.CONTENT + b"event: error\ndata: "):])
    assert tail["error"]["details"]["error_code"] == "upstream_truncated"
    assert tail["request_id"] == reply.headers["x-signalbox-request-id"]
    await gate.quiet()
    [row] = gate.journal.rows
    assert row.outcome == (OUTCOME_TIMEOUT if how == "stall" else OUTCOME_TRUNCATED)
    assert (row.had_content, row.estimated, row.usage.input_tokens, row.usage.output_tokens) == (True, True, 10, 2)
    assert gate.scheduler.settles[0].effect.kind == COOL


async def test_an_error_event_before_content_fails_over(gate, wire, whole_stream):
    async def failing(w):
        w.stream_head()
        w.chunk(wire.START + wire.PING + wire.ERROR)
        w.end()

    await gate.provider(failing)
    await gate.provider(whole_stream)
    reply = await gate.client.post(wire.STREAM)
    assert reply.body == wire.START + wire.CONTENT + wire.LAST + wire.STOP
    assert effects(gate) == [(COOL, "Overloaded", False)]


async def test_an_error_event_before_content_on_the_last_attempt_becomes_its_status(gate, wire):
    gate.scheduler.max_attempts = 1

    async def failing(w):
        w.stream_head()
        w.chunk(wire.START + wire.ERROR)
        w.end()

    await gate.provider(failing)
    reply = await gate.client.post(wire.STREAM)
    assert (reply.status, reply.headers["content-type"]) == (529, "application/json")
    assert json.loads(reply.body)["error"]["type"] == "overloaded_error"


async def test_an_error_event_after_content_is_passed_on_and_recorded(gate, wire):
    stream = wire.START + wire.CONTENT + wire.ERROR

    async def failing(w):
        w.stream_head()
        w.chunk(stream)
        w.end()

    await gate.provider(failing)
    reply = await gate.client.post(wire.STREAM)
    assert reply.body == stream
    await gate.quiet()
    [row] = gate.journal.rows
    assert (row.outcome, row.reason, row.had_content) == (OUTCOME_UPSTREAM_ERROR, "overloaded", True)
    assert gate.scheduler.settles[0].effect.kind == COOL


async def test_a_malformed_frame_passes_untouched(gate, wire):
    stream = wire.START + wire.CONTENT + b"event: content_block_delta\ndata: {not json\n\n: comment\n\n" + wire.LAST + wire.STOP

    async def answer(w):
        w.stream_head()
        w.chunk(stream)
        w.end()

    await gate.provider(answer)
    reply = await gate.client.post(wire.STREAM)
    assert reply.body == stream
    await gate.quiet()
    assert gate.journal.rows[0].usage.output_tokens == 7


async def test_an_early_answer_is_passed_on_and_its_connection_not_used_again(gate, wire):
    """A provider may refuse a large body before it has read it."""
    fault = error(413, "request_too_large")

    async def refuse_early(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(fault.body))
        writer.write(fault.body)
        await writer.drain()
        await asyncio.sleep(1)
        writer.close()

    server = await asyncio.start_server(refuse_early, "127.0.0.1", 0, limit=1024)
    gate.scheduler.accounts.append(("default/a1", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
    reply = await gate.client.post({**wire.BODY, "system": "x" * 8_000_000})
    assert (reply.status, reply.body) == (413, fault.body)
    server.close()


async def test_a_stale_connection_costs_an_attempt_but_not_the_account(gate, wire, ok):
    provider = await gate.provider(ok, reset, ok)
    assert (await gate.client.post(wire.BODY)).status == 200
    reply = await gate.client.post(wire.BODY)
    assert (reply.status, reply.headers["x-signalbox-attempts"]) == (200, "2")
    await gate.quiet()
    assert len(provider.requests) == len(gate.journal.rows) == 3  # one row for each request that the provider got
    assert effects(gate) == [(NONE, "", True)]
    assert len(provider.wires) == 2, "the second request came on the first connection"


async def test_connections_are_reused_and_never_shared_between_accounts(gate, wire, ok):
    provider = await gate.provider(ok, ok, ok)
    gate.scheduler.accounts.append(("default/other", gate.scheduler.accounts[0][1]))
    await gate.client.post(wire.BODY)
    await gate.client.post(wire.BODY)
    assert len(provider.wires) == 1
    gate.scheduler.accounts.reverse()
    await gate.client.post(wire.BODY)
    assert len(provider.wires) == 2


async def test_informational_answers_are_skipped(gate, wire):
    async def hints(w):
        w.write(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")
        await w.writer.drain()
        await asyncio.sleep(0.02)
        w.answer(200, wire.MESSAGE)

    await gate.provider(hints)
    reply = await gate.client.post(wire.BODY)
    assert (reply.status, reply.body) == (200, wire.MESSAGE)
    assert "link" not in reply.headers


# -------------------------------------------------------------------------------- callers that leave


@pytest.mark.parametrize("when", ["before_head", "streaming"])
async def test_the_upstream_call_is_closed_when_its_caller_hangs_up(gate, wire, when):
    async def slow(w):
        if when == "streaming":
            w.stream_head()
            w.chunk(wire.START + wire.CONTENT)
            await w.writer.drain()
        await w.reader.read(1)

    provider = await gate.provider(slow)
    reader, writer = await gate.client.connect()
    writer.write(gate.client.message(json.dumps(wire.STREAM).encode()))
    if when == "streaming":
        await reader.readuntil(b"\r\n\r\n")
    else:
        while not provider.requests:
            await asyncio.sleep(0.01)
    loop = asyncio.get_running_loop()
    hung_up_s = loop.time()
    writer.transport.abort()
    while not provider.closed_at_s:
        await asyncio.sleep(0.01)
        assert loop.time() - hung_up_s < 2 * busy()
    await gate.quiet()
    [row] = gate.journal.rows
    assert (row.outcome, row.had_content) == (OUTCOME_CLIENT_GONE, when == "streaming")
    assert [s.outcome for s in gate.scheduler.settles] == [OUTCOME_CLIENT_GONE]
    assert gate.buffers.held == 0


@pytest.mark.slow
async def test_a_caller_that_does_not_read_holds_the_provider_back(gate, wire):
    written = 0

    async def flood(w):
        nonlocal written
        w.stream_head()
        w.chunk(wire.START + wire.CONTENT)
        big = wire.frame("content_block_delta", index=0, delta={"type": "text_delta", "text": "x" * 60_000})
        for _ in range(1000):
            w.chunk(big)
            written += len(big)
            await w.writer.drain()

    await gate.provider(flood)
    reader, writer = await gate.client.connect()
    writer.write(gate.client.message(json.dumps(wire.STREAM).encode()))
    await reader.readuntil(b"\r\n\r\n")
    stalled_at = -1
    async with asyncio.timeout(60):
        while stalled_at != written:
            stalled_at = written
            await asyncio.sleep(0.5)
    assert stalled_at < 30_000_000
    await reader.readexactly(stalled_at + 1_000_000)
    assert written > stalled_at
    writer.transport.abort()
    await gate.quiet()


# -------------------------------------------------------------------------------- the gateway itself


async def test_nothing_is_sent_when_the_journal_cannot_be_written(gate, wire, ok):
    provider = await gate.provider(ok)
    await gate.client.post(wire.BODY)
    gate.journal.broken = True
    reply = await gate.client.post(wire.BODY)
    assert (reply.status, reply.error_code, reply.headers["retry-after"]) == (503, "ledger_unavailable", "1")
    assert len(provider.requests) == 1
    assert len(gate.scheduler.settles) == 2
    gate.journal.broken = False
    provider.handlers.append(ok)
    assert (await gate.client.post(wire.BODY)).status == 200
    assert len(provider.wires) == 1, "the connection that was not used is still good"


async def test_streams_that_outlive_the_gateway_end_with_a_typed_error(gate, wire):
    async def slow(w):
        w.stream_head()
        w.chunk(wire.START + wire.CONTENT)
        await w.reader.read(1)

    await gate.provider(slow)
    posting = asyncio.create_task(gate.client.post(wire.STREAM))
    while not gate.scheduler.tracked or not gate.scheduler.tracked[0].output_tokens:
        await asyncio.sleep(0.01)
    gate.sender.stop()
    reply = await posting
    assert b"upstream_truncated" in reply.body
    await gate.quiet()
    [row] = gate.journal.rows
    assert (row.outcome, row.reason) == (OUTCOME_TRUNCATED, "gateway_stopping")
    assert gate.scheduler.settles[0].effect.kind == NONE


async def test_usage_of_message_start_is_noted_before_the_stream_ends(gate, wire):
    async def slow(w):
        w.stream_head()
        w.chunk(wire.START + wire.CONTENT)
        await w.reader.read(1)

    await gate.provider(slow)
    reader, writer = await gate.client.connect()
    writer.write(gate.client.message(json.dumps(wire.STREAM).encode()))
    await reader.readuntil(b"\r\n\r\n")
    while not gate.scheduler.tracked or not gate.scheduler.tracked[0].output_tokens:
        await asyncio.sleep(0.01)
    usage_notes = [n for n in gate.journal.notes if n.HasField("usage")]
    assert [(n.usage.input_tokens, n.attempt) for n in usage_notes] == [(10, 1)]
    lease = gate.scheduler.tracked[0]
    assert (lease.usage.input_tokens, lease.output_tokens, lease.served_model) == (10, 2, "claude-sonnet-5-5-20260901")
    writer.transport.abort()
    await gate.quiet()


@pytest.mark.parametrize("skew_s", [-7200, 7200])
async def test_a_gateway_whose_clock_is_wrong_lets_accounts_rest_as_long_as_they_should(gate, wire, skew_s):
    async def limited(w):
        w.answer(429, b'{"type":"error","error":{"type":"rate_limit_error","message":"m"}}', b"retry-after: 30")

    await gate.provider(limited)
    gate.scheduler.redis_ms = lambda: 1_000_000_000_000 + skew_s * 1000    # far from this machine's own time
    await gate.client.post(wire.BODY)
    [failed] = gate.scheduler.retries
    rests_ms = failed.failed.effect.until_ms - gate.scheduler.redis_ms()
    assert 30_000 <= rests_ms <= 33_000


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
async def test_a_gateway_out_of_file_descriptors_blames_no_account(gate, wire, number):
    await gate.provider()
    await gate.provider()

    async def dial(route, factory, tls, timeout_s):
        raise OSError(number, "Too many open files")

    gate.pool._dial = dial
    reply = await gate.client.post(wire.BODY)
    assert (reply.status, reply.error_code) == (503, "overloaded")
    assert int(reply.headers["retry-after"]) > 0
    await gate.quiet()
    assert gate.scheduler.retries == []
    [settle] = gate.scheduler.settles
    assert (settle.effect.kind, settle.had_content) == (NONE, False)
    [row] = gate.journal.rows
    assert (row.outcome, row.reason, row.sent) == (OUTCOME_UPSTREAM_ERROR, "overloaded", False)
