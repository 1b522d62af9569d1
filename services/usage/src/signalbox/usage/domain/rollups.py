"""Roll-ups: sums of the ledger by minute, hour and day, kept exact by adding what each change of a row adds.

Pure. A row counts in the period in which its attempt was admitted; denials count nowhere. Minutes serve the limit
counters only and are forgotten after MINUTES_KEPT_MS; hours and days stay.
"""

from collections.abc import Iterable
from operator import add
from typing import NamedTuple, TypeVar

from signalbox.usage.domain.rows import MESSAGES_ROUTE, Row

MINUTE_MS = 60_000
HOUR_MS = 3_600_000
DAY_MS = 86_400_000
WIDTHS_MS = (MINUTE_MS, HOUR_MS, DAY_MS)
MINUTES_KEPT_MS = 3 * HOUR_MS


class RollupKey(NamedTuple):
    """What one sum is about."""

    width_ms: int
    start_ms: int
    key_id: str
    owner: str
    account_id: str
    model: str
    sent_model: str
    served_model: str


class Amounts(NamedTuple):
    """What is summed. `requests` counts first attempts, `limited_requests` those that request limits count."""

    attempts: int = 0
    requests: int = 0
    limited_requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    cache_read_tokens: int = 0
    cost_nano_usd: int = 0


def amounts_of(row: Row) -> Amounts:
    """Return what one attempt adds to each of its sums. A request counts once, at its first attempt."""
    first = row.attempt == 1
    return Amounts(
        1, int(first), int(first and row.route == MESSAGES_ROUTE), row.input_tokens, row.output_tokens,
        row.cache_write_5m_tokens, row.cache_write_1h_tokens, row.cache_read_tokens, row.cost_nano_usd,
    )


def changes(pairs: Iterable[tuple[Row | None, Row]]) -> dict[RollupKey, Amounts]:
    """Return what to add to which sum after each (row before, row now); sums that do not move are left out."""
    by_minute: dict[_MinuteKey, tuple[int, ...]] = {}
    for before, now in pairs:
        if now.attempt == 0:
            continue
        if before is not None:
            _add(by_minute, _minute_key(before), (-amount for amount in amounts_of(before)))
        _add(by_minute, _minute_key(now), amounts_of(now))
    sums: dict[RollupKey, tuple[int, ...]] = {}
    for (minute_ms, *names), amounts in by_minute.items():
        for width in WIDTHS_MS:
            _add(sums, RollupKey(width, minute_ms - minute_ms % width, *names), amounts)
    return {key: Amounts(*amounts) for key, amounts in sums.items() if any(amounts)}


K = TypeVar("K")
_MinuteKey = tuple[int, str, str, str, str, str, str]


def _minute_key(row: Row) -> _MinuteKey:
    minute_ms = row.admitted_at_ms - row.admitted_at_ms % MINUTE_MS
    return minute_ms, row.key_id, row.owner, row.account_id, row.model, row.sent_model, row.served_model


def _add(sums: dict[K, tuple[int, ...]], key: K, amounts: Iterable[int]) -> None:
    kept = sums.get(key)
    sums[key] = tuple(amounts) if kept is None else tuple(map(add, kept, amounts))
