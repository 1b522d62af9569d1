"""The official Python SDK through a running relay: what it sends arrives, what comes back is whole, the ledger agrees."""

import uuid
from collections.abc import Iterator

import anthropic
import pytest

from tests.support.relay import KEY, MODEL, Relay

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("relay")]

QUESTION = [{"role": "user", "content": "What does a signal box do?"}]
WEATHER = {"name": "weather", "description": "The weather.", "input_schema": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}
CLIENT = "AnthropicSDK"


@pytest.fixture
def client(relay: Relay) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(auth_token=KEY, base_url=relay.url, max_retries=0) as made:
        yield made


@pytest.mark.parametrize("credential", ["api_key", "auth_token"])
def test_message_and_stream_say_the_same(relay, credential):
    relay.sim.default({"text": "It sets the points, and keeps 信号 honest. 🚦", "deltas": 9, "split": "utf8"})
    with anthropic.Anthropic(**{credential: KEY}, base_url=relay.url, max_retries=0) as client:
        whole = client.messages.create(model=MODEL, max_tokens=256, messages=QUESTION)
        with client.messages.stream(model=MODEL, max_tokens=256, messages=QUESTION) as stream:
            pieces = list(stream.text_stream)
            streamed = stream.get_final_message()
    assert len(pieces) == 9
    assert "".join(pieces) == streamed.content[0].text == whole.content[0].text
    plain, in_pieces = relay.check(CLIENT)
    assert [whole._request_id, whole.id] == [plain.truths[0]["request_id"], plain.truths[0]["message_id"]]
    assert streamed.usage.output_tokens == in_pieces.rows[0]["output_tokens"] > 0
    assert [r.rows[0]["streamed"] for r in (plain, in_pieces)] == [False, True]
    assert plain.account == in_pieces.account, "one conversation by its first turn"


async def test_asynchronous_client(relay):
    async with (
        anthropic.AsyncAnthropic(auth_token=KEY, base_url=relay.url) as client,
        client.messages.stream(model=MODEL, max_tokens=64, messages=QUESTION) as stream,
    ):
        assert (await stream.get_final_message()).content
    assert len(relay.check(CLIENT)) == 1


def test_tool_turns_with_thinking_stay_on_one_account(relay, client):
    messages = []
    common = {"model": MODEL, "max_tokens": 2048, "tools": [WEATHER], "thinking": {"type": "adaptive"},
              "extra_headers": {"anthropic-beta": "interleaved-thinking-2025-05-14,made-up-2026-11-01"}}
    for city in ("Bern", "Zürich"):
        relay.sim.script({"tool": "weather", "tool_input": {"city": city}})
        messages.append({"role": "user", "content": f"How is the weather in {city}?"})
        with client.messages.stream(messages=messages, **common) as stream:
            asked = stream.get_final_message()
        use = asked.content[-1]
        assert (asked.stop_reason, use.input) == ("tool_use", {"city": city})
        assert any(block.type == "thinking" and block.signature for block in asked.content)
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "rain"}
        messages += [{"role": "assistant", "content": asked.content}, {"role": "user", "content": [result]}]
        answered = client.messages.create(messages=messages, **common)
        assert answered.stop_reason == "end_turn"
        messages.append({"role": "assistant", "content": answered.content})
    turns = relay.check(CLIENT)
    assert [t.truths[0]["foreign_thinking"] for t in turns] == [0, 0, 0, 0], "no other account's signature"
    assert len({t.account for t in turns}) == 1
    betas = {dict(t.truths[0]["headers"])["anthropic-beta"] for t in turns}
    assert betas == {common["extra_headers"]["anthropic-beta"]}


def level(relay, client):
    """Ask anew until another account answers than before: from then on both had as many turns, but for one."""
    served = []
    while len(set(served[-2:])) < 2:
        assert len(served) < 100, "the accounts do not take turns"
        new = {"role": "user", "content": f"Something else {uuid.uuid4()}"}
        client.messages.create(model=MODEL, max_tokens=16, messages=[new])
        served.append(relay.sim.truth()[-1]["account"])
    relay.reset()


def test_conversations_take_turns_and_each_stays(relay, client):
    level(relay, client)
    for n in range(4):
        first = {"role": "user", "content": f"Conversation {n}"}
        reply = client.messages.create(model=MODEL, max_tokens=64, messages=[first])
        second = [first, {"role": "assistant", "content": reply.content}, {"role": "user", "content": "And then?"}]
        client.messages.create(model=MODEL, max_tokens=64, messages=second)
    accounts = [r.account for r in relay.check(CLIENT)]
    assert accounts[0::2] == accounts[1::2]
    assert [set(accounts[:4]), set(accounts[4:])] == [{"a", "b"}] * 2, "of two new conversations each account gets one"


