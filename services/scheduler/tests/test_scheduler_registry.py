"""The registry: fences, shared by all schedulers, watched, listed with live status; revoked keys are refused at once."""

import asyncio
import contextlib
import time

import grpc
import grpc.aio
import pytest

from signalbox.v1 import scheduler_pb2 as pb
from tests.support.machine import busy


async def basics(stage, make):
    stub = await stage.add()
    await stage.put(make.account("a"), make.pool("default", "a"), make.key("ada"))
    return stub


async def test_an_older_writer_is_fenced_off(stage, make):
    stub = await basics(stage, make)
    newer = pb.PutObjectsRequest(writer="files", fence=7, objects=[make.key("bob")])
    assert (await stub.PutObjects(newer, timeout=30)).changed == 1
    older = pb.PutObjectsRequest(writer="files", fence=6, objects=[make.key("eve")])
    with pytest.raises(grpc.aio.AioRpcError) as e:
        await stub.PutObjects(older, timeout=30)
    assert e.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.DeleteObjects(
            pb.DeleteObjectsRequest(writer="files", fence=6, objects=[pb.ObjectRef(kind="RelayKey", id="default/bob")]),
        )
    other = pb.PutObjectsRequest(writer="operator", fence=1, objects=[make.key("eve")])
    assert (await stub.PutObjects(other, timeout=30)).changed == 1


async def test_putting_the_same_again_changes_nothing(stage, make):
    stub = await basics(stage, make)
    again = pb.PutObjectsRequest(writer="files", fence=1, objects=[make.key("ada"), make.key("bob")])
    assert [(await stub.PutObjects(again, timeout=30)).changed for _ in range(2)] == [1, 0]


@pytest.mark.parametrize("change", ["paused", "deleted", "other text"])
async def test_a_revoked_key_is_refused_by_every_scheduler_at_once(stage, make, change):
    one = await basics(stage, make)
    two = await stage.add(refresh_s=1.0)
    assert (await two.Admit(make.ask("ada"), timeout=30)).HasField("grant")
    if change == "deleted":
        await stage.delete("RelayKey", "ada")
    else:
        await stage.put(make.key("ada", **({"state": "Paused"} if change == "paused" else {}), text="" if change == "paused" else "new"))
    denied = await two.Admit(make.ask("ada"), timeout=30)
    assert denied.denial.error_code == ("key_paused" if change == "paused" else "key_invalid")
    assert (await one.Admit(make.ask("ada"), timeout=30)).HasField("denial")


async def test_a_new_key_works_at_the_other_scheduler_within_a_second(stage, make):
    await basics(stage, make)
    two = await stage.add()
    await stage.put(make.key("bob"))
    end = time.monotonic() + 1.0 * busy()
    while (await two.Admit(make.ask("bob"), timeout=30)).HasField("denial"):
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


async def test_of_two_keys_with_one_text_the_oldest_serves(stage, make):
    stub = await basics(stage, make)
    younger, older = make.key("zoe", "shared"), make.key("young", "shared")
    younger.created_at_ms, older.created_at_ms = 1_000, 2_000
    await stage.put(older, younger)
    assert (await stub.Admit(make.ask("shared"), timeout=30)).grant.key_id == "default/zoe"
    await stage.delete("RelayKey", "zoe")
    assert (await stub.Admit(make.ask("shared"), timeout=30)).grant.key_id == "default/young"


async def test_a_key_made_anew_keeps_its_counters(stage, make):
    stub = await stage.add()
    key = make.key("ada", limits=[make.limit("Day", requests=2)])
    await stage.put(make.account("a"), make.pool("default", "a"), key)
    for _ in range(2):
        await stub.Admit(make.ask("ada"), timeout=30)
    await stage.delete("RelayKey", "ada")
    await stage.put(key)
    assert (await stub.Admit(make.ask("ada"), timeout=30)).denial.error_code == "key_limit_requests"


