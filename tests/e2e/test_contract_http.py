"""The public port as callers meet it: routes, keys, bodies, every row of the error table, probes, models, a key's own pages.

Table by table against a whole relay and a simulated provider. Which account serves whom is test_contract_documents.py's
business; the tables of faults in the middle of an answer are the gateway's own tests'.
"""

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.caller import MODEL, Answer, Caller, eventually, exchange, message
from tests.support.instance import Instance, account, pool, relay_key, secret
from tests.support.sim import Simulator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

PREFIXES = ("", "/api", "/claude", "/anthropic")
KEY = "contract-relay-key-ada"
MIB = 1 << 20
TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error", 502: "api_error", 503: "overloaded_error", 504: "timeout_error",
}


def own_key(name: str, **spec: Any) -> list[dict[str, Any]]:
    return [secret(f"key-{name}", text=f"contract-relay-key-{name}"),
            relay_key(name, **{"secretRef": {"name": f"key-{name}", "key": "text"}, **spec})]


def served_by(name: str, url: str, **spec: Any) -> list[dict[str, Any]]:
    """Return an account, a pool of it alone that tries once, and a key for that pool, all of one name."""
    return [secret(name, **{"api-key": f"sk-ant-contract-{name}"}), account(name, url),
            pool(name, [name], **{"failover": {"maxAttempts": 1}, **spec}), *own_key(name, pools=[name])]


class Relay:
    """The relay and its provider. Tests of answers each have an account of their own, so that none rests for another's."""

    def __init__(self, directory: Path) -> None:
        names = ["good", *ODD, *ILL]
        accounts = [{"name": name, "key": f"sk-ant-contract-{name}"} for name in names]
        self.sim = Simulator({"accounts": accounts}).start()
        url = self.sim.url
        documents = [secret("good", **{"api-key": "sk-ant-contract-good"}), account("good", url), pool("default", ["good"])]
        documents += own_key("ada")
        for name, (behaviour, spec, _, _) in ILL.items():
            documents += served_by(name, url, **spec)
            if behaviour:
                self.sim.script(standing=behaviour, account=name)
        documents += [document for name in ODD for document in served_by(name, url)]
        documents += served_by("nowhere", "http://127.0.0.1:1")
        documents += own_key("limited", limits=[{"per": "Day", "requests": 3, "tokens": 100000, "costUSD": "1.50"}, {"per": "Minute", "models": ["claude-opus-*"], "requests": 9, "name": "dear"}], concurrency=4)
        documents += own_key("paused", state="Paused") + own_key("sonnets", models={"allow": ["claude-sonnet-*"]})
        self.instance = Instance(directory, documents)

    def caller(self, name: str = "ada") -> Caller:
        return Caller(self.instance.url, f"contract-relay-key-{name}")


def provider_says(status: int, kind: str, *, code: str = "", retry_after: int | None = None) -> dict[str, Any]:
    said: dict[str, Any] = {"status": status, "error_type": kind, "message": "As the provider put it."}
    return said | ({"error_code": code} if code else {}) | ({"retry_after": retry_after} if retry_after else {})


VERBATIM = ""
# What the provider does: what callers get, as status and Signalbox's code ("" where the provider's own answer is theirs).
ILL: dict[str, tuple[dict[str, Any], dict[str, Any], int, str]] = {
    "bad-request": (provider_says(400, "invalid_request_error"), {}, 400, VERBATIM),
    "forbidden": (provider_says(403, "permission_error"), {}, 403, VERBATIM),
    "no-such-thing": (provider_says(404, "not_found_error"), {}, 404, VERBATIM),
    "too-large": (provider_says(413, "request_too_large"), {}, 413, VERBATIM),
    "on-hold": (provider_says(403, "permission_error", code="organization_on_hold"), {}, 403, VERBATIM),
    "failing": (provider_says(500, "api_error"), {}, 500, VERBATIM),
    "overloaded": (provider_says(529, "overloaded_error"), {}, 529, VERBATIM),
    "unauthorised": (provider_says(401, "authentication_error"), {}, 503, "pool_unavailable"),
    "unpaid": (provider_says(402, "billing_error"), {}, 503, "pool_unavailable"),
    "billing": (provider_says(400, "billing_error"), {}, 503, "pool_unavailable"),
    "resting": (provider_says(429, "rate_limit_error", retry_after=7), {}, 429, "pool_limited"),
    "cut": ({"cut": {"how": "fin", "at": "half"}}, {}, 502, "upstream_failed"),
    "silent": ({"drop": "silence"}, {"timeouts": {"headersUnstreamed": "1s"}}, 504, "upstream_timeout"),
}
ODD = ("breaking-off", "busy", "telling")   # each fails in a way that has a test of its own


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    made = Relay(tmp_path_factory.mktemp("http"))
    try:
        with made.instance:
            yield made
    finally:
        made.sim.stop()


