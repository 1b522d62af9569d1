"""Sums of the ledger: usage reports and limit counters, from roll-ups where whole periods fit, else from rows.

Money stays exact beyond 64 bits, which SQLite's own sum does not reach.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, Table, Text, and_, case, func, literal_column, select

from signalbox.core.clock import from_ms
from signalbox.usage.adapters.schema import attempts, rollups
from signalbox.usage.domain.periods import Span, counter_spans, cover
from signalbox.usage.domain.rollups import DAY_MS, MINUTE_MS
from signalbox.usage.domain.rows import MESSAGES_ROUTE
from signalbox.v1.usage_pb2 import AccountBucket, CounterBucket, UsageQuery, UsageRow

_LIMB = 10**9
_TOKENS = (
    "input_tokens", "output_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "cache_read_tokens",
)
_COUNTED = ("input_tokens", "output_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens")
_COLUMNS = {"key": "key_id", "owner": "owner", "account": "account_id"}
_DIMENSIONS = (*_COLUMNS, "model", "day")
_COUNTER_GROUP = ("key_id", "model", "sent_model", "served_model")

# Written into statements: PostgreSQL can't tell that two parameters, in SELECT and in GROUP BY, are equal.
_NO_TEXT: ColumnElement[str] = literal_column("''", Text)

Groups = dict[tuple[Any, ...], list[int]]


def check_dimensions(by: Iterable[str]) -> None:
    """Raise ValueError where `by` names what usage can't be grouped by, or one thing twice."""
    seen = set()
    for name in by:
        if name not in _DIMENSIONS or name in seen:
            raise ValueError(f"group by each of {', '.join(_DIMENSIONS)} at most once, not {name[:40]!r}")
        seen.add(name)


def belongs_to(table: Table, key_id: str, account_id: str) -> list[ColumnElement[bool]]:
    """Return the conditions for rows of one key and one account; "" leaves it open."""
    wanted = ((table.c.key_id, key_id), (table.c.account_id, account_id))
    return [column == value for column, value in wanted if value]


def usage(connection: Connection, query: UsageQuery) -> list[UsageRow]:
    """Return the report that `query` asks for, ordered by its groups."""
    groups: Groups = {}
    for span in cover(query.since_ms, query.until_ms):
        source = _Source(span)
        dimensions = [source.dimension(name) for name in query.by]
        amounts = [source.requests, *(source.table.c[name] for name in _TOKENS)]
        wanted = belongs_to(source.table, query.key_id, query.account_id)
        _add(groups, source.sums(connection, dimensions, amounts, wanted))
    return [_usage_row(query.by, group, groups[group]) for group in sorted(groups)]


def counters(connection: Connection, now_ms: int) -> list[CounterBucket]:
    """Return what rebuilds limit counters as of `now_ms`: non-overlapping buckets, oldest and widest first."""
    buckets: list[CounterBucket] = []
    for span in counter_spans(now_ms):
        groups: Groups = {}
        for part in _kept_parts(span):
            source = _Source(part)
            t = source.table.c
            group = [source.when - source.when % _constant(span.width_ms), *(t[name] for name in _COUNTER_GROUP)]
            tokens = sum((t[name] for name in _COUNTED[1:]), start=t[_COUNTED[0]])
            _add(groups, source.sums(connection, group, [source.limited_requests, tokens], []))
        buckets += [_bucket(span.width_ms, group, groups[group]) for group in sorted(groups)]
    return buckets


def account_counters(connection: Connection, now_ms: int) -> list[AccountBucket]:
    """Return what rebuilds the counters of accounts' known caps as of `now_ms`: buckets as those of `counters`."""
    buckets: list[AccountBucket] = []
    for span in counter_spans(now_ms):
        groups: Groups = {}
        for part in _kept_parts(span):
            source = _Source(part)
            t = source.table.c
            group = [source.when - source.when % _constant(span.width_ms), t.account_id]
            written = t.cache_write_5m_tokens + t.cache_write_1h_tokens
            amounts = [source.limited_attempts, t.input_tokens + written, t.output_tokens]
            _add(groups, source.sums(connection, group, amounts, [t.account_id != _NO_TEXT]))
        for (start_ms, account_id), (requests, taken, given, _) in sorted(groups.items()):
            buckets.append(AccountBucket(
                account_id=account_id, start_ms=start_ms, width_ms=span.width_ms, requests=requests,
                input_tokens=taken, output_tokens=given,
            ))
    return buckets


