"""The session with schedulers that answer, die, drain and ask for journals, over real sockets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc.aio
import pytest

from signalbox.core import rpc
from signalbox.core.grpc_stream import Endpoint
from signalbox.core.settings import RoomSettings
from signalbox.gateway.adapters import scheduler_session
from signalbox.gateway.adapters.scheduler_session import SchedulerSession
from signalbox.gateway.domain.ports import OpenLease, SchedulerUnavailable
from signalbox.v1 import scheduler_pb2 as pb
from signalbox.v1 import scheduler_pb2_grpc
from tests.support.machine import busy

SETTINGS = RoomSettings(shared_secret="s" * 32)


class FakeScheduler(scheduler_pb2_grpc.SchedulerServicer):
    """Grants every admit; `mute` swallows them; records what it got."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.mute = False
        self.got: list[pb.GatewayBatch] = []
        self.outgoing: asyncio.Queue[pb.SchedulerBatch] = asyncio.Queue()

    hung = False
    queues_ms = 0
    """Admissions are told that they wait so long, and granted by `grant_queued` only."""

    async def grant_queued(self) -> None:
        """Grant all that was asked for."""
        grants = [pb.AdmitResponse(seq=r.seq, grant=pb.Grant(lease_id=r.request_id, account_id=self.name))
                  for b in self.got for r in b.admits]
        await self.outgoing.put(pb.SchedulerBatch(admits=grants))

    async def Session(self, request_iterator: AsyncIterator[pb.GatewayBatch], context: grpc.aio.ServicerContext):
        async def read() -> None:
            async for batch in request_iterator:
                self.got.append(batch)
                if not self.hung:
                    await self.outgoing.put(self.answer(batch))

        reading = asyncio.create_task(read())
        try:
            while True:
                yield await self.outgoing.get()
        finally:
            reading.cancel()

    def answer(self, batch: pb.GatewayBatch) -> pb.SchedulerBatch:
        out = pb.SchedulerBatch()
        for r in [*batch.admits, *batch.retries]:
            if self.queues_ms:
                out.queued.append(pb.Queued(seq=r.seq, wait_ms=self.queues_ms))
            elif not self.mute:
                out.admits.append(pb.AdmitResponse(seq=r.seq, grant=pb.Grant(lease_id=f"L{r.seq}", account_id=self.name)))
        for s in batch.settles:
            if not self.mute:
                out.settles.append(pb.SettleResponse(seq=s.seq))
        out.heartbeats.extend(pb.HeartbeatResponse(seq=h.seq) for h in batch.heartbeats)
        out.inspects.extend(pb.InspectResponse(seq=i.seq, key_id="k") for i in batch.inspects)
        return out

    def leases_beaten(self) -> set[str]:
        return {beat.lease_id for b in self.got for h in b.heartbeats for beat in h.leases}


class Running:
    def __init__(self, path: Path, fake: FakeScheduler) -> None:
        self.address, self.fake = f"unix:{path}", fake

    async def start(self) -> None:
        self.server = rpc.Server(SETTINGS, self.address, ["signalbox.v1.Scheduler"])
        scheduler_pb2_grpc.add_SchedulerServicer_to_server(self.fake, self.server.grpc)
        await self.server.start()

    async def stop(self) -> None:
        await self.server.stop(0)


Connect = Callable[..., Awaitable[SchedulerSession]]


@pytest.fixture
async def connect(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Connect]:
    for name, value in {"HEARTBEAT_EVERY_S": 0.1, "CONNECT_WAIT_S": 2.0, "ANSWER_WAIT_S": 1.0}.items():
        monkeypatch.setattr(scheduler_session, name, value)
    opened: list[SchedulerSession] = []

    async def open_session(*addresses: str, journal: Callable[[], Awaitable[bool]] | None = None) -> SchedulerSession:
        async def nothing() -> bool:
            return True

        session = SchedulerSession([Endpoint(SETTINGS, a) for a in addresses], "gw-1", journal or nothing)
        session.start()
        opened.append(session)
        return session

    yield open_session
    for session in opened:
        await session.close(0.1)


