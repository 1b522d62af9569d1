"""Ranking by table and by property: order, exclusion, shares, and what large pools cost."""

import zlib
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signalbox.scheduler.domain.estimates import Estimates
from signalbox.scheduler.domain.policies import AccountPolicy, PoolPolicy
from signalbox.scheduler.domain.rank import SHORTLIST, Turns, Wish, rank
from signalbox.scheduler.domain.snapshot import PoolIndex
from signalbox.scheduler.domain.state import Health, LiveState
from signalbox.v1.common_pb2 import Window
from signalbox.v1.scheduler_pb2 import Timeouts

NOW = 1_800_000_000_000
MODEL = "claude-sonnet-4-5"


def policy(name: str, **fields: Any) -> AccountPolicy:
    values: dict[str, Any] = {
        "id": name, "version": "1", "provider": "Anthropic", "base_url": "", "ready": True, "reason": "Serves",
        "state": "Active", "state_reason": "", "priority": 0, "weight": 100, "max_concurrency": 0, "caps": (),
        "group": name, "allow": (), "deny": (), "renames": {}, "proxied": False, "expires_at_ms": 0, **fields,
    }
    return AccountPolicy(**values)


def index(*accounts: AccountPolicy, strategy: str = "Headroom", name: str = "pool") -> PoolIndex:
    pool = PoolPolicy(
        id=name, version="1", ready=True, reason="", accounts=tuple(a.id for a in accounts), strategy=strategy,
        pin_ttl_ms=1000, refuses=False, max_attempts=3, timeouts=Timeouts(),
    )
    return PoolIndex(pool, {a.id: a for a in accounts}.get)


def order(pools, live=None, turns=None, **wish):
    values = {"model": MODEL, "seed": 7, "now_ms": NOW, "want": 100, **wish}
    return rank(pools, live or LiveState(), turns or Turns(), Wish(**values))


def names(ranking):
    return [c.account.id for c in ranking.candidates]


def busy(**in_flight: int) -> LiveState:
    live = LiveState()
    for name, number in in_flight.items():
        live.account(name).in_flight = number
    return live


def window(live: LiveState, group: str, **fields: Any) -> None:
    live.group(group).windows[fields.get("name", "requests")] = Window(remaining=-1, **fields) if "remaining" not in fields \
        else Window(**fields)


EXCLUDED = [
    ("paused", {"state": "Paused"}, "Paused"), ("draining", {"state": "Draining"}, "draining"),
    ("not ready", {"ready": False, "reason": "SecretNotFound"}, "SecretNotFound"),
    ("expired", {"expires_at_ms": NOW}, "Expired"),
]


@pytest.mark.parametrize(("fields", "reason"), [c[1:] for c in EXCLUDED], ids=[c[0] for c in EXCLUDED])
def test_accounts_that_may_not_serve_are_left_out_and_counted(fields, reason):
    ranking = order([index(policy("a", **fields), policy("b"))])
    assert names(ranking) == ["b"]
    assert ranking.excluded == {reason: 1}
    assert (ranking.serving, ranking.more) == (2, False)


@pytest.mark.parametrize(("rules", "sends"), [
    ({}, MODEL), ({"allow": ("claude-opus-*",)}, None), ({"deny": ("*sonnet*",)}, None),
    ({"allow": ("claude-*",), "deny": ("claude-opus-*",)}, MODEL), ({"renames": {MODEL: "other"}}, "other"),
    ({"renames": {MODEL: "other"}, "allow": ("claude-*",)}, None),
    ({"renames": {MODEL: "claude-x"}, "allow": ("claude-x",)}, "claude-x"),
])
def test_model_rules_match_the_name_that_is_sent(rules, sends):
    ranking = order([index(policy("a", **rules))])
    assert [c.sends for c in ranking.candidates] == ([sends] if sends else [])


