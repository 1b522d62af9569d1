"""The comparison of truth and ledger finds what it is there to find: each kind of disagreement, made on purpose."""

import copy
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.compare import NOTHING, bounds, compare
from tests.support.load import Seen

MODEL = "claude-sonnet-5-5-20000001"
BODY = b"event: message_stop\ndata: {}\n\n"
TRUTH: dict[str, Any] = {
    "seq": 0, "request_id": "req_1", "account": "a", "model": MODEL, "status": 200, "stream": True, "behaviour": {},
    "usage": {"input_tokens": 10, "output_tokens": 7}, "usage_final": True, "delta_bytes": 30, "outcome": "complete",
    "sent_sha256": hashlib.sha256(BODY).hexdigest(),
}
ROW: dict[str, Any] = {
    "request_id": "sbx_1", "attempt": 1, "account": "default/a", "model": MODEL, "served_model": MODEL, "outcome": "ok",
    "reason": "", "upstream_request_id": "req_1", "estimated": False, "cost_usd": "0.00009", "input_tokens": 10,
    "output_tokens": 7, "cache_write_5m_tokens": 0, "cache_write_1h_tokens": 0, "cache_read_tokens": 0,
}
SEEN = Seen(
    model=MODEL, streamed=True, status=200, request_id="sbx_1", upstream_request_id="req_1", attempts=1, whole=True,
    body=BODY,
)

Tamper = Callable[[list[dict[str, Any]], list[dict[str, Any]], Seen], Any]

TAMPERED: dict[str, Tamper] = {
    "no row": lambda truth, rows, seen: rows.clear(),
    "row twice": lambda truth, rows, seen: rows.append(dict(rows[0])),
    "another attempt that was never made, but charged": lambda truth, rows, seen: rows.append(
        {**rows[0], "attempt": 2, "upstream_request_id": ""}),
    "an unknown request": lambda truth, rows, seen: truth.clear(),
    "a token too many": lambda truth, rows, seen: rows[0].update(output_tokens=8, cost_usd="0.0001"),
    "a nano-dollar too much": lambda truth, rows, seen: rows[0].update(cost_usd="0.000090001"),
    "another account": lambda truth, rows, seen: rows[0].update(account="default/b"),
    "estimated though whole": lambda truth, rows, seen: rows[0].update(estimated=True),
    "whole, not ok": lambda truth, rows, seen: rows[0].update(outcome="truncated"),
    "ok, not whole": lambda truth, rows, seen: truth[0].update(outcome="cut", usage_final=False, delta_bytes=0),
    "cut, rule not applied": lambda truth, rows, seen: (
        truth[0].update(outcome="cut", usage_final=False, behaviour={"cut": {"how": "fin"}}),
        rows[0].update(outcome="truncated", estimated=True)),
    "an error that is charged": lambda truth, rows, seen: truth[0].update(status=500, usage=None),
    "a charge for an attempt that failed before its first content": lambda truth, rows, seen: (
        truth.insert(0, {**truth[0], "seq": -1, "request_id": "req_0", "outcome": "cut", "usage_final": False}),
        rows.insert(0, {**rows[0], "upstream_request_id": "req_0", "outcome": "truncated"}),
        rows[1].update(attempt=2), setattr(seen, "attempts", 2)),
    "another byte": lambda truth, rows, seen: setattr(seen, "body", BODY + b"\n"),
    "wrong number of attempts told": lambda truth, rows, seen: setattr(seen, "attempts", 2),
}


def test_what_agrees_is_not_complained_about() -> None:
    assert not compare([TRUTH], [ROW], [SEEN]).problems


@pytest.mark.parametrize("told", ["req_0", ""])
def test_a_token_that_ran_out_on_its_way_is_nobodys_at_the_provider(told: str) -> None:
    """The row names the account; where its gateway died before it heard, not the provider's id. Nothing may be charged."""
    refused = {**TRUTH, "seq": -1, "request_id": "req_0", "account": None, "status": 401, "usage": None}
    row = {**ROW, "upstream_request_id": told, "outcome": "upstream_error", **NOTHING, "cost_usd": "0"}
    seen = copy.copy(SEEN)
    seen.attempts = 2
    assert not compare([refused, TRUTH], [row, {**ROW, "attempt": 2}], [seen]).problems
    assert compare([refused, TRUTH], [{**row, "input_tokens": 1}, {**ROW, "attempt": 2}], [seen]).problems
    assert compare([{**refused, "status": 200}, TRUTH], [row, {**ROW, "attempt": 2}], [seen]).problems


@pytest.mark.parametrize("name", list(TAMPERED))
def test_what_does_not_agree_is_found(name: str) -> None:
    truth, rows, seen = [copy.deepcopy(TRUTH)], [copy.deepcopy(ROW)], copy.deepcopy(SEEN)
    TAMPERED[name](truth, rows, seen)
    assert compare(truth, rows, [seen]).problems


@pytest.mark.parametrize("at", ["start", "message_start"])
def test_an_error_event_before_content_costs_nothing_though_its_caller_has_gone(at: str) -> None:
    truth = {**TRUTH, "behaviour": {"error_event": {"at": at}}, "usage_final": False, "delta_bytes": 0}
    assert bounds(truth, {**ROW, "outcome": "upstream_error"}, Seen(model=MODEL, streamed=True)) == (NOTHING, NOTHING)


def test_what_was_reported_at_the_end_bounds_what_a_third_of_the_bytes_would_be() -> None:
    data = [
        {"type": "message_start", "message": {"usage": {"input_tokens": 10, "output_tokens": 1}}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x" * 30}},
    ]
    seen = copy.copy(SEEN)
    seen.body = b"".join(b"data: %s\n\n" % json.dumps(d).encode() for d in data)
    low, high = bounds(TRUTH, {**ROW, "outcome": "client_gone"}, seen)
    assert low["output_tokens"] == high["output_tokens"] == 7
