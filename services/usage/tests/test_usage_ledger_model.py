"""Random histories of events, with duplicates, in any order and any batches: the ledger equals a simple model of it.

The model keeps every event and decides at the end; the ledger decides as they come and keeps sums as it goes.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, select

from signalbox.usage.adapters.engines import open_reader, open_writer
from signalbox.usage.adapters.ledger import Ledger
from signalbox.usage.adapters.migrate import migrate
from signalbox.usage.adapters.queries import Queries
from signalbox.usage.adapters.schema import attempts, facts, rollups
from signalbox.usage.adapters.urls import read_database_url
from signalbox.usage.domain.rows import Price
from signalbox.usage.domain.settling import normalise
from signalbox.v1 import common_pb2 as c
from signalbox.v1.usage_pb2 import (
    AttemptEvent,
    CountersQuery,
    ExplainQuery,
    LedgerRow,
    RequestsQuery,
    RowPlace,
    UsageQuery,
)
from signalbox.wire.usage import Usage

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
NOW = 1_795_219_200_000 + 7 * HOUR + 13 * MINUTE + 17_250
TOKENS = ("input_tokens", "output_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "cache_read_tokens")
DIMENSIONS = ("key", "owner", "account", "model", "day")


class FlatPrices:
    """A price that any mistake in tokens would change."""

    def price(self, usage: Usage, model: str, at_ms: int) -> Price:
        nano = sum(getattr(usage, name) * (10 ** (i + 3) + 7) for i, name in enumerate(TOKENS))
        return Price(nano, not model.startswith("claude"))

    def known(self, model: str) -> bool:
        return True


class Store(NamedTuple):
    writer: Engine
    ledger: Ledger
    queries: Queries

    def clear(self) -> None:
        with self.writer.begin() as connection:
            for table in (attempts, rollups, facts):
                connection.execute(delete(table))


@pytest.fixture(scope="module")
def store(ledger_url: str) -> Iterator[Store]:
    url = read_database_url(ledger_url)
    writer = open_writer(url)
    migrate(writer)
    reader = open_reader(url, 1)
    yield Store(writer, Ledger(writer, FlatPrices()), Queries(reader))
    writer.dispose()
    reader.dispose()


counts = st.integers(1, 1000)
usages = st.builds(
    c.TokenUsage, input_tokens=counts, output_tokens=counts, cache_write_5m_tokens=counts,
    cache_write_1h_tokens=counts, cache_read_tokens=counts,
)
moments = st.one_of(
    st.integers(NOW - 3 * MINUTE, NOW), st.integers(NOW - 3 * HOUR, NOW), st.integers(NOW - 4 * DAY, NOW),
    st.sampled_from([NOW // DAY * DAY, NOW // HOUR * HOUR - 1, NOW // DAY * DAY - 1]),
)


@st.composite
def event_sets(draw: Any) -> list[AttemptEvent]:
    """All that may be said of one attempt: partial views of one truth, as gateway, its journal and reaper send them."""
    number = draw(st.integers(0, 3))
    admitted_ms = draw(moments)
    intent = AttemptEvent(
        request_id=f"req_{draw(st.integers(0, 5))}", attempt=number, key_id=draw(st.sampled_from("kl")),
        owner=draw(st.sampled_from(["ada", "bob"])), account_id=draw(st.sampled_from("abc")),
        route=draw(st.sampled_from(["messages", "count_tokens"])), model=draw(st.sampled_from(["claude-x", "gpt"])),
        sent_model=draw(st.sampled_from(["", "claude-y"])), admitted_at_ms=admitted_ms, started_at_ms=admitted_ms + 3,
    )
    said: list[AttemptEvent] = []
    if draw(st.integers(0, 2)):
        said.append(_with(intent, outcome=draw(st.sampled_from([1, 2, 3, 4, 5])), had_content=draw(st.booleans()),
                          served_model=draw(st.sampled_from(["", "claude-z"])), usage=draw(usages), status=200))
    for _ in range(draw(st.integers(1, 3))):
        orphan = _with(intent, outcome=draw(st.sampled_from([0, 6])), sent=draw(st.booleans()))
        if orphan.sent and draw(st.integers(0, 3)):
            orphan.usage.CopyFrom(draw(usages))
        said.append(orphan)
    return said


def _with(event: AttemptEvent, **fields: Any) -> AttemptEvent:
    more = AttemptEvent(**fields)
    more.MergeFrom(event)
    return more


@st.composite
def histories(draw: Any) -> list[list[AttemptEvent]]:
    truths = {}
    for said in draw(st.lists(event_sets(), min_size=5, max_size=10)):
        truths.setdefault((said[0].request_id, said[0].attempt), said)
    events = 2 * [event for said in truths.values() for event in said]
    order = draw(st.permutations(range(len(events))))[: draw(st.integers(len(events) // 2, len(events)))]
    cuts = sorted({0, len(order), *draw(st.lists(st.integers(0, len(order)), min_size=1, max_size=8))})
    return [[events[i] for i in order[start:end]] for start, end in itertools.pairwise(cuts)]


class Expected(NamedTuple):
    """One row as the model has it."""

    event: AttemptEvent
    outcome: int
    tokens: tuple[int, ...]
    estimated: bool

    @property
    def model(self) -> str:
        return self.event.served_model or self.event.sent_model or self.event.model

    @property
    def cost(self) -> int:
        return sum(n * (10 ** (i + 3) + 7) for i, n in enumerate(self.tokens))

    def dimension(self, name: str) -> str:
        if name == "day":
            return str(self.event.admitted_at_ms // DAY)
        names = {"key": self.event.key_id, "owner": self.event.owner, "account": self.event.account_id}
        return names.get(name, self.model)


def model_of(history: list[list[AttemptEvent]]) -> dict[tuple[str, int], Expected]:
    """Decide at the end: the settled record if one came, else all orphans' largest numbers."""
    came: dict[tuple[str, int], list[AttemptEvent]] = defaultdict(list)
    for event in (event for batch in history for event in batch):
        came[event.request_id, event.attempt].append(event)
    rows = {}
    for key, events in came.items():
        settled = [event for event in events if event.outcome not in (0, 6)]
        if key[1] == 0:
            rows[key] = Expected(events[0], c.OUTCOME_DENIED, (0,) * 5, False)
        elif settled:
            billed = settled[0].had_content and settled[0].route == "messages"
            tokens = tuple(getattr(settled[0].usage, name) * billed for name in TOKENS)
            rows[key] = Expected(settled[0], settled[0].outcome, tokens, False)
        else:
            billed = events[0].route == "messages"
            tokens = tuple(max(getattr(event.usage, name) for event in events) * billed for name in TOKENS)
            estimated = any(event.sent for event in events)
            rows[key] = Expected(events[0], c.OUTCOME_ORPHANED, tokens, estimated)
    return rows


