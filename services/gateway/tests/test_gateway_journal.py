"""The journal on real files, delivered to a real gRPC server that commits, fails or stays silent as told."""

import asyncio
import os
import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from signalbox.core import rpc
from signalbox.core.settings import RoomSettings
from signalbox.gateway.adapters import journal as journal_module
from signalbox.gateway.adapters import journal_delivery
from signalbox.gateway.adapters.journal_delivery import JournalDelivery
from signalbox.gateway.adapters.journal_file import Segment, read_attempts
from signalbox.gateway.domain.denial_budget import DenialBudget
from signalbox.gateway.domain.ports import JournalUnwritable
from signalbox.v1 import common_pb2, usage_pb2_grpc
from signalbox.v1.usage_pb2 import AttemptEvent, IngestAck, IngestBatch

SETTINGS = RoomSettings(shared_secret="s" * 32)


class Ledger(usage_pb2_grpc.UsageServicer):
    """Keeps what was ingested by (request, attempt); `away` refuses, `committed` holds acknowledgements up."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], AttemptEvent] = {}
        self.away = False
        self.batches: list[int] = []
        self.committed = asyncio.Event()
        self.committed.set()

    async def Ingest(self, request_iterator: AsyncIterator[IngestBatch], context: grpc.aio.ServicerContext):
        async for batch in request_iterator:
            if self.away:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the ledger is away")
            self.batches.append(len(batch.events))
            for event in batch.events:
                self.rows[event.request_id, event.attempt] = event
            await self.committed.wait()
            yield IngestAck(batch=batch.batch)


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    kept = Ledger()
    server = rpc.Server(SETTINGS, f"unix:{tmp_path}/u.sock", ["signalbox.v1.Usage"])
    usage_pb2_grpc.add_UsageServicer_to_server(kept, server.grpc)
    await server.start()
    yield kept
    await server.stop(0)


@pytest.fixture
async def delivery(tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[JournalDelivery]:
    monkeypatch.setattr(journal_delivery, "LINGER_S", 0.01)
    monkeypatch.setattr(journal_delivery, "ADOPT_EVERY_S", 0.05)
    channel = rpc.connect(SETTINGS, f"unix:{tmp_path}/u.sock")
    running = JournalDelivery(channel, tmp_path / "journal", "gw-1")
    running.start()
    yield running
    await running.close(2)
    await channel.close()


def event(n: int, **fields: object) -> AttemptEvent:
    return AttemptEvent(request_id=f"r{n}", attempt=1, **fields)


def ok(n: int) -> AttemptEvent:
    return event(n, outcome=common_pb2.OUTCOME_OK, status=200, usage=common_pb2.TokenUsage(output_tokens=n))


def end(journal: journal_module.FileJournal, begun: AttemptEvent, outcome: AttemptEvent) -> None:
    begun.MergeFrom(outcome)
    journal.end(begun)


async def until(condition, limit_s: float = 30) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.01)


async def test_whole_records_reach_the_ledger_and_the_journal_shrinks(delivery: JournalDelivery, ledger: Ledger) -> None:
    begun = [event(n, key_id="default/ada", sent=True) for n in range(50)]
    for e in begun:
        delivery.journal.begin(e)
    for n, e in enumerate(begun):
        delivery.journal.note(e, event(n, served_model="m"))
        end(delivery.journal, e, ok(n))
    assert await delivery.drain(5)
    assert len(ledger.rows) == 50
    row = ledger.rows["r7", 1]
    assert (row.key_id, row.served_model, row.usage.output_tokens, row.sent) == ("default/ada", "m", 7, True)
    assert not journal_module.adopt(delivery.journal.directory.parent, delivery.journal.directory)


async def test_nothing_is_lost_while_the_ledger_is_away(delivery: JournalDelivery, ledger: Ledger) -> None:
    ledger.away = True
    for n in range(20):
        e = event(n)
        delivery.journal.begin(e)
        end(delivery.journal, e, ok(n))
    assert not await delivery.drain(0.5)
    ledger.away = False
    assert await delivery.drain(5)
    assert sorted(ledger.rows) == sorted((f"r{n}", 1) for n in range(20))


async def test_what_comes_during_a_commit_waits_for_more(
    delivery: JournalDelivery, ledger: Ledger, monkeypatch: pytest.MonkeyPatch,
) -> None:
    ledger.committed.clear()
    for n in range(3):
        e = event(n)
        delivery.journal.begin(e)
        end(delivery.journal, e, ok(n))
    await until(lambda: ledger.batches == [3])
    monkeypatch.setattr(journal_delivery, "LINGER_S", 0.5)
    late = event(3)
    delivery.journal.begin(late)
    end(delivery.journal, late, ok(3))
    acknowledged_s = asyncio.get_running_loop().time()
    ledger.committed.set()
    await until(lambda: len(ledger.batches) == 2)
    assert asyncio.get_running_loop().time() - acknowledged_s >= 0.45
    assert ledger.batches == [3, 1]


async def test_what_does_not_fit_in_memory_is_read_back_from_disk(
    delivery: JournalDelivery, ledger: Ledger, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_module, "MAX_IN_MEMORY", 10)
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 2_000)
    ledger.away = True
    still_open = event(999, owner="open")
    delivery.journal.begin(still_open)
    for n in range(300):
        e = event(n, owner="x" * 20)
        delivery.journal.begin(e)
        end(delivery.journal, e, ok(n))
    ledger.away = False
    assert await delivery.drain(10)
    assert len(ledger.rows) == 300
    end(delivery.journal, still_open, ok(999))
    assert await delivery.drain(5)
    assert ledger.rows["r999", 1].owner == "open"
    await until(lambda: len(list(delivery.journal.directory.glob("*.journal"))) == 1)


def leave_journal(directory: Path) -> None:
    """Write the journal of a gateway that is killed then: one attempt that ended, one that was under way."""
    program = f"""
