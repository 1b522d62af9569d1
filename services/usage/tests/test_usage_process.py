"""The usage service as a process: killed while it takes events, stopped, started on what is unusable, started twice."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from signalbox.core import rpc
from signalbox.core.settings import RoomSettings
from signalbox.usage.adapters import migrate as migrations
from signalbox.usage.adapters.engines import open_writer
from signalbox.usage.adapters.schema import metadata
from signalbox.usage.adapters.urls import read_database_url, shown
from signalbox.v1 import common_pb2 as c
from signalbox.v1 import usage_pb2 as pb
from signalbox.v1.usage_pb2_grpc import UsageStub
from tests.support.machine import busy

SECRET = "0123456789abcdef0123456789abcdef"
NOW = 1_795_219_200_000
START_LIMIT_S = 30


class Process:
    """`python -m signalbox.usage` on a database; can be killed and started again."""

    def __init__(self, url: str, directory: Path) -> None:
        self.address = f"unix:{directory}/usage.sock"
        self.log = directory / "log"
        self._environment = {
            **os.environ, "SIGNALBOX_SHARED_SECRET": SECRET, "SIGNALBOX_DATABASE_URL": url,
            "SIGNALBOX_USAGE_LISTEN": self.address, "SIGNALBOX_TELEMETRY_ADDRESS": f"unix:{directory}/telemetry.sock",
        }
        self.start()

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "signalbox.usage"], env=self._environment,
                                            stdout=log, stderr=log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.contextmanager
def process(url: str, directory: Path) -> Iterator[Process]:
    running = Process(url, directory)
    try:
        yield running
    finally:
        running.kill()


def connect(running: Process) -> grpc.aio.Channel:
    return rpc.connect(RoomSettings(shared_secret=SECRET), running.address)


async def ingest(stub: Any, events: list[pb.AttemptEvent]) -> bool:
    """Send one batch on a stream of its own; say whether it was acknowledged."""
    await asyncio.sleep(0.01)
    call = stub.Ingest(wait_for_ready=True, timeout=START_LIMIT_S)
    try:
        await call.write(pb.IngestBatch(source="test", batch=1, events=events))
        return bool((await call.read()) != grpc.aio.EOF)
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return False
    finally:
        call.cancel()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
async def test_killed_while_it_takes_events_it_has_each_exactly_once(empty_url: str, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    events = [
        pb.AttemptEvent(
            request_id=f"r{n}", attempt=1, route="messages", key_id=f"k{n % 7}", model="claude-sonnet-5-5",
            admitted_at_ms=NOW + n, outcome=c.OUTCOME_OK, had_content=True, usage=c.TokenUsage(output_tokens=n),
        )
        for n in range(2_000)
    ]
    with process(empty_url, tmp_path) as running:
        async with connect(running) as channel:
            stub: Any = UsageStub(channel)

            async def deliver(share: list[pb.AttemptEvent]) -> None:
                for start in range(0, len(share), 50):
                    while not await ingest(stub, share[start : start + 50]):
                        pass

            async def trouble() -> None:
                for _ in range(3):
                    await asyncio.sleep(chance.uniform(0.05, 0.3))
                    await asyncio.to_thread(running.kill)
                    running.start()
                    await channel.channel_ready()

            await ingest(stub, events[:1])
            await asyncio.gather(trouble(), *(deliver(events[part::4]) for part in range(4)))
            answer = await query(stub, pb.QueryRequest(requests=pb.RequestsQuery(last=10_000)))
            assert sorted(int(row.request_id[1:]) for row in answer.rows) == list(range(2_000))
            (total,) = (await query(stub, pb.QueryRequest(usage=pb.UsageQuery()))).usage
            assert (total.requests, total.output_tokens) == (2_000, sum(range(2_000)))
            assert int(total.cost_nano_usd) == sum(row.cost_nano_usd for row in answer.rows) > 0


async def query(stub: Any, question: pb.QueryRequest) -> pb.QueryResponse:
    """Ask, and ask again where the question went out on the connection of a process that was just killed."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await stub.Query(question, timeout=20, wait_for_ready=True)
            except grpc.aio.AioRpcError as e:
                if e.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_it_stops_when_asked_with_open_streams(empty_url: str, tmp_path: Path) -> None:
    with process(empty_url, tmp_path) as running:
        async with connect(running) as channel:
            stub: Any = UsageStub(channel)
            call = stub.Ingest(wait_for_ready=True, timeout=START_LIMIT_S)
            await call.write(pb.IngestBatch(batch=1, events=[pb.AttemptEvent(request_id="r", attempt=1)]))
            assert (await call.read()).batch == 1
            watch = stub.Watch(pb.WatchRowsRequest())
            await watch.initial_metadata()
            began_s = time.monotonic()
            assert await asyncio.to_thread(running.terminate) == 0
            assert time.monotonic() - began_s < 5 * busy()
            assert await call.read() == grpc.aio.EOF
            assert await watch.read() == grpc.aio.EOF


@pytest.mark.slow
@pytest.mark.parametrize(("url", "named"), [
    ("sqlite:////nonexistent-directory/ledger.db", "ledger sqlite:////nonexistent-directory/ledger.db"),
    ("postgresql://ada:hunter2hunter2@127.0.0.1:9/ledger", "ledger postgresql://ada:***@127.0.0.1:9/ledger"),
    ("postgresql:///x?host=/nonexistent&password=hunter2hunter2", "ledger postgresql:///x"),
    ("mysql://ada:hunter2hunter2@127.0.0.1/x", "SIGNALBOX_DATABASE_URL"),
    ("not a url hunter2hunter2", "SIGNALBOX_DATABASE_URL"),
])
def test_an_unusable_ledger_is_named_and_its_password_is_not(tmp_path: Path, url: str, named: str) -> None:
    with process(url, tmp_path) as running:
        began_s = time.monotonic()
        assert running.process.wait(60) == 2
        assert time.monotonic() - began_s < 10 * busy()
        said = running.log.read_text()
        assert "signalbox.usage: cannot start: " + named in said
        assert "hunter2" not in said


def test_migrations_make_the_schema_that_the_code_uses(empty_url: str) -> None:
    engine = open_writer(read_database_url(empty_url))
    assert migrations.migrate(engine)
    assert not migrations.migrate(engine)
    with engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    assert ScriptDirectory(str(migrations.SCRIPTS)).get_current_head() == migrations.HEAD
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(migrations.NewerLedger, match="upgrade Signalbox"):
        migrations.migrate(engine)
    engine.dispose()


def test_replicas_that_start_together_migrate_once(empty_url: str) -> None:
    engines = [open_writer(read_database_url(empty_url)) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(migrations.migrate, engines)) == 1
    for engine in engines:
        engine.dispose()


def test_the_database_file_is_private(tmp_path: Path) -> None:
    engine = open_writer(read_database_url(f"sqlite:///{tmp_path}/ledger.db"))
    migrations.migrate(engine)
    files = list(tmp_path.glob("ledger.db*"))
    assert {path.name for path in files} == {"ledger.db", "ledger.db-shm", "ledger.db-wal"}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    engine.dispose()


def test_a_url_is_shown_without_its_secrets() -> None:
    url = read_database_url("postgresql://ada:secret@db/ledger?sslmode=verify-full&sslpassword=secret2")
    assert shown(url) == "postgresql://ada:***@db/ledger"
