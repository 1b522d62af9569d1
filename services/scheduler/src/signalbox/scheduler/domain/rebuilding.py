"""Limit counters from the ledger: which counter each of its buckets adds to, after Redis lost its own."""

from collections.abc import Iterable, Mapping
from typing import Any

from signalbox.scheduler.domain.policies import KeyLimit, KeyPolicy
from signalbox.v1.usage_pb2 import CounterBucket

_MOST_ROWS = 500


def rebuild_operations(
    keys: Mapping[str, KeyPolicy], buckets: Iterable[CounterBucket], since_ms: Mapping[str, int],
) -> list[dict[str, Any]]:
    """Return the operations that add the ledger's buckets to the counters of all keys' limits.

    `since_ms`: when limits without a `since` of their own were first seen, by `key|limit`. A bucket that a limit's
    beginning falls into counts whole.
    """
    by_key: dict[str, list[CounterBucket]] = {}
    for bucket in buckets:
        by_key.setdefault(bucket.key_id, []).append(bucket)
    operations = []
    for key_id, found in by_key.items():
        key = keys.get(key_id)
        for limit in key.limits if key else ():
            start_ms = limit.since_ms or since_ms.get(f"{key_id}|{limit.name}", 0) if limit.per == "Total" else 0
            rows = _rows(limit, found, start_ms)
            name = f"k:{key_id}:{limit.name}"
            operations += [
                {"op": "rebuild", "name": name, "per": limit.per, "rows": rows[i : i + _MOST_ROWS]}
                for i in range(0, len(rows), _MOST_ROWS)
            ]
    return operations


def _rows(limit: KeyLimit, buckets: list[CounterBucket], since_ms: int) -> list[tuple[int, int, int, int]]:
    sums: dict[int, list[int]] = {}
    for b in buckets:
        if b.start_ms + b.width_ms <= since_ms:
            continue
        if not limit.applies_to(b.model) and not (b.sent_model and limit.applies_to(b.sent_model)):
            continue
        row = sums.setdefault(b.start_ms, [0, 0, 0])
        row[0] += b.requests if limit.requests is not None else 0
        row[1] += b.tokens if limit.tokens is not None else 0
        row[2] += b.cost_nano_usd if limit.cost is not None else 0
    return [(start, *row) for start, row in sorted(sums.items())]  # type: ignore[misc]
