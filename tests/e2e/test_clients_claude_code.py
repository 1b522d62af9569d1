"""The real Claude Code through a running relay: tools, several turns, resumed sessions, errors as it knows them.

Each run has a home of its own and no way to any host but the relay.
"""

import json
import subprocess

import pytest

from tests.support.relay import CLAUDE, KEY, Relayed, environment, needs_claude

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("relay"), needs_claude]

CLIENT = "ClaudeCode"


@pytest.fixture
def claude(relay, tmp_path):
    """Run `claude -p` with these arguments and return the events that it printed."""

    def run(*arguments, returncode=0, **variables):
        done = subprocess.run(
            [CLAUDE, "-p", *arguments, "--output-format", "stream-json", "--verbose", "--include-partial-messages"],
            env={**environment(tmp_path, relay.url), **variables}, cwd=tmp_path, capture_output=True, text=True,
            timeout=100, stdin=subprocess.DEVNULL, check=False,
        )
        assert done.returncode == returncode, (done.stdout[-2000:], done.stderr)
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def session_of(relayed: Relayed) -> str:
    return relayed.exchange.request.header("x-claude-code-session-id")


def bash(command: str) -> str:
    """Return a marker that has the simulated model call the Bash tool."""
    return f"[[sim tool=Bash tool_input='{json.dumps({'command': command, 'description': 'Say something'})}']]"


def test_a_tool_is_run_and_the_turns_stay_on_one_account(relay, claude, tmp_path):
    events = claude(f"{bash('echo signal-$((40+2)) > box')} Please.", "--allowedTools", "Bash")
    assert (tmp_path / "box").read_text() == "signal-42\n"
    result = events[-1]
    assert (result["type"], result["is_error"]) == ("result", False)
    turns = [r for r in relay.check(CLIENT) if r.rows]
    assert all(t.rows[0]["streamed"] for t in turns)
    assert len({t.account for t in turns}) == 1
    assert {session_of(t) for t in turns} == {result["session_id"]}
    billed = {name: sum(t.rows[0][name] for t in turns) for name in ("input_tokens", "output_tokens", "cache_read_tokens")}
    told = result["modelUsage"].values()
    assert billed == {
        "input_tokens": sum(m["inputTokens"] for m in told), "output_tokens": sum(m["outputTokens"] for m in told),
        "cache_read_tokens": sum(m["cacheReadInputTokens"] for m in told),
    }
    assert billed["cache_read_tokens"] > 0, "the second turn read what the first one wrote"


def test_its_text_streams_in_the_pieces_that_the_provider_sent(relay, claude):
    relay.sim.default({"text": "It sets the points, and keeps 信号 honest. 🚦", "deltas": 9, "split": "utf8"})
    events = claude("What does a signal box do?")
    deltas = [e["event"]["delta"]["text"] for e in events if e["type"] == "stream_event"
              and e["event"]["type"] == "content_block_delta" and e["event"]["delta"]["type"] == "text_delta"]
    assert len(deltas) == 9
    assert "".join(deltas) == events[-1]["result"] == "It sets the points, and keeps 信号 honest. 🚦"
    relay.check(CLIENT)


def test_a_resumed_session_returns_to_its_account(relay, claude):
    sessions = []
    for n in range(2):
        first = claude(f"Question {n}")[-1]
        second = claude("And then?", "--resume", first["session_id"])[-1]
        assert second["session_id"] == first["session_id"]
        sessions.append(first["session_id"])
    turns = [r for r in relay.check(CLIENT) if r.rows]
    accounts = [{t.account for t in turns if session_of(t) == session} for session in sessions]
    assert [len(a) for a in accounts] == [1, 1]
    assert all(sum(session_of(t) == session for t in turns) >= 2 for session in sessions)


@pytest.mark.usefixtures("healed_afterwards")
def test_a_failover_is_invisible(relay, claude):
    relay.sim.script({"status": 500}, {"status": 500})
    assert claude("Hello")[-1]["is_error"] is False
    served = relay.check(CLIENT)[-1]
    assert [t["status"] for t in served.truths] == [500, 500, 200]


def test_a_refused_key_is_told_at_once(relay, claude):
    result = claude("Hello", returncode=1, ANTHROPIC_AUTH_TOKEN=KEY + "x")[-1]
    assert (result["is_error"], result["api_error_status"], result["api_error_code"]) == (True, 401, "key_invalid")
    assert [e.status for e in relay.tap.exchanges if e.request.method == "POST"] == [401], "it was not asked again and again"
    assert relay.sim.truth(path=None) == []
