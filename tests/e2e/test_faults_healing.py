"""Faults over many requests: who rests and for how long, who is probed and how often, and who is back how soon.

A failing account meets at most one probing request at a time, is never hammered, and serves again at the latest 30 s
after it is well; callers are served by others all the while. What a single request meets is in test_faults_table.py.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support import compare
from tests.support.caller import eventually
from tests.support.load import COUNT_TOKENS, Load, Seen, count
from tests.support.machine import busy
from tests.support.stands import Layout, Stand, Stands

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

BACK_LIMIT_S = 30.0
SLACK_S = 3.0
EVERY_S = 0.2

# A provider that comes and goes, before anything reached a caller: streamed or not, nobody may notice.
FLAPS: dict[str, tuple[bool, dict[str, Any]]] = {
    "429": (True, {"status": 429}),
    "500": (True, {"status": 500}),
    "503, plain": (False, {"status": 503}),
    "529": (True, {"status": 529}),
    "resets": (False, {"drop": "reset"}),
    "silence": (True, {"drop": "silence"}),
    "no content": (True, {"stall": {"at": "message_start"}}),
    "cut before content": (True, {"cut": {"how": "rst", "at": "message_start"}}),
    "cut, plain": (False, {"cut": {"how": "fin", "at": "half"}}),
    "error events": (True, {"error_event": {"type": "overloaded_error", "at": "message_start"}}),
    "wrong content type": (True, {"content_type": "text/html"}),
    "broken chunking": (True, {"bad_chunk": {"at": "start"}}),
}
ILL_S, WELL_S, FLAPPING_S = 2.0, 3.0, 14.0
SOON = {"connect": "4s", "headers": "3s", "headersUnstreamed": "3s", "firstContent": "3s", "idle": "3s", "total": "10s"}

# What ends soon enough is waited for, by a first attempt as by a later one; what does not is refused at once.
# One that hung or broke off is not asked again by the same request (test_faults_table.py).
SHORT: dict[str, dict[str, Any]] = {
    "429 with retry-after": {"status": 429, "retry_after": 2},
    "529": {"status": 529},
    "an error event": {"error_event": {"type": "overloaded_error", "at": "message_start"}},
}

LAYOUTS = {
    "rests": Layout(), "hammered": Layout("a"), "probed": Layout(), "heals": Layout("a"), "benched": Layout(),
    "hold": Layout(), "model": Layout(), "group": Layout("abc", {"a": {"limitGroup": "g"}, "b": {"limitGroup": "g"}}),
    "stale": Layout(), "counting": Layout(), "denied": Layout("a"), "bounded": Layout("abcde", pool_spec={"failover": {"maxAttempts": 4}}),
    "refuse": Layout(pool_spec={"affinity": {"mode": "Session", "onUnavailable": "Refuse"}}),
    **{f"waits{number}": Layout("a", pool_spec={"queue": {"maxWait": "6s"}}) for number in range(len(SHORT) + 1)},
    **{f"flap{number}": Layout(pool_spec={"timeouts": SOON}) for number in range(len(FLAPS))},
}


@pytest.fixture(scope="module")
def stands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stands]:
    with Stands(tmp_path_factory.mktemp("healing"), LAYOUTS) as made:
        yield made


@pytest.fixture(scope="module")
def load(stands: Stands) -> Iterator[Load]:
    with Load(stands.instance.url, "", seed=1, callers=0) as made:
        yield made


@contextmanager
def asking(stand: Stand, load: Load, *, stream: bool = True, every_s: float = EVERY_S) -> Iterator[list[Seen]]:
    """Ask again and again while the body runs; what was seen is in the list afterwards."""
    begun: list[Future[Seen]] = []
    seen: list[Seen] = []
    stopping = threading.Event()

    def go_on() -> None:
        while not stopping.wait(every_s):
            begun.append(stand.begin(load, stream=stream))

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    yield seen
    stopping.set()
    thread.join()
    seen += [one.result(60) for one in begun]


def back(stand: Stand, since_s: float, letter: str = "a") -> float:
    """Wait until an account answers well again and return how long after `since_s` (Unix time) that was."""
    def good() -> list[float]:
        return [row["ended_at"] for row in stand.received(letter, after_s=since_s) if row["outcome"] == "complete" and row["status"] == 200]

    return min(eventually(good, within_s=BACK_LIMIT_S + SLACK_S)) - since_s


def agree(stands: Stands, seen: list[Seen]) -> list[compare.Row]:
    """Hold what was asked against truth and ledger, and return the ledger's rows of it."""
    models = {one.model for one in seen}
    truth = [row for row in stands.truth() if row["model"] in models]
    rows = [row for row in stands.rows(seen) if row["model"] in models]
    assert not compare.compare(truth, rows, seen).problems
    return rows


