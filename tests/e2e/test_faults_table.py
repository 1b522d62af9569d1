"""The table of faults, row by row: what one request meets, streamed and not, with another account at hand and without.

Each row says how the attempts on the ill account end and what the caller is told when nobody else can serve; with
another account the caller gets that one's answer wherever the request may be made again. All rows are played at once,
each on a stand of its own (tests/support/stands.py); then truth, ledger, callers and accounts are held together.
Faults of many requests (rests, probes, healing, flapping) are in test_faults_healing.py.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support import compare
from tests.support.load import Load, Seen, data_lines
from tests.support.stands import Layout, Stand, Stands

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

Behaviour = dict[str, Any]
Try = tuple[str, int, str]      # outcome, status and reason in the ledger

BOTH = (True, False)
STREAMED = (True,)
PLAIN = (False,)
PAUSE_S = 0.04                  # between two beginnings, so that time limits mean something on a busy machine
BIG = "x" * 3_000_000

COOLING = ("Failing", "Overloaded", "Unreachable")      # over after a second

# What a caller may be told when the ill account is all there is.
WHOLE = "the answer"
VERBATIM = "the provider's error, byte for byte"
PASSED_ON = "the provider's stream with its own error event"
TRUNCATED = "upstream_truncated"
BROKEN_OFF = "a connection that breaks"


@dataclass(frozen=True)
class Fault:
    """One row. `tries`: how the attempts on the ill account end; `told`: what the caller hears if there is no other.

    `elsewhere`: another account is asked afterwards; `then`: why the account is out of use in `accounts list`, for a
    moment only where it is `brief`.
    """

    meets: Behaviour
    tries: tuple[Try, ...]
    told: str
    elsewhere: bool = True
    then: str = ""
    brief: bool = False
    streamed: tuple[bool, ...] = BOTH
    times: int = 0              # how many requests meet it, 0 for all
    account: dict[str, Any] = field(default_factory=dict)
    prompt: str = "Hello"


def error(status: int, reason: str) -> Try:
    """Return an attempt that the provider answered with an error."""
    return ("upstream_error", status, reason)


OK: Try = ("ok", 200, "")
LIMITED, SERVER, OVERLOADED = error(429, "limited"), error(500, "server_error"), error(529, "overloaded")
RESET: Try = ("upstream_error", 0, "reset")
CUT: Try = ("truncated", 200, "cut")


def status(code: int, **fields: Any) -> Behaviour:
    """Return an error answer."""
    return {"status": code, **fields}


def own(code: int, **fields: Any) -> Fault:
    """Return the row of an error that is about the request: asked once, passed on, nobody is hurt."""
    return Fault(status(code, **fields), (error(code, "caller_error"),), VERBATIM, elsewhere=False)


def standing(code: int, reason: str, then: str, **fields: Any) -> Fault:
    """Return the row of an error that is about the account: benched, served elsewhere, never shown."""
    return Fault(status(code, **fields), (error(code, reason),), "pool_unavailable", then=then)


def before_content(meets: Behaviour, *tries: Try, told: str, then: str = "Failing", streamed: tuple[bool, ...] = BOTH) -> Fault:
    """Return a row of a fault that strikes before anything reached the caller."""
    return Fault(meets, tries, told, then=then, streamed=streamed)


def amid_content(meets: Behaviour, outcome: str, reason: str, told: str = TRUNCATED, then: str = "Failing") -> Fault:
    """Return a row of a fault that strikes a stream after the commit point."""
    return Fault(
        meets, ((outcome, 200, reason),), told, elsewhere=False, then=then, brief=then == "Limited", streamed=STREAMED)


def event(kind: str, at: str, **fields: Any) -> Behaviour:
    """Return a stream with an error event."""
    return {"error_event": {"type": kind, "at": at, **fields}}


def silent(reason: str) -> Try:
    """Return an attempt that waited in vain for an answer's head."""
    return ("timeout", 0, reason)


def stalled(reason: str) -> Try:
    """Return an attempt that waited in vain for what follows the head."""
    return ("timeout", 200, reason)