@pytest.fixture
async def scheduler(tmp_path: Path) -> AsyncIterator[Running]:
    running = Running(tmp_path / "a.sock", FakeScheduler("a"))
    await running.start()
    yield running
    await running.stop()


async def test_many_calls_travel_in_few_batches(connect: Connect, scheduler: Running) -> None:
    session = await connect(scheduler.address)
    await session.inspect(pb.InspectRequest())
    answers = await asyncio.gather(*(session.admit(pb.AdmitRequest(request_id=f"r{n}")) for n in range(100)))
    assert len({a.grant.lease_id for a in answers}) == 100
    assert max(len(b.admits) for b in scheduler.fake.got) > 50



async def test_admits_wait_for_a_scheduler_that_comes_back(connect: Connect, scheduler: Running) -> None:
    session = await connect(scheduler.address)
    await session.inspect(pb.InspectRequest())
    scheduler.fake.mute = True
    waiting = asyncio.ensure_future(session.admit(pb.AdmitRequest(request_id="r1")))
    await asks(scheduler.fake, 1)
    await scheduler.stop()
    scheduler.fake.mute = False
    await scheduler.start()
    assert (await waiting).grant.account_id == "a"
    assert [a.request_id for b in scheduler.fake.got for a in b.admits] == ["r1", "r1"]


@pytest.mark.slow
async def test_without_a_scheduler_the_caller_is_told_in_time(connect: Connect, tmp_path: Path) -> None:
    session = await connect(f"unix:{tmp_path}/none.sock")
    async with asyncio.timeout(4 * busy()):
        with pytest.raises(SchedulerUnavailable):
            await session.admit(pb.AdmitRequest(request_id="r1"))


@pytest.mark.slow
async def test_what_may_have_been_granted_unheard_is_given_back(connect: Connect, scheduler: Running) -> None:
    session = await connect(scheduler.address)
    await session.inspect(pb.InspectRequest())
    scheduler.fake.mute = True
    retry = pb.RetryRequest(failed=pb.SettleRequest(lease_id="r2.1"))
    async with asyncio.timeout(30):
        for lost in (session.admit(pb.AdmitRequest(request_id="r1")), session.retry(retry)):
            with pytest.raises(SchedulerUnavailable):
                await lost
        scheduler.fake.mute = False
        while len(given := {(s.lease_id, s.unused) for b in scheduler.fake.got for s in b.settles}) < 2:
            await asyncio.sleep(0.02)
    assert given == {("r1.1", True), ("r2.2", True)}


async def test_settles_are_repeated_until_acknowledged(connect: Connect, scheduler: Running) -> None:
    session = await connect(scheduler.address)
    await session.inspect(pb.InspectRequest())
    scheduler.fake.mute = True
    session.settle(pb.SettleRequest(lease_id="L1"))
    async with asyncio.timeout(30):
        while not any(b.settles for b in scheduler.fake.got):
            await asyncio.sleep(0.01)
    await scheduler.stop()
    scheduler.fake.mute = False
    await scheduler.start()
    async with asyncio.timeout(30):
        while session._settles:
            await asyncio.sleep(0.02)
    assert [s.lease_id for b in scheduler.fake.got for s in b.settles] == ["L1", "L1"]


async def test_open_leases_are_renewed_and_settled_ones_are_not(connect: Connect, scheduler: Running) -> None:
    session = await connect(scheduler.address)
    await session.inspect(pb.InspectRequest())
    session.track(OpenLease("L1", b"t"))
    session.track(OpenLease("L2", b"t"))
    session.settle(pb.SettleRequest(lease_id="L2"))
    async with asyncio.timeout(30):
        while "L1" not in scheduler.fake.leases_beaten():
            await asyncio.sleep(0.02)
    assert scheduler.fake.leases_beaten() == {"L1"}


