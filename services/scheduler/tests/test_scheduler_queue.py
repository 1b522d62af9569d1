"""Requests that wait for an account: woken, fair, bounded by depth and time, given up with their caller."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from signalbox.v1 import scheduler_pb2 as pb

SESSION = b"conversation-001"
SLACK_S = 4.0   # what a busy machine may add to a limit in time


def queue(seconds: float = 10, depth: int = 100) -> dict[str, object]:
    return {"maxWait": f"{int(seconds * 1000)}ms", "maxDepth": depth}


async def one_account(stage, make, *, room=1, **pool):
    """A scheduler with one account for `room` requests at once, and three keys."""
    stub = await stage.add()
    await stage.put(
        make.account("a", maxConcurrency=room), make.pool("default", "a", **{"queue": queue(), **pool}),
        *(make.key(k) for k in ("ada", "bob", "cyd")),
    )
    return stub


async def admitted(stub, make, key="ada", **fields):
    answer = await stub.Admit(make.ask(key, **fields), timeout=30)
    assert answer.HasField("grant"), answer.denial
    return answer.grant


def waiting(stub, make, key="ada", **fields) -> "asyncio.Task[pb.AdmitResponse]":
    async def ask() -> pb.AdmitResponse:
        return await stub.Admit(make.ask(key, **fields), timeout=30)

    return asyncio.create_task(ask())


async def until_waiting(stage, count, at=0):
    """Return once so many wait in a scheduler and Redis knows it."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if stage.rooms[at].dispatcher.queue.depths.total() == count:
            await asyncio.sleep(0.05)
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{stage.rooms[at].dispatcher.queue.depths} wait instead of {count}")


async def looked(stub, make, key="ada"):
    return await stub.Inspect(pb.InspectRequest(key_hash=make.digest(key), with_limits=True), timeout=30)


async def test_a_request_waits_until_an_account_has_room(stage, make):
    stub = await one_account(stage, make)
    first = await admitted(stub, make)
    took_s = []
    for _ in range(3):
        second = waiting(stub, make)
        await until_waiting(stage, 1)
        state = await looked(stub, make)
        assert state.in_flight == 1  # waiting takes no slot
        began_s = time.monotonic()
        await stub.Settle(make.ended(first), timeout=30)
        answer = await second
        took_s.append(time.monotonic() - began_s)
        first = answer.grant
        assert first.account_id == "default/a"
    assert min(took_s) < 0.5  # woken, not found by looking every second
    decision = pb.Decision.FromString(answer.decision)
    assert decision.waited_ms == answer.grant.waited_ms > 0
    assert decision.waited_for == "every account rested or was full"
    assert stage.redis.keys("sb:*:wait:*") == []


async def test_a_settle_at_another_scheduler_wakes(stage, make):
    one = await one_account(stage, make)
    two = await stage.add()
    first = await admitted(one, make)
    took_s = []
    for _ in range(3):
        second = waiting(two, make)
        await until_waiting(stage, 1, at=1)
        began_s = time.monotonic()
        await one.Settle(make.ended(first), timeout=30)
        first = (await second).grant
        took_s.append(time.monotonic() - began_s)
    assert min(took_s) < 0.5


async def test_waiting_counts_against_no_limit(stage, make):
    stub = await one_account(stage, make)
    await stage.put(make.key("ada", limits=[make.limit("Minute", requests=10, tokens=10_000)], concurrency=2))
    first = await admitted(stub, make)
    waits = [waiting(stub, make) for _ in range(4)]
    await until_waiting(stage, 4)
    state = await looked(stub, make)
    assert (state.limits[0].requests.used, state.in_flight) == (1, 1)
    await stub.Settle(make.ended(first), timeout=30)
    for _ in range(4):
        done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        [answer] = [t.result() for t in done]
        await stub.Settle(make.ended(answer.grant), timeout=30)
        waits = list(pending)
    state = await looked(stub, make)
    assert (state.limits[0].requests.used, state.limits[0].tokens.reserved, state.in_flight) == (5, 0, 0)


async def test_the_time_of_waiting_is_limited_by_the_pool(stage, make):
    stub = await one_account(stage, make, queue=queue(0.6))
    await admitted(stub, make)
    began_s = time.monotonic()
    denial = (await waiting(stub, make)).denial
    assert 0.6 <= time.monotonic() - began_s < 0.6 + SLACK_S
    assert (denial.error_code, denial.retry_after_ms) == ("pool_limited", 1000)


