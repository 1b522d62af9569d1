"""Headroom by table, and against the other strategies in a simulated provider: what is served, what is rejected."""

import heapq
import random
import zlib
from collections import Counter
from dataclasses import dataclass

import pytest

from signalbox.scheduler.domain.headroom import SPENT, applies, surplus
from signalbox.scheduler.domain.policies import AccountPolicy, PoolPolicy
from signalbox.scheduler.domain.rank import Turns, Wish, rank
from signalbox.scheduler.domain.snapshot import PoolIndex
from signalbox.scheduler.domain.state import GroupState, Health, LiveState
from signalbox.v1.common_pb2 import Window
from signalbox.v1.scheduler_pb2 import Timeouts

NOW = 1_800_000_000_000
HOUR_MS = 3_600_000
LENGTH_MS = 5 * HOUR_MS
MODEL = "claude-sonnet-4-5"


def quota(utilization: float, hours_left: float, name: str = "5h") -> Window:
    return Window(name=name, utilization=utilization, remaining=-1, resets_at_ms=NOW + int(hours_left * HOUR_MS))


def rate(name: str, limit: int, remaining: int, model_class: str = "sonnet") -> Window:
    return Window(
        name=name, limit=limit, remaining=remaining, utilization=1 - remaining / limit, resets_at_ms=NOW + 30_000,
        model_class=model_class,
    )


@pytest.mark.parametrize(("windows", "expected"), [
    ([], 0.0),
    ([quota(0.2, 0.5)], 0.7),                                   # much left, little time: it would expire
    ([quota(0.2, 4.5)], -0.1),
    ([quota(0.9, 4.5)], -0.8),                                  # it would not last
    ([quota(0.2, 0.5), quota(0.9, 84, "7d")], -0.4),            # the tightest counts
    ([quota(0.2, 0.5), quota(0.9, 84, "7d_opus")], 0.7),        # of another family
    ([quota(0.2, 0.5), quota(0.9, 84, "7d_sonnet")], -0.4),
    ([quota(1.0, -0.1)], 0.0),                                  # it has begun anew
    ([quota(0.995, 4)], SPENT + 0.005),
    ([Window(name="overage", utilization=1.0)], 0.0),
    ([rate("requests", 100, 60)], -0.4),
    ([rate("requests", 100, 60, "opus")], 0.0),
    ([rate("requests", 100, 60), rate("input-tokens", 1000, 200)], -0.8),
])
def test_what_is_left_is_held_against_the_time_that_is_left(windows, expected):
    assert surplus(windows, "sonnet", 0, 0.0, NOW) == pytest.approx(expected)


def test_what_is_in_flight_is_not_left():
    assert surplus([rate("requests", 100, 60)], "sonnet", 20, 0.0, NOW) == pytest.approx(-0.6)
    assert surplus([rate("tokens", 100_000, 60_000)], "sonnet", 20, 1_000.0, NOW) == pytest.approx(-0.6)
    assert surplus([rate("tokens", 100_000, 20_000)], "sonnet", 20, 1_000.0, NOW) == pytest.approx(SPENT)
    assert surplus([quota(0.2, 0.5)], "sonnet", 20, 0.0, NOW) < 0.7


@pytest.mark.parametrize(("name", "of_class", "model_class", "expected"), [
    ("requests", "opus", "opus", True), ("requests", "opus", "sonnet", False), ("7d", "", "sonnet", True),
    ("7d_opus", "", "sonnet", False), ("7d_opus", "", "opus", True), ("7d_oi", "", "haiku", True),
    ("unified", "", "sonnet", False), ("overage", "", "sonnet", False),
])
def test_windows_of_other_models_do_not_count(name, of_class, model_class, expected):
    assert applies(name, of_class, model_class) == expected


def test_the_summary_of_all_windows_is_shown_as_none_of_them():
    told = (quota(0.31, 2.0), quota(0.5, 30.0, "7d"), Window(name="unified", status="allowed"), Window(name="overage"))
    assert list(GroupState(windows={w.name: w for w in told}).by_name()) == ["5h", "7d"]


# -------------------------------------------------------------------------------------------- a simulated day


def accounts(count: int) -> list[AccountPolicy]:
    return [
        AccountPolicy(
            id=f"a{n}", version="1", provider="Anthropic", base_url="", ready=True, reason="", state="Active",
            state_reason="", priority=0, weight=100, max_concurrency=0, caps=(), group=f"a{n}", allow=(), deny=(),
            renames={}, proxied=False, expires_at_ms=0,
        )
        for n in range(count)
    ]


def pool_of(members: list[AccountPolicy], strategy: str) -> PoolIndex:
    pool = PoolPolicy(
        id="p", version="1", ready=True, reason="", accounts=tuple(a.id for a in members), strategy=strategy,
        pin_ttl_ms=0, refuses=False, max_attempts=3, timeouts=Timeouts(),
    )
    return PoolIndex(pool, {a.id: a for a in members}.get)