def pages_of(store: Store, size: int) -> Iterator[list[LedgerRow]]:
    """Yield all rows as somebody reads them who asks for a few at a time."""
    query = RequestsQuery(last=size, with_denials=True)
    while page := store.queries.requests(query):
        yield page
        last = page[-1]
        query.before.CopyFrom(RowPlace(
            admitted_at_ms=last.admitted_at_ms, request_id=last.request_id, attempt=last.attempt,
        ))


def check_rows(store: Store, expected: dict[tuple[str, int], Expected]) -> None:
    found = store.queries.requests(RequestsQuery(last=1000, with_denials=True))
    assert len(found) == len(expected)
    assert [row.admitted_at_ms for row in found] == sorted((row.admitted_at_ms for row in found), reverse=True)
    for row in found:
        want = expected[row.request_id, row.attempt]
        assert row.outcome == want.outcome
        assert tuple(getattr(row.usage, name) for name in TOKENS) == want.tokens
        assert row.cost_nano_usd == want.cost
        assert row.estimated == want.estimated
        assert (row.key_id, row.admitted_at_ms) == (want.event.key_id, want.event.admitted_at_ms)
    without = store.queries.requests(RequestsQuery(last=1000))
    assert len(without) == sum(attempt > 0 for _, attempt in expected)
    pages = list(pages_of(store, 3))
    assert [row for page in pages for row in page] == found
    for request_id in {request_id for request_id, _ in expected}:
        explained = store.queries.explain(ExplainQuery(request_id=request_id))
        assert [row.attempt for row in explained] == sorted(n for r, n in expected if r == request_id)