def check_error(answer: Answer, status: int, code: str) -> None:
    """Raise unless the answer is Signalbox's own error, whole and in Anthropic's shape."""
    assert (answer.status, answer.code) == (status, code)
    assert answer.headers["content-type"] == "application/json"
    assert answer.request_id.startswith("sbx_req_")
    assert answer.json == {
        "type": "error", "request_id": answer.request_id,
        "error": {"type": TYPES[status], "message": answer.json["error"]["message"], "details": {"error_code": code}},
    }
    assert answer.json["error"]["message"]


# ---------------------------------------------------------------------------------------------- routes

@pytest.mark.parametrize("path", ["/v1/messages", "//v1//messages", "/v1/messages?beta=true", "/v1/messages/count_tokens"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_messages_are_relayed_under_every_name(relay: Relay, prefix: str, path: str) -> None:
    answer = relay.caller().ask("POST", prefix + path, message())
    assert answer.status == 200
    assert answer.headers["x-signalbox-attempts"] == "1"
    row = relay.sim.truth(path=None)[-1]
    assert answer.headers["request-id"] == row["request_id"]
    assert hashlib.sha256(answer.body).hexdigest() == row["sent_sha256"]
    assert row["path"] == path.replace("//", "/").partition("?")[0]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["", "/", "/health", "/healthz", "/readyz"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_probes_need_no_key(relay: Relay, prefix: str, path: str, method: str) -> None:
    answer = Caller(relay.instance.url).ask(method, prefix + path)
    assert (answer.status, bool(answer.body)) == (200, method == "GET")
    assert answer.request_id


@pytest.mark.parametrize(("method", "path"), [
    ("GET", "/metrics"), ("GET", "/v1/messages"), ("PUT", "/v1/messages"), ("OPTIONS", "/v1/messages"), ("POST", "/v1/messages/"),
    ("POST", "/v1/models"), ("DELETE", "/v1/models"), ("GET", "/v1/key-info/"), ("POST", "/"), ("GET", "/docs"), ("GET", "/openapi.json"),
    ("GET", "/v1/organizations/usage"), ("GET", "/claude/claude/v1/models"), ("POST", "/v1/messages/batches"),
])
def test_anything_else_is_no_route(relay: Relay, method: str, path: str) -> None:
    check_error(relay.caller().ask(method, path, message() if method in ("POST", "PUT") else None), 404, "route_unknown")


# ---------------------------------------------------------------------------------------------- keys and bodies

@pytest.mark.parametrize(("headers", "code"), [
    ({"x_api_key": KEY}, ""), ({"authorization": f"Bearer {KEY}"}, ""), ({"x_goog_api_key": KEY}, ""), ({"api_key": KEY}, ""),
    ({"x_api_key": KEY, "authorization": f"Bearer {KEY}"}, ""),
    ({"x_api_key": KEY, "authorization": "Bearer another-key-of-some-length"}, "key_conflict"),
    ({}, "key_missing"), ({"authorization": f"Basic {KEY}"}, "key_missing"), ({"x_api_key": "short"}, "key_invalid"),
    ({"x_api_key": "a-key-that-nobody-has"}, "key_invalid"), ({"x_api_key": "contract-relay-key-paused"}, "key_paused"),
])
def test_where_a_key_is_looked_for(relay: Relay, headers: dict[str, str], code: str) -> None:
    answer = Caller(relay.instance.url).ask("POST", "/v1/messages", message(), **headers)
    if code:
        check_error(answer, 401, code)
    else:
        assert answer.status == 200


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b'"x"', b"{}", b'{"model": 5}', b'{"model": "", "max_tokens": 1}', b"\xff\xfe",
    json.dumps(message()).encode() + b" trailing", json.dumps(message(stream="yes")).encode(),
    b'{"model": "claude-sonnet-5", "model": "claude-opus-5", "messages": []}', b'{"mod\\u0065l": "claude-sonnet-5", "messages": []}',
    b'{"model": "claude-sonnet-5", "metadata": {"user_id": "a", "user_id": "b"}, "messages": []}',
])
def test_bodies_that_cannot_be_trusted_are_refused(relay: Relay, body: bytes) -> None:
    check_error(relay.caller().ask("POST", "/v1/messages", body), 400, "request_invalid")


def head(length: int | str, *, key: str = KEY, more: str = "") -> bytes:
    return (f"POST /v1/messages HTTP/1.1\r\nhost: relay\r\nx-api-key: {key}\r\ncontent-type: application/json\r\n"
            f"content-length: {length}\r\n{more}\r\n").encode()


@pytest.mark.parametrize(("request_", "begins", "code"), [
    (head(100, more="expect: 100-continue\r\n"), b"HTTP/1.1 100 ", b""),
    (head(32 * MIB, more="expect: 100-continue\r\n"), b"HTTP/1.1 100 ", b""),
    (head(100, key="a-key-that-nobody-has", more="expect: 100-continue\r\n"), b"HTTP/1.1 401 ", b"key_invalid"),
    (head(65 * 1024, key="a-key-that-nobody-has"), b"HTTP/1.1 401 ", b"key_invalid"),
    (head(32 * MIB + 1), b"HTTP/1.1 413 ", b"request_too_large"),
    (head(32 * MIB + 1, more="expect: 100-continue\r\n"), b"HTTP/1.1 413 ", b"request_too_large"),
    (head("many"), b"HTTP/1.1 400 ", b"request_invalid"),
    (head(3, more="transfer-encoding: chunked\r\n"), b"HTTP/1.1 400 ", b"request_invalid"),
    (head(0, more=f"x-long: {'x' * 70000}\r\n"), b"HTTP/1.1 400 ", b"request_invalid"),
    (b"NOT HTTP\r\n\r\n", b"HTTP/1.1 400 ", b"request_invalid"),
])
def test_what_is_answered_before_a_body_is_read(relay: Relay, request_: bytes, begins: bytes, code: bytes) -> None:
    said = exchange(relay.instance.url, request_)
    assert said.startswith(begins)
    if code:
        assert b'"error_code":"' + code + b'"' in said
        assert b"x-signalbox-request-id: sbx_req_" in said


# ---------------------------------------------------------------------------------------------- what the provider says

@pytest.mark.parametrize("name", ILL)
def test_what_callers_see_of_a_failing_provider(relay: Relay, name: str) -> None:
    behaviour, _, status, code = ILL[name]
    answer = relay.caller(name).send()
    if code:
        check_error(answer, status, code)
    else:
        row = next(r for r in relay.sim.truth() if r["request_id"] == answer.headers["request-id"])
        assert (answer.status, row["status"]) == (status, status)
        assert hashlib.sha256(answer.body).hexdigest() == row["sent_sha256"]
    if status == 429:
        assert int(answer.headers["retry-after"]) == behaviour["retry_after"]
    assert answer.headers["x-signalbox-attempts"] == "1"
    assert answer.request_id


def test_a_provider_that_cannot_be_reached(relay: Relay) -> None:
    check_error(relay.caller("nowhere").send(), 502, "upstream_failed")


def test_a_stream_cut_after_content_ends_with_a_typed_error(relay: Relay) -> None:
    answer = relay.caller("breaking-off").send("[[sim cut=fin cut.at=half cut.mid_frame=true]]", stream=True)
    *whole, last = answer.body.decode().strip().split("\n\n")
    assert last.startswith("event: error\ndata: ")
    error = json.loads(last.partition("data: ")[2])
    assert error["error"]["type"] == "api_error"
    assert error["error"]["details"] == {"error_code": "upstream_truncated"}
    assert error["request_id"] == answer.request_id
    assert all(json.loads(frame.partition("data: ")[2]) for frame in whole)   # no frame is half there
    assert "message_stop" not in answer.body.decode()


def test_an_error_frame_before_content_becomes_its_status(relay: Relay) -> None:
    relay.sim.script({"error_event": {"at": "message_start", "type": "overloaded_error", "message": "Busy."}}, account="busy")
    answer = relay.caller("busy").send(stream=True)
    assert (answer.status, answer.json["error"]["type"]) == (529, "overloaded_error")
    assert answer.headers["content-type"].startswith("application/json")


def test_nothing_about_the_account_is_passed_on(relay: Relay) -> None:
    hidden = {
        "anthropic-ratelimit-requests-remaining": "49", "anthropic-ratelimit-unified-status": "allowed", "anthropic-organization-id": "org-1",
        "set-cookie": "session=1", "cf-ray": "kept",
    }
    relay.sim.script(provider_says(400, "invalid_request_error") | {"headers": hidden}, account="telling")
    answer = relay.caller("telling").send()
    assert answer.status == 400
    assert set(answer.headers) & set(hidden) <= {"cf-ray"}


# ---------------------------------------------------------------------------------------------- models

def test_models_come_in_pages_and_filtered_by_the_key(relay: Relay) -> None:
    everything = relay.caller().get("/v1/models?limit=1000").json
    ids = [model["id"] for model in everything["data"]]
    assert (everything["has_more"], everything["first_id"], everything["last_id"]) == (False, ids[0], ids[-1])
    first = relay.caller().get("/anthropic/v1/models?limit=2").json
    assert [m["id"] for m in first["data"]] == ids[:2]
    assert first["has_more"]
    assert [m["id"] for m in relay.caller().get(f"/v1/models?limit=1&after_id={ids[1]}").json["data"]] == ids[2:3]
    assert [m["id"] for m in relay.caller().get(f"/v1/models?limit=1&before_id={ids[2]}").json["data"]] == ids[1:2]
    assert relay.caller().get(f"/v1/models/{ids[0]}").json == everything["data"][0]
    sonnets = [m["id"] for m in relay.caller("sonnets").get("/v1/models").json["data"]]
    assert sonnets == [i for i in ids if i.startswith("claude-sonnet-")]
    asked = [row for row in relay.sim.truth(path="/v1/models") if row["account"] == "good"]
    assert len(asked) == 1   # once in five minutes


@pytest.mark.parametrize(("path", "status", "code"), [
    ("/v1/models?limit=0", 400, "request_invalid"), ("/v1/models?limit=1001", 400, "request_invalid"), ("/v1/models?after_id=none", 400, "request_invalid"),
    ("/v1/models/none", 404, "no_account_for_model"), ("/v1/usage?by=hour", 400, "request_invalid"), ("/v1/usage?since=yesterday", 400, "request_invalid"),
])
def test_questions_that_have_no_answer(relay: Relay, path: str, status: int, code: str) -> None:
    check_error(relay.caller().get(path), status, code)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/key-info", "/v1/usage"])
def test_a_keys_own_pages_need_the_key(relay: Relay, path: str) -> None:
    check_error(Caller(relay.instance.url).get(path), 401, "key_missing")
    check_error(Caller(relay.instance.url, "a-key-that-nobody-has").get(path), 401, "key_invalid")


# ---------------------------------------------------------------------------------------------- key-info and usage

def test_key_info_has_the_contracts_fields(relay: Relay) -> None:
    caller = relay.caller("limited")
    began = datetime.now(UTC)
    assert caller.send().status == 200
    info = eventually(lambda: caller.get("/v1/key-info").json, within_s=5.0, wanted=lambda i: i["limits"][0]["cost_usd"]["reserved"] == "0")
    row = relay.sim.truth()[-1]["usage"]
    assert {k: info[k] for k in ("key", "owner", "state", "expires_at", "concurrency")} == {
        "key": "default/limited", "owner": "ada@example.com", "state": "Active", "expires_at": None, "concurrency": {"limit": 4, "in_flight": 0}}
    datetime.fromisoformat(info["first_used_at"])
    day, dear = info["limits"]
    assert (day["name"], day["per"], day["models"]) == ("day", "Day", [])
    assert day["requests"] == {"limit": 3, "used": 1, "reserved": 0}
    assert day["tokens"] == {"limit": 100000, "used": row["input_tokens"] + row["output_tokens"], "reserved": 0}
    assert day["cost_usd"]["limit"] == "1.5"
    assert float(day["cost_usd"]["used"]) > 0
    midnights = {at.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1) for at in (began, datetime.now(UTC))}
    assert datetime.fromisoformat(day["resets_at"]) in midnights
    assert (dear["name"], dear["models"], dear["requests"]["limit"], set(dear) & {"tokens", "cost_usd"}) == ("dear", ["claude-opus-*"], 9, set())
    headers = caller.send().headers
    assert headers["anthropic-ratelimit-requests-limit"] == "3"
    assert headers["anthropic-ratelimit-requests-remaining"] == "1"
    assert caller.send().status == 200
    eventually(lambda: caller.get("/v1/key-info").json["limits"][0]["tokens"]["reserved"], within_s=5.0, wanted=lambda n: n == 0)
    denied = caller.send()
    check_error(denied, 429, "key_limit_requests")
    day = caller.get("/v1/key-info").json["limits"][0]
    assert day["requests"]["used"] == 3
    own = {k.removeprefix("anthropic-ratelimit-"): v for k, v in denied.headers.items() if k.startswith("anthropic-ratelimit-")}
    assert own == {
        f"{of}-{part}": value for of in ("requests", "tokens") for part, value in (
            ("limit", str(day[of]["limit"])), ("remaining", str(day[of]["limit"] - day[of]["used"])), ("reset", day["resets_at"]),
        )
    }
    assert caller.ask("POST", "/v1/messages/count_tokens", message()).status == 200