Scenes = dict[str, Future[Any]]


@pytest.fixture(scope="module")
def scenes(stands: Stands, load: Load) -> Iterator[Scenes]:
    """What takes long because somebody rests, all at once, each on a stand of its own; a test looks at one's result."""
    plays = {"rest": _rest, "hammer": _hammer, "probe": _probe, "heal": _heal}
    with ThreadPoolExecutor(len(plays)) as pool:
        yield {name: pool.submit(play, stands, load) for name, play in plays.items()}


# ---------------------------------------------------------------------------------------------- limits


def _rest(stands: Stands, load: Load) -> tuple[list[Seen], float, dict[str, Any]]:
    """Limit an account for 4 s; return what was seen, how long it rested and how it was listed when it was back."""
    stand = stands["rests"]
    stand.script("a", {"status": 429, "retry_after": 4})
    first = stand.ask(load)
    with asking(stand, load) as seen:
        took_s = back(stand, stand.received("a")[0]["ended_at"])
        [account] = [row for row in stands.instance.json("accounts", "list") if row["name"] == stand.account("a")]
    return [first, *seen], took_s, account


def test_a_limited_account_rests_as_long_as_it_said(stands: Stands, scenes: Scenes) -> None:
    stand = stands["rests"]
    (first, *seen), took_s, account = scenes["rest"].result()
    limited_s = stand.received("a")[0]["ended_at"]
    assert first.attempts == 2
    assert count([first, *seen]) == {"whole": 1 + len(seen)}
    assert 3.5 <= took_s <= 4 + SLACK_S * busy()
    assert account["available"]
    assert not [row for row in stand.received("a", after_s=limited_s) if row["received_at"] < limited_s + 3.5]
    agree(stands, [first, *seen])


def _hammer(stands: Stands, load: Load) -> tuple[list[Seen], list[compare.Row]]:
    """Limit a lone account for 9 s without saying how long; return what was seen, and what it was sent meanwhile."""
    stand = stands["hammered"]
    stand.script("a", standing={"status": 429, "delay_s": 0.2})
    with asking(stand, load) as seen:
        time.sleep(9)
        sends = stand.received("a")
        stand.heal("a")
        took_s = back(stand, time.time())
    print(f"\n{len(sends)} sends for {len(seen)} requests, back after {took_s:.1f} s, {count(seen)}")
    return seen, sends


def test_429_without_a_time_is_not_hammered(stands: Stands, scenes: Scenes) -> None:
    seen, sends = scenes["hammer"].result()
    assert set(count(seen)) == {"whole", "pool_limited"}
    told_s = min(row["ended_at"] for row in sends) + 0.5 * busy()    # and those that were under way by then
    assert len([row for row in sends if row["received_at"] > told_s]) <= 2, "a probe after 5 s"
    assert {one.status for one in seen if one.error_code} == {429}
    assert all(1 <= int(one.retry_after) <= 60 for one in seen if one.error_code)
    agree(stands, seen)


