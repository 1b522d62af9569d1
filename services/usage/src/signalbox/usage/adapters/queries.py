"""The ledger's reads: rows of attempts and facts here, sums of them in sums.py.

Blocking; runs in the readers' threads.
"""

from typing import Any

from sqlalchemy import Connection, Engine, Select, or_, select, tuple_

from signalbox.usage.adapters import sums
from signalbox.usage.adapters.ledger import fact_of
from signalbox.usage.adapters.schema import attempts, facts
from signalbox.usage.domain.rows import OUTCOME_NAMES, Row, outcome_of
from signalbox.v1.common_pb2 import OUTCOME_ORPHANED, TokenUsage
from signalbox.v1.usage_pb2 import (
    CountersQuery,
    ExplainQuery,
    LedgerRow,
    QueryResponse,
    RequestsQuery,
    UsageQuery,
    UsageRow,
)

DEFAULT_LAST = 50
MAX_LAST = 10_000
MAX_UNSETTLED = 100_000
UNSETTLED_MS = 2 * 3_600_000
"""How long after its admission an attempt may still be settled."""
_TOKENS = (
    "input_tokens", "output_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "cache_read_tokens",
)
_USAGE = (*_TOKENS, "web_search_requests", "service_tier", "inference_geo", "speed")
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

    def counters(self, query: CountersQuery) -> QueryResponse:
        """Return the buckets that rebuild limit counters (see periods.counter_spans), all facts, and the attempts
        among them that may yet be settled, all as of one instant.
        """
        with self._engine.connect() as connection:
            if connection.dialect.name == "postgresql":  # SQLite reads one state of the database anyway
                connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                return QueryResponse(
                    counters=sums.counters(connection, query.now_ms),
                    accounts=sums.account_counters(connection, query.now_ms),
                    facts=[fact_of(row) for row in connection.execute(select(facts))],
                    rows=_unsettled(connection, query) if query.ended_since_ms else (),
                )

    def _rows(self, query: Select[Any]) -> list[LedgerRow]:
        with self._engine.begin() as connection:
            return [ledger_row(Row._make(row)) for row in connection.execute(query)]


def _unsettled(connection: Connection, query: CountersQuery) -> list[LedgerRow]:
    t = attempts.c
    ended_ms = t.admitted_at_ms + t.duration_ms
    found = select(t.request_id, t.attempt, t.cost_nano_usd, *(t[name] for name in _TOKENS)).where(
        t.attempt > 0, t.admitted_at_ms >= query.ended_since_ms - UNSETTLED_MS,
        or_(
            ended_ms >= query.ended_since_ms, t.outcome == OUTCOME_NAMES[OUTCOME_ORPHANED],
            t.gateway_id.not_in(list(query.delivered)),
        ),
    ).order_by(t.admitted_at_ms.desc()).limit(MAX_UNSETTLED)
    return [
        LedgerRow(
            request_id=row.request_id, attempt=row.attempt, cost_nano_usd=row.cost_nano_usd,
            usage=TokenUsage(**{name: getattr(row, name) for name in _TOKENS}),
        )
        for row in connection.execute(found)
    ]


def ledger_row(row: Row) -> LedgerRow:
    """Return a row as the contract's message."""
    usage = TokenUsage(**{name: getattr(row, name) for name in _USAGE})
    message = LedgerRow(outcome=outcome_of(row), usage=usage)
    for name in _SAME:
        setattr(message, name, getattr(row, name))
    return message
