"""Limit counters from the ledger, after Redis lost its own: which counter each of its buckets adds to.

What the ledger knows is taken apart by object, so that one whose document comes later gets its counters then.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from signalbox.scheduler.domain.operations import lease_id
from signalbox.scheduler.domain.policies import ACCOUNT, KEY, AccountPolicy, KeyLimit, KeyPolicy
from signalbox.scheduler.domain.settling import billed_tokens
from signalbox.v1.usage_pb2 import AccountBucket, CounterBucket, LedgerRow, QueryResponse
from signalbox.wire.usage import told_usage

_MOST_ROWS = 500

Row = tuple[int, int, int, int]
"""Start in Unix milliseconds, then what to add in each of a counter's dimensions."""


def by_object(known: QueryResponse) -> dict[tuple[str, str], QueryResponse]:
    """Return the buckets of each key and each account, by kind and id."""
    parts: dict[tuple[str, str], QueryResponse] = {}
    for bucket in known.counters:
        parts.setdefault((KEY, bucket.key_id), QueryResponse()).counters.append(bucket)
    for of_account in known.accounts:
        parts.setdefault((ACCOUNT, of_account.account_id), QueryResponse()).accounts.append(of_account)
    return parts


def rebuild_operations(
    policy: KeyPolicy | AccountPolicy, part: QueryResponse, since_ms: Mapping[str, int],
) -> list[dict[str, Any]]:
    """Return the operations that add an object's buckets to the counters of its limits.

    `since_ms`: when limits without a `since` of their own were first seen, by `key|limit`. A bucket that a limit's
    beginning falls into counts whole.
    """
    counters: list[tuple[str, str, list[Row]]] = []
    if isinstance(policy, KeyPolicy):
        for limit in policy.limits:
            start_ms = limit.since_ms or since_ms.get(f"{policy.id}|{limit.name}", 0) if limit.per == "Total" else 0
            counters.append((f"k:{policy.id}:{limit.name}", limit.per, _rows_of_key(limit, part.counters, start_ms)))
    else:
        for cap in policy.caps:
            limited = (cap.requests >= 0, cap.input_tokens >= 0, cap.output_tokens >= 0)
            counters.append((f"a:{policy.group}:{cap.per}", cap.per, _rows_of_account(limited, part.accounts)))
    return [
        {"op": "rebuild", "name": name, "per": per, "rows": rows[i : i + _MOST_ROWS]}
        for name, per, rows in counters for i in range(0, len(rows), _MOST_ROWS)
    ]


def told_operations(rows: Sequence[LedgerRow]) -> list[dict[str, Any]]:
    """Return the operations that tell which attempts the buckets hold that may be settled yet, and with what."""
    told = []
    for row in rows:
        taken, given = billed_tokens(told_usage(row.usage))
        told.append((lease_id(row.request_id, row.attempt), taken + given, row.cost_nano_usd, taken, given))
    return [{"op": "told", "rows": told[i : i + _MOST_ROWS]} for i in range(0, len(told), _MOST_ROWS)]


def _rows_of_key(limit: KeyLimit, buckets: Sequence[CounterBucket], since_ms: int) -> list[Row]:
    limited = (limit.requests is not None, limit.tokens is not None, limit.cost is not None)
    sums: dict[int, list[int]] = {}
    for b in buckets:
        if b.start_ms + b.width_ms <= since_ms:
            continue
        if limit.applies_to(b.model) or (b.sent_model and limit.applies_to(b.sent_model)):
            _add(sums, b.start_ms, limited, (b.requests, b.tokens, b.cost_nano_usd))
    return _sorted(sums)


def _rows_of_account(limited: tuple[bool, bool, bool], buckets: Sequence[AccountBucket]) -> list[Row]:
    sums: dict[int, list[int]] = {}
    for b in buckets:
        _add(sums, b.start_ms, limited, (b.requests, b.input_tokens, b.output_tokens))
    return _sorted(sums)


def _add(sums: dict[int, list[int]], start_ms: int, limited: Sequence[bool], amounts: Sequence[int]) -> None:
    row = sums.setdefault(start_ms, [0, 0, 0])
    for i, (is_limited, amount) in enumerate(zip(limited, amounts, strict=True)):
        row[i] += amount if is_limited else 0


def _sorted(sums: Mapping[int, list[int]]) -> list[Row]:
    return [(start, a, b, c) for start, (a, b, c) in sorted(sums.items())]
