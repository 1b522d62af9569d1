"""Invariant 1, every attempt is accounted once: rooms killed, stopped, wiped, locked out, their disk full, under load.

After each fault the provider's truth, the ledger, the counters and what callers saw must agree to the token and the
nano-dollar. Which codes callers may see meanwhile, and how soon all is well again, is checked along the way.
"""

import os
import resource
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
DISK_FULL_S = 3.0
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


@pytest.mark.parametrize("seed", SEEDS)
def test_one_of_two_gateways_is_killed(rig: Rig, seed: int) -> None:
    """Its leases live on for half a minute, which the next test spends as well: that one's settlement is for both."""
    with rig.under_load(seed, "a gateway killed", connections_may_break=True, settle=False) as broken_s:
        killed = rig.instance.room_pids("gateway")[0]
        os.kill(killed, signal.SIGKILL)
        rig.wait_restarted("gateway", [killed], broken_s)


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


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs prlimit (Linux)")
@pytest.mark.parametrize("room", ["gateway", "usage"])
def test_a_disk_is_full(rig: Rig, room: str) -> None:
    """Journals that can't be written refuse (`ledger_unavailable`); a ledger that can't keeps journals waiting."""
    before = len(rig.seen)
    with rig.under_load(1, f"no room for the {room}'s files for {DISK_FULL_S} s", lasts_s=DISK_FULL_S):
        _no_more_bytes(rig.instance.room_pids(room), 4096)
        time.sleep(DISK_FULL_S)
        _no_more_bytes(rig.instance.room_pids(room), resource.RLIM_INFINITY)
    saw = {seen.kind for seen in rig.seen[before:]}
    assert ("ledger_unavailable" in saw) == (room == "gateway")


def _no_more_bytes(pids: list[int], limit: int) -> None:
    """Let no file of these processes grow beyond `limit` bytes: every write past it fails, as on a full disk."""
    for pid in pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


@contextmanager
def _locked(database: Path) -> Iterator[None]:
    connection = sqlite3.connect(database, timeout=10, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()