def test_a_limit_of_one_class_of_models_leaves_the_others_alone(stands: Stands, load: Load) -> None:
    stand = stands["model"]
    unified = "anthropic-ratelimit-unified-"
    spent = {
        f"{unified}status": "rejected", f"{unified}representative-claim": "seven_day_opus",
        f"{unified}5h-status": "allowed", f"{unified}7d-status": "allowed", "retry-after": "30",
    }
    stand.script("a", standing={"status": 429, "headers": spent}, match={"model": "*opus*"})
    opus = [stand.ask(load, base="claude-opus-5-5") for _ in range(3)]
    sonnet = [stand.ask(load) for _ in range(3)]
    assert [stand.server(one) for one in opus + sonnet] == ["b"] * 3 + ["a"] * 3
    assert [one.attempts for one in opus + sonnet] == [2, 1, 1, 1, 1, 1]


def test_accounts_of_one_limit_group_rest_together(stands: Stands, load: Load) -> None:
    stand = stands["group"]
    stand.script("a", standing={"status": 429, "retry_after": 30})
    seen = [stand.ask(load) for _ in range(3)]
    assert [stand.server(one) for one in seen] == ["c"] * 3
    assert (len(stand.received("a")), len(stand.received("b"))) == (1, 0)


def test_a_last_429_is_pool_limited_in_pools_that_refuse_to_move_as_well(stands: Stands, load: Load) -> None:
    stand = stands["refuse"]
    pinned = {"messages": [{"role": "user", "content": "A conversation that stays where it is"}]}
    first = stand.ask(load, **pinned)
    assert stand.server(first) == "a"
    stand.script("a", standing={"status": 429, "retry_after": 20})
    for _ in range(2):
        refused = stand.ask(load, **pinned)
        assert (refused.status, refused.error_code) == (429, "pool_limited")
        assert 1 <= int(refused.retry_after) <= 20
    assert not stand.received("b")


@pytest.mark.parametrize("name", list(SHORT))
def test_a_lone_account_that_rests_shortly_is_waited_for(stands: Stands, load: Load, name: str) -> None:
    stand = stands[f"waits{list(SHORT).index(name)}"]
    stand.script("a", SHORT[name])
    begun = [stand.begin(load, stream=True)]
    time.sleep(0.5)
    begun += [stand.begin(load, stream=True) for _ in range(3)]
    seen = [one.result(60) for one in begun]
    print(f"\n{name}: {count(seen)}, attempts {[one.attempts for one in seen]}")
    assert count(seen) == {"whole": 4}
    assert [one.attempts for one in seen] == [2, 1, 1, 1]
    assert len(stand.received("a")) == 5
    agree(stands, seen)


def test_a_lone_account_that_rests_long_is_not_waited_for(stands: Stands, load: Load) -> None:
    stand = stands["waits3"]
    stand.script("a", standing={"status": 429, "retry_after": 40})
    for attempts in (1, 0):
        seen = stand.ask(load)
        assert (seen.status, seen.error_code, seen.attempts) == (429, "pool_limited", attempts)
        assert 30 <= int(seen.retry_after) <= 40
        assert seen.ended_s - seen.began_s < 6


# ---------------------------------------------------------------------------------------------- breakers


def _rests(stand: Stand) -> bool:
    """Whether the first account, of which many ask, has been left alone for a while."""
    asked = [row["received_at"] for row in stand.received("a")]
    return bool(asked) and time.time() - max(asked) > 0.7


def _probe(stands: Stands, load: Load) -> tuple[list[Seen], list[compare.Row], float]:
    """Overload an account for 8 s once it is left alone; return what was seen, its probes and how soon it was back."""
    stand = stands["probed"]
    stand.script("a", standing={"status": 529, "delay_s": 0.5})
    with asking(stand, load, every_s=0.1) as seen:
        eventually(lambda: _rests(stand), within_s=10)
        opened_s = time.time()
        time.sleep(8)
        stand.heal("a")
        healed_s = time.time()
        took_s = back(stand, healed_s)
    probes = [row for row in stand.received("a", after_s=opened_s) if row["received_at"] < healed_s]
    print(f"\n{len(probes)} probes in {healed_s - opened_s:.1f} s, back after {took_s:.1f} s, {count(seen)}")
    return seen, probes, took_s


