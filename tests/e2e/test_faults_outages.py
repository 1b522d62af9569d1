"""Redis, schedulers and gateways that stand still or die: what callers see, what runs on, how soon all is back.

Callers see scheduler_unavailable, ledger_unavailable, overloaded, pool_limited and their own limits, nothing else;
running streams go on; service is back within 40 s. Two gateways, two schedulers, one Redis, one ledger.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.instance import Instance
from tests.support.load import Load, message, model_of_its_own
from tests.support.rig import SERVICE_LIMIT_S, SLACK_S, Rig, redis_command, stopped

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

TIMEOUTS = {"headers": "3s", "headersUnstreamed": "4s", "firstContent": "3s", "idle": "2s", "total": "1m"}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Rig(tmp_path_factory.mktemp("outages"), schedulers=2, pool_spec={"timeouts": TIMEOUTS}) as made:
        yield made


def _kill(*rooms: str) -> Callable[[Instance], None]:
    return lambda instance: [instance.kill(room) for room in rooms] and None


def _kill_one_scheduler(instance: Instance) -> None:
    os.kill(instance.room_pids("scheduler")[0], signal.SIGKILL)


def _flush(instance: Instance) -> None:
    assert redis_command(instance.data / "run" / "redis.sock", "FLUSHALL").startswith(b"+OK")


def _flush_and_kill_schedulers(instance: Instance) -> None:
    """Nobody knows the documents any more, but for those who put them."""
    schedulers = instance.room_pids("scheduler")
    _flush(instance)
    for pid in schedulers:
        os.kill(pid, signal.SIGKILL)


def _cut_redis(instance: Instance) -> None:
    redis_command(instance.data / "run" / "redis.sock", "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


DEATHS = {
    "one scheduler killed": _kill_one_scheduler,
    "both schedulers killed": _kill("scheduler"),
    "Redis killed": _kill("redis"),
    "Redis and both schedulers killed": _kill("redis", "scheduler"),
    "Redis flushed": _flush,
    "Redis flushed, both schedulers killed": _flush_and_kill_schedulers,
    "connections to Redis cut": _cut_redis,
}


# Who cannot reach Redis for a while may leave leases that are reaped half a minute later. One settlement waits for all
# of them: the last test's, or the rig's at its end.


@pytest.mark.parametrize("what", list(DEATHS))
def test_a_death(rig: Rig, what: str) -> None:
    with rig.under_load(1, what, settle=DEATHS[what] is not _cut_redis):
        DEATHS[what](rig.instance)


@pytest.mark.parametrize("room", ["redis", "scheduler"])
def test_standing_still(rig: Rig, room: str) -> None:
    with rig.under_load(1, f"{room} stopped for 6 s", lasts_s=6.0, settle=False), stopped(rig.instance.room_pids(room)):
        time.sleep(6.0)


def test_one_of_two_schedulers_stands_still(rig: Rig) -> None:
    one = rig.instance.room_pids("scheduler")[:1]
    with rig.under_load(1, "one scheduler stopped for 6 s", lasts_s=6.0, settle=False), stopped(one):
        time.sleep(6.0)


@pytest.fixture
def load(rig: Rig) -> Iterator[Load]:
    with rig.load(1, callers=0) as made:
        yield made


def test_streams_outlive_a_gateway_that_stood_still(rig: Rig, load: Load) -> None:
    """Time in which the process did not run is not a provider's silence: what came meanwhile is read first."""
    prompt = "[[sim deltas=120 delta_delay_s=0.05]]"
    streams = [load.ask(message(prompt, stream=True, model=model_of_its_own(), max_tokens=8192)) for _ in range(10)]
    time.sleep(1)
    with stopped(rig.instance.room_pids("gateway")):
        time.sleep(float(TIMEOUTS["idle"][0]) + 2)
    seen = [stream.result(60) for stream in streams]
    assert [one.kind for one in seen] == ["whole"] * len(seen)
    rig.settled(by_s=time.monotonic() + SERVICE_LIMIT_S + SLACK_S)
