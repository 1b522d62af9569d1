"""A Redis whose clock is hours away from every other machine's: its TIME alone decides limits, leases and lifetimes.

The functions are the product's own, with only the server's clock moved.
"""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from signalbox.scheduler.adapters import store
from signalbox.v1 import scheduler_pb2 as pb

pytestmark = pytest.mark.slow

AHEAD_S = 7_200


@pytest.fixture
def ahead(monkeypatch):
    """Redis is two hours ahead of schedulers and gateways. Behind would do as well, but its own expiry of keys is real."""
    source, name = store.library()
    moved = source.replace("local now = time[1] * 1000", f"local now = (time[1] + {AHEAD_S}) * 1000")
    assert moved != source
    monkeypatch.setattr(store, "library", lambda: (moved, name))


def redis_ms() -> int:
    return time.time_ns() // 1_000_000 + AHEAD_S * 1000


def iso(redis_s: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=AHEAD_S + redis_s)).isoformat().replace("+00:00", "Z")


async def serving(stage, make, **key):
    stub = await stage.add()
    await stage.put(make.account("a"), make.pool("default", "a"), make.key("ada", **key))
    return stub


@pytest.mark.usefixtures("ahead")
async def test_leases_live_by_the_clock_of_redis(stage, make):
    stub = await serving(stage, make, concurrency=1)
    grant = (await stub.Admit(make.ask("ada"), timeout=30)).grant
    assert abs(grant.admitted_at_ms - redis_ms()) < 5_000
    await asyncio.sleep(1.0)  # five looks of the reaper
    assert (await stub.Admit(make.ask("ada"), timeout=30)).denial.error_code == "key_limit_concurrency"
    assert stage.ledger.events == []
    await stub.Settle(make.ended(grant), timeout=30)
    assert (await stub.Admit(make.ask("ada"), timeout=30)).HasField("grant")


@pytest.mark.usefixtures("ahead")
async def test_limits_reset_by_the_clock_of_redis(stage, make):
    stub = await serving(stage, make, limits=[make.limit("Minute", requests=1), make.limit("Day", requests=9)])
    grant = (await stub.Admit(make.ask("ada"), timeout=30)).grant
    denial = (await stub.Admit(make.ask("ada"), timeout=30)).denial
    assert denial.error_code == "key_limit_requests"
    assert 55_000 < denial.retry_after_ms <= 62_000
    state = await stub.Inspect(pb.InspectRequest(key_hash=make.digest("ada"), with_limits=True), timeout=30)
    minute, day = state.limits
    assert abs(state.first_used_at_ms - grant.admitted_at_ms) < 1_000
    assert 55_000 < minute.resets_at_ms - redis_ms() <= 62_000
    assert 0 < day.resets_at_ms - redis_ms() <= 86_400_000
    assert day.resets_at_ms % 86_400_000 == 0


@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize(("spec", "works"), [
    ({"expiresAt": 60}, True), ({"expiresAt": -60}, False), ({"lifetime": {"duration": "1h"}}, True),
], ids=["expires later", "has expired", "lifetime"])
async def test_keys_expire_by_the_clock_of_redis(stage, make, spec, works):
    spec = {"expiresAt": iso(spec["expiresAt"])} if "expiresAt" in spec else spec
    stub = await serving(stage, make, **spec)
    await stub.Settle(make.ended((await stub.Admit(make.ask("ada"), timeout=30)).grant), timeout=30) if works else None
    answer = await stub.Admit(make.ask("ada"), timeout=30)
    assert answer.HasField("grant") == works
    assert works or answer.denial.error_code == "key_expired"


@pytest.mark.usefixtures("ahead")
async def test_accounts_rest_by_the_clock_of_redis(stage, make):
    stub = await serving(stage, make)
    grant = (await stub.Admit(make.ask("ada"), timeout=30)).grant
    effect = pb.AccountEffect(kind=pb.AccountEffect.REST, reason="Limited", until_ms=redis_ms() + 1_500)
    await stub.Settle(make.ended(grant, outcome="OUTCOME_UPSTREAM_ERROR", effect=effect), timeout=30)
    denial = (await stub.Admit(make.ask("ada"), timeout=30)).denial
    assert denial.error_code == "pool_limited"
    assert 0 < denial.retry_after_ms <= 1_500
    await asyncio.sleep(1.6)
    assert (await stub.Admit(make.ask("ada"), timeout=30)).HasField("grant")
