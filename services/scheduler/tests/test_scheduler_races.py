"""Limits under races: two schedulers, 200 requests at once, and not one too many."""

import asyncio

import pytest

from signalbox.v1 import scheduler_pb2 as pb

USAGE = {"input_tokens": 80, "output_tokens": 20}


async def two_schedulers(stage, make, **key):
    one = await stage.add()
    await stage.put(
        *(make.account(f"a{i}") for i in range(5)), make.pool("default", *(f"a{i}" for i in range(5))),
        make.key("ada", **key),
    )
    return one, await stage.add()


async def at_once(stubs, make, count, **fields):
    calls = [stubs[i % len(stubs)].Admit(make.ask("ada", **fields), timeout=20) for i in range(count)]
    answers = await asyncio.gather(*calls)
    return [a.grant for a in answers if a.HasField("grant")], [a.denial for a in answers if a.HasField("denial")]


async def looked(stub, make):
    return await stub.Inspect(pb.InspectRequest(key_hash=make.digest("ada"), with_limits=True), timeout=30)


@pytest.mark.parametrize(
    "per", ["Minute", *(pytest.param(per, marks=pytest.mark.slow) for per in ("Hour", "Day", "Week", "Month", "Total"))],
)
async def test_request_limits_are_exact(stage, make, per):
    stubs = await two_schedulers(stage, make, limits=[make.limit(per, requests=37)])
    granted, denied = await at_once(stubs, make, 200)
    assert len(granted) == 37
    assert {d.error_code for d in denied} == {"key_limit_requests"}
    assert (await looked(stubs[0], make)).limits[0].requests.used == 37


@pytest.mark.slow
async def test_concurrency_is_exact_and_slots_come_back(stage, make):
    stubs = await two_schedulers(stage, make, concurrency=23)
    for _ in range(3):
        granted, denied = await at_once(stubs, make, 200)
        assert len(granted) == 23
        assert {(d.error_code, d.retry_after_ms) for d in denied} == {("key_limit_concurrency", 1000)}
        await asyncio.gather(*(stubs[i % 2].Settle(make.ended(g), timeout=30) for i, g in enumerate(granted)))
        assert (await looked(stubs[0], make)).in_flight == 0


async def test_account_concurrency_is_exact(stage, make):
    one = await stage.add()
    await stage.put(
        *(make.account(f"a{i}", maxConcurrency=7) for i in range(5)),
        make.pool("default", *(f"a{i}" for i in range(5))), make.key("ada"),
    )
    two = await stage.add()
    granted, denied = await at_once((one, two), make, 200)
    by_account = [g.account_id for g in granted]
    assert {by_account.count(f"default/a{i}") for i in range(5)} == {7}
    assert {d.error_code for d in denied} == {"pool_limited"}


@pytest.mark.parametrize("dimension", ["tokens", "cost"])
@pytest.mark.slow
async def test_strict_limits_are_never_overrun(stage, make, dimension):
    number = {"tokens": 5_000} if dimension == "tokens" else {"costUSD": "0.05"}
    stubs = await two_schedulers(stage, make, limits=[make.limit("Day", admission="Strict", **number)])
    total = 0
    while True:
        granted, denied = await at_once(stubs, make, 60, input_bytes=200, max_tokens=100)
        assert all(d.error_code == f"key_limit_{dimension}" for d in denied)
        if not granted:
            break
        state = (await looked(stubs[0], make)).limits[0]
        amount = state.tokens if dimension == "tokens" else state.cost_nano_usd
        assert amount.used + amount.reserved <= amount.limit
        settles = (
            stubs[i % 2].Settle(make.ended(g, usage=USAGE, served_model="claude-sonnet-4-5"), timeout=30)
            for i, g in enumerate(granted)
        )
        await asyncio.gather(*settles)
        total += len(granted)
    state = (await looked(stubs[1], make)).limits[0]
    amount = state.tokens if dimension == "tokens" else state.cost_nano_usd
    each = 100 if dimension == "tokens" else 80 * 3_000 + 20 * 15_000
    assert amount.used == total * each <= amount.limit
    assert amount.reserved == 0
    # What is left is less than the worst case of one more request.
    assert amount.limit - amount.used < (200 if dimension == "tokens" else 3_000_000)