def test_an_overloaded_account_is_probed_by_one_request_at_a_time(stands: Stands, scenes: Scenes) -> None:
    seen, probes, took_s = scenes["probe"].result()
    assert count(seen) == {"whole": len(seen)}
    assert took_s <= BACK_LIMIT_S
    assert 1 <= len(probes) <= 5, "each pause is twice as long as the one before"
    assert all(one["ended_at"] <= two["received_at"] for one, two in zip(probes, probes[1:], strict=False))
    agree(stands, seen)


def _heal(stands: Stands, load: Load) -> tuple[list[Seen], list[compare.Row], float]:
    """Let a lone account fail for 6 s; return what was seen, what it was sent meanwhile and how soon it was back."""
    stand = stands["heals"]
    stand.script("a", standing={"status": 503})
    with asking(stand, load, stream=False) as seen:
        time.sleep(6)
        stand.heal("a")
        healed_s = time.time()
        took_s = back(stand, healed_s)
    ill = [row for row in stand.received("a") if row["received_at"] < healed_s]
    print(f"\n{len(ill)} sends while it was ill, back after {took_s:.1f} s, {count(seen)}")
    return seen, ill, took_s


def test_a_lone_account_heals(stands: Stands, scenes: Scenes) -> None:
    seen, ill, took_s = scenes["heal"].result()
    assert set(count(seen)) == {"whole", "api_error", "pool_limited"}
    assert len(ill) <= 2 * 6, "twice each time: once more in place"
    assert took_s <= BACK_LIMIT_S
    assert all(one.retry_after for one in seen if one.error_code == "pool_limited")
    agree(stands, seen)


def test_a_request_meets_no_more_failing_accounts_than_it_has_attempts(stands: Stands, load: Load) -> None:
    stand = stands["bounded"]
    for letter in "abcde":
        stand.script(letter, standing={"status": 500})
    seen = stand.ask(load)
    assert (seen.status, seen.attempts, seen.error_code) == (500, 4, "api_error")
    assert [len(stand.received(letter)) for letter in "abcde"] == [2, 2, 0, 0, 0]
    again = stand.ask(load)     # a and b rest; the caller of the first has paid for it
    assert (again.attempts, [len(stand.received(letter)) for letter in "abcde"]) == (4, [2, 2, 2, 2, 0])