async def test_a_draining_scheduler_is_left_for_another(connect: Connect, scheduler: Running, tmp_path: Path) -> None:
    other = Running(tmp_path / "b.sock", FakeScheduler("b"))
    await other.start()
    try:
        session = await connect(scheduler.address, other.address)
        first = (await session.admit(pb.AdmitRequest(request_id="r1"))).grant.account_id
        fake = scheduler.fake if first == "a" else other.fake
        await fake.outgoing.put(pb.SchedulerBatch(draining=True))
        async with asyncio.timeout(30):
            while (await session.admit(pb.AdmitRequest(request_id="r2"))).grant.account_id == first:
                await asyncio.sleep(0.02)
    finally:
        await other.stop()


async def test_the_journal_is_delivered_before_the_answer(connect: Connect, scheduler: Running) -> None:
    order: list[str] = []

    async def deliver() -> bool:
        order.append("delivered")
        return True

    session = await connect(scheduler.address, journal=deliver)
    await session.inspect(pb.InspectRequest())
    session.track(OpenLease("L1", b"t"))
    await scheduler.fake.outgoing.put(pb.SchedulerBatch(deliver_journal=pb.DeliverJournal(epoch="e2")))
    async with asyncio.timeout(30):
        while not any(b.journal_delivered.epoch == "e2" for b in scheduler.fake.got):
            await asyncio.sleep(0.02)
    assert order == ["delivered"]
    assert "L1" in scheduler.fake.leases_beaten()


async def test_a_grant_that_nobody_waits_for_is_given_back(connect: Connect, scheduler: Running) -> None:
    session = await connect(scheduler.address)
    await session.inspect(pb.InspectRequest())
    waiting = asyncio.ensure_future(session.admit(pb.AdmitRequest(request_id="r1")))
    await asyncio.sleep(0)
    waiting.cancel()
    async with asyncio.timeout(30):
        while not any(s.lease_id.startswith("L") for b in scheduler.fake.got for s in b.settles):
            await asyncio.sleep(0.02)


async def test_cancelling_ends_it_even_while_no_scheduler_is_there(tmp_path: Path) -> None:
    async def nothing() -> bool:
        return True

    session = SchedulerSession([Endpoint(SETTINGS, f"unix:{tmp_path}/none.sock")], "gw-1", nothing)
    session.start()
    for _ in range(20):
        await asyncio.sleep(0.02)
        tasks = list(session._tasks)
        if any(t.done() for t in tasks):
            break
    async with asyncio.timeout(30):
        await session.close(0)
    assert all(t.done() for t in tasks)


async def test_a_scheduler_that_hangs_is_left_for_another(
    connect: Connect, scheduler: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler_session, "PROBE_AFTER_S", 0.2)
    monkeypatch.setattr(scheduler_session, "SILENT_LIMIT_S", 0.5)
    monkeypatch.setattr(scheduler_session, "ANSWER_WAIT_S", 5.0)
    other = Running(tmp_path / "b.sock", FakeScheduler("b"))
    await other.start()
    try:
        session = await connect(scheduler.address, other.address)
        first = (await session.admit(pb.AdmitRequest(request_id="r1"))).grant.account_id
        (scheduler.fake if first == "a" else other.fake).hung = True
        assert (await session.admit(pb.AdmitRequest(request_id="r2"))).grant.account_id != first
    finally:
        await other.stop()


@pytest.mark.slow
async def test_a_scheduler_that_only_takes_its_time_is_kept(
    connect: Connect, scheduler: Running, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler_session, "PROBE_AFTER_S", 0.2)
    monkeypatch.setattr(scheduler_session, "SILENT_LIMIT_S", 2.0)
    monkeypatch.setattr(scheduler_session, "ANSWER_WAIT_S", 10.0)
    session = await connect(scheduler.address)
    await session.inspect(pb.InspectRequest())
    scheduler.fake.mute = True
    waiting = asyncio.ensure_future(session.admit(pb.AdmitRequest(request_id="r1")))
    await asyncio.sleep(3.0)
    assert sum(b.HasField("hello") for b in scheduler.fake.got) == 1
    waiting.cancel()