@pytest.mark.slow
async def test_documents_that_change_under_load_never_let_a_request_fail(stage, make):
    stub = await basics(stage, make)
    two = await stage.add()
    stop = asyncio.Event()

    async def change() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            await stage.put(make.key(f"k{n % 50}", owner=f"o{n}"))

    changing = asyncio.create_task(change())
    answers = [await s.Admit(make.ask("ada"), timeout=30) for _ in range(100) for s in (stub, two)]
    stop.set()
    await changing
    assert all(a.HasField("grant") for a in answers)


@pytest.mark.slow
async def test_watching_begins_with_everything_and_tells_of_changes(stage, make):
    stub = await basics(stage, make)
    seen: list[pb.ObjectEvent] = []

    async def watch() -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for event in stub.WatchObjects(pb.WatchObjectsRequest(kinds=["ClaudeAccount"])):
                seen.append(event)

    watching = asyncio.create_task(watch())

    async def wait_for(count: int) -> None:
        async with asyncio.timeout(30):
            while len(seen) < count:
                await asyncio.sleep(0.02)

    await wait_for(2)
    await stage.put(make.account("b"), make.key("bob"))
    await wait_for(3)
    await stage.delete("ClaudeAccount", "b")
    await wait_for(4)
    grant = (await stub.Admit(make.ask("ada"), timeout=30)).grant
    effect = pb.AccountEffect(
        kind=pb.AccountEffect.REST, reason="Limited", until_ms=time.time_ns() // 1_000_000 + 1_000,
    )
    await stub.Settle(make.ended(grant, effect=effect), timeout=30)
    await wait_for(6)
    stage.redis.cli("FLUSHALL")
    async with asyncio.timeout(15):
        while not any(e.type == pb.ObjectEvent.RESYNC for e in seen):
            await asyncio.sleep(0.02)
    watching.cancel()
    kinds = [(pb.ObjectEvent.Type.Name(e.type), e.object.object.id) for e in seen]
    assert kinds[:6] == [
        ("PUT", "default/a"), ("SYNCED", ""), ("PUT", "default/b"), ("DELETED", "default/b"), ("STATUS", "default/a"),
        ("STATUS", "default/a"),
    ]
    assert [e.object.account.reason for e in seen[4:6]] == ["Limited", ""]
    assert len({e.epoch for e in seen}) == 2


async def test_listings_show_live_status(stage, make):
    stub = await stage.add()
    await stage.put(
        *(make.account(n) for n in "ab"), make.account("off", state="Paused", stateReason="rotating key"),
        make.account("later", ready=False, reason="NotImplemented"), make.pool("default", "a", "b", "off", "later"),
        make.key("ada", concurrency=4, limits=[make.limit("Day", requests=5, tokens=1000, costUSD="2")]), make.key("old", ready=False,
        reason="DuplicateKey", keyHashes=[]), make.key("idle", state="Paused"),
    )
    grant = (await stub.Admit(make.ask("ada"), timeout=30)).grant
    window = {"name": "requests", "limit": 100, "remaining": 25, "resets_at_ms": 9_000_000_000_000, "status": "allowed"}
    await stub.Settle(make.ended(grant, usage={"input_tokens": 10}, served_model="claude-sonnet-4-5", windows=[window]))
    running = (await stub.Admit(make.ask("ada"), timeout=30)).grant
    listed = await stub.ListObjects(pb.ListObjectsRequest(with_status=True), timeout=30)
    by_name = {o.object.id.removeprefix("default/"): o for o in listed.objects if o.object.kind != "AccountPool"}
    [pool] = [o.pool for o in listed.objects if o.object.kind == "AccountPool"]
    assert (pool.total, pool.ready, dict(pool.by_state)) == (4, 2, {"Ready": 2, "Paused": 1, "NotReady": 1})
    learned = by_name[grant.account_id.removeprefix("default/")].account
    [w] = learned.windows
    assert (w.name, w.limit, w.remaining, w.resets_at_ms, w.status) == ("requests", 100, 25, 9_000_000_000_000, "allowed")
    assert learned.last_used_at_ms >= grant.admitted_at_ms
    assert by_name[running.account_id.removeprefix("default/")].account.in_flight == 1
    assert (by_name["off"].account.available, by_name["off"].account.reason) == (False, "Paused")
    assert by_name["off"].account.state_reason == "rotating key"
    assert by_name["later"].account.reason == "NotImplemented"
    key = by_name["ada"].key
    assert (key.state, key.in_flight, key.concurrency_limit) == ("Active", 1, 4)
    [limit] = key.limits
    assert (limit.requests.used, limit.tokens.used, limit.cost_nano_usd.used) == (2, 10, 30_000)
    assert limit.tokens.reserved > 0
    assert (by_name["old"].key.state, by_name["idle"].key.state) == ("DuplicateKey", "Paused")
    only = await stub.ListObjects(pb.ListObjectsRequest(kinds=["RelayKey"], ids=["default/ada"]), timeout=30)
    assert [o.object.id for o in only.objects] == ["default/ada"]