@pytest.fixture(scope="module")
def flapped(stands: Stands, load: Load) -> dict[str, tuple[list[Seen], float]]:
    """Let one account of each of a dozen stands come and go, all at once; what was seen, and when it was back."""
    results: dict[str, tuple[list[Seen], float]] = {}

    def play(number: int, name: str) -> None:
        stream, behaviour = FLAPS[name]
        stand = stands[f"flap{number}"]
        with asking(stand, load, stream=stream, every_s=0.4) as seen:
            stand.script("a", standing=behaviour, flap={"ill_s": ILL_S, "well_s": WELL_S})
            time.sleep(FLAPPING_S)
            stand.heal("a")
            took_s = back(stand, time.time())
        results[name] = (seen, took_s)

    threads = [threading.Thread(target=play, args=(number, name)) for number, name in enumerate(FLAPS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("name", list(FLAPS))
def test_nobody_notices_a_flapping_account(stands: Stands, flapped: dict[str, tuple[list[Seen], float]], name: str) -> None:
    seen, took_s = flapped[name]
    stand = stands[f"flap{list(FLAPS).index(name)}"]
    served = Counter(stand.server(one) for one in seen)
    failed = [row for row in stand.received("a") if row["behaviour"]]
    print(f"\n{name}: {len(seen)} requests, served by {dict(served)}, {len(failed)} failed sends, back after {took_s:.1f} s")
    assert count(seen) == {"whole": len(seen)}
    assert took_s <= BACK_LIMIT_S
    assert set(served) == {"a", "b"}
    # Ill three times: each time those under way, then at most a probe (with its second send in place) a pause.
    assert len(failed) <= 18
    agree(stands, seen)


# ---------------------------------------------------------------------------------------------- standing


def test_an_account_that_owes_money_is_left_alone(stands: Stands, load: Load) -> None:
    stand = stands["benched"]
    stand.script("a", standing={"status": 402})
    seen = [stand.ask(load, stream=number % 2 == 0) for number in range(5)]
    assert [stand.server(one) for one in seen] == ["b"] * 5
    assert len(stand.received("a")) == 1
    [account] = [row for row in stands.instance.json("accounts", "list") if row["name"] == stand.account("a")]
    assert (account["available"], account["reason"], account["limited_until"]) == (False, "BillingError", None)
    seen.append(stand.ask(load))
    agree(stands, seen)
    first, later = (stands.instance.json("explain", one.request_id) for one in (seen[0], seen[-1]))
    assert [(row["account"], row["outcome"], row["reason"]) for row in first] == [
        (f"default/{stand.account('a')}", "upstream_error", "billing"), (f"default/{stand.account('b')}", "ok", "")]
    assert first[1]["decision"]["excluded"] == {"tried": 1}
    [only] = later
    assert only["decision"]["chosen"] == f"default/{stand.account('b')}"
    assert only["decision"]["excluded"] == {"benched": 1}
    told = stands.instance.run("explain", seen[0].request_id).stdout
    assert "attempt 1" in told
    assert "billing" in told
    assert "2 attempts" in told


def test_an_organisation_on_hold_sees_nothing_more(stands: Stands, load: Load) -> None:
    stand = stands["hold"]
    stand.script("a", standing={"status": 403, "error_code": "organization_on_hold"})
    seen = [stand.ask(load) for _ in range(3)]
    assert [(one.status, stand.server(one)) for one in seen] == [(403, "a"), (200, "b"), (200, "b")]
    assert len(stand.received("a")) == 1


def test_a_denial_is_explained(stands: Stands, load: Load) -> None:
    stand = stands["denied"]
    stand.script("a", standing={"status": 429, "retry_after": 60})
    failed, denied = stand.ask(load), stand.ask(load)
    assert [(one.status, one.error_code, one.attempts) for one in (failed, denied)] == [
        (429, "pool_limited", 1), (429, "pool_limited", 0)]
    assert 1 <= int(denied.retry_after) <= 60

    def rows() -> list[dict[str, Any]]:
        shown = stands.instance.run("explain", denied.request_id, "-o", "json", check=False)
        return list(json.loads(shown.stdout)) if shown.returncode == 0 else []

    [row] = eventually(rows, within_s=10)
    assert (row["attempt"], row["reason"], row["status"]) == (0, "pool_limited", 429)
    assert row["decision"]["excluded"] == {"limited": 1}
    assert row["retry_after_ms"] > 50_000


# ---------------------------------------------------------------------------------------------- connections, free calls


@pytest.mark.parametrize("after", ["close", "half_close", "reset"])
def test_a_kept_connection_that_died_costs_nobody_anything(stands: Stands, load: Load, after: str) -> None:
    stand = stands["stale"]
    before = len(stand.received("a"))
    stand.script("a", {"after": after})
    seen = [stand.ask(load, stream=number % 2 == 0) for number in range(4)]
    assert count(seen) == {"whole": 4}
    assert not stand.received("b")
    assert len(stand.received("a")) - before <= 5
    rows = agree(stands, seen)
    assert {row["reason"] for row in rows} <= {"", "stale_connection", "reset"}


def test_counting_tokens_fails_over_and_is_free(stands: Stands, load: Load) -> None:
    stand = stands["counting"]
    stand.script("a", standing={"status": 529})
    seen = stand.ask(load, path=COUNT_TOKENS)
    assert (seen.status, seen.attempts, stand.server(seen)) == (200, 2, "b")
    rows = agree(stands, [seen])
    assert [(row["route"], row["status"], row["cost_usd"]) for row in rows] == [("count_tokens", 529, "0"), ("count_tokens", 200, "0")]
