"""Large tiers: accounts that cannot serve are set aside once, and come back by time or by event."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.tests.test_scheduler_rank import NOW, index, names, order, policy
from signalbox.scheduler.domain.rank import SHORTLIST
from signalbox.scheduler.domain.state import Health, LiveState
from signalbox.scheduler.domain.tiers import Tier

MANY = 2_000


def looked_at(live: LiveState) -> list[int]:
    """Count how often a live state is asked what keeps an account out."""
    counts = [0]
    inner = live.kept_out

    def counting(*args):
        counts[0] += 1
        return inner(*args)

    live.kept_out = counting  # type: ignore[method-assign]
    return counts


def test_those_that_rest_are_come_across_once():
    live = LiveState()
    live.rests = {f"a{n}": Health("limited", "Limited", NOW + 60_000 + n, 0) for n in range(MANY) if n % 100}
    pool = index(*(policy(f"a{n}") for n in range(MANY)))
    first = order([pool], live)
    counts = looked_at(live)
    for seed in range(50):
        ranking = order([pool], live, seed=seed)
        assert len(names(ranking)) == SHORTLIST
        assert ranking.excluded["limited"] >= first.excluded["limited"]
    # At most each of them once (asked twice: whether, and until when), and the shortlist of each request.
    assert counts[0] <= 2 * MANY + 50 * SHORTLIST


def test_a_rest_ends_by_itself_or_by_an_event():
    live = LiveState()
    live.rests = {f"a{n}": Health("limited", "Limited", NOW + 1_000 + n, 0) for n in range(100)}
    pool = index(*(policy(f"a{n}") for n in range(100)))
    nothing = order([pool], live)
    assert (names(nothing), nothing.soonest_ms, nothing.excluded) == ([], NOW + 1_000, {"limited": 100})
    assert sorted(names(order([pool], live, now_ms=NOW + 1_004))) == ["a0", "a1", "a2", "a3", "a4"]
    del live.rests["a50"]
    pool.release("a50")
    assert "a50" in names(order([pool], live, now_ms=NOW + 1_004))


def test_full_accounts_are_offered_where_there_is_nothing_better():
    live = LiveState()
    pool = index(*(policy(f"a{n}", max_concurrency=1) for n in range(100)))
    for n in range(100):
        live.set_running(f"a{n}", f"a{n}", 1)
    ranking = order([pool], live)
    assert len(names(ranking)) == SHORTLIST  # Redis knows whether they are
    assert ranking.excluded == {"full": 100}
    live.set_running("a7", "a7", 0)
    pool.release("a7")
    assert names(order([pool], live)) == ["a7"]


@given(seed=st.integers(0, 2**32), steps=st.integers(1, 60))
@settings(max_examples=settings.default.max_examples * 3 // 5)
def test_a_tier_loses_nobody(seed, steps):
    rng = random.Random(seed)
    members = tuple(policy(f"a{n}") for n in range(40))
    tier, now_ms = Tier(0, members, set()), NOW
    aside: dict[str, int] = {}
    for _ in range(steps):
        now_ms += rng.randrange(100)
        aside = {a: until for a, until in aside.items() if not until or until > now_ms}
        match rng.randrange(3):
            case 0:
                seen = []
                for account in tier.from_place(rng.randrange(1000), now_ms):
                    seen.append(account.id)
                    if rng.random() < 0.3:
                        until_ms = rng.choice([0, now_ms + 1 + rng.randrange(300)])
                        tier.put_aside(account, rng.choice(["limited", "benched", "full"]), until_ms)
                        aside[account.id] = until_ms
                        seen.pop()
                assert sorted(seen + list(aside)) == sorted(a.id for a in members)
            case 1:
                name = rng.choice(members).id
                tier.release(name)
                aside.pop(name, None)
            case _:
                assert sum(tier.excluded.values()) >= len(aside)