async def test_the_time_of_waiting_is_limited_by_the_caller(stage, make):
    stub = await one_account(stage, make)
    await admitted(stub, make)
    began_s = time.monotonic()
    answer = await waiting(stub, make, deadline_ms=500)
    assert 0.5 <= time.monotonic() - began_s < 0.5 + SLACK_S
    assert answer.denial.error_code == "pool_limited"
    decision = pb.Decision.FromString(answer.decision)
    assert 500 <= decision.waited_ms < 500 + SLACK_S * 1000


async def test_no_more_than_the_depth_wait_over_all_schedulers(stage, make):
    one = await one_account(stage, make, queue=queue(depth=3))
    two = await stage.add()
    await admitted(one, make)
    waits = [waiting((one, two)[i % 2], make) for i in range(3)]
    await until_waiting(stage, 2)
    await until_waiting(stage, 1, at=1)
    for stub in (one, two):
        began_s = time.monotonic()
        assert (await waiting(stub, make)).denial.error_code == "pool_limited"
        assert time.monotonic() - began_s < SLACK_S
    assert not any(w.done() for w in waits)
    for w in waits:
        w.cancel()


async def test_keys_take_turns_and_each_is_served_in_order(stage, make):
    stub = await one_account(stage, make)
    running = await admitted(stub, make)
    order = []

    async def ask(name, key):
        answer = await stub.Admit(make.ask(key), timeout=30)
        order.append(name)
        return answer.grant

    tasks = []
    for n, key in enumerate(["ada"] * 5 + ["bob"] * 2 + ["cyd"]):
        tasks.append(asyncio.create_task(ask(f"{key}{n}", key)))
        await until_waiting(stage, n + 1)
    for n in range(8):
        await stub.Settle(make.ended(running), timeout=30)
        end = time.monotonic() + 30
        while len(order) == n and time.monotonic() < end:
            await asyncio.sleep(0.005)
        running = next(t for t in tasks if t.done() and t.result().lease_id != running.lease_id).result()
        tasks = [t for t in tasks if not t.done()]
    assert order == ["ada0", "bob5", "cyd7", "ada1", "bob6", "ada2", "ada3", "ada4"]


@pytest.mark.slow
async def test_a_newcomer_stands_behind_those_that_wait_at_another_scheduler(stage, make):
    one = await one_account(stage, make)
    two = await stage.add(refresh_s=1.0)
    for _ in range(10):
        running = await admitted(one, make)
        earlier = waiting(one, make, "bob")
        await until_waiting(stage, 1)
        await one.Settle(make.ended(running), timeout=30)
        later = waiting(two, make, "cyd")
        done, _ = await asyncio.wait([earlier, later], return_when=asyncio.FIRST_COMPLETED)
        assert done == {earlier}
        await one.Settle(make.ended(earlier.result().grant), timeout=30)
        await one.Settle(make.ended((await later).grant), timeout=30)


async def test_those_that_wait_for_other_accounts_hold_nobody_up(stage, make):
    stub = await stage.add()
    rules = {"deny": [], "map": {}}
    await stage.put(
        make.account("opus", maxConcurrency=1, models={"allow": ["claude-opus-*"], **rules}),
        make.account("haiku", models={"allow": ["claude-haiku-*"], **rules}),
        make.pool("default", "opus", "haiku", queue=queue()), make.key("ada"),
    )
    await admitted(stub, make, model="claude-opus-4")
    waits = waiting(stub, make, model="claude-opus-4")
    await until_waiting(stage, 1)
    assert (await asyncio.wait_for(admitted(stub, make, model="claude-haiku-4"), 5)).account_id == "default/haiku"
    waits.cancel()


@pytest.mark.slow
async def test_a_short_rest_is_waited_for_and_a_long_one_is_not(stage, make):
    stub = await one_account(stage, make, room=10)
    for seconds, code in [(1, ""), (60, "pool_limited")]:
        grant = await admitted(stub, make)
        until_ms = time.time_ns() // 1_000_000 + seconds * 1000
        effect = pb.AccountEffect(kind=pb.AccountEffect.REST, reason="Limited", until_ms=until_ms)
        await stub.Settle(make.ended(grant, effect=effect), timeout=30)
        began_s = time.monotonic()
        answer = await waiting(stub, make)
        assert answer.denial.error_code == code
        assert time.monotonic() - began_s < 1 + SLACK_S
        assert (time.time_ns() // 1_000_000 >= until_ms) == (not code), "waited for, or refused at once"
        if code:
            assert 50_000 < answer.denial.retry_after_ms <= 60_000


@pytest.mark.slow
async def test_after_a_back_off_one_of_those_that_wait_probes_and_the_rest_follow(stage, make):
    stub = await one_account(stage, make, room=10)
    grant = await admitted(stub, make)
    cool = pb.AccountEffect(kind=pb.AccountEffect.COOL, reason="Failing")
    await stub.Settle(make.ended(grant, outcome="OUTCOME_UPSTREAM_ERROR", effect=cool), timeout=30)
    waits = [waiting(stub, make) for _ in range(5)]
    done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0.5)
    assert [t.done() for t in waits].count(True) == len(done) == 1  # one request probes
    await stub.Settle(make.ended(done.pop().result().grant), timeout=30)
    answers = await asyncio.wait_for(asyncio.gather(*pending), 5)
    assert all(a.HasField("grant") for a in answers)


