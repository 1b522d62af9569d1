"""Redis flushed, killed and started again; gateways that die; what is lost is found again in the ledger."""

import asyncio
import contextlib
import time
from typing import Any

import pytest

from signalbox.v1 import scheduler_pb2 as pb
from signalbox.v1 import usage_pb2 as up
from signalbox.v1.common_pb2 import OUTCOME_ORPHANED, TokenUsage
from tests.support.machine import busy

pytestmark = pytest.mark.slow


class Gateway:
    """One gateway's session: renews its leases and delivers its journal when asked, as the real one does."""

    def __init__(self, stub: Any, name: str = "gateway-1") -> None:
        self._call = stub.Session()
        self._name = name
        self.leases: list[pb.Grant] = []
        self.asked: list[str] = []
        self.batches: list[pb.SchedulerBatch] = []
        self.delivers = True
        self.deliver_first = asyncio.Event()
        self.deliver_first.set()
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Gateway":
        await self._call.write(pb.GatewayBatch(hello=pb.Hello(gateway_id=self._name, protocol="v1")))
        first = await self._call.read()
        assert first.ByteSize() == 0
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._reading is not None
        self._reading.cancel()
        self._call.cancel()

    async def _read(self) -> None:
        async for batch in self._call:
            self.batches.append(batch)
            if batch.HasField("deliver_journal"):
                self.asked.append(batch.deliver_journal.epoch)
                if self.delivers:
                    await self._deliver(batch.deliver_journal.epoch)

    async def _deliver(self, epoch: str) -> None:
        await self.deliver_first.wait()
        await self.send(
            heartbeats=[pb.HeartbeatRequest(seq=1, leases=self.beats())], journal_delivered=pb.JournalDelivered(epoch=epoch),
        )

    def beats(self) -> list[pb.LeaseBeat]:
        return [pb.LeaseBeat(lease_id=g.lease_id, lease_token=g.lease_token) for g in self.leases]

    async def send(self, **fields: Any) -> None:
        await self._call.write(pb.GatewayBatch(**fields))


def bucket(requests: int, tokens: int = 0, cost: int = 0, age_ms: int = 5_000) -> up.CounterBucket:
    start = time.time_ns() // 1_000_000 - age_ms
    return up.CounterBucket(
        key_id="default/ada", model="claude-sonnet-4-5", start_ms=start - start % 1_000, width_ms=1_000, requests=requests,
        tokens=tokens, cost_nano_usd=cost,
    )


async def serving(stage, make, **key: Any) -> Any:
    stub = await stage.add()
    await stage.put(make.account("a"), make.account("b"), make.pool("default", "a", "b"), make.key("ada", **key))
    return stub


async def looked(stub, make) -> pb.InspectResponse:
    return await stub.Inspect(pb.InspectRequest(key_hash=make.digest("ada"), with_limits=True), timeout=30)


async def until_free(stub, make, limit_s: float = 30.0) -> pb.InspectResponse:
    """Return the key's state once nothing of it runs any more."""
    async with asyncio.timeout(limit_s):
        while (state := await looked(stub, make)).in_flight:
            await asyncio.sleep(0.05)
    return state


async def until_open(stub, make, limit_s: float = 60.0) -> pb.AdmitResponse:
    """Return the first answer that is not scheduler_unavailable."""
    end = time.monotonic() + limit_s
    while True:
        answer = await stub.Admit(make.ask("ada"), timeout=30)
        if answer.denial.error_code != "scheduler_unavailable":
            return answer
        assert answer.denial.retry_after_ms > 0
        assert time.monotonic() < end, "admission did not resume"
        await asyncio.sleep(0.05)


async def eventually(check, limit_s: float = 30.0) -> None:
    end = time.monotonic() + limit_s
    while not check():
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


async def test_a_flush_is_healed_from_the_ledger(stage, make):
    limits = [make.limit("Minute", requests=10), make.limit("Day", tokens=1000), make.limit("Month", costUSD="1")]
    stub = await serving(stage, make, limits=limits)
    first_used_ms = int(time.time() * 1000) - 86_400_000
    stage.ledger.facts[up.Fact.FIRST_USE, "default/ada", ""] = up.Fact(
        kind=up.Fact.FIRST_USE, key_id="default/ada", at_ms=first_used_ms,
    )
    stage.ledger.counters = [bucket(4, 300, 200_000_000), bucket(3, 50, 1, age_ms=90_000)]
    stage.redis.cli("FLUSHALL")
    answer = await until_open(stub, make)
    assert answer.HasField("grant")
    state = await looked(stub, make)
    minute, day, month = state.limits
    assert minute.requests.used == 4 + 1
    assert day.tokens.used == 350
    assert month.cost_nano_usd.used == 200_000_001
    assert state.first_used_at_ms == first_used_ms


