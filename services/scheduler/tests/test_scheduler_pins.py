"""Conversations stay with their account; contract: full leaves the pin, limited or benched moves or refuses it."""

import asyncio
import time

import pytest

from signalbox.v1 import scheduler_pb2 as pb

SESSION = b"conversation-001"


async def grant(stub, make, **fields):
    answer = await stub.Admit(make.ask("ada", session=SESSION, **fields), timeout=30)
    assert answer.HasField("grant"), answer.denial
    return answer.grant, pb.Decision.FromString(answer.decision)


async def denial(stub, make, **fields):
    return (await stub.Admit(make.ask("ada", session=SESSION, **fields), timeout=30)).denial


def limited(seconds: int = 60) -> pb.AccountEffect:
    until_ms = time.time_ns() // 1_000_000 + seconds * 1000
    return pb.AccountEffect(kind=pb.AccountEffect.REST, reason="Limited", until_ms=until_ms)


async def three(stage, make, *, pool=None, account=None):
    await stage.put(
        *(make.account(n, **(account or {})) for n in "abc"), make.pool("default", *"abc", **(pool or {})), make.key("ada"),
        make.key("bob"),
    )


async def test_a_conversation_stays_on_its_account_from_every_scheduler(stage, make):
    one = await stage.add()
    await three(stage, make)
    two = await stage.add()
    first, decision = await grant(one, make)
    assert decision.pin == "new"
    for stub in (one, two, two, one) * 3:
        again, decision = await grant(stub, make)
        assert (again.account_id, again.repinned, decision.pin) == (first.account_id, False, "hit")


async def test_pins_are_scoped_by_key(stage, make):
    stub = await stage.add()
    await three(stage, make, account={"maxConcurrency": 1})
    first, _ = await grant(stub, make)
    other = (await stub.Admit(make.ask("bob", session=SESSION), timeout=30)).grant
    assert other.account_id != first.account_id


async def test_a_full_account_keeps_its_pin_while_others_help_out(stage, make):
    stub = await stage.add()
    await three(stage, make, account={"maxConcurrency": 1})
    first, _ = await grant(stub, make)
    elsewhere, decision = await grant(stub, make)
    assert elsewhere.account_id != first.account_id
    assert (elsewhere.repinned, decision.pin) == (False, "full")
    for g in (first, elsewhere):
        await stub.Settle(make.ended(g), timeout=30)
    back, decision = await grant(stub, make)
    assert (back.account_id, decision.pin) == (first.account_id, "hit")


@pytest.mark.parametrize("fresh", [True, False], ids=["before others noticed", "after they noticed"])
async def test_a_limited_account_loses_its_pin(stage, make, fresh):
    refresh_s = 1.0 if fresh else 0.1
    one = await stage.add(refresh_s=refresh_s)
    await three(stage, make)
    two = await stage.add(refresh_s=refresh_s)
    first, _ = await grant(one, make)
    await grant(two, make)
    await one.Settle(make.ended(first, effect=limited()), timeout=30)
    if not fresh:
        await asyncio.sleep(0.4)
    moved, decision = await grant(two, make)
    assert moved.account_id != first.account_id
    assert (moved.repinned, decision.pin) == (True, "moved")
    stays, decision = await grant(one, make)
    assert (stays.account_id, stays.repinned, decision.pin) == (moved.account_id, False, "hit")


@pytest.mark.parametrize("fresh", [True, False], ids=["before others noticed", "after they noticed"])
@pytest.mark.parametrize(("pool", "fields"), [
    ({"affinity": {"mode": "Session", "ttl": "1h", "onUnavailable": "Refuse"}}, {}), ({}, {"state_bound": True}),
], ids=["Refuse", "bound state"])
async def test_a_conversation_that_may_not_move_is_refused(stage, make, pool, fields, fresh):
    refresh_s = 1.0 if fresh else 0.1
    one = await stage.add(refresh_s=refresh_s)
    await three(stage, make, pool=pool)
    two = await stage.add(refresh_s=refresh_s)
    first, _ = await grant(one, make, **fields)
    await one.Settle(make.ended(first, effect=limited(20)), timeout=30)
    if not fresh:
        await asyncio.sleep(0.4)
    refused = await denial(two, make, **fields)
    assert refused.error_code == "pool_limited"
    assert 10_000 < refused.retry_after_ms <= 20_000