def check_usage(store: Store, expected: dict[tuple[str, int], Expected], by: list[str], span: tuple[int, int]) -> None:
    since, until = span
    sums: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0] * 7)
    for (_, attempt), row in expected.items():
        if attempt == 0 or row.event.admitted_at_ms < since or (until and row.event.admitted_at_ms >= until):
            continue
        total = sums[tuple(row.dimension(name) for name in by)]
        for i, amount in enumerate((int(attempt == 1), *row.tokens, row.cost)):
            total[i] += amount
    found = {}
    for usage in store.queries.usage(UsageQuery(by=by, since_ms=since, until_ms=until)):
        values = {"key": usage.key_id, "owner": usage.owner, "account": usage.account_id, "model": usage.model}
        values["day"] = str(days_since_1970(usage.day)) if usage.day else ""
        amounts = [usage.requests, *(getattr(usage, name) for name in TOKENS), int(usage.cost_nano_usd)]
        found[tuple(values[name] for name in by)] = amounts
    assert found == dict(sums)


def days_since_1970(day: str) -> int:
    from datetime import date

    return (date.fromisoformat(day) - date(1970, 1, 1)).days


def check_counters(store: Store, expected: dict[tuple[str, int], Expected]) -> None:
    answer = store.queries.counters(CountersQuery(now_ms=NOW))
    minute = NOW // MINUTE * MINUTE
    sums: dict[tuple[int, int, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    of_accounts: dict[tuple[int, int, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    # Later attempts on a free route: roll-ups take them for requests of the account, rows do not.
    doubtful: dict[tuple[int, int, str], int] = defaultdict(int)
    for (_, attempt), row in expected.items():
        at = row.event.admitted_at_ms
        width = 1000 if at >= minute - 2 * MINUTE else MINUTE if at >= minute - 2 * HOUR else DAY
        if attempt:
            total = sums[width, at // width * width, row.event.key_id, row.event.model]
            total[0] += attempt == 1 and row.event.route == "messages"
            total[1] += sum(row.tokens[:4])
            total[2] += row.cost
            if row.event.account_id:
                limited = row.event.route == "messages"
                taken, given, *written, _ = row.tokens[:5]
                place = (width, at // width * width, row.event.account_id)
                for i, amount in enumerate((limited, taken + sum(written), given)):
                    of_accounts[place][i] += amount
                doubtful[place] += not limited and attempt > 1 and width > 1000
    given_of = {(b.width_ms, b.start_ms, b.account_id): b for b in answer.accounts}
    assert {b: [given.input_tokens, given.output_tokens] for b, given in given_of.items()} == {
        b: amounts[1:] for b, amounts in of_accounts.items()
    }
    for place, given in given_of.items():
        assert 0 <= given.requests - of_accounts[place][0] <= doubtful[place]
    found: dict[tuple[int, int, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for bucket in answer.counters:
        total = found[bucket.width_ms, bucket.start_ms, bucket.key_id, bucket.model]
        for i, amount in enumerate((bucket.requests, bucket.tokens, bucket.cost_nano_usd)):
            total[i] += amount
    assert found == sums


@pytest.mark.slow
@given(
    history=histories(), by=st.lists(st.sampled_from(DIMENSIONS), unique=True),
    since=st.one_of(st.just(0), moments), until=st.one_of(st.just(0), moments),
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_ledger_and_sums_equal_the_model(
    store: Store, history: list[list[AttemptEvent]], by: list[str], since: int, until: int,
) -> None:
    store.clear()
    for batch in history:
        events = [AttemptEvent.FromString(event.SerializeToString()) for event in batch]
        assert all(normalise(event, NOW) for event in events)
        store.ledger.record(events)
    expected = model_of(history)
    check_rows(store, expected)
    check_usage(store, expected, by, (since, until))
    check_usage(store, expected, [], (0, 0))
    check_counters(store, expected)
    store.ledger.forget_minutes(NOW)
    check_counters(store, expected)
    check_usage(store, expected, by, (since, until))


def test_minutes_are_forgotten_and_the_rest_stays(store: Store) -> None:
    store.clear()
    event = AttemptEvent(request_id="r", attempt=1, key_id="k", outcome=c.OUTCOME_OK, admitted_at_ms=NOW - 5 * HOUR)
    assert normalise(event, NOW)
    store.ledger.record([event])
    store.ledger.forget_minutes(NOW)
    with store.writer.begin() as connection:
        assert sorted(connection.execute(select(rollups.c.width_ms)).scalars()) == [HOUR, DAY]


def test_counters_name_the_attempts_that_may_be_settled_yet(store: Store) -> None:
    """Those that ended since, orphans, and all of gateways that did not deliver."""
    store.clear()
    ok, orphaned = c.OUTCOME_OK, c.OUTCOME_ORPHANED
    usage = c.TokenUsage(input_tokens=3, output_tokens=4, cache_write_1h_tokens=5)
    for name, outcome, admitted_ms, duration_ms, gateway in (
        ("before", ok, NOW - 60_000, 49_999, "g1"), ("at-once", ok, NOW - 60_000, 50_000, "g1"),
        ("hour-long", ok, NOW - HOUR, HOUR - 5_000, "g1"), ("orphan", orphaned, NOW - HOUR, 1, "g1"),
        ("of-another", ok, NOW - HOUR, 1, "g2"), ("long-ago", ok, NOW - 3 * HOUR, 1, "g2"),
        ("denied", c.OUTCOME_DENIED, NOW, 0, "g2"),
    ):
        event = AttemptEvent(
            request_id=name, attempt=0 if outcome == c.OUTCOME_DENIED else 1, key_id="k", route="messages",
            outcome=outcome, had_content=True, usage=usage, admitted_at_ms=admitted_ms, duration_ms=duration_ms,
            gateway_id=gateway,
        )
        assert normalise(event, NOW)
        store.ledger.record([event])
    query = CountersQuery(now_ms=NOW, ended_since_ms=NOW - 10_000, delivered=["g1"])
    rows = {row.request_id: row for row in store.queries.counters(query).rows}
    assert set(rows) == {"at-once", "hour-long", "orphan", "of-another"}
    assert {(row.attempt, row.usage == usage) for row in rows.values()} == {(1, True)}
    [at_once] = store.queries.requests(RequestsQuery(since_ms=NOW - 60_001, outcome="ok"))[:1]
    assert rows["at-once"].cost_nano_usd == at_once.cost_nano_usd > 0
    assert not store.queries.counters(CountersQuery(now_ms=NOW)).rows


numbers = st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from([0, -1, 2**63 - 1, -(2**63)]))
texts = st.one_of(st.text(max_size=8), st.just("\0"), st.just("a\0b"), st.just("é" * 5000))


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_event_can_jam_the_ledger(store: Store, data: st.DataObject) -> None:
    store.clear()
    usage = c.TokenUsage(**{name: data.draw(numbers) for name in TOKENS}, service_tier=data.draw(texts))
    usage.other_models.add(model=data.draw(texts), usage=usage)
    event = AttemptEvent(
        request_id=data.draw(texts), attempt=data.draw(st.integers(0, 2**32 - 1)), usage=usage, had_content=True,
        status=data.draw(st.integers(-(2**31), 2**31 - 1)), decision=data.draw(st.binary(max_size=8)),
        **{name: data.draw(texts) for name in ("key_id", "model", "reason", "upstream_request_id", "client")},
        **{name: data.draw(numbers) for name in
           ("admitted_at_ms", "started_at_ms", "duration_ms", "ttft_ms", "retry_after_ms")},
    )
    event.outcome = data.draw(st.integers(0, 99))
    usable = normalise(event, NOW)
    assert usable == bool(event.request_id)
    if usable:
        store.ledger.record([event])
        store.ledger.record([event])
        (row,) = store.queries.requests(RequestsQuery(with_denials=True))
        assert row.request_id == event.request_id
        store.queries.usage(UsageQuery(by=list(DIMENSIONS)))
        store.queries.counters(CountersQuery(now_ms=NOW))
