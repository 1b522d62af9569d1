"""The ledger's writes: one transaction takes many events and leaves one row an attempt and exact roll-ups.

Blocking; it runs in the writer's thread. Reads are queries.py's business, retries the recorder's. Statements are
compiled once and run with plain tuples: going through SQLAlchemy's parameters costs more than the database does.
"""

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, case, delete, literal_column, select, tuple_

from signalbox.usage.adapters.schema import attempts, facts, rollups
from signalbox.usage.domain.rollups import MINUTE_MS, MINUTES_KEPT_MS, Amounts, changes
from signalbox.usage.domain.rows import Prices, Row, row_of
from signalbox.usage.domain.settling import believed
from signalbox.v1.usage_pb2 import AttemptEvent, Fact

IDS_A_QUERY = 500

AttemptKey = tuple[str, int]


class Change(NamedTuple):
    """A row that a transaction wrote, and the one that it replaced."""

    before: Row | None
    now: Row


class Ledger:
    """Writes to the ledger's database. One thread at a time."""

    def __init__(self, engine: Engine, prices: Prices) -> None:
        self._engine = engine
        self._prices = prices
        insert = _insert_of(engine)
        row, added, fact = insert(attempts), insert(rollups), insert(facts)
        identity = (attempts.c.request_id, attempts.c.attempt)
        values = {name: row.excluded[name] for name in Row._fields if name not in ("request_id", "attempt")}
        self._insert_new = self._compile(row.on_conflict_do_nothing(index_elements=identity))
        self._insert_or_replace = self._compile(row.on_conflict_do_update(index_elements=identity, set_=values))
        more = {name: rollups.c[name] + added.excluded[name] for name in Amounts._fields}
        self._add = self._compile(added.on_conflict_do_update(index_elements=list(rollups.primary_key), set_=more))
        older = case((fact.excluded.at_ms < facts.c.at_ms, fact.excluded.at_ms), else_=facts.c.at_ms)
        keep_oldest = fact.on_conflict_do_update(index_elements=list(facts.primary_key), set_={"at_ms": older})
        self._remember = self._compile(keep_oldest)

    def record(self, events: Iterable[AttemptEvent]) -> list[Change]:
        """Take normalised events in one transaction and return what it changed; once it returns, they are kept.

        Events that say nothing new change nothing. Raises sqlalchemy.exc.SQLAlchemyError, then nothing is kept.
        """
        newest: dict[AttemptKey, AttemptEvent] = {}
        for event in events:
            key = (event.request_id, event.attempt)
            newest[key] = believed(newest.get(key), event)
        if not newest:
            return []
        changed = self._record_new(newest)
        return self._record_again(newest) if changed is None else changed

    def remember(self, given: Sequence[Fact]) -> list[Fact]:
        """Keep the oldest moment of each fact and return what is kept. Raises sqlalchemy.exc.SQLAlchemyError."""
        oldest: dict[tuple[int, str, str], int] = {}
        for fact in given:
            key = (int(fact.kind), fact.key_id, fact.name)
            oldest[key] = min(fact.at_ms, oldest.get(key, fact.at_ms))
        found: list[Fact] = []
        with self._engine.begin() as connection:
            for some in _slices(sorted(oldest), IDS_A_QUERY):
                connection.exec_driver_sql(self._remember, [(*key, oldest[key]) for key in some])
                which = tuple_(facts.c.kind, facts.c.key_id, facts.c.name).in_(some)
                found += [fact_of(row) for row in connection.execute(select(facts).where(which))]
        return found

    def forget_minutes(self, now_ms: int) -> None:
        """Delete the roll-ups by minute that no counter needs any more. Raises sqlalchemy.exc.SQLAlchemyError."""
        old = (rollups.c.width_ms == MINUTE_MS) & (rollups.c.start_ms < now_ms - MINUTES_KEPT_MS)
        with self._engine.begin() as connection:
            connection.execute(delete(rollups).where(old))

    def forget_rows(self, attempts_before_ms: int, denials_before_ms: int, most: int) -> int:
        """Delete up to `most` of the rows that are older; their roll-ups stay. Return how many went.

        Raises sqlalchemy.exc.SQLAlchemyError, then nothing is deleted.
        """
        denied = attempts.c.attempt == literal_column("0")    # written out: a parameter would not find the index
        at, key = attempts.c.admitted_at_ms, list(attempts.primary_key)
        deleted = 0
        with self._engine.begin() as connection:
            for old in (at < attempts_before_ms, denied & (at < denials_before_ms)):
                which = select(*key).where(old).limit(most - deleted)
                deleted += connection.execute(delete(attempts).where(tuple_(*key).in_(which))).rowcount
        return deleted

    def _record_new(self, newest: dict[AttemptKey, AttemptEvent]) -> list[Change] | None:
        """The usual case: no attempt is known yet. Return None, having kept nothing, where one is."""
        rows = [row_of(newest[key], self._prices) for key in sorted(newest)]
        with self._engine.connect() as connection, connection.begin() as transaction:
            inserted = connection.exec_driver_sql(self._insert_new, list(rows))
            if inserted.rowcount != len(rows):
                transaction.rollback()
                return None
            changed = [Change(None, row) for row in rows]
            self._roll_up(connection, changed)
        return changed

    def _record_again(self, newest: dict[AttemptKey, AttemptEvent]) -> list[Change]:
        """Some attempts are known: read them, locked, and write what changes.

        Another replica may still insert one of the others first; the roll-ups would then be wrong, so that is
        noticed by the number of rows and the transaction starts over.
        """
        while True:
            with self._engine.connect() as connection, connection.begin() as transaction:
                kept = _kept(connection, newest)
                changed = [c for key in sorted(newest) if (c := self._change(kept.get(key), newest[key])) is not None]
                new = [change.now for change in changed if change.before is None]
                replaced = [change.now for change in changed if change.before is not None]
                if new and connection.exec_driver_sql(self._insert_new, list(new)).rowcount != len(new):
                    transaction.rollback()
                    continue
                if replaced:
                    connection.exec_driver_sql(self._insert_or_replace, list(replaced))
                self._roll_up(connection, changed)
            return changed

    def _change(self, kept: Row | None, event: AttemptEvent) -> Change | None:
        if kept is None:
            return Change(None, row_of(event, self._prices))
        if kept.orphan_event is None:
            return None
        before = AttemptEvent.FromString(kept.orphan_event)
        after = believed(before, event)
        return None if after is before else Change(kept, row_of(after, self._prices))

    def _roll_up(self, connection: Connection, changed: list[Change]) -> None:
        # In one order for all replicas, so that they wait for one another rather than deadlock.
        if sums := changes(changed):
            connection.exec_driver_sql(self._add, [(*key, *sums[key]) for key in sorted(sums)])

    def _compile(self, statement: Any) -> str:
        return str(statement.compile(dialect=self._engine.dialect))


def _insert_of(engine: Engine) -> Any:
    """Return the database's own INSERT, which knows ON CONFLICT. Only its dialect is imported: each takes a while."""
    dialect = "postgresql" if engine.dialect.name == "postgresql" else "sqlite"
    return import_module(f"sqlalchemy.dialects.{dialect}").insert


def _kept(connection: Connection, keys: Iterable[AttemptKey]) -> dict[AttemptKey, Row]:
    """Return the rows that exist of these attempts, locked against other replicas."""
    found: dict[AttemptKey, Row] = {}
    for some in _slices(sorted({request_id for request_id, _ in keys}), IDS_A_QUERY):
        query = select(attempts).where(attempts.c.request_id.in_(some))
        query = query.order_by(attempts.c.request_id, attempts.c.attempt).with_for_update()
        for row in map(Row._make, connection.execute(query)):
            found[row.key] = row
    return found


def _slices(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def fact_of(row: Any) -> Fact:
    """Return a row of table `facts` as a message."""
    return Fact(kind=row.kind, key_id=row.key_id, name=row.name, at_ms=row.at_ms)