async def test_accounts_are_not_busy_with_what_a_flush_has_lost(stage, make):
    stub = await serving(stage, make)
    for _ in range(3):
        assert (await stub.Admit(make.ask("ada"), timeout=30)).HasField("grant")
    stage.redis.cli("FLUSHALL")
    await stub.Settle(make.ended((await until_open(stub, make)).grant), timeout=30)
    await asyncio.sleep(1.0)
    listed = await stub.ListObjects(pb.ListObjectsRequest(kinds=["ClaudeAccount"], with_status=True), timeout=30)
    assert [o.account.in_flight for o in listed.objects] == [0] * len(listed.objects)


async def test_the_documents_are_put_again_by_whoever_knows_them(stage, make):
    stub = await serving(stage, make)
    stage.redis.cli("FLUSHALL")
    assert (await until_open(stub, make)).HasField("grant")
    listed = await stub.ListObjects(pb.ListObjectsRequest(), timeout=30)
    assert len(listed.objects) == 4


async def test_a_lifetime_from_first_use_goes_on_after_a_flush(stage, make):
    stub = await serving(stage, make, lifetime={"duration": "1h"})
    assert (await stub.Admit(make.ask("ada"), timeout=30)).HasField("grant")
    await eventually(lambda: bool(stage.ledger.facts))
    [fact] = stage.ledger.facts.values()
    assert abs(fact.at_ms - time.time() * 1000) < 5_000
    fact.at_ms -= 3_590_000  # ten seconds of it are left
    stage.redis.cli("FLUSHALL")
    assert (await until_open(stub, make)).HasField("grant")
    assert (await looked(stub, make)).first_used_at_ms == fact.at_ms
    fact.at_ms -= 10_000
    stage.redis.cli("FLUSHALL")
    assert (await until_open(stub, make)).denial.error_code == "key_expired"


async def test_admission_waits_for_documents_that_nobody_knows_any_more(stage, make):
    """Redis was flushed while no scheduler ran: until somebody puts the documents again, no key is called invalid.

    Those who put them learn from any scheduler, not only from the one that recovers, that there are none.
    """
    stage.ledger.counters = [bucket(requests=3)]
    stub, other = await stage.add(opens=False), await stage.add(opens=False)
    for scheduler in (stub, other):
        async with asyncio.timeout(5):
            async for event in scheduler.WatchObjects(pb.WatchObjectsRequest()):
                assert event.type == pb.ObjectEvent.SYNCED
                break
    for _ in range(5):
        assert (await stub.Admit(make.ask("ada"), timeout=30)).denial.error_code == "scheduler_unavailable"
        await asyncio.sleep(0.2)
    await stage.put(
        make.account("a"), make.pool("default", "a"), make.key("ada", limits=[make.limit("Day", requests=3)]),
    )
    answer = await until_open(stub, make)
    assert answer.denial.error_code == "key_limit_requests", "its counters were rebuilt"


async def test_open_attempts_count_again_after_a_flush(stage, make):
    limits = [make.limit("Minute", requests=3), make.limit("Day", tokens=1_000_000, admission="Strict")]
    stub = await serving(stage, make, limits=limits, concurrency=2)
    async with Gateway(stub) as gateway:
        gateway.leases = [(await stub.Admit(make.ask("ada"), timeout=30)).grant for _ in range(2)]
        reserved = (await looked(stub, make)).limits[1].tokens.reserved
        stage.redis.cli("FLUSHALL")
        assert (await until_open(stub, make)).denial.error_code == "key_limit_concurrency"
        state = await looked(stub, make)
        assert (state.in_flight, state.limits[0].requests.used, state.limits[1].tokens.reserved) == (2, 2, reserved)
        usage = TokenUsage(input_tokens=70, output_tokens=7)
        for grant in gateway.leases:
            for _ in range(2):
                await stub.Settle(make.ended(grant, usage=usage, duration_ms=60_000), timeout=30)
        state = await looked(stub, make)
        assert (state.in_flight, state.limits[1].tokens.used, state.limits[1].tokens.reserved) == (0, 154, 0)
        assert len(gateway.asked) == 1


