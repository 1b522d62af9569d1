"""What an offer of candidates asks of Redis: amounts to reserve, versions to hold, each account's own part."""

from collections.abc import Iterable, Sequence

from signalbox.scheduler.domain.operations import NOTHING, Candidate, Limit
from signalbox.scheduler.domain.policies import ACCOUNT, KEY, POOL, KeyPolicy, PoolPolicy
from signalbox.scheduler.domain.rank import Ranked
from signalbox.scheduler.domain.view import View
from signalbox.v1.scheduler_pb2 import AdmitRequest

_DERIVED_PIN_TTL_MS = 300_000


def amounts(
    view: View, key: KeyPolicy, request: AdmitRequest, candidates: Iterable[Ranked],
) -> tuple[tuple[int, int], ...]:
    """Return the worst case, the usual case (tokens, cost) and the sizes for accounts' caps (input, output)."""
    bytes_, most, model = request.input_bytes, request.max_tokens, request.model
    sizes = (bytes_ // 4, most) if any(c.account.caps for c in candidates) else NOTHING
    if not key.measures_amounts:
        return NOTHING, NOTHING, sizes
    worst = view.prices.worst_case(model, bytes_, most)
    return worst, view.estimates.usual(key.id, model, bytes_, most, worst), sizes


def pin_ttl_ms(pool: PoolPolicy, request: AdmitRequest) -> int:
    """Return how long a pin lives that the request makes or renews; 0: none is made."""
    return min(pool.pin_ttl_ms, _DERIVED_PIN_TTL_MS) if request.session_derived else pool.pin_ttl_ms


def as_candidate(
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