@dataclass
class Quota:
    """A provider's 5-hour window: `size` tokens, all back at `resets_ms`."""

    size: int
    resets_ms: int
    used: int = 0

    def at(self, now_ms: int) -> "Quota":
        while now_ms >= self.resets_ms:
            self.resets_ms += LENGTH_MS
            self.used = 0
        return self

    def window(self) -> Window:
        return Window(name="5h", utilization=self.used / self.size, remaining=-1, resets_at_ms=self.resets_ms)


def simulate(strategy: str, sizes: list[int], phases: list[int], arrivals: list[tuple[int, int]]) -> tuple[float, int]:
    """Return the share of tokens that were served, and how often an exhausted account was asked."""
    members = accounts(len(sizes))
    index, live, turns = pool_of(members, strategy), LiveState(), Turns()
    quotas = {a.id: Quota(size, NOW + phase) for a, size, phase in zip(members, sizes, phases, strict=True)}
    running: list[tuple[int, str]] = []
    served = denied = rejected = 0
    for number, (at_ms, tokens) in enumerate(arrivals):
        while running and running[0][0] <= at_ms:
            ended_ms, name = heapq.heappop(running)
            live.set_running(name, name, live.account(name).in_flight - 1)
            live.group(name).windows["5h"] = quotas[name].at(ended_ms).window()
        tried: dict[str, str] = {}
        while True:
            wish = Wish(MODEL, zlib.crc32(b"%d" % number), at_ms, "", dict(tried), 1)
            found = rank([index], live, turns, wish).candidates
            if not found:
                denied += tokens
                break
            name = found[0].account.id
            turns.took("p", found[0].account)
            chosen = quotas[name].at(at_ms)
            if chosen.used < chosen.size:
                chosen.used += tokens
                served += tokens
                live.set_running(name, name, live.account(name).in_flight + 1)
                heapq.heappush(running, (at_ms + 30_000, name))
                break
            rejected += 1
            tried[name] = "tried"
            live.rests[name] = Health("limited", "Limited", chosen.resets_ms, 0)
            live.group(name).windows["5h"] = chosen.window()
    return served / (served + denied), rejected


def office_days(seed: int, days: int, low: float, high: float, mean: int) -> list[tuple[int, int]]:
    """Return arrivals (time, tokens): `high` an hour in the six hours in which people work, else `low`."""
    rng, at_ms, out = random.Random(seed), NOW, []
    while at_ms < NOW + days * 24 * HOUR_MS:
        hour = (at_ms - NOW) // HOUR_MS % 24
        per_hour = high if 9 <= hour < 12 or 14 <= hour < 17 else low
        at_ms += int(rng.expovariate(per_hour) * HOUR_MS)
        out.append((at_ms, 1 + int(rng.expovariate(1 / mean))))
    return out


# By share of all quota that is asked for in an hour (0.2 can be had): quiet and busy hours.
@pytest.mark.parametrize(("seed", "low", "high"), [(0, 0.05, 0.35), (1, 0.05, 0.35), (2, 0.19, 0.22)])
def test_headroom_serves_more_and_is_rejected_less_than_the_others(seed, low, high):
    rng = random.Random(seed)
    sizes = [rng.choice([1, 1, 2, 5]) * 1_000_000 for _ in range(8)]
    phases = [int(rng.random() * LENGTH_MS) for _ in sizes]
    mean = 60_000
    arrivals = office_days(seed, 2, low * sum(sizes) / mean, high * sum(sizes) / mean, mean)
    served, rejected = simulate("Headroom", sizes, phases, arrivals)
    for other in ("RoundRobin", "LeastConnections"):
        served_by_other, rejected_by_other = simulate(other, sizes, phases, arrivals)
        assert served >= served_by_other
        assert rejected * 4 <= rejected_by_other
    assert served > 0.99


@pytest.mark.parametrize("told", [False, True], ids=["nothing known", "one with much to spare"])
def test_a_burst_over_schedulers_that_know_nothing_of_each_other_does_not_herd(told):
    members = accounts(20)
    got: Counter[str] = Counter()
    for scheduler in range(4):
        index, live, turns = pool_of(members, "Headroom"), LiveState(), Turns()
        for account in members:
            live.group(account.id).windows["5h"] = quota(0.5, 2.5)
        if told:
            live.group("a7").windows["5h"] = quota(0.2, 0.5)
        for number in range(50):
            seed = zlib.crc32(b"%d.%d" % (scheduler, number))
            name = rank([index], live, turns, Wish(MODEL, seed, NOW, "", {}, 1)).candidates[0].account.id
            live.set_running(name, name, live.account(name).in_flight + 1)
            got[name] += 1
    most, least = max(got.values()), min(got[a.id] for a in members)
    if told:
        assert got["a7"] == most <= 60
        assert sorted(got.values())[-2] <= 12
    else:
        assert most <= 14
        assert least >= 6