FAULTS: dict[str, Fault] = {
    # ------------------------------------------------------------------ the account's limits
    "429 with retry-after": Fault(status(429, retry_after=600), (LIMITED,), "pool_limited", then="Limited"),
    "429 without retry-after": Fault(status(429), (LIMITED,), "pool_limited", then="Limited", brief=True),
    "429 with retry-after-ms": Fault(status(429, headers={"retry-after-ms": "600000"}), (LIMITED,), "pool_limited", then="Limited"),
    "429 until a date": Fault(
        status(429, retry_after="Fri, 01 Jan 2100 00:00:00 GMT"), (LIMITED,), "pool_limited", then="Limited"),
    "429 while ramping up": Fault(
        status(429, retry_after=600, error_code="ramp_limit_exceeded"), (LIMITED,), "pool_limited", then="Limited"),
    "429 at the month's spend": Fault(status(429, error_code="enforced_spend_limit_reached"), (LIMITED,), "pool_limited", then="Limited"),
    "429 without an envelope": Fault(
        status(429, body="slow down", content_type="text/plain"), (LIMITED,), "pool_limited", then="Limited", brief=True),
    "429 once": Fault(status(429, retry_after=600), (LIMITED,), "pool_limited", then="Limited", times=1),
    # ------------------------------------------------------------------ the provider fails
    "500 once": Fault(status(500), (SERVER, OK), WHOLE, elsewhere=False, times=1),
    "500 lasting": before_content(status(500), SERVER, SERVER, told=VERBATIM),
    "500 without an envelope": before_content(
        status(500, body="<html>oops</html>", content_type="text/html"), SERVER, SERVER, told=VERBATIM),
    "502 lasting": before_content(status(502), *[error(502, "server_error")] * 2, told=VERBATIM),
    "503 once": Fault(status(503), (error(503, "server_error"), OK), WHOLE, elsewhere=False, times=1),
    "503 lasting": before_content(status(503), *[error(503, "server_error")] * 2, told=VERBATIM),
    "503 that says overloaded": before_content(
        status(503, error_type="overloaded_error"), error(503, "overloaded"), told=VERBATIM, then="Overloaded"),
    "504 lasting": before_content(status(504), *[error(504, "server_error")] * 2, told=VERBATIM),
    "408 once": Fault(status(408), (error(408, "server_error"), OK), WHOLE, elsewhere=False, times=1),
    "409 once": Fault(status(409), (error(409, "conflict"), OK), WHOLE, elsewhere=False, times=1),
    "529 lasting": before_content(status(529), OVERLOADED, told=VERBATIM, then="Overloaded"),
    "529 with retry-after": before_content(status(529, retry_after=2), OVERLOADED, told=VERBATIM, then="Overloaded"),
    # ------------------------------------------------------------------ no answer at all
    "refused connection": Fault(
        {}, (("upstream_error", 0, "unreachable"),), "upstream_failed", then="Unreachable", account={"baseURL": "http://127.0.0.1:1"}),
    "reset before the head, once": Fault({"drop": "reset"}, (RESET, OK), WHOLE, elsewhere=False, times=1),
    "reset before the head, lasting": before_content({"drop": "reset"}, RESET, RESET, told="upstream_failed", then="Unreachable"),
    "closed before the head, once": Fault({"drop": "close"}, (RESET, OK), WHOLE, elsewhere=False, times=1),
    "closed before the head, lasting": before_content({"drop": "close"}, RESET, RESET, told="upstream_failed", then="Unreachable"),
    "half-closed before the head": before_content({"drop": "half_close"}, RESET, RESET, told="upstream_failed", then="Unreachable"),
    "accepted, then silence": before_content({"drop": "silence"}, silent("headers_timeout"), told="upstream_timeout"),
    "a head that trickles": before_content({"header_line_delay_s": 2.5}, silent("headers_timeout"), told="upstream_timeout"),
    # ------------------------------------------------------------------ a head, and no first content
    "head, then silence, streamed": before_content(
        {"stall": {"at": "start"}}, stalled("first_content_timeout"), told="upstream_timeout", streamed=STREAMED),
    "head, then silence": before_content(
        {"stall": {"at": "start"}}, stalled("idle_timeout"), told="upstream_timeout", streamed=PLAIN),
    "half a body, then silence": before_content(
        {"stall": {"at": "half"}}, stalled("idle_timeout"), told="upstream_timeout", streamed=PLAIN),
    "message_start, then silence": before_content(
        {"stall": {"at": "message_start"}}, stalled("first_content_timeout"), told="upstream_timeout", streamed=STREAMED),
    "pings and no content": before_content(
        {"stall": {"at": "message_start", "ping_s": 0.2}}, stalled("first_content_timeout"), told="upstream_timeout",
        streamed=STREAMED),
    # ------------------------------------------------------------------ cut before content
    "cut after the head, FIN": before_content({"cut": {"how": "fin", "at": "start"}}, CUT, told="upstream_failed"),
    "cut after the head, RST": before_content({"cut": {"how": "rst", "at": "start"}}, CUT, told="upstream_failed"),
    "cut after the head, half-closed": before_content({"cut": {"how": "half", "at": "start"}}, CUT, told="upstream_failed"),
    "cut after message_start, FIN": before_content(
        {"cut": {"how": "fin", "at": "message_start"}}, CUT, told="upstream_failed", streamed=STREAMED),
    "cut after message_start, RST": before_content(
        {"cut": {"how": "rst", "at": "message_start"}}, CUT, told="upstream_failed", streamed=STREAMED),
    "cut within message_start": before_content(
        {"cut": {"how": "fin", "at": "start", "mid_frame": True}}, CUT, told="upstream_failed", streamed=STREAMED),
    "half a body, FIN": before_content({"cut": {"how": "fin"}}, CUT, told="upstream_failed", streamed=PLAIN),
    "half a body, RST": before_content({"cut": {"how": "rst"}}, CUT, told="upstream_failed", streamed=PLAIN),
    "half a body, half-closed": before_content({"cut": {"how": "half"}}, CUT, told="upstream_failed", streamed=PLAIN),
    "a stream that ends after message_start": before_content(
        {"omit": ["content_block_start", "content_block_delta", "content_block_stop", "ping", "message_delta", "message_stop"]},
        ("truncated", 200, "ended_without_content"), told="upstream_failed", streamed=STREAMED),
    # ------------------------------------------------------------------ not what was asked for
    "text/html with 200": before_content(
        {"content_type": "text/html"}, ("upstream_error", 200, "unexpected_answer"), told="upstream_failed"),
    "JSON where a stream was asked for": before_content(
        {"content_type": "application/json"}, ("upstream_error", 200, "unexpected_answer"), told="upstream_failed", streamed=STREAMED),
    "a stream where JSON was asked for": before_content(
        {"content_type": "text/event-stream"}, ("upstream_error", 200, "unexpected_answer"), told="upstream_failed", streamed=PLAIN),
    "gzip that nobody asked for": before_content(
        {"gzip": True}, ("upstream_error", 200, "unexpected_answer"), told="upstream_failed"),
    "a redirect": before_content(
        status(307, headers={"location": "http://127.0.0.1:1/"}), ("upstream_error", 307, "unexpected_answer"), told="upstream_failed"),
    "a body shorter than its length": before_content(
        {"length_off_by": 10}, stalled("idle_timeout"), told="upstream_timeout", streamed=PLAIN),
    "a body longer than its length": before_content(
        {"length_off_by": -10}, ("upstream_error", 200, "not_json"), told="upstream_failed", streamed=PLAIN),
    "broken chunking before content": before_content(
        {"bad_chunk": {"at": "start"}}, ("upstream_error", 200, "malformed_http"), told="upstream_failed", streamed=STREAMED),
    # ------------------------------------------------------------------ an error event inside a 200, before content
    **{
        f"{kind} event at {at}": Fault(
            event(kind, at, **fields), tries, told, elsewhere, then=then, brief=then == "Limited", streamed=STREAMED)
        for at in ("start", "message_start")
        for kind, fields, tries, told, then, elsewhere in (
            ("overloaded_error", {}, (OVERLOADED,), VERBATIM, "Overloaded", True),
            ("api_error", {}, (SERVER, SERVER), VERBATIM, "Failing", True),
            ("rate_limit_error", {}, (LIMITED,), "pool_limited", "Limited", True),
            ("invalid_request_error", {}, (error(400, "caller_error"),), VERBATIM, "", False),
            ("billing_error", {}, (error(402, "billing"),), "pool_unavailable", "BillingError", True),
        )
    },
    "an unknown error event before content": Fault(
        event("of_tomorrow_error", "start"), (SERVER, SERVER), VERBATIM, then="Failing", streamed=STREAMED),
    "an error event before content, and the stream goes on": Fault(
        event("overloaded_error", "message_start", then="continue"), (OVERLOADED,), VERBATIM, then="Overloaded", streamed=STREAMED),
    # ------------------------------------------------------------------ after content: never a clean end that is none
    **{
        f"cut {at}, {how}{torn}": amid_content({"cut": {"how": how, "at": at, "mid_frame": bool(torn)}}, "truncated", "cut")
        for at in ("content", "half", "usage", "stop")
        for how, torn in (("fin", ""), ("rst", ""), ("half", ""), ("fin", " within a frame"))
    },
    **{
        f"stall {at}": amid_content({"stall": {"at": at}}, "timeout", "idle_timeout") for at in ("content", "half", "usage", "stop")
    },
    "a stream that outlives its time": amid_content({"deltas": 300, "delta_delay_s": 0.2}, "timeout", "total_timeout"),
    "only message_stop missing": amid_content({"omit": ["message_stop"]}, "truncated", "message_stop_missing"),
    "message_delta and message_stop missing": amid_content(
        {"omit": ["message_delta", "message_stop"]}, "truncated", "message_stop_missing"),
    "broken chunking amid content": amid_content({"bad_chunk": {"at": "half"}}, "truncated", "cut"),
    **{
        f"{kind} event {at}": amid_content(event(kind, at), "upstream_error", reason, told=PASSED_ON, then=then)
        for at in ("content", "half", "usage")
        for kind, reason, then in (
            ("overloaded_error", "overloaded", "Overloaded"), ("api_error", "server_error", "Failing"),
            ("rate_limit_error", "limited", "Limited"), ("billing_error", "billing", "BillingError"),
            ("invalid_request_error", "caller_error", ""),
        )
    },
    "an endless frame that ends at last": amid_content(
        {"endless": {"at": "half", "bytes": 3_000_000}}, "truncated", "cut", told=BROKEN_OFF),
    "an endless frame": amid_content(
        {"endless": {"at": "half", "delay_s": 0.05}}, "timeout", "total_timeout", told=BROKEN_OFF),
    # ------------------------------------------------------------------ odd, but whole
    **{
        f"a malformed frame {at}": Fault(
            {"malformed": {"at": at}}, (OK,), WHOLE, elsewhere=False, streamed=STREAMED)
        for at in ("start", "message_start", "content", "half", "usage", "stop")
    },
    "a malformed message_delta": Fault(
        {"malformed": {"at": "usage", "text": "event: message_delta\ndata: {\"usage\": [1,\n\n"}}, (OK,), WHOLE, elsewhere=False,
        streamed=STREAMED),
    "a stream that stalls after its end": Fault({"stall": {"at": "end"}}, (OK,), WHOLE, elsewhere=False, streamed=STREAMED),
    "a stream that is cut after its end": Fault(
        {"cut": {"how": "rst", "at": "end"}}, (OK,), WHOLE, elsewhere=False, streamed=STREAMED),
    "a refusal": Fault({"stop_reason": "refusal", "blocks": []}, (OK,), WHOLE, elsewhere=False),
    "slow but alive": Fault({"deltas": 10, "delta_delay_s": 0.3, "first_delay_s": 0.5}, (OK,), WHOLE, elsewhere=False),
    "a connection that closes after its answer": Fault({"after": "close"}, (OK,), WHOLE, elsewhere=False),
    # ------------------------------------------------------------------ about the request
    "400 bad request": own(400, message="messages.0: Input should be a valid dictionary"),
    "400 context too long": own(400, message="prompt is too long: 210000 tokens > 200000 maximum"),
    "400 policy": own(400, message="Output blocked by content filtering policy"),
    "403 no access to the model": own(403, message="Your workspace has no access to this model."),
    "404 unknown model": own(404, message="model: claude-nothing"),
    "413 too large": own(413, body="<center>413 Request Entity Too Large</center>", content_type="text/html"),
    "413 before the body is read": Fault(
        {"status": 413, "early": True, "unread_s": 1.0}, (error(413, "caller_error"),), VERBATIM, elsewhere=False, prompt=BIG),
    "529 before the body is read": Fault(
        {"status": 529, "early": True, "unread_s": 1.0}, (OVERLOADED,), VERBATIM, then="Overloaded", prompt=BIG),
    "418 of tomorrow": own(418, body={"type": "error", "error": {"type": "of_tomorrow", "message": "?"}}),
    "403 about the caller's user profile": own(403, error_code="user_profile_not_found"),
    # ------------------------------------------------------------------ about the account
    "401": standing(401, "credential_rejected", "CredentialInvalid"),
    "402": standing(402, "billing", "BillingError"),
    "400 billing_error": standing(400, "billing", "BillingError", error_type="billing_error"),
    "403 credit balance": standing(403, "billing", "BillingError", error_code="credit_balance_exhausted"),
    "429 contract spend limit": standing(429, "billing", "BillingError", error_code="contract_spend_limit_reached"),
    "403 organization disabled": standing(403, "disabled", "AccountDisabled", error_code="organization_disabled"),
    "403 account suspended": standing(403, "disabled", "AccountDisabled", error_code="account_suspended"),
    "400 organization on hold": Fault(
        status(400, error_code="organization_on_hold"), (error(400, "organization_on_hold"),), VERBATIM, elsewhere=False,
        then="OrganizationOnHold"),
    "403 organization on hold": Fault(
        status(403, error_code="organization_on_hold"), (error(403, "organization_on_hold"),), VERBATIM, elsewhere=False,
        then="OrganizationOnHold"),
}


