"""The state of a key's limits, from what the Redis functions report to what callers read."""

from collections.abc import Sequence
from typing import Any

from signalbox.scheduler.domain.policies import KeyLimit
from signalbox.v1.common_pb2 import Amount, LimitState


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
    for state in states:
        for amount, there in (
            (state.requests, state.HasField("requests")),
            (state.tokens, state.HasField("tokens")),
            (state.cost_nano_usd, state.HasField("cost_nano_usd")),
        ):
            if there and amount.used >= amount.limit:
                return state.name
    return ""