import os, signal
from pathlib import Path
from signalbox.gateway.adapters.journal import FileJournal
from signalbox.v1.usage_pb2 import AttemptEvent
j = FileJournal(Path({str(directory)!r}), "gw-dead", lambda: None)
done, cut = AttemptEvent(request_id="done", attempt=1), AttemptEvent(request_id="cut", attempt=1, sent=True)
j.begin(done); j.begin(cut)
done.outcome = 1
j.end(done)
j.note(cut, AttemptEvent(request_id="cut", attempt=1, served_model="m"))
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program], check=False)


async def test_the_journal_of_a_killed_gateway_is_adopted(delivery: JournalDelivery, ledger: Ledger) -> None:
    dead = delivery.journal.directory.parent
    leave_journal(dead)
    await until(lambda: len(ledger.rows) == 2)
    assert ledger.rows["done", 1].outcome == common_pb2.OUTCOME_OK
    assert ledger.rows["cut", 1].outcome == common_pb2.OUTCOME_UNSPECIFIED
    assert (ledger.rows["cut", 1].served_model, ledger.rows["cut", 1].sent) == ("m", True)
    await until(lambda: not (dead / "gw-dead").exists())


@pytest.mark.slow
async def test_whoever_asks_for_the_journal_gets_those_of_the_dead_as_well(
    delivery: JournalDelivery, ledger: Ledger, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_delivery, "ADOPT_EVERY_S", 60)
    await asyncio.sleep(0.1)    # it looks no more by itself
    leave_journal(delivery.journal.directory.parent)
    assert await delivery.hand_over(5)
    assert set(ledger.rows) == {("done", 1), ("cut", 1)}
    ledger.away = True
    leave_journal(delivery.journal.directory.parent)
    assert not await delivery.hand_over(0.3)



async def test_what_is_noted_is_on_disk_at_once(delivery: JournalDelivery) -> None:
    begun = event(1)
    delivery.journal.begin(begun)
    path = next(delivery.journal.directory.glob("*.journal"))
    delivery.journal.note(begun, event(1, sent=True))
    assert [e.sent for e in read_attempts(path)] == [True]
    delivery.journal.note(begun, event(1, served_model="m"))
    assert [(e.sent, e.served_model) for e in read_attempts(path)] == [(True, "m")]
    end(delivery.journal, begun, ok(1))


async def test_outcomes_that_cannot_be_written_are_delivered_all_the_same(delivery: JournalDelivery, ledger: Ledger) -> None:
    begun = [event(n) for n in range(3)]
    for e in begun:
        delivery.journal.begin(e)
    path = next(delivery.journal.directory.glob("*.journal"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, hard))
    try:
        for n, e in enumerate(begun):
            end(delivery.journal, e, ok(n))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [e.outcome for e in read_attempts(path)] == [common_pb2.OUTCOME_UNSPECIFIED] * 3
    assert await delivery.drain(5)
    assert [ledger.rows[f"r{n}", 1].outcome for n in range(3)] == [common_pb2.OUTCOME_OK] * 3