@dataclass(frozen=True)
class Case:
    """A row, streamed or not, with another account at hand or without."""

    name: str
    streamed: bool
    alone: bool

    @property
    def fault(self) -> Fault:
        """The row."""
        return FAULTS[self.name]

    @property
    def id(self) -> str:
        """The test's name."""
        return f"{self.name}-{'streamed' if self.streamed else 'plain'}-{'alone' if self.alone else 'beside another'}"

    @property
    def helped(self) -> bool:
        """Whether another account serves in the end."""
        return self.fault.elsewhere and not self.alone


CASES = [
    Case(name, streamed, alone) for name, fault in FAULTS.items() for streamed in fault.streamed for alone in (False, True)
    if fault.elsewhere or alone
]


@dataclass
class Played:
    """All that is known of what was played."""

    stands: Stands
    seen: dict[Case, Seen]
    truth: list[compare.Row]
    rows: list[compare.Row]
    accounts: dict[str, compare.Row]

    def stand(self, case: Case) -> Stand:
        """Return the case's stand."""
        return self.stands[_stand_name(case)]

    def truth_of(self, case: Case) -> list[compare.Row]:
        """Return what the provider received of a case; of a request that it did not read, the model is filled in."""
        own = {self.stand(case).account(letter) for letter in "ab"}
        return [{**row, "model": row["model"] or self.seen[case].model} for row in self.truth if row["account"] in own]

    def rows_of(self, case: Case) -> list[compare.Row]:
        """Return a case's attempts."""
        return [row for row in self.rows if row["request_id"] == self.seen[case].request_id]