def row_of(grant: pb.Grant, usage: TokenUsage, cost: int = 0) -> up.LedgerRow:
    request_id, _, attempt = grant.lease_id.rpartition(".")
    return up.LedgerRow(request_id=request_id, attempt=int(attempt), usage=usage, cost_nano_usd=cost)


async def opened(stage) -> None:
    await eventually(lambda: stage.redis.cli("HGET", "sb:epoch", "state") == "open")
    for room in stage.rooms:
        await asyncio.wait_for(room.gate.wait_open(), 30)


async def test_an_attempt_that_the_ledger_had_is_not_counted_again(stage, make):
    """It ended long before, and its settlement was still on the way when Redis lost everything."""
    stub = await serving(stage, make, limits=[make.limit("Day", requests=10, tokens=1000)])
    async with Gateway(stub):
        grant = (await stub.Admit(make.ask("ada"), timeout=30)).grant
        stage.ledger.counters = [bucket(1, 77)]
        stage.ledger.answers.clear()
        stage.redis.cli("FLUSHALL")
        await eventually(lambda: bool(stage.ledger.asked and stage.ledger.asked[-1].ended_since_ms))
        query = stage.ledger.asked[-1]
        assert query.delivered == ["gateway-1"]
        assert 60_000 <= query.now_ms - query.ended_since_ms < 65_000
        stage.redis.cli("HSET", "sb:epoch", "asked", str(grant.admitted_at_ms + 51))
        stage.ledger.answers.set()
        await opened(stage)
        await stub.Settle(make.ended(grant, usage={"input_tokens": 77}, duration_ms=50), timeout=30)
        [day] = (await looked(stub, make)).limits
        assert (day.requests.used, day.tokens.used) == (1, 77)


@pytest.mark.parametrize("delivered", [True, False], ids=["journal delivered", "no journal"])
@pytest.mark.parametrize("committed", [True, False], ids=["in the answer", "after the answer"])
@pytest.mark.parametrize("renewed", [True, False], ids=["lease renewed", "lease lost"])
async def test_an_attempt_that_ends_in_the_moment_in_which_the_ledger_is_asked_counts_once(
    stage, make, renewed, committed, delivered,
):
    """Whether its row is in the answer is known by the row, not by the time; told twice it counts once too."""
    limits = [make.limit("Day", requests=10, tokens=1000), make.limit("Minute", requests=10)]
    stub = await serving(stage, make, limits=limits)
    usage = TokenUsage(input_tokens=70, cache_read_tokens=5, output_tokens=7)
    async with Gateway(stub) as gateway:
        gateway.delivers = delivered
        grant = (await stub.Admit(make.ask("ada"), timeout=30)).grant
        stage.ledger.answers.clear()
        stage.redis.cli("FLUSHALL")
        await eventually(lambda: bool(gateway.asked))
        if renewed:
            beat = pb.LeaseBeat(lease_id=grant.lease_id, lease_token=grant.lease_token)
            assert not (await stub.Heartbeat(pb.HeartbeatRequest(leases=[beat]), timeout=30)).lost
        if committed:
            stage.ledger.counters, stage.ledger.rows = [bucket(1, 77)], [row_of(grant, usage)]
        await eventually(lambda: bool(stage.ledger.asked and stage.ledger.asked[-1].ended_since_ms))
        stage.ledger.answers.set()
        await opened(stage)
        took_ms = int(time.time() * 1000) - grant.admitted_at_ms
        for _ in range(2):
            await stub.Settle(make.ended(grant, usage=usage, duration_ms=took_ms), timeout=30)
        state = await looked(stub, make)
        day, minute = state.limits
        assert (day.requests.used, day.tokens.used, day.tokens.reserved) == (1, 77, 0)
        assert (minute.requests.used, state.in_flight) == (1, 0)


