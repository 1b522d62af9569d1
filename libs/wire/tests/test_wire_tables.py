"""Errors, limit windows, headers, clients: the tables of the wire facts."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from signalbox.wire import clients, headers
from signalbox.wire.errors import OWN_ERRORS, ErrorClass, classify, envelope, sse_error_event
from signalbox.wire.limits import read_windows
from signalbox.wire.request import read_request

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def error_body(kind: str, code: str | None = None) -> bytes:
    error: dict[str, object] = {"type": kind, "message": "m"}
    return json.dumps({"type": "error", "error": error | ({"details": {"error_code": code}} if code else {})}).encode()


@pytest.mark.parametrize(
    ("status", "kind", "code", "expected"),
    [
        (400, "invalid_request_error", None, ErrorClass.CALLER),
        (400, "invalid_request_error", "organization_on_hold", ErrorClass.ORGANIZATION_ON_HOLD),
        (400, "invalid_request_error", "credit_balance_too_low", ErrorClass.BILLING),
        (400, "billing_error", None, ErrorClass.BILLING),
        (401, "authentication_error", None, ErrorClass.CREDENTIAL),
        (402, "billing_error", None, ErrorClass.BILLING),
        (403, "permission_error", None, ErrorClass.CALLER),
        (403, "permission_error", "organization_disabled", ErrorClass.DISABLED),
        (404, "not_found_error", None, ErrorClass.CALLER),
        (409, "conflict_error", None, ErrorClass.CONFLICT),
        (413, "request_too_large", None, ErrorClass.CALLER),
        (429, "rate_limit_error", None, ErrorClass.LIMITED),
        (429, "rate_limit_error", "ramp_limit_exceeded", ErrorClass.LIMITED),
        (429, "rate_limit_error", "enforced_spend_limit_reached", ErrorClass.LIMITED),
        (429, "rate_limit_error", "contract_spend_limit_reached", ErrorClass.BILLING),
        (500, "api_error", None, ErrorClass.SERVER),
        (503, "api_error", None, ErrorClass.SERVER),
        (503, "overloaded_error", None, ErrorClass.OVERLOADED),
        (504, "timeout_error", None, ErrorClass.SERVER),
        (529, "overloaded_error", None, ErrorClass.OVERLOADED),
        (418, "", None, ErrorClass.CALLER),
        (402, "billing_error", "linked_organization_spend_limit_reached", ErrorClass.CALLER),
        (400, "invalid_request_error", "user_profile_billing_not_authorized", ErrorClass.CALLER),
        (403, "permission_error", "claude_code_key_creator_not_member", ErrorClass.DISABLED),
        (400, "invalid_request_error", "cmek_key_disabled", ErrorClass.DISABLED),
    ],
)
def test_what_an_error_means(status: int, kind: str, code: str | None, expected: ErrorClass) -> None:
    assert classify(status, [], error_body(kind, code), NOW).error_class is expected


def test_bodies_that_are_no_envelope_still_have_a_class() -> None:
    for body in (b"", b"<html>", b"[]", b'{"error": 3}', b'{"error":{"details":[]}}', b"\xff", b'{"error":{"type":"\xff"}}'):
        assert classify(529, [], body, NOW).error_class is ErrorClass.OVERLOADED
    assert classify(400, [], b'{"error":{"type":"billing_error","details":7}}', NOW).error_class is ErrorClass.BILLING


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({b"retry-after": b"3"}, 3.0), ({b"retry-after-ms": b"250", b"retry-after": b"3"}, 0.25),
        ({b"retry-after": b"Sat, 21 Nov 2026 12:01:00 GMT"}, 60.0), ({b"retry-after": b"soon"}, None), ({}, None),
        ({b"retry-after": b"-5"}, None), ({b"retry-after": b"nan"}, None), ({b"retry-after": b"1e99"}, 31 * 86400.0),
        ({b"anthropic-ratelimit-unified-5h-status": b"rejected", b"anthropic-ratelimit-unified-5h-reset": b"1795262460"}, 60.0),
        ({b"anthropic-ratelimit-requests-remaining": b"0", b"anthropic-ratelimit-requests-reset": b"2026-11-21T12:00:09Z",
          b"anthropic-ratelimit-tokens-remaining": b"1", b"anthropic-ratelimit-tokens-reset": b"2026-11-21T13:00:00Z"}, 9.0),
    ],
)
def test_when_to_try_again(fields: dict[bytes, bytes], seconds: float | None) -> None:
    assert classify(429, fields.items(), error_body("rate_limit_error"), NOW).retry_after_s == seconds


@pytest.mark.parametrize("off", [timedelta(0), timedelta(hours=7), timedelta(days=-400)])
@pytest.mark.parametrize("field", [
    (b"retry-after", "{:%a, %d %b %Y %H:%M:%S GMT}"), (b"anthropic-ratelimit-requests-reset", "{:%Y-%m-%dT%H:%M:%SZ}"),
])
def test_dates_are_read_by_the_clock_of_who_wrote_them(field: tuple[bytes, str], off: timedelta) -> None:
    theirs = datetime.now(UTC).replace(microsecond=0) + off
    fields = {
        b"date": f"{theirs:%a, %d %b %Y %H:%M:%S GMT}".encode(), b"anthropic-ratelimit-requests-remaining": b"0",
        field[0]: field[1].format(theirs + timedelta(seconds=90)).encode(),
    }
    assert classify(429, fields.items(), error_body("rate_limit_error")).retry_after_s == 90


@pytest.mark.parametrize("date", [{}, {b"date": b"d"}, {b"date": b"\xff"}])
def test_without_a_readable_date_this_machines_clock_decides(date: dict[bytes, bytes]) -> None:
    later = datetime.now(UTC) + timedelta(seconds=90)
    fields = {**date, b"retry-after": f"{later:%a, %d %b %Y %H:%M:%S GMT}".encode()}
    after_s = classify(429, fields.items(), error_body("rate_limit_error")).retry_after_s
    assert after_s is not None
    assert 60 < after_s <= 90


def test_a_spend_limit_lasts_to_the_first_of_the_month() -> None:
    verdict = classify(429, [], error_body("rate_limit_error", "enforced_spend_limit_reached"), NOW)
    until = datetime.fromtimestamp(verdict.rest_until_ms(int(NOW.timestamp() * 1000)) / 1000, UTC)
    assert until == datetime(2026, 12, 1, tzinfo=UTC)


def test_a_weekly_limit_of_one_model_class_is_not_the_accounts() -> None:
    fields = [(b"anthropic-ratelimit-unified-representative-claim", b"seven_day_opus")]
    assert classify(429, fields, error_body("rate_limit_error"), NOW).model_scoped


def test_own_errors_have_the_envelope() -> None:
    for code, own in OWN_ERRORS.items():
        parsed = json.loads(envelope(own.type, "m", code, "sbr_1"))
        assert parsed == {"type": "error", "error": {"type": own.type, "message": "m", "details": {"error_code": code}},
                          "request_id": "sbr_1"}
    event = sse_error_event("api_error", "m", "upstream_truncated", "sbr_1")
    assert event.startswith(b"event: error\ndata: {")
    assert event.endswith(b"}\n\n")


def test_limit_windows() -> None:
    found = {w.name: w for w in read_windows([
        (b"anthropic-ratelimit-requests-limit", b"50"), (b"anthropic-ratelimit-requests-remaining", b"40"),
        (b"anthropic-ratelimit-requests-reset", b"2026-11-21T12:00:30Z"),
        (b"anthropic-ratelimit-input-tokens-limit", b"x"), (b"anthropic-ratelimit-unified-7d_oi-utilization", b"1.2"),
        (b"anthropic-ratelimit-unified-5h-utilization", b"0.5"), (b"anthropic-ratelimit-unified-5h-reset", b"1795262460"),
        (b"anthropic-ratelimit-unified-5h-status", b"allowed_warning"), (b"anthropic-ratelimit-unified-status", b"rejected"),
        (b"anthropic-ratelimit-unified-fallback", b"available"), (b"content-type", b"x"),
        (b"anthropic-fast-output-tokens-remaining", b"7"), (b"anthropic-organization-id", b"o"),
    ])}
    requests = found["requests"]
    assert (requests.limit, requests.remaining) == (50, 40)
    assert requests.utilization == pytest.approx(0.2)
    assert requests.resets_at == datetime(2026, 11, 21, 12, 0, 30, tzinfo=UTC)
    assert (found["5h"].utilization, found["5h"].status) == (0.5, "allowed_warning")
    assert found["5h"].resets_at == datetime(2026, 11, 21, 12, 1, tzinfo=UTC)
    assert found["7d_oi"].utilization == 1.2
    assert found["unified"].status == "rejected"
    assert found["fast-output-tokens"].remaining == 7
    assert set(found) == {"requests", "5h", "7d_oi", "unified", "fast-output-tokens"}


def test_what_goes_upstream() -> None:
    sent = [
        (b"host", b"relay"), (b"x-api-key", b"k"), (b"authorization", b"Bearer k"), (b"user-agent", b"mine/1"),
        (b"anthropic-beta", b"a"), (b"anthropic-beta", b"b"), (b"connection", b"keep-alive, x-hop"), (b"x-hop", b"1"),
        (b"transfer-encoding", b"chunked"), (b"content-length", b"3"), (b"accept-encoding", b"gzip"), (b"cookie", b"c"),
        (b"x-forwarded-for", b"1.2.3.4"), (b"x-custom", b"v"), (b"x-signalbox-pool", b"p"),
        (b"cf-connecting-ip", b"1.2.3.4"), (b"x-forwarded-client-cert", b"Hash=1"), (b"true-client-ip", b"1.2.3.4"),
        (b"x-envoy-external-address", b"1.2.3.4"), (b"x-original-forwarded-for", b"1.2.3.4"),
    ]
    assert headers.upstream(sent, dict(sent)) == [
        (b"user-agent", b"mine/1"), (b"anthropic-beta", b"a"), (b"anthropic-beta", b"b"), (b"x-custom", b"v"),
    ]


def test_what_comes_back() -> None:
    got = [
        (b"date", b"d"), (b"content-type", b"application/json"), (b"content-length", b"3"), (b"request-id", b"req_1"),
        (b"anthropic-ratelimit-requests-limit", b"5"), (b"anthropic-organization-id", b"o"), (b"set-cookie", b"c"),
        (b"retry-after", b"3"), (b"connection", b"close"), (b"x-signalbox-request-id", b"forged"), (b"cf-ray", b"r"),
    ]
    assert headers.downstream(got, dict(got)) == [
        (b"date", b"d"), (b"content-type", b"application/json"), (b"request-id", b"req_1"), (b"retry-after", b"3"),
        (b"cf-ray", b"r"),
    ]


@pytest.mark.parametrize(
    ("agent", "client"),
    [
        (b"claude-cli/2.1.197 (external, cli)", "ClaudeCode"), (b"codex_cli_rs/0.169.0", "Codex"),
        (b"GeminiCLI-v0.61.0/gemini", "GeminiCLI"), (b"Anthropic/Python 2.11.0", "AnthropicSDK"),
        (b"Anthropic/JS 1.11.0", "AnthropicSDK"), (b"AsyncAnthropic/Python 2.11.0", "AnthropicSDK"),
        (b"OpenAI/Python 3.51", "OpenAISDK"), (b"AsyncOpenAI/Python 3", "OpenAISDK"), (b"curl/8", ""), (b"", ""),
    ],
)
def test_clients(agent: bytes, client: str) -> None:
    assert clients.identify({b"user-agent": agent}) == client


def test_session_sources_in_order() -> None:
    facts = read_request(json.dumps(
        {"model": "m", "metadata": {"user_id": '{"session_id":"meta"}'}, "prompt_cache_key": "cache"},
    ).encode())
    named = {b"x-claude-code-session-id": b"1", b"x-session-id": b"2", b"session-id": b"3", b"session_id": b"4"}
    for expected in (b"1", b"2", b"3", b"4", b"meta"):
        assert clients.session_of(clients.named_session(named), facts) == expected
        named.pop(next(iter(named), b""), None)
    assert clients.session_of(b"", read_request(b'{"model":"m","prompt_cache_key":"cache"}')) == b"cache"
    assert clients.session_of(b"", read_request(b'{"model":"m"}')) == b""
