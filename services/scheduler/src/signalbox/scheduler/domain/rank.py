"""Ranking: which accounts should serve a request, best first, and why the others are left out.

Pure: everything comes in as arguments. The taking, which re-checks all of this exactly, is Redis's.
A request looks at a bounded number of accounts of each tier, from a place that its own hash gives, so that large pools
cost no more than small ones and bursts spread; tiers up to that size are looked at whole.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

from signalbox.scheduler.domain.policies import AccountPolicy, model_class
from signalbox.scheduler.domain.snapshot import PoolIndex
from signalbox.scheduler.domain.state import Health, LiveState
from signalbox.scheduler.domain.tiers import FULL, SHORTLIST, Tier

ROUND_ROBIN = "RoundRobin"
_MULTIPLIER = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class Turns:
    """How often each account of a pool had its turn, relative to its weight, in this scheduler.

    Each scheduler takes turns evenly, so all of them together do.
    """

    def __init__(self) -> None:
        self._served: dict[tuple[str, str], float] = {}

    def of(self, pool_id: str, account_id: str) -> float:
        """Return the turns so far; newcomers begin with none and are brought level by `enter`."""
        return self._served.get((pool_id, account_id), 0.0)

    def enter(self, pool_id: str, accounts: Sequence[AccountPolicy]) -> None:
        """Bring accounts that never had a turn level with the one that had fewest, so that they do not get them all."""
        known = [s for a in accounts if (s := self._served.get((pool_id, a.id))) is not None]
        if len(known) < len(accounts):
            level = min(known, default=0.0)
            for account in accounts:
                self._served.setdefault((pool_id, account.id), level)

    def took(self, pool_id: str, account: AccountPolicy, times: int = 1) -> None:
        """Note `times` turns of the account (negative to take them back)."""
        key = pool_id, account.id
        self._served[key] = self._served.get(key, 0.0) + times / account.weight


class Ranked(NamedTuple):
    """One candidate. `pool` indexes the ranked pools; `score`: lower is better, unit by strategy.

    `full`: it is believed to be, and comes after those that are not.
    """

    account: AccountPolicy
    pool: int
    score: int
    sends: str
    full: bool = False


@dataclass(slots=True)
class Wish:
    """What is asked: a model, by a request with a hash, now; `tried` and `passed` are left out with their reason."""

    model: str
    seed: int
    now_ms: int
    pinned: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Accounts that this request does not take, by reason (tried, or what Redis said in this decision)."""
    want: int = 4
    woken_by: str = ""
    """An account that is known to have room again: a request that waited looks at it first."""


@dataclass(slots=True)
class Ranking:
    """The outcome. `more`: there may be further candidates; `serving`: members of any state that serve the model."""

    candidates: list[Ranked] = field(default_factory=list)
    excluded: dict[str, int] = field(default_factory=dict)
    serving: int = 0
    considered: int = 0
    more: bool = False
    soonest_ms: int = 0
    """When the first of the limited or cooling accounts may serve again; 0 where none is."""
    pin_state: str = ""
    """Why the pinned account is no candidate, "" where it is one or nothing is pinned."""

    def exclude(self, reason: str, until_ms: int = 0) -> None:
        """Count an account that is left out."""
        self.excluded[reason] = self.excluded.get(reason, 0) + 1
        if until_ms and (not self.soonest_ms or until_ms < self.soonest_ms):
            self.soonest_ms = until_ms


def rank(pools: Sequence[PoolIndex], live: LiveState, turns: Turns, wish: Wish) -> Ranking:
    """Rank the accounts of `pools` (in the order in which they are tried) for one request."""
    ranking = Ranking()
    seen: set[str] = set()
    if wish.pinned:
        _rank_pinned(pools, live, wish, ranking, seen=seen)
        if len(ranking.candidates) >= wish.want and not wish.woken_by:
            ranking.more = True
            return ranking
    if wish.woken_by and wish.woken_by not in seen:
        _rank_woken(pools, live, wish, ranking, seen=seen)
    for position, index in enumerate(pools):
        if len(ranking.candidates) >= wish.want:
            ranking.more = True
            continue
        for tier in index.tiers(wish.model):
            ranking.serving += len(tier.accounts)
            if len(ranking.candidates) >= wish.want:
                ranking.more = True
                continue
            found = _look_at(tier, live, wish, ranking, seen=seen)
            room = wish.want - len(ranking.candidates)
            scored = _score(index, found, live, turns, wish)
            ranking.candidates += [
                Ranked(a, position, score, sends, full) for full, score, _, a, sends in scored[:room]
            ]
            ranking.more = ranking.more or len(scored) > room
    return ranking


def _rank_pinned(
    pools: Sequence[PoolIndex], live: LiveState, wish: Wish, ranking: Ranking, *, seen: set[str],
) -> None:
    ranking.pin_state = "gone"
    for position, index in enumerate(pools):
        account = index.member(wish.pinned)
        if account is None:
            continue
        sends = account.sends(wish.model)
        if sends is None:
            ranking.pin_state = "elsewhere"
            continue
        reason, until_ms = _left_out(account, sends, live, wish)
        seen.add(account.id)
        ranking.pin_state = reason
        if reason:
            ranking.exclude(reason, until_ms)
        else:
            ranking.considered += 1
            ranking.candidates.append(Ranked(account, position, 0, sends))
        return


