"""What the gateway's pages and the command line both show, in one JSON shape: limits, sums of usage, moments.

Which rows are shown, and to whom, is theirs to decide.
"""

from collections.abc import Mapping
from typing import Any

from signalbox.core.clock import rfc3339
from signalbox.core.money import format_usd
from signalbox.v1.common_pb2 import Amount, LimitState
from signalbox.v1.usage_pb2 import UsageRow

Row = dict[str, Any]

TOKEN_FIELDS = (
    "input_tokens", "output_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "cache_read_tokens",
)
# How a grouping is called, and the field of UsageRow that holds it.
USAGE_GROUPS: Mapping[str, str] = {
    "key": "key_id", "owner": "owner", "account": "account_id", "model": "model", "day": "day",
}


def moment(ms: int) -> str | None:
    """Return Unix milliseconds as RFC 3339 in UTC, None for the 0 that means never or unknown."""
    return rfc3339(ms) if ms else None


def limit_row(limit: LimitState) -> Row:
    """Return one limit with the numbers that it holds; money as decimal strings in USD."""
    row: Row = {
        "name": limit.name,
        "per": limit.per,
        "models": list(limit.models),
        "resets_at": moment(limit.resets_at_ms),
    }
    if limit.HasField("requests"):
        row["requests"] = _amount(limit.requests)
    if limit.HasField("tokens"):
        row["tokens"] = _amount(limit.tokens)
    if limit.HasField("cost_nano_usd"):
        row["cost_usd"] = {name: format_usd(nano) for name, nano in _amount(limit.cost_nano_usd).items()}
    return row


def usage_row(row: UsageRow, *by: str) -> Row:
    """Return one sum with the fields that it is grouped by (of USAGE_GROUPS); money as a decimal string in USD."""
    return {
        **{group: getattr(row, USAGE_GROUPS[group]) for group in by},
        "requests": row.requests,
        **{field: getattr(row, field) for field in TOKEN_FIELDS},
        "cost_usd": format_usd(int(row.cost_nano_usd or 0)),
    }


def _amount(amount: Amount) -> dict[str, int]:
    return {"limit": amount.limit, "used": amount.used, "reserved": amount.reserved}
