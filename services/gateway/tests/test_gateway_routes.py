"""The routes beside the relay: models, key-info, usage, health, and everything that is no route."""

import json

import pytest

from signalbox.v1.common_pb2 import Amount, LimitState
from signalbox.v1.scheduler_pb2 import AccountModels, Denial, InspectResponse, ModelRules
from signalbox.v1.usage_pb2 import UsageRow


def models(*names):
    entries = [{"type": "model", "id": name, "display_name": name.title()} for name in names]

    async def answer(w):
        assert w.head.startswith(b"GET /v1/models?limit=1000 "), w.head
        w.answer(200, json.dumps({"data": entries, "has_more": False, "last_id": names[-1]}).encode())

    return answer


def accounts(gate, *rules):
    """Describe the providers' accounts to the scheduler's answer."""
    gate.scheduler.inspect_response.accounts.extend(
        AccountModels(account_id=account, base_url=url, provider="Anthropic", **extra)
        for (account, url), extra in zip(gate.scheduler.accounts, rules, strict=True)
    )


async def ids(gate, path="/v1/models"):
    reply = await gate.client.get(path)
    assert reply.status == 200, reply.body
    return [m["id"] for m in json.loads(reply.body)["data"]]


async def test_models_are_the_union_filtered_by_every_rule(gate):
    await gate.provider(models("claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5"))
    await gate.provider(models("claude-sonnet-5-5", "claude-fable-5-2"))
    accounts(
        gate, {"models": ModelRules(deny=["*haiku*"]), "map": {"sonnet-latest": "claude-sonnet-5-5", "h": "claude-haiku-5-5"}},
        {},
    )
    gate.scheduler.inspect_response.key_models.CopyFrom(ModelRules(deny=["*opus*"]))
    assert await ids(gate) == ["claude-sonnet-5-5", "sonnet-latest", "claude-fable-5-2"]
    one = await gate.client.get("/v1/models/sonnet-latest")
    assert json.loads(one.body) == {"type": "model", "id": "sonnet-latest", "display_name": "Claude-Sonnet-5-5"}
    hidden = await gate.client.get("/v1/models/claude-opus-5-5")
    assert (hidden.status, hidden.error_code) == (404, "no_account_for_model")


async def test_a_provider_is_asked_once_in_five_minutes_by_its_own_credential(gate):
    provider = await gate.provider(models("claude-opus-5-5"))
    accounts(gate, {})
    for path in ("/v1/models", "/api//v1/models", "/v1/models?limit=1000"):
        assert await ids(gate, path) == ["claude-opus-5-5"]
    [(head, _)] = provider.requests
    assert b"x-api-key: secret-default/a1-1\r\n" in head
    assert b"user-agent: signalbox/" in head


async def test_models_come_in_pages(gate):
    await gate.provider(models(*"abcde"))
    accounts(gate, {})
    first = json.loads((await gate.client.get("/v1/models?limit=2")).body)
    assert ([m["id"] for m in first["data"]], first["has_more"]) == (["a", "b"], True)
    assert (first["first_id"], first["last_id"]) == ("a", "b")
    rest = json.loads((await gate.client.get("/v1/models?after_id=b")).body)
    assert ([m["id"] for m in rest["data"]], rest["has_more"]) == (["c", "d", "e"], False)
    back = json.loads((await gate.client.get("/v1/models?before_id=d&limit=2")).body)
    assert ([m["id"] for m in back["data"]], back["has_more"]) == (["b", "c"], True)


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "after_id=zzz", "limit=²"])
async def test_wrong_pages_are_refused(gate, query):
    await gate.provider(models("a"))
    accounts(gate, {})
    reply = await gate.client.get("/v1/models?" + query.encode().decode("latin-1"))
    assert (reply.status, reply.error_code) == (400, "request_invalid")


@pytest.mark.parametrize(("status", "body"), [(500, b"{}"), (200, b'{"data": [{"id": "\xff"}], "has_more": false}')])
async def test_one_ill_provider_does_not_hide_the_others_models(gate, status, body):
    async def broken(w):
        w.answer(status, body)

    await gate.provider(broken)
    await gate.provider(models("claude-opus-5-5"))
    accounts(gate, {}, {})
    assert await ids(gate) == ["claude-opus-5-5"]


async def test_when_no_provider_answers_the_list_is_an_error(gate):
    async def broken(w):
        w.answer(200, b"<html>")

    await gate.provider(broken)
    accounts(gate, {})
    reply = await gate.client.get("/v1/models")
    assert (reply.status, reply.error_code) == (502, "upstream_failed")