def test_a_paused_key_may_look_at_itself(relay: Relay) -> None:
    assert relay.caller("paused").get("/v1/key-info").json["state"] == "Paused"
    assert relay.caller("paused").get("/v1/usage").status == 200
    check_error(relay.caller("paused").get("/v1/models"), 401, "key_paused")


@pytest.mark.parametrize("by", ["", "day", "model"])
def test_usage_is_the_callers_own(relay: Relay, by: str) -> None:
    def rows() -> list[dict[str, Any]]:
        return list(relay.caller("sonnets").get(f"/v1/usage?by={by}").json["data"])

    before = sum(row["requests"] for row in rows())
    assert relay.caller("sonnets").send().status == 200
    now = eventually(rows, within_s=5.0, wanted=lambda now: sum(r["requests"] for r in now) == before + 1)
    group = {"": {}, "day": {"day": datetime.now(UTC).strftime("%Y-%m-%d")}, "model": {"model": MODEL}}[by]
    [row] = [row for row in now if {name: row[name] for name in group} == group]
    assert set(row) - set(group) == {
        "requests", "input_tokens", "output_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "cache_read_tokens", "cost_usd"}
    assert float(row["cost_usd"]) > 0
    assert isinstance(row["cost_usd"], str)


# ---------------------------------------------------------------------------------------------- health

def test_liveness_depends_on_no_neighbour(relay: Relay) -> None:
    neighbours = [pid for room in ("scheduler", "redis", "usage", "token-refresher") for pid in relay.instance.room_pids(room)]
    for pid in neighbours:
        os.kill(pid, signal.SIGSTOP)
    try:
        answers = [Caller(relay.instance.url).ask(method, path).status for method in ("GET", "HEAD") for path in ("/", "/health", "/claude/healthz")]
    finally:
        for pid in neighbours:
            os.kill(pid, signal.SIGCONT)
    assert answers == [200] * 6
