"""Invariant 2, no limit is overrun: two gateways and two schedulers, raced against, give the guarantees of one.

Each test has a key of its own. That counts outlive a flush, a kill of Redis and of a scheduler is shown by filling a
limit across the fault: the callers get exactly what it allows, and every limit says so afterwards.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from decimal import Decimal
from typing import Any

import pytest

from tests.support.caller import eventually
from tests.support.instance import Instance, relay_key, secret
from tests.support.load import Load, Seen, count, message, model_of_its_own
from tests.support.rig import OUTAGE, Rig, redis_command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

AT_ONCE = 200
FITS = 37
_SLOW = "[[sim deltas=60 delta_delay_s=0.05]]"
PERIODS = ("Minute", "Hour", "Day", "Week", "Month", "Total")


def _flush(instance: Instance) -> None:
    assert redis_command(instance.data / "run" / "redis.sock", "FLUSHALL").startswith(b"+OK")


def _kill_redis(instance: Instance) -> None:
    instance.kill("redis")


def _kill_a_scheduler(instance: Instance) -> None:
    os.kill(instance.room_pids("scheduler")[0], signal.SIGKILL)


def _flush_and_kill_a_scheduler(instance: Instance) -> None:
    _flush(instance)
    _kill_a_scheduler(instance)


DAMAGES = {
    "flush": _flush, "redis-killed": _kill_redis, "scheduler-killed": _kill_a_scheduler,
    "flush-and-scheduler-killed": _flush_and_kill_a_scheduler,
}


def _key(name: str) -> str:
    return f"sbx_e2e_replicas_key_of_{name}"


def _documents() -> list[dict[str, Any]]:
    specs: dict[str, dict[str, Any]] = {
        f"per-{per.lower()}": {"limits": [{"per": per, "requests": FITS}]} for per in PERIODS
    }
    specs["slots"] = {"concurrency": 5}
    specs["tokens"] = {"limits": [{"per": "Day", "tokens": 20_000, "admission": "Strict"}]}
    specs["cost"] = {"limits": [{"per": "Day", "costUSD": "0.05", "admission": "Strict"}]}
    for damage in DAMAGES:
        specs[damage] = {"limits": [{"per": per, "requests": FITS} for per in PERIODS], "concurrency": 100}
    return [
        document
        for name, spec in specs.items()
        for document in (secret(name, **{"relay-key": _key(name)}), relay_key(name, **spec))
    ]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Rig(tmp_path_factory.mktemp("i2"), schedulers=2, documents=_documents()) as made:
        yield made


@pytest.fixture
def load(rig: Rig) -> Iterator[Load]:
    with rig.load(1, callers=0) as made:
        yield made


def race(load: Load, key: str, callers: int = AT_ONCE, prompt: str = "Hello") -> list[Seen]:
    """Ask `callers` times at once and return what was seen."""
    begun: list[Future[Seen]] = [
        load.ask(message(prompt, stream=n % 2 == 0, model=model_of_its_own()), key=key) for n in range(callers)
    ]
    return [one.result(60) for one in begun]


def billed(rig: Rig, name: str) -> list[dict[str, Any]]:
    """Return the ledger's rows of a key."""
    return list(rig.instance.json("requests", "--key", name, "--last", "100000"))


@pytest.mark.parametrize("per", PERIODS)
def test_exactly_as_many_requests_as_the_limit_allows(rig: Rig, load: Load, per: str) -> None:
    key = _key(f"per-{per.lower()}")
    saw = count(race(load, key))
    assert saw == {"whole": FITS, "key_limit_requests": AT_ONCE - FITS}
    (limit,) = rig.instance.key_info(key)["limits"]
    assert limit["requests"] == {"limit": FITS, "used": FITS, "reserved": 0}
    assert all(s.retry_after for s in load.seen if s.error_code) or per == "Total"


def test_exactly_as_many_at_once_as_the_limit_allows(rig: Rig, load: Load) -> None:
    for _ in range(2):  # slots come back
        seen = race(load, _key("slots"), prompt="[[sim deltas=120 delta_delay_s=0.05 delay_s=2]]")
        assert count(seen) == {"whole": 5, "key_limit_concurrency": AT_ONCE - 5}
        assert {s.retry_after for s in seen if not s.whole} == {"1"}
        # A settle travels up to 25 ms behind the answer's last byte.
        assert eventually(lambda: rig.instance.key_info(_key("slots"))["concurrency"]["in_flight"] == 0, within_s=5)


@pytest.mark.parametrize(("name", "number"), [("tokens", "tokens"), ("cost", "cost_usd")])
def test_strict_limits_are_never_overrun(rig: Rig, load: Load, name: str, number: str) -> None:
    seen = []
    while not seen or any(s.whole for s in seen[-50:]):
        seen += race(load, _key(name), 50)
    assert set(count(seen)) == {"whole", f"key_limit_{name}"}
    (limit,) = rig.instance.key_info(_key(name))["limits"]
    used, most, reserved = (Decimal(limit[number][field]) for field in ("used", "limit", "reserved"))
    assert reserved == 0
    assert most / 2 < used <= most, "never overrun, nor of no use"
    rig.settled(by_s=time.monotonic() + 20)
    rows = billed(rig, name)
    spent = {
        "tokens": sum(Decimal(row["input_tokens"] + row["output_tokens"]) for row in rows),
        "cost": sum(Decimal(row["cost_usd"]) for row in rows),
    }
    assert used == spent[name]


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_counts_outlive_faults(rig: Rig, load: Load, damage: str) -> None:
    inflict: Callable[[Instance], None] = DAMAGES[damage]
    key, began_s = _key(damage), time.monotonic()
    seen = race(load, key, FITS - 20)
    assert count(seen) == {"whole": FITS - 20}
    running = [load.ask(message(_SLOW, stream=True, model=model_of_its_own(), max_tokens=8192), key=key)
               for _ in range(5)]
    time.sleep(0.5)
    inflict(rig.instance)
    broken_s = time.monotonic()
    while not seen or any(s.kind != "key_limit_requests" for s in seen[-20:]):
        assert time.monotonic() < broken_s + 40, count(seen)
        seen += race(load, key, 20)
        time.sleep(0.1)
    seen += [one.result(60) for one in running]
    saw = count(seen)
    print(f"\n{damage}: {dict(saw)}, limit full after {time.monotonic() - broken_s:.1f} s")
    assert set(saw) <= {"whole", "key_limit_requests", *OUTAGE}
    assert saw["whole"] == FITS
    assert len({s.model for s in seen} & {row["model"] for row in rig.sim.truth()}) == FITS
    rig.settled(by_s=time.monotonic() + 20)
    limits = rig.instance.key_info(key)["limits"]
    used = {limit["per"]: limit["requests"]["used"] for limit in limits}
    if time.monotonic() - began_s > 55:    # a busy machine: the first ones are more than a minute ago
        used["Minute"] = FITS
    assert used == dict.fromkeys(PERIODS, FITS)