async def test_a_renewed_lease_of_a_dead_gateway_counts_once_though_the_ledger_had_its_row(stage, make):
    stub = await serving(stage, make, limits=[make.limit("Day", requests=10, tokens=1000)])
    usage = TokenUsage(input_tokens=70, output_tokens=7)
    async with Gateway(stub) as gateway:
        gateway.leases = [(await stub.Admit(make.ask("ada"), timeout=30)).grant]
        [grant] = gateway.leases
        stage.ledger.counters, stage.ledger.rows = [bucket(1, 77)], [row_of(grant, usage)]
        stage.redis.cli("FLUSHALL")
        await opened(stage)
    assert (await looked(stub, make)).in_flight == 1
    expire(stage, grant.lease_id)
    [day] = (await until_free(stub, make)).limits
    assert (day.requests.used, day.tokens.used, day.tokens.reserved) == (1, 77, 0)


async def test_a_lease_that_nobody_knows_after_a_restart_is_charged_and_told_to_the_ledger(stage, make):
    """Its gateway died with the former epoch: there is neither a heartbeat nor a settlement, and the row comes late."""
    stub = await serving(stage, make, limits=[make.limit("Day", requests=10, tokens=1000)])
    grant = (await stub.Admit(make.ask("ada"), timeout=30)).grant
    beat = pb.LeaseBeat(
        lease_id=grant.lease_id, lease_token=grant.lease_token, usage=TokenUsage(input_tokens=40), output_tokens=12,
    )
    await stub.Heartbeat(pb.HeartbeatRequest(leases=[beat]), timeout=30)
    await asyncio.sleep(1.2)  # the append-only file is synced every second
    stage.redis.kill()
    stage.redis.start()
    await eventually(lambda: stage.redis.cli("HLEN", "sb:former") == "1", 30)
    await opened(stage)
    assert (await looked(stub, make)).limits[0].requests.used == 0
    former = stage.redis.cli("HKEYS", "sb:former")[2:-2]
    stage.redis.cli("HSET", "sb:former", former, "1")
    await eventually(lambda: stage.redis.cli("HLEN", "sb:former") == "0")
    [event] = stage.ledger.events
    assert (event.lease_id, event.outcome) == (grant.lease_id, OUTCOME_ORPHANED)
    [day] = (await looked(stub, make)).limits
    assert (day.requests.used, day.tokens.used, day.tokens.reserved) == (1, 52, 0)
    assert stage.redis.keys(f"sb:{former}:*") == []
    # The gateway was only cut off: what it says is believed, once.
    await stub.Settle(make.ended(grant, usage={"input_tokens": 40, "output_tokens": 20}), timeout=30)
    [day] = (await looked(stub, make)).limits
    assert (day.requests.used, day.tokens.used) == (1, 60)


def account_bucket(name: str, requests: int, taken: int = 0, given: int = 0) -> up.AccountBucket:
    start = time.time_ns() // 1_000_000 - 5_000
    return up.AccountBucket(
        account_id=f"default/{name}", start_ms=start - start % 1_000, width_ms=1_000, requests=requests,
        input_tokens=taken, output_tokens=given,
    )


async def test_caps_of_accounts_are_healed_from_the_ledger(stage, make):
    """Those of a limit group from all its accounts, and with what runs."""
    group = {"limitGroup": "default/org", "limits": [{"per": "Minute", "requests": 10}, {"per": "Day", "inputTokens": 2000}]}
    stub = await stage.add()
    await stage.put(
        make.account("a", **group), make.account("b", **group), make.pool("default", "a", "b"), make.key("ada"),
    )
    async with Gateway(stub) as gateway:
        gateway.leases = [(await stub.Admit(make.ask("ada"), timeout=30)).grant]
        stage.ledger.accounts = [account_bucket("a", 4, 300, 5), account_bucket("b", 3, 350, 5)]
        stage.redis.cli("FLUSHALL")
        await opened(stage)
        [minute] = stage.redis.keys("sb:*:c:a:default/org:Minute")
        [day] = stage.redis.keys("sb:*:c:a:default/org:Day")
        assert stage.redis.cli("HMGET", minute, "u1", "u2") == "['8', '0']"
        assert stage.redis.cli("HMGET", day, "u1", "u2", "r2") == "['0', '650', '100']"
        answers = [await stub.Admit(make.ask("ada"), timeout=30) for _ in range(3)]
        assert [a.HasField("grant") for a in answers] == [True, True, False]
        assert answers[2].denial.error_code == "pool_limited"