def _rank_woken(
    pools: Sequence[PoolIndex], live: LiveState, wish: Wish, ranking: Ranking, *, seen: set[str],
) -> None:
    for position, index in enumerate(pools):
        account = index.member(wish.woken_by)
        sends = account.sends(wish.model) if account is not None else None
        if account is None or sends is None:
            continue
        if not account.draining and not _left_out(account, sends, live, wish)[0]:
            seen.add(account.id)
            ranking.considered += 1
            ranking.candidates.append(Ranked(account, position, 0, sends))
        return


_Found = tuple[AccountPolicy, str, int, bool]
"""An account that can serve, what it sends, what it has in flight, and whether it is believed to be full."""


def _look_at(
    tier: Tier, live: LiveState, wish: Wish, ranking: Ranking, *, seen: Collection[str],
) -> list[_Found]:
    """Return accounts of a tier that can serve, from where the request's hash points."""
    found: list[_Found] = []
    for account in tier.accounts if tier.is_small else tier.from_place(wish.seed, wish.now_ms):
        if account.id in seen:
            continue
        sends = account.sends(wish.model) or wish.model
        reason, until_ms = ("draining", 0) if account.draining else _left_out(account, sends, live, wish)
        state = live.accounts.get(account.id)
        in_flight = state.in_flight if state is not None else 0
        full = not reason and 0 < account.max_concurrency <= in_flight
        if tier.is_small:
            if reason:
                ranking.exclude(reason, until_ms)
            else:
                found.append((account, sends, in_flight, full))
        elif full or reason:
            if account.id in wish.left_out:
                ranking.exclude(reason or FULL)
            else:
                tier.put_aside(account, reason or FULL, live.until_ms(account, sends, wish.now_ms) if reason else 0)
        else:
            found.append((account, sends, in_flight, False))
            if len(found) == SHORTLIST:
                ranking.more = True
                break
    if not tier.is_small:
        _add_believed_full(tier, wish, ranking, found, seen=seen)
    ranking.considered += len(found)
    return found


def _add_believed_full(
    tier: Tier, wish: Wish, ranking: Ranking, found: list[_Found], *, seen: Collection[str],
) -> None:
    """Count those set aside; where nothing better is there, offer some that may be full no more: Redis knows."""
    for reason, number in tier.excluded.items():
        ranking.excluded[reason] = ranking.excluded.get(reason, 0) + number
    if found:
        return
    soonest_ms = tier.soonest_ms()
    if soonest_ms and (not ranking.soonest_ms or soonest_ms < ranking.soonest_ms):
        ranking.soonest_ms = soonest_ms
    for account in tier.believed_full(SHORTLIST + len(wish.left_out)):
        if account.id not in wish.left_out and account.id not in seen and len(found) < SHORTLIST:
            found.append((account, account.sends(wish.model) or wish.model, account.max_concurrency, True))
    ranking.more = ranking.more or (len(found) == SHORTLIST and len(wish.left_out) < 2 * SHORTLIST)


def _left_out(account: AccountPolicy, sends: str, live: LiveState, wish: Wish) -> tuple[str, int]:
    """Return why an account is no candidate ("" where it is one), and until when (0: not by time)."""
    reason = wish.left_out.get(account.id) or account.fault(wish.now_ms)
    if reason:
        return reason, 0
    if not live.benches and not live.rests:
        return "", 0
    out: Health | None = live.kept_out(account.id, account.group, model_class(sends), wish.now_ms)
    if out is None:
        return "", 0
    return out.kind, 0 if out.kind == "benched" else out.until_ms


_Scored = tuple[bool, int, int, AccountPolicy, str]
_order = itemgetter(0, 1, 2)


def _score(
    index: PoolIndex, found: list[_Found], live: LiveState, turns: Turns, wish: Wish,
) -> list[_Scored]:
    """Return what was found, best first: those believed full last, then by score, ties by lot."""
    strategy = index.pool.strategy
    if strategy == ROUND_ROBIN:
        turns.enter(index.pool.id, [f[0] for f in found])
    scored: list[_Scored] = []
    for account, sends, in_flight, full in found:
        tie = _mix(wish.seed, account.salt)
        if strategy == "Headroom":
            score = _headroom(account, in_flight, live.surplus(account.group, model_class(sends), wish.now_ms))
        elif strategy == "LeastConnections":
            score = in_flight * 1000 // account.weight
        elif strategy == ROUND_ROBIN:
            score = round((turns.of(index.pool.id, account.id) + 1 / account.weight) * 1_000_000)
        else:
            score = _lot(tie, account.weight)
        scored.append((full, score, tie, account, sends))
    scored.sort(key=_order)
    return scored


def _headroom(account: AccountPolicy, in_flight: int, surplus: float) -> int:
    """Permille of quota that would be missed (500: as much as time demands), plus permille of concurrency.

    Concurrency counts against the weight where the account has no limit of its own.
    """
    if account.max_concurrency:
        busy = in_flight / account.max_concurrency
    else:
        busy = in_flight / (in_flight + account.weight / 5)
    return 500 - round(500 * surplus) + int(1000 * busy)


def _lot(tie: int, weight: int) -> int:
    """Draw a lot: over all requests the account with the lowest one is each in proportion to its weight."""
    return int(-math.log((tie + 1) / (_MASK + 2)) / weight * 1e9)


def _mix(seed: int, salt: int) -> int:
    """Return 64 bits that depend on both, evenly enough for ties and lots."""
    x = (seed ^ salt * _MULTIPLIER) * _MULTIPLIER & _MASK
    x = (x ^ (x >> 32)) * _MULTIPLIER & _MASK
    return x ^ (x >> 29)
