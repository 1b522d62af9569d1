"""What an offer of candidates asks of Redis: amounts to reserve, versions to hold, each account's own part."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from signalbox.scheduler.domain.operations import COUNT_TOKENS, NOTHING, Candidate, Limit
from signalbox.scheduler.domain.policies import ACCOUNT, KEY, POOL, KeyLimit, KeyPolicy, PoolPolicy
from signalbox.scheduler.domain.rank import Ranked
from signalbox.scheduler.domain.snapshot import Reach
from signalbox.scheduler.domain.view import View
from signalbox.v1.scheduler_pb2 import AdmitRequest

_DERIVED_PIN_TTL_MS = 300_000
_MOST_KNOWN = 256


class Offer(NamedTuple):
    """What an offer of the same candidates always says: `limits` of the key, and the same, the accounts and their
    pools as the functions take them.
    """

    limits: tuple[KeyLimit, ...]
    operands: tuple[Limit, ...]
    cands: list[Candidate]
    pools: list[tuple[str, int, int]]
    policies: list[PoolPolicy]
    counts: bool
    """Whether the request counts against limits at all."""
    is_capped: bool
    """Whether any account has limits of its own."""


def offer(reach: Reach, key: KeyPolicy, model: str, request: AdmitRequest, candidates: Sequence[Ranked]) -> Offer:
    """Return the offer of `candidates` to a request of `key`; worked out once until a document changes."""
    counts, derived = request.route != COUNT_TOKENS, request.session_derived
    same = model, counts, derived, *[(c.account.id, c.pool) for c in candidates]
    known = reach.offers.get(same)
    if known is None:
        if len(reach.offers) >= _MOST_KNOWN:
            reach.offers.clear()
        known = reach.offers[same] = _worked_out(reach, key, model, candidates, counts=counts, derived=derived)
    return known


def _worked_out(
    reach: Reach, key: KeyPolicy, model: str, candidates: Sequence[Ranked], *, counts: bool, derived: bool,
) -> Offer:
    limits, operands = key.limits_for(model) if counts else ((), ())
    slots: dict[int, int] = {}    # the pools that are offered, by their place among the key's, counted from 1
    for c in candidates:
        slots.setdefault(c.pool, len(slots) + 1)
    policies = [reach.indexes[p].pool for p in slots]
    return Offer(
        limits, operands, [_as_candidate(c, slots[c.pool], key, model, operands, counts=counts) for c in candidates],
        [(p.id, _pin_ttl_ms(p, derived=derived), int(p.refuses)) for p in policies], policies, counts,
        any(c.account.caps for c in candidates),
    )


def amounts(
    view: View, key: KeyPolicy, model: str, request: AdmitRequest, offered: Offer,
) -> tuple[tuple[int, int], ...]:
    """Return the worst case, the usual case (tokens, cost) and the sizes for accounts' caps (input, output)."""
    if not offered.counts:
        return NOTHING, NOTHING, NOTHING
    bytes_, most = request.input_bytes, request.max_tokens
    sizes = (bytes_ // 4, most) if offered.is_capped else NOTHING
    if not key.measures_amounts:
        return NOTHING, NOTHING, sizes
    worst = view.prices.worst_case(model, bytes_, most)
    return worst, view.estimates.usual(key.id, model, bytes_, most, worst), sizes


def _pin_ttl_ms(pool: PoolPolicy, *, derived: bool) -> int:
    """Return how long a pin lives that a request makes or renews; 0: none is made."""
    return min(pool.pin_ttl_ms, _DERIVED_PIN_TTL_MS) if derived else pool.pin_ttl_ms


def _as_candidate(
    c: Ranked, pool: int, key: KeyPolicy, model: str, limits: Sequence[Limit], *, counts: bool,
) -> Candidate:
    """Return a candidate for the functions, with the key's limits that only the name sent to it falls under."""
    extra: tuple[Limit, ...] = ()
    if counts and c.sends != model and key.limits:
        extra = tuple(x for x in key.limits_for(c.sends)[1] if x not in limits)
    return c.account.candidate(pool, c.sends, extra, counts=counts)


def versions_of(
    key: KeyPolicy, pools: Iterable[PoolPolicy], candidates: Iterable[Ranked],
) -> tuple[list[str], list[str]]:
    """Return the names and the versions of all that the offer rests on."""
    held = [(f"{KEY}/{key.id}", key.version), *((f"{POOL}/{p.id}", p.version) for p in pools)]
    held += [(f"{ACCOUNT}/{c.account.id}", c.account.version) for c in candidates]
    return [name for name, _ in held], [version for _, version in held]