def test_health_keeps_out_until_its_time_and_by_class():
    live = LiveState()
    live.rests = {"a": Health("limited", "Limited", NOW + 5_000, 0), "b|sonnet": Health("cooling", "x", NOW + 2_000, 1),
                  "c|opus": Health("limited", "Limited", NOW + 9_000, 0), "d": Health("limited", "Limited", NOW, 0)}
    live.benches = {"e": Health("benched", "BillingError", NOW + 1_000, 1)}
    ranking = order([index(*(policy(n) for n in "abcde"))], live)
    assert sorted(names(ranking)) == ["c", "d"]
    assert ranking.excluded == {"limited": 1, "cooling": 1, "benched": 1}
    assert ranking.soonest_ms == NOW + 2_000


def test_lower_priority_comes_later_whatever_its_load():
    ranking = order([index(policy("a", priority=5), policy("b"), policy("c", priority=1))], busy(b=1000))
    assert names(ranking) == ["b", "c", "a"]


def test_headroom_prefers_the_emptier_window_and_the_idler_account():
    live = busy(c=9)
    window(live, "a", utilization=0.9, resets_at_ms=NOW + 1000)
    window(live, "b", utilization=0.2, resets_at_ms=NOW + 1000)
    window(live, "d", limit=100, remaining=65, resets_at_ms=NOW + 1000)
    ranking = order([index(policy("a"), policy("b"), policy("c", max_concurrency=10), policy("d"))], live)
    assert names(ranking) == ["b", "d", "a", "c"]
    assert [c.score for c in ranking.candidates] == [600, 675, 950, 1400]


def test_a_window_that_was_reset_counts_no_more():
    live = LiveState()
    window(live, "a", utilization=1.0, resets_at_ms=NOW)
    assert [c.score for c in order([index(policy("a"))], live).candidates] == [500]


def test_least_connections_weighs():
    live = busy(a=2, b=3, c=1)
    ranking = order([index(policy("a"), policy("b", weight=200), policy("c", weight=10), strategy="LeastConnections")], live)
    assert names(ranking) == ["b", "a", "c"]


@given(weights=st.lists(st.integers(1, 5), min_size=2, max_size=6))
@settings(max_examples=settings.default.max_examples * 3 // 10)
def test_round_robin_is_even_to_the_weights(weights):
    accounts = [policy(f"a{i}", weight=100 * w) for i, w in enumerate(weights)]
    pool, turns, got = index(*accounts, strategy="RoundRobin"), Turns(), Counter()
    rounds = 4
    for n in range(rounds * sum(weights)):
        chosen = order([pool], turns=turns, seed=zlib.crc32(b"%d" % n)).candidates[0].account
        turns.took("pool", chosen)
        got[chosen.id] += 1
    assert [got[a.id] for a in accounts] == [rounds * w for w in weights]


def test_a_newcomer_does_not_get_all_turns():
    a, b, turns = policy("a"), policy("b"), Turns()
    for _ in range(100):
        turns.took("pool", a)
    got = Counter()
    for n in range(20):
        chosen = order([index(a, b, strategy="RoundRobin")], turns=turns, seed=n).candidates[0].account
        turns.took("pool", chosen)
        got[chosen.id] += 1
    assert got == {"a": 10, "b": 10}


def test_priority_shares_by_weight():
    pool = index(policy("a", weight=100), policy("b", weight=300), strategy="Priority")
    got = Counter(names(order([pool], seed=zlib.crc32(b"request %d" % n)))[0] for n in range(4000))
    assert 0.72 < got["b"] / 4000 < 0.78


@pytest.mark.parametrize("strategy", ["Headroom", "LeastConnections", "Priority", "RoundRobin"])
def test_equal_accounts_share_a_burst(strategy):
    pool = index(*(policy(f"a{i}") for i in range(8)), strategy=strategy)
    got = Counter(names(order([pool], seed=zlib.crc32(b"%d" % n)))[0] for n in range(800))
    assert len(got) == 8
    assert max(got.values()) < 160


def test_the_pinned_account_comes_first_and_says_why_it_cannot():
    pool = index(*(policy(n) for n in "abc"))
    live = busy(c=50)
    assert names(order([pool], live, pinned="c"))[0] == "c"
    live.rests["c"] = Health("limited", "Limited", NOW + 1, 0)
    ranking = order([pool], live, pinned="c")
    assert (sorted(names(ranking)), ranking.pin_state) == (["a", "b"], "limited")
    assert order([pool], pinned="nobody").pin_state == "gone"
    picky = index(policy("a", allow=("claude-opus-*",)), policy("b"))
    assert order([picky], pinned="a").pin_state == "elsewhere"


def test_a_draining_account_is_ranked_for_its_pin_only():
    pool = index(policy("a", state="Draining"), policy("b"))
    assert names(order([pool], pinned="a")) == ["a", "b"]
    assert names(order([pool])) == ["b"]


def test_pools_keep_their_order():
    pools = [index(policy("z"), name="first"), index(policy("a"), name="second")]
    assert [(c.account.id, c.pool) for c in order(pools).candidates] == [("z", 0), ("a", 1)]


STATES = st.sampled_from(["Active", "Active", "Active", "Paused", "Draining"])
ACCOUNTS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 1000), STATES, st.booleans(), st.integers(0, 30)), min_size=1, max_size=40,
)