# ------------------------------------------------------------------------- requests that wait for an account


async def asks(fake: FakeScheduler, count: int) -> list[pb.AdmitRequest]:
    """Return the admits that a scheduler got, once there are so many."""
    async with asyncio.timeout(30):
        while len(got := [a for b in fake.got for a in b.admits]) < count:
            await asyncio.sleep(0.01)
    return got


@pytest.mark.slow
async def test_a_request_that_waits_for_an_account_is_given_its_time(connect: Connect, scheduler: Running) -> None:
    session = await connect(scheduler.address)
    await session.inspect(pb.InspectRequest())
    scheduler.fake.queues_ms = 30_000
    waiting = asyncio.ensure_future(session.admit(pb.AdmitRequest(request_id="r1")))
    await asyncio.sleep(1.6)  # longer than an answer may take otherwise
    assert not waiting.done()
    await scheduler.fake.grant_queued()
    assert (await waiting).grant.account_id == "a"


async def test_a_caller_that_hangs_up_while_it_waits_leaves_the_queue(connect: Connect, scheduler: Running) -> None:
    session = await connect(scheduler.address)
    await session.inspect(pb.InspectRequest())
    scheduler.fake.queues_ms = 30_000
    admit = asyncio.ensure_future(session.admit(pb.AdmitRequest(request_id="r1")))
    failed = pb.SettleRequest(lease_id="r2.1")
    retry = asyncio.ensure_future(session.retry(pb.RetryRequest(failed=failed)))
    await asks(scheduler.fake, 1)
    await asyncio.sleep(0.1)
    admit.cancel()
    retry.cancel()
    async with asyncio.timeout(30):
        while len(cancelled := {c.request_id for b in scheduler.fake.got for c in b.cancels}) < 2:
            await asyncio.sleep(0.01)
    assert cancelled == {"r1", "r2"}


async def test_when_its_scheduler_dies_another_is_asked_with_what_is_left_of_the_time(
    connect: Connect, scheduler: Running, tmp_path: Path,
) -> None:
    other = Running(tmp_path / "b.sock", FakeScheduler("b"))
    await other.start()
    try:
        session = await connect(scheduler.address, other.address)
        first = (await session.admit(pb.AdmitRequest(request_id="r0"))).grant.account_id
        here, there = (scheduler, other) if first == "a" else (other, scheduler)
        for each in (here, there):
            each.fake.queues_ms = 20_000
        waiting = asyncio.ensure_future(session.admit(pb.AdmitRequest(request_id="r1")))
        await asks(here.fake, 2)
        await asyncio.sleep(0.5)
        await here.stop()
        [again] = await asks(there.fake, 1)
        assert again.request_id == "r1"
        assert 0 < again.deadline_ms <= 19_500
        await there.fake.grant_queued()
        assert (await waiting).grant.account_id == there.fake.name
        await here.start()
    finally:
        await other.stop()


@pytest.mark.slow
async def test_without_another_scheduler_those_that_wait_are_told_in_time(connect: Connect, scheduler: Running) -> None:
    session = await connect(scheduler.address)
    await session.inspect(pb.InspectRequest())
    scheduler.fake.queues_ms = 30_000
    waiting = asyncio.ensure_future(session.admit(pb.AdmitRequest(request_id="r1")))
    await asks(scheduler.fake, 1)
    await asyncio.sleep(0.1)
    await scheduler.stop()
    async with asyncio.timeout(4 * busy()):  # the wait for a connection is 2 s here
        with pytest.raises(SchedulerUnavailable):
            await waiting
    await scheduler.start()