@pytest.mark.slow
async def test_conditions_say_since_when_and_it_moves_only_when_the_status_flips(stage, make):
    condition = {"type": "Ready", "status": True, "reason": "Serves"}

    async def since(stub):
        listed = await stub.ListObjects(pb.ListObjectsRequest(with_status=True), timeout=30)
        statuses = {o.object.kind: (o.account, o.pool, o.key) for o in listed.objects}
        return {
            (kind, c.type): (c.last_transition_ms, c.status) for kind, three in statuses.items() for s in three for c in s.conditions
        }

    def objects(**changed):
        made = [make.account("a"), make.pool("default", "a"), make.key("ada")]
        for obj in made:
            obj.conditions.add(**condition | changed)
            obj.revision += str(changed)
        return made

    one = await stage.add(refresh_s=0.1)
    begun_ms = time.time_ns() // 1_000_000 - 1
    await stage.put(*objects())
    first = await since(one)
    assert {k: ok for k, (_, ok) in first.items()} == {
        ("ClaudeAccount", "Ready"): True, ("ClaudeAccount", "Available"): True, ("AccountPool", "Ready"): True,
        ("RelayKey", "Ready"): True,
    }
    assert all(begun_ms <= at <= time.time_ns() // 1_000_000 + 1 for at, _ in first.values())
    await stage.put(*objects(reason="Otherwise"))
    two = await stage.add(refresh_s=0.1)
    assert await since(two) == await since(one) == first, "the same at another scheduler, whatever the reason"
    await asyncio.sleep(0.05)
    failed = (await one.Admit(make.ask("ada"), timeout=30)).grant
    effect = pb.AccountEffect(kind=pb.AccountEffect.BENCH, reason="CredentialInvalid")
    await one.Settle(make.ended(failed, outcome="OUTCOME_UPSTREAM_ERROR", had_content=False, effect=effect), timeout=30)
    await asyncio.sleep(0.5)
    benched = await since(two)
    assert {k for k in first if benched[k] != first[k]} == {("ClaudeAccount", "Available")}
    at, status = benched["ClaudeAccount", "Available"]
    assert not status
    assert first["ClaudeAccount", "Available"][0] < at < time.time_ns() // 1_000_000 - 50, "when it happened, not when it was asked"
    await stage.delete("RelayKey", "ada")
    await asyncio.sleep(0.3)
    await stage.put(*objects())
    again = await since(one)
    assert again["RelayKey", "Ready"][0] > at
    assert again["AccountPool", "Ready"] == first["AccountPool", "Ready"]


async def test_inspect_works_for_paused_and_exhausted_keys(stage, make):
    stub = await stage.add()
    await stage.put(
        make.account("a", models={"allow": ["claude-*"], "deny": [], "map": {"x": "claude-x"}}), make.account("b", state="Paused"),
        make.pool("default", "a", "b"), make.key("ada", limits=[make.limit("Day", requests=1)], models={"allow": ["c*"], "deny": []}),
        make.key("idle", state="Paused", limits=[make.limit("Day", requests=1)]),
    )
    await stub.Admit(make.ask("ada"), timeout=30)
    request = pb.InspectRequest(key_hash=make.digest("ada"), with_limits=True, with_accounts=True, seq=3)
    looked = await stub.Inspect(request, timeout=30)
    assert (looked.state, looked.limits[0].requests.used, looked.seq, looked.HasField("denial")) == ("Limited", 1, 3, False)
    assert [(a.account_id, dict(a.map), list(a.models.allow)) for a in looked.accounts] == [
        ("default/a", {"x": "claude-x"}, ["claude-*"]),
    ]
    assert list(looked.key_models.allow) == ["c*"]
    idle = await stub.Inspect(pb.InspectRequest(key_hash=make.digest("idle"), with_limits=True), timeout=30)
    assert (idle.denial.error_code, idle.state, idle.key_id, len(idle.limits)) == ("key_paused", "Paused", "default/idle", 1)
    nobody = await stub.Inspect(pb.InspectRequest(key_hash=make.digest("nobody"), with_limits=True), timeout=30)
    assert nobody.denial.error_code == "key_invalid"


@pytest.mark.slow
async def test_a_session_answers_each_batch_whole_and_says_when_it_drains(stage, make):
    stub = await basics(stage, make)
    session = stub.Session()
    await session.write(pb.GatewayBatch(hello=pb.Hello(gateway_id="g", protocol="v1")))
    await session.read()
    admits = [make.ask("ada", seq=i) for i in range(1, 21)] + [make.ask("nobody", seq=21)]
    inspects = [pb.InspectRequest(seq=22, key_hash=make.digest("ada"))]
    await session.write(pb.GatewayBatch(admits=admits, inspects=inspects))
    answer = await session.read()
    assert sorted(a.seq for a in answer.admits) == list(range(1, 22))
    assert [a.seq for a in answer.admits if a.HasField("denial")] == [21]
    assert [i.seq for i in answer.inspects] == [22]
    grants = [a.grant for a in answer.admits if a.HasField("grant")]
    beats = [pb.LeaseBeat(lease_id=g.lease_id, lease_token=g.lease_token) for g in grants[:5]]
    await session.write(pb.GatewayBatch(
        settles=[make.ended(g, seq=i) for i, g in enumerate(grants[10:])],
        retries=[pb.RetryRequest(seq=100, failed=make.ended(grants[9]), same_account=True)],
        heartbeats=[pb.HeartbeatRequest(seq=50, leases=beats)],
    ))
    answer = await session.read()
    assert sorted(s.seq for s in answer.settles) == list(range(10))
    assert [(a.seq, a.grant.attempt) for a in answer.admits] == [(100, 2)]
    assert [(h.seq, list(h.lost)) for h in answer.heartbeats] == [(50, [])]
    stopping = asyncio.create_task(stage.rooms[0].stop())
    assert (await session.read()).draining
    await stopping
    stage.rooms.clear()


async def test_a_token_that_is_none_is_answered_and_forgotten(stage, make):
    stub = await basics(stage, make)
    await stub.Settle(pb.SettleRequest(lease_id="x", lease_token=b"nonsense"), timeout=30)
    refused = await stub.Retry(pb.RetryRequest(failed=pb.SettleRequest(lease_id="x", lease_token=b"")), timeout=30)
    assert refused.denial.error_code == "scheduler_unavailable"
    beat = pb.HeartbeatRequest(leases=[pb.LeaseBeat(lease_id="x", lease_token=b"\x00")])
    await stub.Heartbeat(beat, timeout=30)
    assert (await stub.Admit(make.ask("ada"), timeout=30)).HasField("grant")