def _stand_name(case: Case) -> str:
    return f"f{CASES.index(case)}"


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """Play every case that was asked for, once."""
    wanted = [item.callspec.params["case"] for item in request.session.items if "played" in getattr(item, "fixturenames", ())]
    cases = [case for case in CASES if case in wanted]
    layouts = {
        _stand_name(case): Layout("a" if case.alone else "ab", account_spec={"a": case.fault.account}) for case in cases
    }
    with Stands(tmp_path_factory.mktemp("faults"), layouts) as stands, Load(stands.instance.url, "", seed=1, callers=0) as load:
        begun = {}
        for case in cases:
            fault, stand = case.fault, stands[_stand_name(case)]
            if fault.meets:
                stand.script("a", *[fault.meets] * fault.times, standing=None if fault.times else fault.meets)
            begun[case] = stand.begin(load, fault.prompt, stream=case.streamed, max_tokens=8192)
            time.sleep(PAUSE_S)
        seen = {case: future.result(90) for case, future in begun.items()}
        accounts = {row["name"]: row for row in stands.instance.json("accounts", "list")}
        yield Played(stands, seen, stands.truth(), stands.rows(list(seen.values())), accounts)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_fault(played: Played, case: Case) -> None:
    fault, seen, stand = case.fault, played.seen[case], played.stand(case)
    truth, rows = played.truth_of(case), played.rows_of(case)
    print(f"\n{case.id}: {seen.kind} after {seen.ended_s - seen.began_s:.2f} s, {[_brief(row) for row in rows]}")
    # Who was asked how often, and how each attempt ended.
    expected = [(stand.account("a"), *one) for one in fault.tries] + [(stand.account("b"), *OK)] * case.helped
    found = [(row["account"].removeprefix("default/"), row["outcome"], row["status"], row["reason"]) for row in rows]
    assert [(account, outcome, status or 0, reason) for account, outcome, status, reason in found] == expected
    assert [row["attempt"] for row in rows] == list(range(1, len(rows) + 1))
    received = [row["account"] for row in truth]
    assert received == [account for account, _, _, reason in expected if reason != "unreachable"]
    # What the caller got.
    _check_told(WHOLE if case.helped else fault.told, seen, rows, truth)
    # What it cost: to the token, and nothing for what was not answered.
    assert not compare.compare(truth, rows, [seen]).problems
    if case.helped:
        assert {row["cost_usd"] for row in rows[:-1]} <= {"0"}
        assert rows[-1]["cost_usd"] != "0"
    # What became of the account.
    known = played.accounts[stand.account("a")]
    if fault.then and fault.then not in COOLING and not fault.brief:
        assert (known["available"], known["reason"]) == (False, fault.then)
    assert known["reason"] in ("", fault.then), "what cools down may be over by now"


