"""The ledger's reads: rows of attempts and facts here, sums of them in sums.py.

Blocking; runs in the readers' threads.
"""

from typing import Any

from sqlalchemy import Engine, Select, select, tuple_

from signalbox.usage.adapters import sums
from signalbox.usage.adapters.ledger import fact_of
from signalbox.usage.adapters.schema import attempts, facts
from signalbox.usage.domain.rows import Row, outcome_of
from signalbox.v1.common_pb2 import TokenUsage
from signalbox.v1.usage_pb2 import (
    CounterBucket,
    CountersQuery,
    ExplainQuery,
    Fact,
    LedgerRow,
    RequestsQuery,
    UsageQuery,
    UsageRow,
)

DEFAULT_LAST = 50
MAX_LAST = 10_000
_USAGE = (
    "input_tokens", "output_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "cache_read_tokens",
    "web_search_requests", "service_tier", "inference_geo", "speed",
)
_SAME = tuple(
    name for name in LedgerRow.DESCRIPTOR.fields_by_name if name not in ("outcome", "usage") and name in Row._fields
)


class Queries:
    """Answers questions from one read engine; any number of threads. All raise sqlalchemy.exc.SQLAlchemyError."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def requests(self, query: RequestsQuery) -> list[LedgerRow]:
        """Return the newest attempts first, at most MAX_LAST; `before` asks for the next page."""
        t = attempts.c
        found = select(attempts).where(*sums.belongs_to(attempts, query.key_id, query.account_id))
        if query.since_ms:
            found = found.where(t.admitted_at_ms >= query.since_ms)
        if query.until_ms:
            found = found.where(t.admitted_at_ms < query.until_ms)
        if query.outcome:
            found = found.where(t.outcome == query.outcome)
        if not query.with_denials:
            found = found.where(t.attempt > 0)
        order = (t.admitted_at_ms, t.request_id, t.attempt)
        if query.HasField("before"):
            place = query.before
            # The first condition is what an index answers.
            found = found.where(
                t.admitted_at_ms <= place.admitted_at_ms,
                tuple_(*order) < (place.admitted_at_ms, place.request_id, place.attempt),
            )
        found = found.order_by(*(column.desc() for column in order))
        return self._rows(found.limit(min(query.last or DEFAULT_LAST, MAX_LAST)))

    def explain(self, query: ExplainQuery) -> list[LedgerRow]:
        """Return all that is known of one request, its denial (attempt 0) first."""
        t = attempts.c
        return self._rows(select(attempts).where(t.request_id == query.request_id).order_by(t.attempt))

    def usage(self, query: UsageQuery) -> list[UsageRow]:
        """Return sums grouped by any of key, owner, account, model, day, ordered by these."""
        with self._engine.begin() as connection:
            return sums.usage(connection, query)

    def counters(self, query: CountersQuery) -> tuple[list[CounterBucket], list[Fact]]:
        """Return the buckets that rebuild limit counters (see periods.counter_spans) and all facts."""
        with self._engine.begin() as connection:
            kept = [fact_of(row) for row in connection.execute(select(facts))]
            return sums.counters(connection, query.now_ms), kept

    def _rows(self, query: Select[Any]) -> list[LedgerRow]:
        with self._engine.begin() as connection:
            return [ledger_row(Row._make(row)) for row in connection.execute(query)]


def ledger_row(row: Row) -> LedgerRow:
    """Return a row as the contract's message."""
    usage = TokenUsage(**{name: getattr(row, name) for name in _USAGE})
    message = LedgerRow(outcome=outcome_of(row), usage=usage)
    for name in _SAME:
        setattr(message, name, getattr(row, name))
    return message