async def test_key_info_shows_limits_and_what_is_used(gate):
    gate.scheduler.inspect_response = InspectResponse(
        key_id="default/ada", owner="ada@example.com", state="Limited", first_used_at_ms=1_790_000_000_000,
        concurrency_limit=5, in_flight=2, limits=[
            LimitState(name="day", per="Day", resets_at_ms=1_790_000_000_500, cost_nano_usd=Amount(
                limit=20_000_000_000, used=1_234_567_890, reserved=5)),
            LimitState(name="opus", per="Total", models=["*opus*"], requests=Amount(limit=60, used=60)),
        ],
    )
    reply = await gate.client.get("/v1/key-info")
    assert reply.status == 200
    assert json.loads(reply.body) == {
        "key": "default/ada", "owner": "ada@example.com", "state": "Limited", "expires_at": None,
        "first_used_at": "2026-09-21T14:13:20Z", "concurrency": {"limit": 5, "in_flight": 2},
        "limits": [
            {"name": "day", "per": "Day", "models": [], "resets_at": "2026-09-21T14:13:20.500Z",
             "cost_usd": {"limit": "20", "used": "1.23456789", "reserved": "0.000000005"}},
            {"name": "opus", "per": "Total", "models": ["*opus*"], "resets_at": None,
             "requests": {"limit": 60, "used": 60, "reserved": 0}},
        ],
    }


@pytest.mark.parametrize(("path", "status"), [("/v1/key-info", 200), ("/v1/usage", 200), ("/v1/models", 401)])
async def test_a_paused_key_may_still_be_looked_at(gate, path, status):
    gate.scheduler.inspect_denial = Denial(error_code="key_paused", message="Paused.")
    assert (await gate.client.get(path)).status == status


@pytest.mark.parametrize("path", ["/v1/key-info", "/v1/usage", "/v1/models", "/v1/models/x"])
async def test_keys_are_checked(gate, path):
    missing = await gate.client.get(path, x_api_key="-")
    assert (missing.status, missing.error_code) == (401, "key_missing")
    gate.scheduler.inspect_denial = Denial(error_code="key_expired", message="Expired.")
    assert (await gate.client.get(path)).error_code == "key_expired"
    assert [d.reason for d in gate.journal.denials] == ["key_missing", "key_expired"]
    assert gate.journal.denials[1].key_id == "default/ada"


async def test_usage_is_the_callers_own(gate):
    gate.reports.rows = [UsageRow(day="2026-11-20", requests=3, input_tokens=10, cost_nano_usd="1500000000")]
    reply = await gate.client.get("/v1/usage?by=day&since=2026-11-01&until=2026-11-20T10:00:00%2B01:00")
    assert json.loads(reply.body) == {"data": [{
        "day": "2026-11-20", "requests": 3, "input_tokens": 10, "output_tokens": 0, "cache_write_5m_tokens": 0,
        "cache_write_1h_tokens": 0, "cache_read_tokens": 0, "cost_usd": "1.5",
    }]}
    assert gate.reports.asked == [("default/ada", "day", 1793491200000, 1795165200000)]


@pytest.mark.parametrize("query", ["by=owner", "by=day&by=model", "since=yesterday", "until=0"])
async def test_wrong_questions_about_usage_are_refused(gate, query):
    reply = await gate.client.get(f"/v1/usage?{query}")
    assert (reply.status, reply.error_code) == (400, "request_invalid")


async def test_usage_without_a_ledger_says_so(gate):
    gate.reports.away = True
    reply = await gate.client.get("/v1/usage")
    assert (reply.status, reply.error_code, reply.headers["retry-after"]) == (503, "ledger_unavailable", "1")


@pytest.mark.parametrize("prefix", ["", "/api", "/claude", "/anthropic"])
@pytest.mark.parametrize("path", ["/", "/health", "/healthz"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_liveness_depends_on_nothing(gate, prefix, path, method):
    reply = await gate.client.get(prefix + path, method, x_api_key="-")
    assert reply.status == 200


async def test_readiness_says_what_is_missing(gate):
    assert (await gate.client.get("/api/readyz", x_api_key="-")).status == 503
    gate.readiness.ok("scheduler")
    assert (await gate.client.get("/readyz", x_api_key="-")).status == 200


@pytest.mark.parametrize(("method", "path"), [
    ("GET", "/v1/messages"), ("POST", "/v1/models"), ("POST", "/"), ("GET", "/metrics"), ("GET", "/docs"),
    ("GET", "/openapi.json"), ("GET", "/v1/%2e%2e/x"), ("DELETE", "/v1/key-info"), ("GET", "/apiv1/models"),
    ("OPTIONS", "/v1/messages"), ("POST", "/v1/messages/"), ("POST", "/v1/messages/batches"), ("GET", "/v1/key-info/"),
])
async def test_everything_else_is_no_route(gate, method, path):
    reply = await gate.client.get(path, method)
    assert (reply.status, reply.error_code) == (404, "route_unknown")
    assert json.loads(reply.body)["error"]["type"] == "not_found_error"
    assert reply.headers["x-signalbox-request-id"] == json.loads(reply.body)["request_id"]
    assert gate.journal.denials == []


async def test_a_body_that_no_route_wants_does_not_hold_the_connection(gate):
    reader, writer = await gate.client.connect()
    writer.write(b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 100_000)
    assert (await gate.client.read(reader)).status == 404
    assert await reader.read() == b""
    writer.close()