def _check_told(told: str, seen: Seen, rows: list[compare.Row], truth: list[compare.Row]) -> None:
    last = truth[-1] if truth else {}
    if told == WHOLE:
        assert seen.whole, seen
        assert _is_sent(seen, last)
    elif told == VERBATIM and last["status"] == 200:    # an event became its status
        sent = json.loads(seen.body)
        assert (seen.status, sent["type"], sent["error"]["type"]) == (
            rows[-1]["status"], "error", last["behaviour"]["error_event"]["type"])
        assert seen.upstream_request_id == last["request_id"]
    elif told == VERBATIM:
        assert seen.status == last["status"]
        assert _is_sent(seen, last)
    elif told == PASSED_ON:
        assert (seen.status, seen.whole) == (200, False)
        assert _is_sent(seen, last)
        assert data_lines(seen.body)[-1]["error"]["type"] == last["behaviour"]["error_event"]["type"]
    elif told == TRUNCATED:
        assert (seen.status, seen.error_code, seen.whole) == (200, "upstream_truncated", False)
        assert data_lines(seen.body)[-1]["request_id"] == seen.request_id
        assert b"message_stop" not in seen.body
        before = seen.body[: seen.body.rindex(b"event: error")]
        assert before.endswith(b"\n\n"), "a partial frame is dropped"
    elif told == BROKEN_OFF:
        assert seen.failed, seen
    else:
        assert (seen.error_code, seen.status) == (told, STATUS_OF[told])
        assert not seen.upstream_request_id, "what is not the provider's answer does not bear its id"
        assert bool(seen.retry_after) == (told == "pool_limited")
        assert json.loads(seen.body)["request_id"] == seen.request_id


STATUS_OF = {"pool_limited": 429, "pool_unavailable": 503, "upstream_timeout": 504, "upstream_failed": 502}


def _is_sent(seen: Seen, sent: compare.Row) -> bool:
    digest = hashlib.sha256(seen.body).hexdigest()
    return (seen.upstream_request_id, digest) == (sent["request_id"], sent["sent_sha256"])


def _brief(row: compare.Row) -> str:
    return f"{row['account']} {row['outcome']} {row['status']} {row['reason']} {row['duration_ms']} ms"
