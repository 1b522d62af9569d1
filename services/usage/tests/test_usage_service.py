"""The service over a real socket, on both databases: acknowledgement after commit, what happens when they are away.

Prices are the real book's; the ledger is a real database; only the process is the test's own.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from signalbox.core import rpc
from signalbox.core.clock import SystemClock
from signalbox.core.settings import RoomSettings
from signalbox.core.telemetry import Readiness
from signalbox.usage.adapters.engines import open_reader, open_writer
from signalbox.usage.adapters.ledger import Ledger
from signalbox.usage.adapters.migrate import migrate
from signalbox.usage.adapters.prices import LedgerPrices
from signalbox.usage.adapters.queries import Queries
from signalbox.usage.adapters.urls import read_database_url
from signalbox.usage.api.recorder import Kept, Recorder
from signalbox.usage.api.service import UsageService
from signalbox.usage.api.watchers import Watchers
from signalbox.usage.metrics import Metrics
from signalbox.v1 import common_pb2 as c
from signalbox.v1 import usage_pb2 as pb
from signalbox.v1.usage_pb2_grpc import UsageStub, add_UsageServicer_to_server
from tests.support import postgres
from tests.support.machine import busy

SECRET = "0123456789abcdef0123456789abcdef"
NOW = 1_795_219_200_000


class Running:
    """One replica of the service and a client of it."""

    def __init__(self, url: str, directory: Path, **recorder: Any) -> None:
        self.settings = RoomSettings(shared_secret=SECRET)
        self.address = f"unix:{directory}/usage.sock"
        self.registry = CollectorRegistry()
        self.readiness = Readiness()
        database = read_database_url(url)
        self._writer = open_writer(database)
        migrate(self._writer)
        self._reader = open_reader(database, 2)
        prices = LedgerPrices.load(None)
        watchers = Watchers()
        clock = SystemClock()
        self.recorder = Recorder(
            Ledger(self._writer, prices), clock, readiness=self.readiness,
            metrics=Metrics(prices, self.registry), max_rows=1000, published=watchers.publish,
            **{"kept": Kept(400, 30), **recorder},
        )
        self._pool = ThreadPoolExecutor(2)
        self.service = UsageService(self.recorder, Queries(self._reader), self._pool, watchers, clock)
        self._server = rpc.Server(self.settings, self.address, ["signalbox.v1.Usage"])
        add_UsageServicer_to_server(self.service, self._server.grpc)

    async def start(self) -> "Running":
        self.recorder.start()
        await self._server.start()
        self.channel = rpc.connect(self.settings, self.address)
        self.stub: Any = UsageStub(self.channel)
        return self

    async def stop(self) -> None:
        self.recorder.stop()
        self.service.stop()
        await self._server.stop(5)
        await self.recorder.close()
        await self.channel.close()
        self._pool.shutdown()
        self._writer.dispose()
        self._reader.dispose()

    async def query(self, **kind: Any) -> pb.QueryResponse:
        return await self.stub.Query(pb.QueryRequest(**kind), timeout=10)

    async def rows(self, **fields: Any) -> list[pb.LedgerRow]:
        return list((await self.query(requests=pb.RequestsQuery(**fields))).rows)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"signalbox_{name}", labels)


@contextlib.asynccontextmanager
async def running(url: str, directory: Path, **recorder: Any) -> AsyncIterator[Running]:
    replica = await Running(url, directory, **recorder).start()
    try:
        yield replica
    finally:
        await replica.stop()


class Stream:
    """One Ingest call that sends a batch and waits for its acknowledgement."""

    def __init__(self, stub: Any) -> None:
        self._call = stub.Ingest()
        self._number = 0

    async def send(self, *events: pb.AttemptEvent, limit_s: float = 10.0) -> None:
        self._number += 1
        await self._call.write(pb.IngestBatch(source="test", batch=self._number, events=events))
        async with asyncio.timeout(limit_s):
            ack = await self._call.read()
        assert ack is not grpc.aio.EOF, "the stream ended without an acknowledgement"
        assert ack.batch == self._number

    def cancel(self) -> None:
        self._call.cancel()


def event(request_id: str, attempt: int = 1, **fields: Any) -> pb.AttemptEvent:
    values: dict[str, Any] = {
        "route": "messages", "key_id": "default/ada", "owner": "ada@example.com", "account_id": "default/a",
        "pool_id": "default/default", "model": "claude-sonnet-5-5", "served_model": "claude-sonnet-5-5", "sent": True,
        "had_content": True, "outcome": c.OUTCOME_OK, "status": 200, "admitted_at_ms": NOW, "started_at_ms": NOW,
        "usage": c.TokenUsage(input_tokens=1_000, output_tokens=100),
    }
    return pb.AttemptEvent(request_id=request_id, attempt=attempt, **{**values, **fields})


async def test_what_is_acknowledged_can_be_asked_for(empty_url: str, tmp_path: Path) -> None:
    async with running(empty_url, tmp_path) as usage:
        stream = Stream(usage.stub)
        await stream.send(event("r1", outcome=c.OUTCOME_UPSTREAM_ERROR, status=529, had_content=False),
                          event("r1", 2, account_id="default/b", admitted_at_ms=NOW + 40))
        await stream.send(event("r2", 0, outcome=c.OUTCOME_DENIED, reason="key_limit_requests", status=429,
                                admitted_at_ms=0, started_at_ms=NOW + 50, had_content=False))
        rows = await usage.rows()
        assert [(row.request_id, row.attempt) for row in rows] == [("r1", 2), ("r1", 1)]
        assert (rows[0].cost_nano_usd, rows[1].cost_nano_usd) == (3_000_000, 0)  # 1000 x $2 + 100 x $10 a million
        assert rows[1].usage == c.TokenUsage()
        assert not rows[0].price_assumed
        denial = (await usage.rows(with_denials=True))[0]
        assert (denial.outcome, denial.status, denial.reason) == (c.OUTCOME_DENIED, 429, "key_limit_requests")
        assert [row.request_id for row in await usage.rows(outcome="upstream_error")] == ["r1"]
        assert await usage.rows(account_id="default/b", since_ms=NOW + 41) == []
        by_key = (await usage.query(usage=pb.UsageQuery(by=["key", "day"]))).usage
        assert len(by_key) == 1
        assert (by_key[0].requests, by_key[0].cost_nano_usd, by_key[0].day) == (1, "3000000", "2026-11-21")
        explained = (await usage.query(explain=pb.ExplainQuery(request_id="r1"))).rows
        assert [row.account_id for row in explained] == ["default/a", "default/b"]
        stream.cancel()


async def test_tokens_and_cost_are_counted_once_and_by_known_models(empty_url: str, tmp_path: Path) -> None:
    async with running(empty_url, tmp_path) as usage:
        stream = Stream(usage.stub)
        orphan = event("r1", outcome=c.OUTCOME_UNSPECIFIED, usage=c.TokenUsage(input_tokens=1_000))
        settled = event("r1")
        for sent in (orphan, settled, settled, orphan):
            await stream.send(sent)
        await stream.send(event("r2", served_model="claude-from-the-future"))
        labels = {"account": "default/a", "model": "claude-sonnet-5-5"}
        assert usage.metric("tokens_total", **labels, kind="input") == 1_000
        assert usage.metric("tokens_total", **labels, kind="output") == 100
        assert usage.metric("cost_usd_total", **labels) == pytest.approx(0.003)
        assert usage.metric("tokens_total", account="default/a", model="other", kind="output") == 100
        assert usage.metric("ledger_events_total", result="replaced") == 1
        assert usage.metric("ledger_events_total", result="unchanged") == 2
        assert (await usage.rows(outcome="ok"))[0].price_assumed
        stream.cancel()


async def test_an_event_that_names_no_request_does_not_hold_up_others(empty_url: str, tmp_path: Path) -> None:
    async with running(empty_url, tmp_path) as usage:
        stream = Stream(usage.stub)
        await stream.send(event(""), event("r1"))
        assert [row.request_id for row in await usage.rows()] == ["r1"]
        assert usage.metric("ledger_events_total", result="refused") == 1
        stream.cancel()


async def test_what_is_too_old_is_forgotten_in_steps_and_stays_in_the_sums(empty_url: str, tmp_path: Path) -> None:
    day_ms = 86_400_000
    now_ms = time.time_ns() // 1_000_000
    def rows(name: str, days: int, count: int, attempt: int = 1, **fields: Any) -> list[pb.AttemptEvent]:
        at = now_ms - days * day_ms
        return [event(f"{name}{i}", attempt, admitted_at_ms=at, started_at_ms=at, **fields) for i in range(count)]

    async with running(empty_url, tmp_path, kept=Kept(100, 10), tidy_every_s=0.3) as usage:
        stream = Stream(usage.stub)
        await stream.send(*rows("old", 101, 1500), limit_s=30)
        await stream.send(
            *rows("young", 99, 20), *rows("denied-old", 11, 20, 0, outcome=c.OUTCOME_DENIED, account_id=""),
            *rows("denied-young", 9, 20, 0, outcome=c.OUTCOME_DENIED, account_id=""), *rows("today", 0, 20),
        )
        for _ in range(200):
            names = {row.request_id.rstrip("0123456789") for row in await usage.rows(last=9_000, with_denials=True)}
            if names == {"young", "denied-young", "today"}:
                break
            await asyncio.sleep(0.05)
        assert names == {"young", "denied-young", "today"}
        [total] = (await usage.query(usage=pb.UsageQuery())).usage
        assert total.requests == 1540, "reports stay complete"
        gone = usage.registry.get_sample_value("signalbox_ledger_rows_forgotten_total")
        assert gone == 1520
        await stream.send(*rows("today", 0, 1))
        assert len(await usage.rows(last=9_000)) == 40, "what was known stays known once"
        stream.cancel()


async def test_facts_keep_their_oldest_moment(empty_url: str, tmp_path: Path) -> None:
    def first_use(at_ms: int) -> pb.RememberRequest:
        return pb.RememberRequest(facts=[pb.Fact(kind=pb.Fact.FIRST_USE, key_id="default/ada", at_ms=at_ms)])

    async with running(empty_url, tmp_path) as usage:
        for at_ms, kept in ((NOW, NOW), (NOW + 5, NOW), (NOW - 5, NOW - 5)):
            answer = await usage.stub.Remember(first_use(at_ms), timeout=10)
            assert [fact.at_ms for fact in answer.facts] == [kept]
        facts = (await usage.query(counters=pb.CountersQuery(now_ms=NOW))).facts
        assert [(fact.kind, fact.key_id, fact.at_ms) for fact in facts] == [(1, "default/ada", NOW - 5)]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await usage.stub.Remember(first_use(0), timeout=10)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_watchers_see_commits(empty_url: str, tmp_path: Path) -> None:
    async with running(empty_url, tmp_path) as usage:
        call = usage.stub.Watch(pb.WatchRowsRequest(key_id="default/ada"), timeout=10)
        await call.initial_metadata()
        stream = Stream(usage.stub)
        await stream.send(event("r1"), event("r2", key_id="default/bob"), event("r3"))
        assert [(await call.read()).request_id for _ in range(2)] == ["r1", "r3"]
        stream.cancel()


@pytest.mark.parametrize("query", [
    {}, {"usage": pb.UsageQuery(by=["colour"])}, {"usage": pb.UsageQuery(by=["key", "key"])},
    {"requests": pb.RequestsQuery(outcome="fine")},
])
async def test_a_wrong_question_is_refused(tmp_path: Path, query: dict[str, Any]) -> None:
    async with running(f"sqlite:///{tmp_path}/ledger.db", tmp_path) as usage:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await usage.query(**query)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the recorder notices by itself."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_a_locked_ledger_delays_the_acknowledgement_and_loses_nothing(tmp_path: Path) -> None:
    database = tmp_path / "ledger.db"
    async with running(f"sqlite:///{database}", tmp_path) as usage:
        first, second = Stream(usage.stub), Stream(usage.stub)
        await first.send(event("r0"))
        other = sqlite3.connect(database, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        sends = [asyncio.create_task(stream.send(event(name), limit_s=20))
                 for stream, name in ((first, "r1"), (second, "r2"))]
        await asyncio.sleep(3)
        await until(lambda: not usage.readiness.ready)
        assert not any(task.done() for task in sends)
        assert usage.recorder.lag_s() > 2
        assert [row.request_id for row in await usage.rows()] == ["r0"], "reading goes on"
        other.execute("COMMIT")
        other.close()
        await asyncio.gather(*sends)
        await until(lambda: usage.readiness.ready and usage.recorder.lag_s() == 0)
        assert len(await usage.rows()) == 3
        first.cancel()
        second.cancel()


@pytest.mark.slow
async def test_postgresql_may_go_and_come_back(postgres_server: postgres.PostgresServer, tmp_path: Path) -> None:
    url = await asyncio.to_thread(postgres_server.create_database, "restarted")
    async with running(url, tmp_path) as usage:
        stream = Stream(usage.stub)
        await stream.send(event("r1"))
        await asyncio.to_thread(postgres_server.stop)
        sending = asyncio.create_task(stream.send(event("r2"), limit_s=30))
        try:
            await until(lambda: not usage.readiness.ready)
            assert not sending.done()
            with pytest.raises(grpc.aio.AioRpcError) as away:
                await usage.rows()
            assert away.value.code() is grpc.StatusCode.UNAVAILABLE
        finally:
            await asyncio.to_thread(postgres_server.start)
        await sending
        assert len(await usage.rows()) == 2
        stream.cancel()


@pytest.mark.slow
async def test_stopping_gives_back_what_the_ledger_does_not_take(tmp_path: Path) -> None:
    database = tmp_path / "ledger.db"
    usage = await Running(f"sqlite:///{database}", tmp_path).start()
    stream = Stream(usage.stub)
    await stream.send(event("r0"))
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    sending = asyncio.create_task(stream.send(event("r1")))
    await asyncio.sleep(0.2)
    began_s = time.monotonic()
    await usage.stop()
    assert time.monotonic() - began_s < 4 * busy()
    with pytest.raises((AssertionError, asyncio.CancelledError, grpc.aio.AioRpcError)):
        await sending
    other.close()


@pytest.mark.slow
async def test_two_replicas_that_get_the_same_events_keep_one_row_each(
    postgres_server: postgres.PostgresServer, tmp_path: Path,
) -> None:
    url = await asyncio.to_thread(postgres_server.create_database, "replicas")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    async with running(url, tmp_path / "one") as one, running(url, tmp_path / "two") as two:
        async def deliver(replica: Running, outcome: int) -> None:
            stream = Stream(replica.stub)
            for start in range(0, 200, 10):
                await stream.send(*(event(f"r{n}", outcome=outcome, usage=c.TokenUsage(input_tokens=10, output_tokens=1))
                                    for n in range(start, start + 10)), limit_s=60)
            stream.cancel()

        orphaned, ok = c.OUTCOME_ORPHANED, c.OUTCOME_OK
        await asyncio.gather(*(deliver(*pair) for pair in ((one, ok), (two, ok), (one, orphaned), (two, orphaned))))
        rows = await two.rows(last=1000)
        assert len(rows) == 200
        assert {row.outcome for row in rows} == {ok}
        (total,) = (await one.query(usage=pb.UsageQuery())).usage
        assert (total.requests, total.input_tokens, total.output_tokens) == (200, 2_000, 200)
        assert int(total.cost_nano_usd) == sum(row.cost_nano_usd for row in rows)
