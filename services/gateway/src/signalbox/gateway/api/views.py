"""What callers may read of their own key: limits and usage, in the contract's JSON shapes."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from signalbox.core.clock import rfc3339, to_ms
from signalbox.core.money import format_usd
from signalbox.gateway.domain.refusal import Refusal
from signalbox.v1.common_pb2 import Amount, LimitState
from signalbox.v1.scheduler_pb2 import InspectResponse
from signalbox.v1.usage_pb2 import UsageRow

_TOKENS = ("input_tokens", "output_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "cache_read_tokens")


def key_info(answer: InspectResponse) -> dict[str, Any]:
    """Return `/v1/key-info`: times are RFC 3339 or null, money is a decimal string in USD."""
    return {
        "key": answer.key_id,
        "owner": answer.owner,
        "state": answer.state,
        "expires_at": _time(answer.expires_at_ms),
        "first_used_at": _time(answer.first_used_at_ms),
        "concurrency": {"limit": answer.concurrency_limit or None, "in_flight": answer.in_flight},
        "limits": [_limit(state) for state in answer.limits],
    }


def _limit(state: LimitState) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": state.name, "per": state.per, "models": list(state.models), "resets_at": _time(state.resets_at_ms),
    }
    if state.HasField("requests"):
        shown["requests"] = _amount(state.requests)
    if state.HasField("tokens"):
        shown["tokens"] = _amount(state.tokens)
    if state.HasField("cost_nano_usd"):
        amount = state.cost_nano_usd
        shown["cost_usd"] = {name: format_usd(value) for name, value in _amount(amount).items()}
    return shown


def _amount(amount: Amount) -> dict[str, int]:
    return {"limit": amount.limit, "used": amount.used, "reserved": amount.reserved}


def _time(ms: int) -> str | None:
    return rfc3339(ms) if ms else None


def usage_rows(rows: Iterable[UsageRow], by: str) -> dict[str, Any]:
    """Return `/v1/usage`, grouped by `by`."""
    shown = []
    for row in rows:
        group = {by: getattr(row, by)} if by else {}
        tokens = {name: getattr(row, name) for name in _TOKENS}
        cost = format_usd(int(row.cost_nano_usd or 0))
        shown.append({**group, "requests": row.requests, **tokens, "cost_usd": cost})
    return {"data": shown}


def moment_ms(text: str, parameter: str) -> int:
    """Read a query parameter that holds a date or an RFC 3339 time (UTC where it does not say); 0 where it is empty."""
    if not text:
        return 0
    try:
        when = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError as e:
        raise Refusal("request_invalid", f"{parameter}: must be a date or an RFC 3339 time") from e
    return to_ms(when if when.tzinfo is not None else when.replace(tzinfo=UTC))