async def test_a_key_whose_document_comes_back_after_a_flush_has_its_counters(stage, make):
    limits = [
        make.limit("Minute", requests=10), make.limit("Day", tokens=1000), make.limit("Total", costUSD="1", since="2020-01-01T00:00:00Z"),
    ]
    stub = await serving(stage, make, limits=limits)
    other = await stage.add()
    await stage.delete("RelayKey", "ada")
    stage.ledger.counters = [bucket(4, 300, 200_000_000), bucket(3, 50, 1, age_ms=90_000)]
    stage.redis.cli("FLUSHALL")
    await opened(stage)
    for _ in range(2):  # the second time its counters are there
        await stage.put(make.key("ada", limits=limits), at=1)
        state = await looked(other, make)
        minute, day, total = state.limits
        assert (minute.requests.used, day.tokens.used, total.cost_nano_usd.used) == (4, 350, 200_000_001)
        await stage.delete("RelayKey", "ada", at=1)
    await stage.put(make.key("ada", limits=limits), at=1)
    async with asyncio.timeout(30):
        while not (answer := await stub.Admit(make.ask("ada"), timeout=30)).HasField("grant"):
            assert answer.denial.error_code == "key_invalid"  # of a document that the other scheduler was told of
            await asyncio.sleep(0.01)
    await stub.Settle(make.ended(answer.grant, usage={"input_tokens": 10}), timeout=30)
    minute, day, _ = (await looked(stub, make)).limits
    assert (minute.requests.used, day.tokens.used) == (5, 360)


async def test_an_account_whose_document_comes_back_after_a_flush_has_its_counters(stage, make):
    capped = make.account("a", limits=[{"per": "Hour", "requests": 5}])
    stub = await stage.add()
    await stage.put(make.pool("default", "a"), make.key("ada"))
    stage.ledger.accounts = [account_bucket("a", 4)]
    stage.redis.cli("FLUSHALL")
    await opened(stage)
    await stage.put(capped)
    assert (await stub.Admit(make.ask("ada"), timeout=30)).HasField("grant")
    assert (await stub.Admit(make.ask("ada"), timeout=30)).denial.error_code == "pool_limited"


async def test_recreating_a_name_keeps_its_counters(stage, make):
    limits = [make.limit("Hour", requests=2)]
    stub = await serving(stage, make, limits=limits)
    for _ in range(2):
        assert (await stub.Admit(make.ask("ada"), timeout=30)).HasField("grant")
        await stage.delete("RelayKey", "ada")
        assert (await stub.Admit(make.ask("ada"), timeout=30)).denial.error_code == "key_invalid"
        await stage.put(make.key("ada", limits=limits))
    assert (await stub.Admit(make.ask("ada"), timeout=30)).denial.error_code == "key_limit_requests"


async def test_an_attempt_that_ended_after_the_ledger_was_asked_is_counted(stage, make):
    stub = await serving(stage, make, limits=[make.limit("Day", requests=10, tokens=1000)])
    async with Gateway(stub):
        grant = (await stub.Admit(make.ask("ada"), timeout=30)).grant
        stage.redis.cli("FLUSHALL")
        await eventually(lambda: stage.redis.cli("HGET", "sb:epoch", "state") == "open")
        await asyncio.wait_for(stage.rooms[0].gate.wait_open(), 30)
        settle = make.ended(grant, usage={"input_tokens": 77}, duration_ms=60_000)
        for _ in range(2):
            await stub.Settle(settle, timeout=30)
        [day] = (await looked(stub, make)).limits
        assert (day.requests.used, day.tokens.used) == (1, 77)


async def test_admission_waits_for_the_journals_but_not_for_ever(stage, make):
    stub = await serving(stage, make)
    async with Gateway(stub) as gateway:
        gateway.delivers = False
        stage.redis.cli("FLUSHALL")
        began = time.monotonic()
        await until_open(stub, make)
        assert 0.4 < time.monotonic() - began < 3.0 * busy()
        assert len(gateway.asked) == 1


async def test_every_schedulers_gateways_are_asked(stage, make):
    one = await serving(stage, make)
    two = await stage.add(journal_wait_s=5.0)
    for room in stage.rooms:
        assert room.gate.is_open
    async with Gateway(one, "g1") as g1, Gateway(two, "g2") as g2:
        stage.redis.cli("FLUSHALL")
        await asyncio.gather(until_open(one, make), until_open(two, make))
        assert g1.asked == g2.asked
        assert len(g1.asked) == 1