@pytest.mark.slow
async def test_a_new_account_serves_those_that_wait(stage, make):
    stub = await one_account(stage, make)
    await admitted(stub, make)
    waits = waiting(stub, make)
    await until_waiting(stage, 1)
    await stage.put(make.account("b"), make.pool("default", "a", "b", queue=queue()))
    assert (await asyncio.wait_for(waits, 5)).grant.account_id == "default/b"


@pytest.mark.slow
async def test_a_key_that_is_revoked_while_it_waits_is_refused(stage, make):
    stub = await one_account(stage, make)
    await admitted(stub, make)
    waits = waiting(stub, make, "bob")
    await until_waiting(stage, 1)
    await stage.put(make.key("bob", state="Paused"))
    assert (await asyncio.wait_for(waits, 5)).denial.error_code == "key_paused"


# ---------------------------------------------------------------------------------------------------- retries


@pytest.mark.slow
async def test_the_only_account_is_waited_for_after_its_429_and_tried_again(stage, make):
    stub = await one_account(stage, make, room=5)
    await stage.put(make.key("ada", concurrency=1))
    grant = await admitted(stub, make)
    until_ms = time.time_ns() // 1_000_000 + 2000
    effect = pb.AccountEffect(kind=pb.AccountEffect.REST, reason="Limited", until_ms=until_ms)
    failed = make.ended(grant, outcome="OUTCOME_UPSTREAM_ERROR", had_content=False, effect=effect)
    retry = asyncio.ensure_future(stub.Retry(pb.RetryRequest(failed=failed), timeout=20))
    await until_waiting(stage, 1)
    assert (await looked(stub, make)).in_flight == 1  # the request keeps its slot
    other = (await stub.Admit(make.ask("ada"), timeout=30)).denial
    assert other.error_code == "key_limit_concurrency"
    again = (await retry).grant
    assert (again.account_id, again.attempt) == ("default/a", 2)
    await stub.Settle(make.ended(again), timeout=30)
    assert (await looked(stub, make)).in_flight == 0


async def test_an_account_that_hung_is_not_asked_again_by_the_same_request(stage, make):
    stub = await one_account(stage, make, room=5)
    grant = await admitted(stub, make)
    effect = pb.AccountEffect(kind=pb.AccountEffect.COOL, reason="Failing")
    failed = make.ended(grant, outcome="OUTCOME_TIMEOUT", had_content=False, effect=effect)
    refused = (await stub.Retry(pb.RetryRequest(failed=failed), timeout=20)).denial
    assert refused.error_code == "pool_limited"
    assert (await looked(stub, make)).in_flight == 0


async def test_all_waiting_of_a_request_has_one_limit(stage, make):
    stub = await one_account(stage, make, room=1, queue=queue(4))
    grant = await admitted(stub, make)
    until_ms = time.time_ns() // 1_000_000 + 3500
    effect = pb.AccountEffect(kind=pb.AccountEffect.REST, reason="Limited", until_ms=until_ms)
    failed = make.ended(grant, outcome="OUTCOME_UPSTREAM_ERROR", had_content=False, effect=effect)
    refused = (await stub.Retry(pb.RetryRequest(failed=failed, waited_ms=3700), timeout=20)).denial
    assert refused.error_code == "pool_limited"
    assert (await looked(stub, make)).in_flight == 0


# ------------------------------------------------------------------------------------------------------- pins


async def two_accounts(stage, make, **pool):
    stub = await stage.add()
    await stage.put(
        make.account("a", maxConcurrency=1), make.account("b", maxConcurrency=1),
        make.pool("default", "a", "b", **{"queue": queue(), **pool}), make.key("ada"), make.key("bob"),
    )
    return stub