def test_cached_prefix_is_read_where_it_was_written(relay, client):
    system = [{"type": "text", "text": "Rules of the railway. " * 400, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    for _ in range(3):
        client.messages.create(model=MODEL, max_tokens=64, system=system, messages=QUESTION)
    rows = [r.rows[0] for r in relay.check(CLIENT)]
    assert rows[0]["cache_write_1h_tokens"] == rows[1]["cache_read_tokens"] == rows[2]["cache_read_tokens"] > 0


def test_count_tokens_is_free(relay, client):
    assert client.messages.count_tokens(model=MODEL, messages=QUESTION).input_tokens > 10
    counted, = relay.check(CLIENT)
    assert (counted.rows[0]["route"], counted.rows[0]["cost_usd"]) == ("count_tokens", "0")


def test_models_over_pages(relay, client):
    everything = [m.id for m in client.models.list(limit=1000)]
    relay.tap.exchanges.clear()
    assert [m.id for m in client.models.list(limit=2)] == everything
    assert len(relay.tap.exchanges) == -(-len(everything) // 2)
    assert MODEL in everything
    assert client.models.retrieve(MODEL).lifecycle == "active"
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("claude-that-never-was")


@pytest.mark.parametrize(("behaviour", "error"), [
    ({"status": 400, "message": "prompt is too long: 2 > 1"}, anthropic.BadRequestError),
    ({"status": 403}, anthropic.PermissionDeniedError),
    ({"status": 404}, anthropic.NotFoundError),
    ({"status": 413}, anthropic.RequestTooLargeError),
])
def test_the_providers_errors_have_the_sdks_types(relay, client, behaviour, error):
    relay.sim.script(behaviour)
    with pytest.raises(error) as raised:
        client.messages.create(model=MODEL, max_tokens=16, messages=QUESTION)
    refused, = relay.check(CLIENT)
    assert raised.value.request_id == refused.truths[0]["request_id"]
    assert raised.value.response.headers["x-signalbox-request-id"] == refused.rows[0]["request_id"]
    assert refused.rows[0]["cost_usd"] == "0"


def test_the_relays_own_errors_have_the_sdks_types(relay):
    with anthropic.Anthropic(auth_token=KEY + "x", base_url=relay.url, max_retries=0) as stranger:
        with pytest.raises(anthropic.AuthenticationError) as raised:
            stranger.messages.create(model=MODEL, max_tokens=16, messages=QUESTION)
    error = raised.value.body
    assert error["error"]["details"]["error_code"] == "key_invalid"
    assert error["request_id"] == raised.value.response.headers["x-signalbox-request-id"]
    assert relay.sim.truth(path=None) == []


@pytest.mark.usefixtures("healed_afterwards")
def test_a_failover_is_invisible(relay, client):
    relay.sim.script({"status": 500}, {"status": 529})
    assert client.messages.create(model=MODEL, max_tokens=64, messages=QUESTION).content
    served, = relay.check(CLIENT)
    assert [t["status"] for t in served.truths] == [500, 529, 200]
    assert [row["outcome"] for row in served.rows] == ["upstream_error", "upstream_error", "ok"]


@pytest.mark.usefixtures("healed_afterwards")
def test_limited_accounts_say_when_and_the_sdk_comes_back_then(relay, client):
    relay.sim.script(standing={"status": 429, "retry_after": 8}, lasts_s=6)
    with pytest.raises(anthropic.RateLimitError) as raised:
        client.messages.create(model=MODEL, max_tokens=16, messages=QUESTION)
    assert raised.value.body["error"]["details"]["error_code"] == "pool_limited"
    assert 0 < int(raised.value.response.headers["retry-after"]) <= 8
    assert client.with_options(max_retries=1).messages.create(model=MODEL, max_tokens=16, messages=QUESTION).content
    refused, denied, served = relay.check(CLIENT)
    assert sorted(row["account"] for row in refused.rows) == ["default/a", "default/b"]
    assert (denied.exchange.status, denied.rows) == (429, [])
    assert served.exchange.request.header("x-stainless-retry-count") == "1"


def test_beta_features_and_unknown_fields_pass(relay, client):
    client.beta.messages.create(
        model=MODEL, max_tokens=64, messages=QUESTION, betas=["context-management-2025-06-27"],
        extra_body={"field_of_tomorrow": {"kept": [1.0, 1e2, "\u00e9"]}}, extra_headers={"anthropic-of-tomorrow": "kept"}, extra_query={"beta": "true"},
    )
    passed, = relay.check(CLIENT)
    assert passed.truths[0]["query"] == "beta=true"
    assert '"field_of_tomorrow":{"kept":[1.0,100.0,"é"]}' in passed.truths[0]["request_body"]
    assert dict(passed.truths[0]["headers"])["anthropic-of-tomorrow"] == "kept"


@pytest.mark.parametrize(("behaviour", "error_type", "outcome"), [
    ({"cut": {"how": "fin", "at": "half"}}, "upstream_truncated", "truncated"),
    ({"error_event": {"at": "half"}}, "overloaded_error", "upstream_error"),
])
@pytest.mark.usefixtures("healed_afterwards")
def test_a_broken_stream_raises(relay, client, behaviour, error_type, outcome):
    relay.sim.script(behaviour)
    with pytest.raises(anthropic.APIError, match=error_type):
        with client.messages.stream(model=MODEL, max_tokens=64, messages=QUESTION) as stream:
            stream.get_final_message()
    relay.sim.wait_quiet()
    answer = relay.tap.exchanges[0].answer
    row, = relay.rows_of(answer.header("x-signalbox-request-id"), 1)
    assert (row["outcome"], answer.whole) == (outcome, True)