@pytest.mark.parametrize("flush", [False, True], ids=["restart", "restart and flush"])
async def test_a_killed_redis_comes_back_with_its_counts(stage, make, flush):
    stub = await serving(stage, make, limits=[make.limit("Hour", requests=5)])
    for _ in range(3):
        grant = (await stub.Admit(make.ask("ada"), timeout=30)).grant
        await stub.Settle(make.ended(grant), timeout=30)
    stage.redis.kill()
    denied = (await stub.Admit(make.ask("ada"), timeout=30)).denial
    assert denied.error_code == "scheduler_unavailable"
    with contextlib.suppress(Exception):
        assert (await looked(stub, make)).denial.error_code == "scheduler_unavailable"
    stage.ledger.counters = [bucket(3)]
    stage.redis.start()
    if flush:
        stage.redis.cli("FLUSHALL")
    assert (await until_open(stub, make, 30)).HasField("grant")
    assert (await looked(stub, make)).limits[0].requests.used == 4


async def test_settles_wait_until_they_can_be_applied(stage, make):
    stub = await serving(stage, make, concurrency=1)
    async with Gateway(stub) as gateway:
        gateway.leases = [(await stub.Admit(make.ask("ada"), timeout=30)).grant]
        [grant] = gateway.leases
        stage.redis.kill()
        await gateway.send(settles=[make.ended(grant, seq=9)])
        await asyncio.sleep(0.5)
        assert not any(b.settles for b in gateway.batches)
        stage.redis.start()
        await eventually(lambda: any(s.seq == 9 for b in gateway.batches for s in b.settles), 30)
        assert (await until_open(stub, make, 30)).HasField("grant")


async def test_pins_survive_a_restart_of_redis(stage, make):
    stub = await serving(stage, make)
    session = {"session": b"0123456789abcdef"}
    first = (await stub.Admit(make.ask("ada", **session), timeout=30)).grant
    await asyncio.sleep(1.2)  # the append-only file is synced every second
    stage.redis.kill()
    stage.redis.start()
    await until_open(stub, make, 30)
    again = (await stub.Admit(make.ask("ada", **session), timeout=30)).grant
    assert again.account_id == first.account_id


def expire(stage, lease_id: str) -> None:
    [name] = stage.redis.keys("sb:*:expiry")
    stage.redis.cli("ZADD", name, "1", lease_id)


async def test_a_lease_that_nobody_renews_becomes_an_orphan(stage, make):
    stub = await serving(stage, make, limits=[make.limit("Day", requests=10, tokens=1000)], concurrency=1)
    request = make.ask("ada", stream=True, client="ClaudeCode")
    grant = (await stub.Admit(request, timeout=30)).grant
    beat = pb.LeaseBeat(
        lease_id=grant.lease_id, lease_token=grant.lease_token, usage=TokenUsage(input_tokens=40, output_tokens=1),
        output_tokens=12, served_model="claude-sonnet-4-5",
    )
    await stub.Heartbeat(pb.HeartbeatRequest(leases=[beat]), timeout=30)
    expire(stage, grant.lease_id)
    await eventually(lambda: bool(stage.ledger.events))
    [event] = stage.ledger.events
    assert (event.request_id, event.attempt, event.outcome, event.estimated) == (request.request_id, 1, OUTCOME_ORPHANED, True)
    assert (event.usage.input_tokens, event.usage.output_tokens, event.had_content) == (40, 12, True)
    assert (event.key_id, event.owner, event.account_id, event.client, event.streamed) == (
        "default/ada", "ada@example.com", grant.account_id, "ClaudeCode", True,
    )
    assert event.admitted_at_ms == grant.admitted_at_ms
    state = await until_free(stub, make)
    assert (state.in_flight, state.limits[0].requests.used, state.limits[0].tokens.used) == (0, 1, 52)
    await eventually(lambda: stage.redis.cli("HLEN", "sb:orphans") == "0")
    # The gateway was only slow: what it says is believed, once.
    for _ in range(2):
        await stub.Settle(make.ended(grant, usage={"input_tokens": 40, "output_tokens": 30}), timeout=30)
    state = await looked(stub, make)
    assert (state.in_flight, state.limits[0].tokens.used) == (0, 70)
    answer = await stub.Heartbeat(pb.HeartbeatRequest(leases=[beat]), timeout=30)
    assert answer.lost == [grant.lease_id]