@pytest.mark.parametrize(("kind", "code"), [("REST", "pool_limited"), ("BENCH", "pool_unavailable")])
async def test_a_retry_that_may_not_move_is_told_what_became_of_its_account(stage, make, kind, code):
    stub = await stage.add()
    await three(stage, make, pool={"affinity": {"mode": "Session", "ttl": "1h", "onUnavailable": "Refuse"}})
    first, _ = await grant(stub, make)
    effect = limited(20) if kind == "REST" else pb.AccountEffect(kind=pb.AccountEffect.BENCH, reason="CredentialInvalid")
    failed = make.ended(first, outcome="OUTCOME_UPSTREAM_ERROR", had_content=False, effect=effect)
    refused = (await stub.Retry(pb.RetryRequest(failed=failed), timeout=30)).denial
    assert refused.error_code == code
    assert (10_000 < refused.retry_after_ms <= 20_000) == (kind == "REST")


async def test_a_bound_conversation_on_a_benched_account_is_told_so(stage, make):
    stub = await stage.add()
    await three(stage, make)
    first, _ = await grant(stub, make)
    effect = pb.AccountEffect(kind=pb.AccountEffect.BENCH, reason="CredentialInvalid")
    await stub.Settle(make.ended(first, effect=effect), timeout=30)
    refused = await denial(stub, make, state_bound=True)
    assert (refused.error_code, refused.retry_after_ms) == ("pool_unavailable", 0)
    moved, _ = await grant(stub, make)
    assert moved.repinned


async def test_bound_state_does_not_go_elsewhere_when_its_account_is_full(stage, make):
    stub = await stage.add()
    await three(stage, make, account={"maxConcurrency": 1})
    await grant(stub, make)
    assert (await denial(stub, make, state_bound=True)).error_code == "pool_limited"


async def test_a_retry_moves_the_pin_off_the_failed_account(stage, make):
    stub = await stage.add()
    await three(stage, make)
    first, _ = await grant(stub, make)
    failed = make.ended(first, outcome="OUTCOME_UPSTREAM_ERROR", had_content=False)
    retried = (await stub.Retry(pb.RetryRequest(failed=failed), timeout=30)).grant
    assert retried.repinned
    again, decision = await grant(stub, make)
    assert (again.account_id, decision.pin) == (retried.account_id, "hit")


async def test_a_model_that_the_pinned_account_lacks_is_served_elsewhere(stage, make):
    stub = await stage.add()
    await stage.put(
        make.account("opus", models={"allow": ["claude-opus-*"], "deny": [], "map": {}}),
        make.account("haiku", models={"allow": ["claude-haiku-*"], "deny": [], "map": {}}),
        make.pool("default", "opus", "haiku"), make.key("ada"),
    )
    for model, name in [("claude-opus-4", "opus"), ("claude-haiku-4", "haiku")] * 2:
        served, _ = await grant(stub, make, model=model)
        assert (served.account_id, served.repinned) == (f"default/{name}", False)


async def test_a_draining_account_serves_its_pins_and_nothing_new(stage, make):
    stub = await stage.add()
    await three(stage, make)
    first, _ = await grant(stub, make)
    name = first.account_id.removeprefix("default/")
    await stage.put(make.account(name, state="Draining"))
    again, _ = await grant(stub, make)
    assert again.account_id == first.account_id
    others = {(await stub.Admit(make.ask("ada", session=b"%016d" % i), timeout=30)).grant.account_id for i in range(12)}
    assert first.account_id not in others
    assert len(others) == 2


async def test_a_paused_or_deleted_account_loses_its_pins(stage, make):
    stub = await stage.add()
    await three(stage, make)
    first, _ = await grant(stub, make)
    await stage.put(make.account(first.account_id.removeprefix("default/"), state="Paused"))
    second, _ = await grant(stub, make)
    assert (second.repinned, second.account_id == first.account_id) == (True, False)
    await stage.delete("ClaudeAccount", second.account_id.removeprefix("default/"))
    third, _ = await grant(stub, make)
    assert third.repinned
    assert third.account_id not in (first.account_id, second.account_id)


async def test_pools_without_affinity_pin_nothing(stage, make):
    stub = await stage.add()
    affinity = {"mode": "None", "ttl": "1h", "onUnavailable": "Repin"}
    await three(stage, make, pool={"affinity": affinity, "strategy": "RoundRobin"})
    got = [(await grant(stub, make))[0].account_id for _ in range(6)]
    assert {got.count(a) for a in set(got)} == {2}


async def test_pins_end_with_their_ttl_and_derived_ones_after_five_minutes(stage, make):
    stub = await stage.add()
    await three(stage, make)
    await grant(stub, make)
    [name] = stage.redis.keys("sb:pin:*")
    assert 3_590_000 < int(stage.redis.cli("PTTL", name)) <= 3_600_000
    stage.redis.cli("DEL", name)
    await grant(stub, make, session_derived=True)
    assert 290_000 < int(stage.redis.cli("PTTL", name)) <= 300_000
    assert SESSION.decode() not in name