async def test_a_full_disk_refuses_the_intent_and_leaves_the_file_whole(delivery: JournalDelivery) -> None:
    first = event(1)
    delivery.journal.begin(first)
    path = next(delivery.journal.directory.glob("*.journal"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, hard))
    try:
        with pytest.raises(JournalUnwritable):
            delivery.journal.begin(event(2, owner="y" * 100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    delivery.journal.begin(third := event(3))
    assert [e.request_id for e in read_attempts(path)] == ["r1", "r3"]
    end(delivery.journal, first, ok(1))
    end(delivery.journal, third, ok(3))


def test_usage_that_is_told_again_replaces_what_was_told_before(tmp_path: Path) -> None:
    segment = Segment(tmp_path / "1.journal")
    for output_tokens in (1, 7):
        other = common_pb2.IterationUsage(model="m", usage=common_pb2.TokenUsage(output_tokens=3))
        usage = common_pb2.TokenUsage(input_tokens=5, output_tokens=output_tokens, other_models=[other])
        segment.append(event(1, owner="ada", usage=usage).SerializeToString())
    segment.close()
    [read] = read_attempts(segment.path)
    assert (read.owner, read.usage.output_tokens, len(read.usage.other_models)) == ("ada", 7, 1)


def test_reading_stops_at_a_torn_frame(tmp_path: Path) -> None:
    segment = Segment(tmp_path / "1.journal")
    segment.append(event(1).SerializeToString())
    segment.append(event(2).SerializeToString())
    segment.close()
    whole = segment.path.read_bytes()
    for cut in range(len(whole)):
        segment.path.write_bytes(whole[:cut])
        assert len(read_attempts(segment.path)) == (0 if cut < len(whole) // 2 else 1)
    segment.path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert [e.request_id for e in read_attempts(segment.path)] == ["r1"]


async def test_denials_of_unknown_callers_are_bounded(delivery: JournalDelivery, ledger: Ledger) -> None:
    for n in range(500):
        delivery.journal.deny(AttemptEvent(request_id=f"d{n}", reason="key_invalid"))
    for n in range(200):
        delivery.journal.deny(AttemptEvent(request_id=f"k{n}", key_id="default/ada", reason="key_paused"))
    assert await delivery.drain(5)
    anonymous = [r for r in ledger.rows.values() if not r.key_id]
    assert 50 <= len(anonymous) <= 60
    assert len(ledger.rows) - len(anonymous) == 200


def test_a_key_that_is_refused_all_day_fills_no_ledger() -> None:
    budget = DenialBudget()
    hour = [budget.take("default/ada", n / 100) for n in range(360_000)]
    assert all(hour[:300]), "a burst is recorded whole"
    assert 300 + 3590 <= sum(hour) <= 300 + 3600, "then one a second"
    assert budget.take("default/bob", 3600.0), "nobody else's budget"
    for day in range(5):
        assert all(budget.take(f"default/{day}-{n}", 3700.0 + day * 86_400) for n in range(20_000))
    assert len(budget._left) < 50_000, "nor memory"


async def test_a_journal_that_is_just_begun_is_nobody_elses(
    delivery: JournalDelivery, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Gateways that start while another one looks for the journals of the dead, again and again."""
    monkeypatch.setattr(journal_delivery, "ADOPT_EVERY_S", 0)
    directory = delivery.journal.directory.parent

    def begin() -> None:
        for n in range(300):
            journal = journal_module.FileJournal(directory, f"gw-new-{n}", lambda: None)
            assert {path.name for path in journal.directory.iterdir()} == {"lock", "00000001.journal"}
            journal.close()

    await asyncio.to_thread(begin)


async def test_a_stopped_gateway_leaves_nothing_behind(tmp_path: Path, ledger: Ledger) -> None:
    async with rpc.connect(SETTINGS, f"unix:{tmp_path}/u.sock") as channel:
        running = JournalDelivery(channel, tmp_path / "journal", "gw-2")
        running.start()
        e = event(1)
        running.journal.begin(e)
        end(running.journal, e, ok(1))
        await running.close(5)
    assert ("r1", 1) in ledger.rows
    assert os.listdir(tmp_path / "journal") == []
