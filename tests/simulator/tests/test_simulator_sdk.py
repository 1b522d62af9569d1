"""The official SDK against the simulator: if it can't tell it from the provider, neither should a relay."""

import json
import os
import subprocess
from pathlib import Path

import anthropic
import pytest

from tests.simulator.tests.rawhttp import KEY, MODEL
from tests.simulator.tests.test_simulator_oauth import RULE, assertion

pytestmark = pytest.mark.slow

QUESTION = [{"role": "user", "content": "What does a signal box do?"}]
TOOL = {"name": "weather", "description": "The weather.", "input_schema": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}


@pytest.fixture
def client(sim):
    with anthropic.Anthropic(api_key=KEY, base_url=sim.url, max_retries=0) as made:
        yield made


def test_message_and_stream_say_the_same(sim, client):
    sim.default({"text": "It sets the points, and keeps 信号 honest. 🚦", "deltas": 9, "split": 3})
    whole = client.messages.create(model=MODEL, max_tokens=256, messages=QUESTION)
    with client.messages.stream(model=MODEL, max_tokens=256, messages=QUESTION) as stream:
        pieces = list(stream.text_stream)
        streamed = stream.get_final_message()
    assert len(pieces) == 9
    assert "".join(pieces) == streamed.content[0].text == whole.content[0].text
    assert streamed.usage.output_tokens == whole.usage.output_tokens == sim.truth()[1]["usage"]["output_tokens"]
    assert [whole.id, streamed.id] == [r["message_id"] for r in sim.truth()]
    assert whole._request_id == sim.truth()[0]["request_id"]


def test_tool_turns_streamed_with_thinking(sim, client):
    messages = list(QUESTION)
    arguments = {"model": MODEL, "max_tokens": 2048, "tools": [TOOL], "thinking": {"type": "adaptive"}}
    sim.script({"tool": "weather", "tool_input": {"city": "Bern"}})
    with client.messages.stream(messages=messages, **arguments) as stream:
        asked = stream.get_final_message()
    use = asked.content[-1]
    assert (asked.stop_reason, use.name, use.input) == ("tool_use", "weather", {"city": "Bern"})
    messages += [{"role": "assistant", "content": asked.content},
                 {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "rain"}]}]
    with client.messages.stream(messages=messages, **arguments) as stream:
        final = stream.get_final_message()
    assert final.stop_reason == "end_turn"
    assert [r["foreign_thinking"] for r in sim.truth()] == [0, 0]


def test_errors_have_the_sdks_types(sim, client):
    sim.script({"status": 429, "retry_after": 1}, {"status": 529}, {"error_event": {"at": "content"}})
    with pytest.raises(anthropic.RateLimitError):
        client.messages.create(model=MODEL, max_tokens=16, messages=QUESTION)
    with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
        client.messages.create(model=MODEL, max_tokens=16, messages=QUESTION)
    with (
        pytest.raises(anthropic.APIStatusError, match="overloaded_error"),
        client.messages.stream(model=MODEL, max_tokens=16, messages=QUESTION) as stream,
    ):
        stream.get_final_message()
    bad = anthropic.Anthropic(api_key="sk-nobody", base_url=sim.url, max_retries=0)
    with pytest.raises(anthropic.AuthenticationError):
        bad.messages.create(model=MODEL, max_tokens=16, messages=QUESTION)


@pytest.mark.slow
def test_sdk_retries_what_passes(sim):
    sim.script({"status": 500}, {"drop": "reset"})
    with anthropic.Anthropic(api_key=KEY, base_url=sim.url, max_retries=2) as client:
        assert client.messages.create(model=MODEL, max_tokens=16, messages=QUESTION).content
    assert [r["status"] for r in sim.truth()] == [500, 0, 200]


async def test_asynchronous_client(sim):
    async with (
        anthropic.AsyncAnthropic(api_key=KEY, base_url=sim.url) as client,
        client.messages.stream(model=MODEL, max_tokens=64, messages=QUESTION) as stream,
    ):
        assert (await stream.get_final_message()).content


def test_models_count_tokens_files_and_batches(sim, client):
    assert MODEL in [m.id for m in client.models.list(limit=2)], "the SDK follows the pages"
    assert client.models.retrieve(MODEL).lifecycle == "active"
    assert client.messages.count_tokens(model=MODEL, messages=QUESTION).input_tokens > 10
    batch = client.messages.batches.create(requests=[
        {"custom_id": "x", "params": {"model": MODEL, "max_tokens": 64, "messages": QUESTION}}])
    results = list(client.messages.batches.results(batch.id))
    assert [(r.custom_id, r.result.type) for r in results] == [("x", "succeeded")]
    uploaded = client.files.upload(file=("a.txt", b"hello", "text/plain"))
    assert client.files.download(uploaded.id).read() == b"hello"


def test_workload_identity_federation(sim):
    sim.oauth({"rules": [{**RULE, "account": "one", "id": "fedrule_sdk"}]})
    credentials = anthropic.WorkloadIdentityCredentials(
        identity_token_provider=assertion, federation_rule_id="fedrule_sdk", organization_id="org-one",
        service_account_id="svac_1",
    )
    with anthropic.Anthropic(credentials=credentials, base_url=sim.url, max_retries=0) as client:
        assert client.messages.create(model=MODEL, max_tokens=64, messages=QUESTION).content
    assert [r["path"] for r in sim.truth(path=None)] == ["/v1/oauth/token", "/v1/messages"]


CLAUDE = Path(__file__).parents[2] / "clients/node_modules/.bin/claude"


@pytest.mark.slow
@pytest.mark.skipif(not CLAUDE.exists(), reason="the real Claude Code is not installed: `make setup` brings it")
def test_claude_code_runs_a_tool_and_goes_on(sim, tmp_path):
    command = {"command": "echo signal-$((40+2))", "description": "Say something"}
    prompt = f"[[sim tool=Bash tool_input='{json.dumps(command)}']] Please."
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "ANTHROPIC_BASE_URL": sim.url,
                   "ANTHROPIC_AUTH_TOKEN": KEY, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
    done = subprocess.run(
        [CLAUDE, "-p", prompt, "--allowedTools", "Bash", "--output-format", "json"], cwd=tmp_path, env=environment,
        capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL, check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    rows = [r for r in sim.truth() if r["status"] == 200]
    assert len(rows) == 2
    assert rows[1]["usage"]["cache_read_input_tokens"] > 0
    told = next(iter(result["modelUsage"].values()))
    assert told["outputTokens"] == sum(r["usage"]["output_tokens"] for r in rows)
    assert told["cacheReadInputTokens"] == rows[1]["usage"]["cache_read_input_tokens"]