@pytest.mark.slow
async def test_an_estimated_limit_is_overrun_by_the_error_of_what_was_in_flight_at_most(stage, make):
    """Requests that use more than their estimate overrun by what those in flight were wrong, however they race."""
    most = 20_000
    stubs = await two_schedulers(stage, make, limits=[make.limit("Day", tokens=most)])
    used, error = 0, 0
    while True:
        granted, denied = await at_once(stubs, make, 80, input_bytes=400, max_tokens=4_000)
        assert {d.error_code for d in denied} <= {"key_limit_tokens"}
        state = (await looked(stubs[0], make)).limits[0].tokens
        assert state.used == used
        if not granted:
            break
        assert used + state.reserved <= most  # nothing was granted that its estimate had no room for
        each = 300 + 40 * (used % 7)
        error = max(0, len(granted) * each - state.reserved)
        usage = {"input_tokens": 100, "output_tokens": each - 100}
        await asyncio.gather(*(
            stubs[i % 2].Settle(make.ended(g, usage=usage, served_model="claude-sonnet-4-5"), timeout=30)
            for i, g in enumerate(granted)
        ))
        used += len(granted) * each
    state = (await looked(stubs[1], make)).limits[0].tokens
    assert (state.used, state.reserved) == (used, 0)
    assert used <= most + error


async def test_estimates_learn_from_what_was_used(stage, make):
    stubs = await two_schedulers(stage, make, limits=[make.limit("Day", tokens=1_000_000)])
    first = (await stubs[0].Admit(make.ask("ada", input_bytes=4000, max_tokens=64_000), timeout=30)).grant
    assert (await looked(stubs[0], make)).limits[0].tokens.reserved == 1000 + 4096
    await stubs[0].Settle(make.ended(first, usage=USAGE, served_model="claude-sonnet-4-5"), timeout=30)
    await stubs[0].Admit(make.ask("ada", input_bytes=4000, max_tokens=64_000), timeout=30)
    tokens = (await looked(stubs[0], make)).limits[0].tokens
    assert (tokens.used, tokens.reserved) == (100, 100)


async def test_schedulers_share_what_requests_have_used(stage, make):
    """One that starts later knows it too."""
    stubs = await two_schedulers(stage, make, limits=[make.limit("Day", tokens=1_000_000)])

    async def reserves(stub) -> int:
        grant = (await stub.Admit(make.ask("ada", input_bytes=4000, max_tokens=64_000), timeout=30)).grant
        reserved = (await looked(stub, make)).limits[0].tokens.reserved
        await stub.Settle(make.ended(grant, unused=True), timeout=30)
        return reserved

    async def until_known(stub) -> None:
        async with asyncio.timeout(10):
            while await reserves(stub) != 100:
                await asyncio.sleep(0.05)

    assert await reserves(stubs[1]) == 1000 + 4096
    first = (await stubs[0].Admit(make.ask("ada"), timeout=30)).grant
    await stubs[0].Settle(make.ended(first, usage=USAGE, served_model="claude-sonnet-4-5"), timeout=30)
    await until_known(stubs[1])
    await until_known(await stage.add())


async def test_a_retry_under_a_strict_limit_reserves_once(stage, make):
    stubs = await two_schedulers(stage, make, limits=[make.limit("Day", admission="Strict", tokens=250)])
    grant = (await stubs[0].Admit(make.ask("ada", input_bytes=200, max_tokens=100), timeout=30)).grant
    failed = make.ended(grant, outcome="OUTCOME_UPSTREAM_ERROR", had_content=False)
    second = await stubs[1].Retry(pb.RetryRequest(failed=failed), timeout=30)
    assert second.HasField("grant")
    tokens = (await looked(stubs[0], make)).limits[0].tokens
    assert (tokens.used, tokens.reserved) == (0, 200)


@pytest.mark.slow
async def test_a_failing_account_is_probed_by_one_of_many(stage, make):
    one = await stage.add()
    await stage.put(make.account("a"), make.pool("default", "a"), make.key("ada"))
    two = await stage.add()
    grant = (await one.Admit(make.ask("ada"), timeout=30)).grant
    cool = pb.AccountEffect(kind=pb.AccountEffect.COOL, reason="Failing")
    await one.Settle(make.ended(grant, outcome="OUTCOME_UPSTREAM_ERROR", effect=cool), timeout=30)
    await asyncio.sleep(1.1)
    granted, denied = await at_once((one, two), make, 100)
    assert len(granted) == 1
    assert {d.error_code for d in denied} == {"pool_limited"}