async def test_a_full_pinned_account_is_waited_for(stage, make):
    stub = await two_accounts(stage, make)
    first = await admitted(stub, make, session=SESSION)
    second = waiting(stub, make, session=SESSION)
    await until_waiting(stage, 1)
    assert not second.done()  # though the other account has room
    await stub.Settle(make.ended(first), timeout=30)
    answer = await asyncio.wait_for(second, 5)
    assert answer.grant.account_id == first.account_id
    decision = pb.Decision.FromString(answer.decision)
    assert (decision.pin, decision.waited_for) == ("hit", "the account that the conversation is pinned to was full")


async def test_a_pinned_account_that_stays_full_is_left_for_once(stage, make):
    stub = await two_accounts(stage, make, queue=queue(0.5))
    first = await admitted(stub, make, session=SESSION)
    began_s = time.monotonic()
    answer = await waiting(stub, make, session=SESSION)
    assert 0.5 <= time.monotonic() - began_s < 0.5 + SLACK_S
    assert answer.grant.account_id != first.account_id
    assert not answer.grant.repinned
    decision = pb.Decision.FromString(answer.decision)
    assert (decision.pin, decision.pinned, decision.pin_reason) == ("full", first.account_id, "full")
    for g in (first, answer.grant):
        await stub.Settle(make.ended(g), timeout=30)
    assert (await admitted(stub, make, session=SESSION)).account_id == first.account_id  # the pin has not moved


async def test_a_pinned_account_that_is_limited_while_it_is_waited_for_loses_the_pin(stage, make):
    stub = await two_accounts(stage, make)
    first = await admitted(stub, make, session=SESSION)
    second = waiting(stub, make, session=SESSION)
    await until_waiting(stage, 1)
    until_ms = time.time_ns() // 1_000_000 + 60_000
    effect = pb.AccountEffect(kind=pb.AccountEffect.REST, reason="Limited", until_ms=until_ms)
    await stub.Settle(make.ended(first, effect=effect), timeout=30)
    answer = await asyncio.wait_for(second, 5)
    assert answer.grant.repinned
    decision = pb.Decision.FromString(answer.decision)
    assert (decision.pin, decision.pinned, decision.pin_reason) == ("moved", first.account_id, "limited")


async def test_who_waits_for_a_pinned_account_comes_before_newcomers(stage, make):
    stub = await two_accounts(stage, make)
    first = await admitted(stub, make, session=SESSION)
    second = waiting(stub, make, session=SESSION)
    await until_waiting(stage, 1)
    await stub.Settle(make.ended(first), timeout=30)
    newcomer = await admitted(stub, make, "bob")
    assert newcomer.account_id != first.account_id
    assert (await asyncio.wait_for(second, 5)).grant.account_id == first.account_id


async def test_bound_state_waits_for_its_account_and_is_refused_then(stage, make):
    stub = await two_accounts(stage, make, queue=queue(0.5))
    await admitted(stub, make, session=SESSION)
    began_s = time.monotonic()
    answer = await waiting(stub, make, session=SESSION, state_bound=True)
    assert answer.denial.error_code == "pool_limited"
    assert time.monotonic() - began_s >= 0.5
    assert pb.Decision.FromString(answer.decision).pin == "refused"


# --------------------------------------------------------------------------------------------------- sessions


class Talk:
    """One gateway's session with a scheduler."""

    def __init__(self, stub) -> None:
        self._out: asyncio.Queue[pb.GatewayBatch] = asyncio.Queue()
        self.call = stub.Session(self._batches())

    async def _batches(self) -> AsyncIterator[pb.GatewayBatch]:
        yield pb.GatewayBatch(hello=pb.Hello(gateway_id="gateway-1", protocol="v1"))
        while True:
            yield await self._out.get()

    def say(self, **fields) -> None:
        self._out.put_nowait(pb.GatewayBatch(**fields))

    async def hear(self, seconds: float = 30) -> pb.SchedulerBatch:
        async with asyncio.timeout(seconds):
            while True:
                batch = await self.call.read()
                if batch.ByteSize():
                    return batch


@pytest.fixture
async def talk() -> AsyncIterator[type[Talk]]:
    made: list[Talk] = []

    class Kept(Talk):
        def __init__(self, stub) -> None:
            super().__init__(stub)
            made.append(self)

    yield Kept
    for one in made:
        one.call.cancel()