def _kept_parts(span: Span) -> list[Span]:
    """Return `span` of counters as spans of what is kept: minutes are, seconds are not, days end within a day."""
    if span.width_ms == MINUTE_MS:
        return [span]
    if span.width_ms == DAY_MS:
        return cover(span.start_ms, span.end_ms) if span.end_ms else []
    return [span._replace(width_ms=1)]


class _Source:
    """Where the sums of one span come from: the roll-ups of its width, or the rows themselves."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._rolled_up = span.width_ms > 1
        self.table = rollups if self._rolled_up else attempts
        t = self.table.c
        self.when: ColumnElement[int] = t.start_ms if self._rolled_up else t.admitted_at_ms
        first = attempts.c.attempt == 1
        self.requests: ColumnElement[int] = t.requests if self._rolled_up else _one_if(first)
        self.limited_requests: ColumnElement[int] = (
            t.limited_requests if self._rolled_up else _one_if(and_(first, attempts.c.route == MESSAGES_ROUTE))
        )
        # Roll-ups do not tell a free route's later attempts from others: accounts' caps count those too.
        self.limited_attempts: ColumnElement[int] = (
            t.attempts - t.requests + t.limited_requests if self._rolled_up
            else _one_if(attempts.c.route == MESSAGES_ROUTE)
        )

    def dimension(self, name: str) -> ColumnElement[Any]:
        """Return the column for one of _DIMENSIONS; a day is the number of days since 1970."""
        t = self.table.c
        if name == "day":
            return self.when // _constant(DAY_MS)
        if name == "model":
            return case((t.served_model != _NO_TEXT, t.served_model), (t.sent_model != _NO_TEXT, t.sent_model),
                        else_=t.model)
        return t[_COLUMNS[name]]

    def sums(
        self,
        connection: Connection,
        group: Sequence[ColumnElement[Any]],
        amounts: Sequence[ColumnElement[int]],
        conditions: Sequence[ColumnElement[bool]],
    ) -> Iterator[tuple[tuple[Any, ...], list[int]]]:
        """Yield each group that holds an attempt, with the sums of `amounts` and, last, of nano-dollars."""
        cost = self.table.c.cost_nano_usd
        exists = func.sum(rollups.c.attempts) > 0 if self._rolled_up else func.count() > 0
        summed = [func.sum(amount) for amount in (*amounts, cost // _constant(_LIMB), cost % _constant(_LIMB))]
        labels = [column.label(f"g{i}") for i, column in enumerate(group)]
        query = select(*labels, *summed).where(*self._within(), *conditions).group_by(*labels).having(exists)
        for row in connection.execute(query):
            *numbers, billions, rest = (int(number) for number in row[len(group) :])
            yield tuple(row[: len(group)]), [*numbers, billions * _LIMB + rest]

    def _within(self) -> list[ColumnElement[bool]]:
        span = self._span
        within = [self.when >= span.start_ms, self.when < span.end_ms]
        return [rollups.c.width_ms == span.width_ms, *within] if self._rolled_up else [attempts.c.attempt > 0, *within]


def _constant(value: int) -> ColumnElement[int]:
    return literal_column(str(value), BigInteger)


def _one_if(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return case((condition, 1), else_=0)


def _add(groups: Groups, more: Iterable[tuple[tuple[Any, ...], list[int]]]) -> None:
    for group, amounts in more:
        kept = groups.get(group)
        groups[group] = amounts if kept is None else [a + b for a, b in zip(kept, amounts, strict=True)]


def _usage_row(by: Sequence[str], group: tuple[Any, ...], amounts: list[int]) -> UsageRow:
    requests, *tokens, nano_usd = amounts
    row = UsageRow(requests=requests, cost_nano_usd=str(nano_usd))
    for name, value in zip(_TOKENS, tokens, strict=True):
        setattr(row, name, value)
    for name, value in zip(by, group, strict=True):
        if name == "day":
            row.day = from_ms(value * DAY_MS).date().isoformat()
        else:
            setattr(row, _COLUMNS.get(name, name), value)
    return row


def _bucket(width_ms: int, group: tuple[Any, ...], amounts: list[int]) -> CounterBucket:
    start_ms, *names = group
    requests, tokens, nano_usd = amounts
    return CounterBucket(
        **dict(zip(_COUNTER_GROUP, names, strict=True)), start_ms=start_ms, width_ms=width_ms,
        requests=requests, tokens=tokens, cost_nano_usd=nano_usd,
    )
