"""What people type and what the rooms answer, turned into values and rows: pure functions, by table."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from signalbox.cli.commands.ledger import RequestsFilter, Span, UsageFilter, newest, show_requests, show_usage, story
from signalbox.cli.errors import BadUsage
from signalbox.cli.keyspec import key_spec, parse_limit
from signalbox.cli.locate import Target
from signalbox.cli.output import Format, ReportFormat, print_lines, print_table
from signalbox.cli.shapes import account_row, explained_row, key_row, pool_row, request_row
from signalbox.cli.times import parse_span, parse_when
from signalbox.core.rows import usage_row
from signalbox.rooms.addresses import Addresses
from signalbox.v1 import common_pb2 as cpb
from signalbox.v1 import scheduler_pb2 as spb
from signalbox.v1 import token_refresher_pb2 as tpb
from signalbox.v1 import usage_pb2 as upb

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
NOWHERE = Target(Addresses(("127.0.0.1:1",), "127.0.0.1:1", "127.0.0.1:1"), "nowhere")


@pytest.mark.parametrize(("text", "span"), [
    ("24h", timedelta(hours=24)), ("7d", timedelta(days=7)), ("2w", timedelta(weeks=2)), ("90m", timedelta(minutes=90)),
    ("1h30m", timedelta(minutes=90)), ("0s", timedelta()), ("1.5h", timedelta(minutes=90)),
])
def test_spans(text: str, span: timedelta) -> None:
    assert parse_span(text, "--overlap") == span
    assert parse_when(text, "--since", NOW) == NOW - span
    assert parse_when(text, "--expires", NOW, forward=True) == NOW + span


@pytest.mark.parametrize(("text", "when"), [
    ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
    ("2026-11-01T10:00:00Z", datetime(2026, 11, 1, 10, tzinfo=UTC)),
    ("2026-11-01T10:00:00+02:00", datetime(2026, 11, 1, 8, tzinfo=UTC)),
    ("2026-11-01 10:00", datetime(2026, 11, 1, 10, tzinfo=UTC)),
])
def test_dates(text: str, when: datetime) -> None:
    assert parse_when(text, "--since", NOW) == when


@pytest.mark.parametrize("text", ["", "h", "24", "24 h", "-1h", "7x", "yesterday", "2026-13-01", "9999999999w", "1e9d"])
def test_what_is_no_time_is_refused_by_name(text: str) -> None:
    with pytest.raises(BadUsage, match=r"^--since"):
        parse_when(text, "--since", NOW)


@pytest.mark.parametrize(("text", "limit"), [
    ("minute:requests=60,tokens=100000", {"per": "Minute", "requests": 60, "tokens": 100000}),
    ("Day:cost=20.00,strict", {"per": "Day", "costUSD": "20.00", "admission": "Strict"}),
    ("week:cost=50,models=claude-opus-*|x", {"per": "Week", "costUSD": "50", "models": ["claude-opus-*", "x"]}),
    ("total:tokens=5,name=all", {"per": "Total", "tokens": 5, "name": "all"}),
])
def test_limits(text: str, limit: dict[str, Any]) -> None:
    assert parse_limit(text) == limit


@pytest.mark.parametrize("text", ["", "minute", "minute:", "year:requests=1", "day:requests=x", "day:cost", "x", "day:requests=1,requests=2",
    "day:requests=\u00b2", "day:requests=" + "9" * 5000])
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(BadUsage, match=r"^--limit"):
        parse_limit(text)


def test_a_key_spec_leaves_out_what_was_not_asked_for() -> None:
    assert key_spec(owner="ada") == {"owner": "ada"}
    assert key_spec(owner="ada", deny=["x*"], sources=["10.0.0.0/8"], lifetime="720h") == {
        "owner": "ada", "models": {"deny": ["x*"]}, "sourceCIDRs": ["10.0.0.0/8"], "lifetime": {"duration": "720h"},
    }


def condition(kind: str, status: bool, reason: str) -> cpb.Condition:
    return cpb.Condition(type=kind, status=status, reason=reason)


def account(**status: Any) -> spb.ObjectWithStatus:
    spec = {"provider": "Anthropic", "state": "Active", "baseURL": "https://api.anthropic.com", "priority": 0}
    return spb.ObjectWithStatus(
        object=spb.Object(kind="ClaudeAccount", id="default/acme", spec_json=json.dumps(spec).encode(),
                          conditions=[condition("Ready", True, "Serves")]),
        account=spb.AccountStatus(**{"state": "Active", "available": True, **status}),
    )


def test_an_account_shows_its_limits() -> None:
    row = account_row(account(
        available=False, reason="Limited", limited_until_ms=1_795_000_000_000, in_flight=3,
        windows=[cpb.Window(name="5h", utilization=0.75, resets_at_ms=1_795_000_000_000)],
    ), tpb.GrantStatus(valid=True, reason="Valid", last_transition_ms=1_795_000_000_000))
    assert row["name"] == "acme"
    assert row["namespace"] == "default"
    assert row["provider"] == "Anthropic"
    assert (row["available"], row["reason"], row["in_flight"]) == (False, "Limited", 3)
    assert row["limited_until"] == "2026-11-18T11:06:40Z"
    assert row["windows"] == [{"window": "5h", "utilization": 0.75, "resets_at": "2026-11-18T11:06:40Z"}]
    assert {c["type"]: c["status"] for c in row["conditions"]} == {"Ready": "True", "CredentialValid": "True"}
    [valid] = [c for c in row["conditions"] if c["type"] == "CredentialValid"]
    assert valid["last_transition_at"] == "2026-11-18T11:06:40Z"


def test_an_invalid_credential_makes_an_account_unavailable() -> None:
    row = account_row(account(), tpb.GrantStatus(valid=False, reason="CredentialInvalid", message="401"))
    assert (row["available"], row["reason"]) == (False, "CredentialInvalid")


def test_documents_reasons_come_before_the_credentials() -> None:
    item = account()
    item.object.conditions[0].CopyFrom(condition("Ready", False, "NotImplemented"))
    row = account_row(item, tpb.GrantStatus(valid=False, reason="CredentialInvalid"))
    assert (row["available"], row["reason"]) == (False, "NotImplemented")


def test_a_pool_counts_its_accounts_by_state() -> None:
    row = pool_row(spb.ObjectWithStatus(
        object=spb.Object(id="default/p", spec_json=b'{"accounts":["default/a"],"strategy":"Priority"}'),
        pool=spb.PoolStatus(strategy="Priority", total=3, ready=2, by_state={"Ready": 2, "Limited": 1}),
    ))
    assert row["strategy"] == "Priority"
    assert row["accounts"] == {"Limited": 1, "Ready": 2}


def test_a_key_shows_only_the_numbers_that_are_limited() -> None:
    row = key_row(spb.ObjectWithStatus(
        object=spb.Object(id="team/ada", spec_json=b'{"owner":"ada@example.com"}'),
        key=spb.KeyStatus(state="Limited", reason="key_limit_cost", expires_at_ms=0, limits=[cpb.LimitState(
            name="day", per="Day", cost_nano_usd=cpb.Amount(limit=20_000_000_000, used=12_300_000, reserved=0),
        )]),
    ))
    assert (row["name"], row["namespace"], row["owner"], row["state"]) == ("ada", "team", "ada@example.com", "Limited")
    assert row["expires_at"] is None
    assert row["limits"] == [{
        "name": "day", "per": "Day", "models": [], "resets_at": None,
        "cost_usd": {"limit": "20", "used": "0.0123", "reserved": "0"},
    }]


def test_usage_rows_carry_exactly_the_groups_that_were_asked_for() -> None:
    row = usage_row(upb.UsageRow(key_id="default/ada", day="2026-11-21", requests=2, input_tokens=5,
                                 cost_nano_usd="123456789012345678901"), "day", "key")
    assert list(row)[:3] == ["day", "key", "requests"]
    assert row["cost_usd"] == "123456789012.345678901"
    assert usage_row(upb.UsageRow())["cost_usd"] == "0"


ATTEMPT = upb.LedgerRow(
    request_id="req_1", attempt=1, route="messages", key_id="default/ada", owner="ada", account_id="default/a",
    pool_id="default/default", model="claude-x", outcome=cpb.OUTCOME_UPSTREAM_ERROR, status=529, streamed=True,
    started_at_ms=1_795_000_000_123, duration_ms=12, reason="overloaded",
    decision=spb.Decision(
        strategy="Headroom", pin="new", considered=2, chosen="default/a", reason="most headroom",
        candidates=[
            spb.Candidate(account_id="default/c", score=5, note="full"), spb.Candidate(account_id="default/a", score=10),
            spb.Candidate(account_id="default/b", score=20),
        ],
        excluded={"Limited": 1},
    ).SerializeToString(),
)


def test_request_rows_have_the_contracts_fields() -> None:
    row = request_row(ATTEMPT)
    assert set(row) >= {
        "request_id", "attempt", "route", "key", "owner", "account", "pool", "model", "served_model", "outcome",
        "status", "streamed", "input_tokens", "output_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens",
        "cache_read_tokens", "estimated", "cost_usd", "price_assumed", "started_at", "duration_ms", "ttft_ms", "client",
    }
    assert row["outcome"] == "upstream_error"
    assert row["started_at"] == "2026-11-18T11:06:40.123Z"
    assert row["ttft_ms"] is None


def test_a_story_tells_why_and_what_came_of_it() -> None:
    second = upb.LedgerRow()
    second.CopyFrom(ATTEMPT)
    second.MergeFrom(upb.LedgerRow(attempt=2, account_id="default/b", outcome=cpb.OUTCOME_OK, status=200, ttft_ms=5,
                                   cost_nano_usd=1_500_000, usage=cpb.TokenUsage(input_tokens=10, output_tokens=7)))
    told = "\n".join(story([explained_row(ATTEMPT), explained_row(second)]))
    for part in ("req_1", "claude-x", "default/ada", "attempt 1 default/a", "overloaded", "529",
                 "Headroom: most headroom", "pinned here from now on", "Limited 1", "attempt 2 default/b", "0.0015 USD", "10 input, 7 output", "2 attempts",
                 "passed  default/c, score 5: full", "taken   default/a, score 10\n", "behind  default/b, score 20\n"):
        assert part in told, part


@pytest.mark.parametrize(("ask", "why"), [
    (lambda target: show_requests(target, RequestsFilter(None, None, "fine", Span(None, None), 10, denials=False), Format.JSON),
     "--outcome fine: must be one of ok, "),
    (lambda target: show_usage(target, UsageFilter("key,day,key", None, None, Span(None, None)), ReportFormat.JSON),
     "--by key: is named twice"),
    (lambda target: show_usage(target, UsageFilter("key", None, None, Span("1h", "2h")), ReportFormat.JSON),
     "--since 1h: must be earlier than --until 2h"),
])
def test_what_makes_no_sense_is_refused_before_anybody_is_asked(ask: Callable[[Target], None], why: str) -> None:
    with pytest.raises(BadUsage, match=why):
        ask(NOWHERE)


def test_a_story_of_a_denial() -> None:
    denial = upb.LedgerRow(request_id="req_2", outcome=cpb.OUTCOME_DENIED, status=429, reason="key_limit_requests",
                           key_id="default/ada", retry_after_ms=3000)
    told = "\n".join(story([explained_row(denial)]))
    assert "refused   key_limit_requests with status 429; may be tried again after 3000 ms" in told


def test_nothing_that_is_shown_moves_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    escape = "x\x1b[31m\ny\u202e"
    print_table(("A",), [(escape,)], empty="")
    print_lines((escape, "in order: \u5217\u8eca"))
    shown = capsys.readouterr().out.splitlines()
    assert [line.rstrip() for line in shown[1:]] == ["x\ufffd[31m\ufffdy\ufffd"] * 2 + ["in order: \u5217\u8eca"]


def test_a_story_claims_no_status_for_a_further_attempt_that_was_not_made() -> None:
    denial = upb.LedgerRow(request_id="req_1", outcome=cpb.OUTCOME_DENIED, status=429, reason="pool_limited",
                           retry_after_ms=3000)
    told = "\n".join(story([explained_row(denial), explained_row(ATTEMPT)]))
    assert told.index("attempt 1") < told.index("ended     no further attempt: pool_limited; may be tried again after 3000 ms")
    assert "refused" not in told
    assert "429" not in told


@pytest.mark.parametrize(("last", "sizes"), [(2, [2]), (3, [3]), (7, [3, 3, 1]), (10, [3, 3, 3, 1]), (99, [3, 3, 3, 3])])
def test_more_rows_than_an_answer_holds_are_asked_for_in_pages(last: int, sizes: list[int]) -> None:
    rows = [upb.LedgerRow(admitted_at_ms=n // 2, request_id=f"r{n:02}", attempt=1) for n in range(11, 0, -1)]
    asked: list[int] = []

    def ask(question: upb.QueryRequest) -> upb.QueryResponse:
        query = question.requests
        asked.append(query.last)
        rest = [
            row for row in rows
            if not query.HasField("before")
            or (row.admitted_at_ms, row.request_id) < (query.before.admitted_at_ms, query.before.request_id)
        ]
        return upb.QueryResponse(rows=rest[: query.last])

    assert newest(ask, upb.RequestsQuery(), last, page=3) == rows[:last]
    assert asked == sizes