async def test_who_waits_holds_up_nobody_in_its_batch(stage, make, talk):
    stub = await one_account(stage, make)
    first = await admitted(stub, make)
    session = talk(stub)
    session.say(
        admits=[make.ask("ada", seq=1), make.ask("nobody", seq=2)],
        heartbeats=[pb.HeartbeatRequest(seq=3, gateway_id="gateway-1")],
    )
    batch = await session.hear()
    assert [(r.seq, r.denial.error_code) for r in batch.admits] == [(2, "key_invalid")]
    assert [q.seq for q in batch.queued] == [1]
    assert 9_000 < batch.queued[0].wait_ms <= 10_000
    session.say(settles=[make.ended(first, seq=4)])
    answers = [*(await session.hear()).admits]
    if not answers:
        answers = [*(await session.hear()).admits]
    assert [(r.seq, r.grant.account_id) for r in answers] == [(1, "default/a")]


async def test_a_caller_that_hangs_up_leaves_the_queue(stage, make, talk):
    stub = await one_account(stage, make, queue=queue(depth=1))
    first = await admitted(stub, make)
    session = talk(stub)
    asked = make.ask("ada", seq=1)
    session.say(admits=[asked])
    assert (await session.hear()).queued
    session.say(cancels=[pb.Cancel(request_id=asked.request_id)])
    end = time.monotonic() + 30
    while stage.redis.keys("sb:*:wait:*") and time.monotonic() < end:
        await asyncio.sleep(0.01)
    other = waiting(stub, make, "bob")  # there is a place for it
    await until_waiting(stage, 1)
    await stub.Settle(make.ended(first), timeout=30)
    assert (await asyncio.wait_for(other, 5)).HasField("grant")
    assert (await looked(stub, make)).in_flight == 0


async def test_a_retry_that_is_cancelled_gives_its_slot_back(stage, make, talk):
    stub = await one_account(stage, make, room=5)
    grant = await admitted(stub, make)
    until_ms = time.time_ns() // 1_000_000 + 5000
    effect = pb.AccountEffect(kind=pb.AccountEffect.REST, reason="Limited", until_ms=until_ms)
    failed = make.ended(grant, outcome="OUTCOME_UPSTREAM_ERROR", had_content=False, effect=effect)
    session = talk(stub)
    session.say(retries=[pb.RetryRequest(seq=1, failed=failed)])
    assert (await session.hear()).queued
    assert (await looked(stub, make)).in_flight == 1
    session.say(cancels=[pb.Cancel(request_id=grant.lease_id.rpartition(".")[0])])
    end = time.monotonic() + 30
    while (await looked(stub, make)).in_flight and time.monotonic() < end:
        await asyncio.sleep(0.01)
    assert (await looked(stub, make)).in_flight == 0


async def test_a_session_that_ends_takes_its_requests_along_and_another_scheduler_goes_on(stage, make, talk):
    one = await one_account(stage, make)
    two = await stage.add()
    first = await admitted(one, make)
    asked = make.ask("ada", seq=1)
    session = talk(one)
    session.say(admits=[asked])
    assert (await session.hear()).queued
    session.call.cancel()
    await until_waiting(stage, 0)
    session = talk(two)
    asked.deadline_ms = 3000  # what is left
    session.say(admits=[asked])
    assert (await session.hear()).queued[0].wait_ms <= 3000
    await one.Settle(make.ended(first), timeout=30)
    [answer] = (await session.hear()).admits
    assert answer.grant.lease_id == f"{asked.request_id}.1"


@pytest.mark.slow
async def test_waiting_outlasts_a_flush(stage, make):
    stub = await one_account(stage, make, room=1)
    await admitted(stub, make)
    waits = waiting(stub, make)
    await until_waiting(stage, 1)
    stage.redis.cli("FLUSHALL")  # nobody renews the running lease, so that there is room afterwards
    assert (await asyncio.wait_for(waits, 9)).HasField("grant")


@pytest.mark.slow
async def test_a_crowd_on_a_small_pool_is_served_once_each_and_leaves_nothing(stage, make):
    stub = await one_account(stage, make, room=3)
    two = await stage.add()
    most, running = 0, 0

    async def use(n):
        nonlocal most, running
        at = (stub, two)[n % 2]
        answer = await at.Admit(make.ask(("ada", "bob", "cyd")[n % 3]), timeout=30)
        if answer.HasField("denial"):
            return answer.denial.error_code
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        await at.Settle(make.ended(answer.grant), timeout=30)
        return "served"

    outcomes = Counter(await asyncio.gather(*(use(n) for n in range(90))))
    assert outcomes == {"served": 90}
    assert most <= 3
    for key in ("ada", "bob", "cyd"):
        assert (await looked(stub, make, key)).in_flight == 0
    async with asyncio.timeout(30):
        while stage.redis.keys("sb:*:wait:*"):
            await asyncio.sleep(0.05)
