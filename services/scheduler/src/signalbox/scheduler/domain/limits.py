"""The state of a key's limits, from what the Redis functions report to what callers read."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from signalbox.scheduler.domain.policies import KeyLimit
from signalbox.v1.common_pb2 import Amount, LimitState
from signalbox.wire.key_limits import Left, left, limit_lines


def lines_of_limits(limits: Sequence[KeyLimit], reports: Sequence[Any]) -> bytes:
    """Return what callers are told of the tightest limits, as lines of a head; `reports` as for `limit_states`."""
    requests: Left | None = None
    tokens: Left | None = None
    for limit, report in zip(limits, reports, strict=False):
        if limit.requests is not None:
            found = left(limit.requests, report[0], report[1], report[6])
            requests = found if requests is None else min(requests, found)
        if limit.tokens is not None:
            found = left(limit.tokens, report[2], report[3], report[6])
            tokens = found if tokens is None else min(tokens, found)
    return limit_lines(requests, tokens)


def limit_states(limits: Sequence[KeyLimit], reports: Sequence[Any]) -> list[LimitState]:
    """Pair limits with their reports: used and reserved for each dimension, then when the period ends (0: never)."""
    return [_state(limit, report) for limit, report in zip(limits, reports, strict=False)]


def _state(limit: KeyLimit, report: Sequence[int]) -> LimitState:
    return LimitState(
        name=limit.name, per=limit.per, models=limit.models, resets_at_ms=report[6],
        requests=_amount(limit.requests, report, 0), tokens=_amount(limit.tokens, report, 2),
        cost_nano_usd=_amount(limit.cost, report, 4),
    )


def _amount(limit: int | None, report: Sequence[int], at: int) -> Amount | None:
    return None if limit is None else Amount(limit=limit, used=report[at], reserved=report[at + 1])


def exhausted(states: Sequence[LimitState]) -> str:
    """Return the name of a limit that has no room left for any request, "" where all have some."""
    return next((state.name for state in states for _, amount in _amounts(state) if amount.used >= amount.limit), "")


USES = ("some", "near", "all")
_NEAR_PERCENT = 80


def census(keys: Iterable[Sequence[LimitState]]) -> Counter[tuple[str, str, str]]:
    """Count keys by (what a limit counts, its period, how much of it is used); of a key's like limits the fullest."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for states in keys:
        fullest: dict[tuple[str, str], int] = {}
        for state in states:
            for dimension, amount in _amounts(state):
                kind = (dimension, state.per)
                fullest[kind] = max(fullest.get(kind, 0), _use(amount))
        counts.update((*kind, USES[use]) for kind, use in fullest.items())
    return counts


def _use(amount: Amount) -> int:
    if amount.used >= amount.limit:
        return 2
    return int(amount.used * 100 >= amount.limit * _NEAR_PERCENT)


def _amounts(state: LimitState) -> Iterator[tuple[str, Amount]]:
    """Yield what a limit counts, and how much of it there is."""
    for dimension, field in (("requests", "requests"), ("tokens", "tokens"), ("cost", "cost_nano_usd")):
        if state.HasField(field):
            yield dimension, getattr(state, field)
