"""Invariant 1, every attempt is accounted once: each room killed, stopped, wiped or locked out under mixed load.

After each fault the provider's truth, the ledger, the counters and what callers saw must agree to the token and the
nano-dollar. Which codes callers may see meanwhile, and how soon all is well again, is checked along the way.
"""

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.rig import LOAD_S, SEEDS, Rig, redis_command, stopped

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

OUTAGE_S = 4.0
# Longer than callers wait for a scheduler, so that they are refused and its grants come too late.
SCHEDULER_STOPPED_S = 16.5


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Rig(tmp_path_factory.mktemp("i1")) as made:
        yield made


@pytest.mark.parametrize("seed", SEEDS)
def test_client_hang_ups_and_failing_attempts(rig: Rig, seed: int) -> None:
    with rig.load(seed, hang_ups=0.5) as load:
        time.sleep(LOAD_S * 2)
    found = rig.settled(by_s=time.monotonic() + 10)
    print(f"\nhang-ups, seed {seed}: {dict(found.counts)}")
    assert found.counts["saw hung up"] > 10
    assert found.counts["ledger client_gone"] > 0
    assert found.counts["exact"] > found.counts["within bounds"]
    rig.check_callers(load.seen)


@pytest.mark.parametrize("room", ["scheduler", "usage", "token-refresher", "redis"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_room_is_killed(rig: Rig, room: str, seed: int) -> None:
    with rig.under_load(seed, f"{room} killed") as broken_s:
        old = rig.instance.kill(room)
        rig.wait_restarted(room, old, broken_s)


@pytest.mark.parametrize(("room", "for_s"), [("scheduler", SCHEDULER_STOPPED_S), ("usage", OUTAGE_S)])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_room_stands_still(rig: Rig, room: str, for_s: float, seed: int) -> None:
    with rig.under_load(seed, f"{room} stopped for {for_s} s", lasts_s=for_s), stopped(rig.instance.room_pids(room)):
        time.sleep(for_s)


@pytest.mark.parametrize("seed", SEEDS)
def test_redis_is_flushed(rig: Rig, seed: int) -> None:
    with rig.under_load(seed, "Redis flushed"):
        assert redis_command(rig.instance.data / "run" / "redis.sock", "FLUSHALL").startswith(b"+OK")


@pytest.mark.parametrize("seed", SEEDS)
def test_the_ledger_is_locked(rig: Rig, seed: int) -> None:
    database = rig.instance.data / "ledger" / "ledger.db"
    with rig.under_load(seed, f"ledger locked for {OUTAGE_S} s", lasts_s=OUTAGE_S), _locked(database):
        time.sleep(OUTAGE_S)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_of_two_gateways_is_killed(rig: Rig, seed: int) -> None:
    with rig.under_load(seed, "a gateway killed", connections_may_break=True) as broken_s:
        killed = rig.instance.room_pids("gateway")[0]
        os.kill(killed, signal.SIGKILL)
        rig.wait_restarted("gateway", [killed], broken_s)


@contextmanager
def _locked(database: Path) -> Iterator[None]:
    connection = sqlite3.connect(database, timeout=10, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()