@given(
    spec=ACCOUNTS, strategy=st.sampled_from(["Headroom", "LeastConnections", "Priority", "RoundRobin"]),
    seed=st.integers(0, 2**32 - 1), want=st.integers(1, 8), pinned=st.integers(-1, 40),
)
@settings(max_examples=2 * settings.default.max_examples)
def test_what_holds_for_every_ranking(spec, strategy, seed, want, pinned):
    live = LiveState()
    accounts = []
    for i, (priority, weight, state, rests, in_flight) in enumerate(spec):
        accounts.append(policy(f"a{i}", priority=priority, weight=weight, state=state))
        live.account(f"a{i}").in_flight = in_flight
        if rests:
            live.rests[f"a{i}"] = Health("limited", "Limited", NOW + 1000 + i, 0)
    pin = f"a{pinned}" if pinned >= 0 else ""
    ranking = order([index(*accounts, strategy=strategy)], live, seed=seed, want=want, pinned=pin)
    able = {
        a.id for a in accounts
        if f"{a.id}" not in live.rests and (a.state == "Active" or (a.state == "Draining" and a.id == pin))
    }
    got = names(ranking)
    assert set(got) <= able
    assert len(got) == len(set(got)) <= max(want, 1)
    assert len(got) == min(want, len(able)) or ranking.more
    assert ranking.more or set(got) == able
    priorities = [c.account.priority for c in ranking.candidates if c.account.id != pin]
    assert priorities == sorted(priorities)
    if pin in able:
        assert got[0] == pin
    if not ranking.more:
        assert sum(ranking.excluded.values()) == len(accounts) - len(able)
    again = order([index(*accounts, strategy=strategy)], live, seed=seed, want=want, pinned=pin)
    assert names(again) == got


def test_a_large_pool_is_not_walked():
    class Counting(LiveState):
        looked = 0

        def surplus(self, *args):
            Counting.looked += 1
            return super().surplus(*args)

    pool = index(*(policy(f"a{i}") for i in range(10_000)))
    first = set()
    for n in range(300):
        first.add(names(order([pool], Counting(), seed=zlib.crc32(b"%d" % n), want=3))[0])
    assert Counting.looked == 300 * SHORTLIST
    assert len(first) > 250


def test_estimates_are_the_ninetieth_percentile_bounded_by_the_worst_case():
    estimates = Estimates()
    assert estimates.usual("k", "m", 4000, 64_000, (66_000, 6_600_000)) == (5_096, 509_600)
    assert estimates.usual("k", "m", 400, 100, (150, 300)) == (150, 300)
    for i in range(1, 11):
        estimates.learn("k", "m", (i * 10, i))
    assert estimates.usual("k", "m", 4000, 64_000, (1_000, 1_000)) == (90, 9)
    assert estimates.usual("k", "m", 4000, 64_000, (50, 5)) == (50, 5)
    assert estimates.usual("other", "m", 40, 0, (20, 20)) == (10, 10)
