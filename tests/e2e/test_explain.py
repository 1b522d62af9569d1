"""`explain` tells what became of a request: fail-over, refusal, a moved pin, waiting, a refusal after attempts.

Also what only a whole instance shows of waiting: a caller's hanging up frees its place, and nobody else is held up.
"""

import json
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tests.support.caller import Caller, eventually
from tests.support.load import Load, Seen, message
from tests.support.stands import Layout, Stand, Stands

pytestmark = pytest.mark.slow

ONE_AT_A_TIME = {"a": {"maxConcurrency": 1}}
PATIENT = {"queue": {"maxWait": "10s", "maxDepth": 2}}
RUNS_A_WHILE = "[[sim delay_s=3]]"
LAYOUTS = {
    "failover": Layout(),
    "denial": Layout("a", account_spec={"a": {"models": {"allow": ["claude-opus-*"]}}}),
    "repin": Layout(pool_spec={"affinity": {"mode": "Session"}}),
    "queued": Layout("a", account_spec=ONE_AT_A_TIME, pool_spec=PATIENT),
    "hangup": Layout("a", account_spec=ONE_AT_A_TIME, pool_spec={"queue": {"maxWait": "10s", "maxDepth": 1}}),
    "exhausted": Layout("ab"),
    "pinfull": Layout(account_spec=ONE_AT_A_TIME, pool_spec={"affinity": {"mode": "Session"}, "queue": {"maxWait": "600ms"}}),
}


@pytest.fixture(scope="module")
def stands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stands]:
    directory: Path = tmp_path_factory.mktemp("explain")
    with Stands(directory, LAYOUTS) as made:
        yield made


@pytest.fixture
def load(stands: Stands) -> Iterator[Load]:
    with Load(stands.instance.url, "", seed=1, callers=0) as made:
        yield made


def told(stands: Stands, request_id: str, attempts: int) -> tuple[list[dict[str, Any]], str]:
    """Return `explain`'s rows and its words, once the ledger has so many rows."""

    def look() -> list[dict[str, Any]]:
        result = stands.instance.run("explain", request_id, "-o", "json", check=False)
        return json.loads(result.stdout) if result.returncode == 0 else []

    rows = eventually(look, within_s=15, wanted=lambda rows: len(rows) >= attempts)
    return rows, stands.instance.run("explain", request_id).stdout


def runs(stand: Stand, load: Load, prompt: str, **fields: Any) -> Future[Seen]:
    """Begin a request and return its future once the provider has it."""
    before = len(stand.received("a"))
    begun = stand.begin(load, prompt, **fields)
    eventually(lambda: len(stand.received("a")) > before, within_s=5.0)
    return begun


def waiting(stands: Stands) -> float:
    """Return how many requests wait for an account."""
    return stands.instance.metric("signalbox_queue_depth")


def test_a_fail_over(stands: Stands, load: Load) -> None:
    stand = stands["failover"]
    stand.script("a", {"status": 429, "retry_after": 60})
    seen = stand.ask(load)
    assert (seen.whole, seen.attempts) == (True, 2)
    rows, text = told(stands, seen.request_id, 2)
    assert [(r["attempt"], r["account"], r["reason"]) for r in rows] == [(1, "default/failover-a", "limited"), (2, "default/failover-b", "")]
    assert rows[0]["decision"]["chosen"] == "default/failover-a"
    assert rows[1]["decision"]["excluded"] == {"tried": 1}
    assert "attempt 1 default/failover-a" in text
    assert "left out  tried 1" in text


def test_a_refusal(stands: Stands, load: Load) -> None:
    seen = stands["denial"].ask(load)
    assert seen.error_code == "no_account_for_model"
    [row], text = told(stands, seen.request_id, 1)
    assert (row["attempt"], row["decision"]["reason"]) == (0, "no_account_for_model")
    assert "refused   no_account_for_model with status 404" in text


def test_a_moved_pin(stands: Stands) -> None:
    stand = stands["repin"]
    caller = Caller(stands.instance.url, stand.key)
    first = caller.send(headers={"x_session_id": "talk"})
    assert first.status == 200
    stand.script("a", standing={"status": 429, "retry_after": 60})
    moved = caller.send(headers={"x_session_id": "talk"})
    assert (moved.status, moved.headers["x-signalbox-repinned"]) == (200, "true")
    rows, text = told(stands, moved.request_id, 2)
    assert rows[0]["decision"]["pin"] == "hit"
    decision = rows[1]["decision"]
    assert (decision["pin"], decision["pinned"], decision["pin_reason"]) == ("moved", "default/repin-a", "tried")
    assert "the conversation moves here from default/repin-a, which was tried" in text


def test_waiting(stands: Stands, load: Load) -> None:
    stand = stands["queued"]
    running = runs(stand, load, RUNS_A_WHILE)
    waits = stand.begin(load)
    seen: Seen = waits.result(30)
    assert running.result(30).whole
    assert seen.whole
    assert seen.ended_s - seen.began_s > 0.7
    [row], text = told(stands, seen.request_id, 1)
    decision = row["decision"]
    assert decision["waited_ms"] > 500
    assert f"waited  {decision['waited_ms']} ms: every account rested or was full" in text


def test_a_caller_that_hangs_up_frees_its_place(stands: Stands, load: Load) -> None:
    stand = stands["hangup"]
    assert waiting(stands) == 0
    running = runs(stand, load, "[[sim deltas=180 delta_delay_s=0.05]]", stream=True, max_tokens=8192)
    gone = load.ask(message(), key=stand.key, hang_up_after_s=3.0)
    eventually(lambda: waiting(stands), within_s=3.0)
    assert gone.result(30).hung_up
    eventually(lambda: waiting(stands), within_s=5.0, wanted=lambda n: n == 0)
    waits = stand.begin(load)  # the queue holds one
    assert waits.result(30).whole
    assert running.result(30).whole
    assert eventually(lambda: stands.instance.key_info(stand.key)["concurrency"]["in_flight"] == 0, within_s=5)


def test_a_full_pinned_account_is_waited_for_and_left_for_once(stands: Stands) -> None:
    stand = stands["pinfull"]
    caller = Caller(stands.instance.url, stand.key)
    assert caller.send(headers={"x_session_id": "talk"}).status == 200
    with Load(stands.instance.url, "", seed=2, callers=0) as load:
        running = runs(stand, load, "[[sim delay_s=5]]")
        answer = caller.send(headers={"x_session_id": "talk"})
        assert answer.status == 200
        assert running.result(30).whole
    assert "x-signalbox-repinned" not in answer.headers
    [row], text = told(stands, answer.request_id, 1)
    assert (row["account"], row["decision"]["pin"]) == ("default/pinfull-b", "full")
    assert row["decision"]["waited_ms"] >= 600
    assert "the conversation stays pinned to default/pinfull-a, which was full" in text
    assert caller.send(headers={"x_session_id": "talk"}).status == 200


def test_a_refusal_after_attempts(stands: Stands, load: Load) -> None:
    stand: Stand = stands["exhausted"]
    for letter in "ab":
        stand.script(letter, standing={"status": 429, "retry_after": 60})
    seen = stand.ask(load)
    assert (seen.error_code, seen.attempts) == ("pool_limited", 2)
    rows, text = told(stands, seen.request_id, 3)
    assert sorted(r["attempt"] for r in rows) == [0, 1, 2]
    refused = next(r for r in rows if r["attempt"] == 0)["decision"]
    assert refused["reason"] == "pool_limited"
    assert sum(refused["excluded"].values()) == 2
    assert text.index("attempt 2") < text.index("ended     no further attempt: pool_limited")