async def test_an_orphan_is_charged_as_the_ledger_bills_it(stage, make):
    """The dead gateway's journal told the ledger more than its last heartbeat told the scheduler."""
    stub = await serving(stage, make, limits=[make.limit("Day", tokens=1000, costUSD="1")])
    request = make.ask("ada", stream=True)
    grant = (await stub.Admit(request, timeout=30)).grant
    stage.ledger.rows = [up.LedgerRow(
        request_id=request.request_id, attempt=1, usage=TokenUsage(input_tokens=40, output_tokens=7), cost_nano_usd=190_000,
    )]
    expire(stage, grant.lease_id)
    state = (await until_free(stub, make)).limits[0]
    assert (state.tokens.used, state.tokens.reserved, state.cost_nano_usd.used) == (47, 0, 190_000)
    assert [e.outcome for e in stage.ledger.events] == [OUTCOME_ORPHANED]


async def test_a_lease_granted_again_after_its_request_was_served_counts_for_nothing(stage, make):
    """A scheduler that stood still with an admission in hand goes on when another has granted, and it was settled."""
    stub = await serving(stage, make, limits=[make.limit("Day", requests=10, tokens=1000)])
    request = make.ask("ada", stream=True)
    first = (await stub.Admit(request, timeout=30)).grant
    await stub.Settle(make.ended(first, usage={"input_tokens": 40, "output_tokens": 7}), timeout=30)
    await asyncio.sleep(0.01)
    again = (await stub.Admit(request, timeout=30)).grant
    assert again.admitted_at_ms > first.admitted_at_ms
    stage.ledger.rows = [up.LedgerRow(
        request_id=request.request_id, attempt=1, usage=TokenUsage(input_tokens=40, output_tokens=7),
        admitted_at_ms=first.admitted_at_ms,
    )]
    expire(stage, again.lease_id)
    limit = (await until_free(stub, make)).limits[0]
    assert (limit.requests.used, limit.tokens.used, limit.tokens.reserved) == (1, 47, 0)


async def test_a_renewed_lease_is_not_reaped(stage, make):
    stub = await serving(stage, make, concurrency=1)
    grant = (await stub.Admit(make.ask("ada"), timeout=30)).grant
    beat = pb.LeaseBeat(lease_id=grant.lease_id, lease_token=grant.lease_token)
    [name] = stage.redis.keys("sb:*:expiry")
    before = float(stage.redis.cli("ZSCORE", name, grant.lease_id))
    assert before == grant.admitted_at_ms + 30_000
    await asyncio.sleep(0.05)
    await stub.Heartbeat(pb.HeartbeatRequest(leases=[beat]), timeout=30)
    assert float(stage.redis.cli("ZSCORE", name, grant.lease_id)) > before
    await asyncio.sleep(0.6)
    assert stage.ledger.events == []


async def test_nothing_is_left_behind(stage, make):
    """Leases, slots and reservations of settled requests leave no trace that grows."""
    stub = await serving(stage, make, limits=[make.limit("Day", tokens=10_000_000)])
    for _ in range(30):
        grant = (await stub.Admit(make.ask("ada"), timeout=30)).grant
        await stub.Heartbeat(
            pb.HeartbeatRequest(leases=[
                pb.LeaseBeat(lease_id=grant.lease_id, lease_token=grant.lease_token, output_tokens=5),
            ]), timeout=5,
        )
        second = (await stub.Retry(pb.RetryRequest(failed=make.ended(grant, had_content=False)), timeout=30)).grant
        await stub.Settle(make.ended(second), timeout=30)
    assert stage.redis.keys("sb:*:leases") == []
    assert stage.redis.keys("sb:*:expiry") == []
    assert stage.redis.keys("sb:*:held") == []
    assert (await looked(stub, make)).limits[0].tokens.reserved == 0
    listed = await stub.ListObjects(pb.ListObjectsRequest(kinds=["ClaudeAccount"], with_status=True), timeout=30)
    assert [o.account.in_flight for o in listed.objects] == [0, 0]
