"""The scheduler as a process: it says what is unusable and exits, serves its telemetry, and stops when asked."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import Any

import grpc.aio
import pytest

from signalbox.core import rpc
from signalbox.v1 import scheduler_pb2 as pb
from signalbox.v1.scheduler_pb2_grpc import SchedulerStub
from tests.support.machine import busy

pytestmark = pytest.mark.slow

SECRET = "a shared secret of at least 32 characters"


def environment(directory, **extra: str) -> dict[str, str]:
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("SIGNALBOX_")},
        "SIGNALBOX_SHARED_SECRET": SECRET, "SIGNALBOX_SCHEDULER_LISTEN": f"unix:{directory}/s.sock",
        "SIGNALBOX_TELEMETRY_ADDRESS": f"unix:{directory}/t.sock", "SIGNALBOX_USAGE_ADDRESS": f"unix:{directory}/usage.sock",
        "SIGNALBOX_REDIS_URL": f"unix://{directory}/redis.sock", **extra,
    }


def start(env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "signalbox.scheduler"], env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )


def refusal(env: dict[str, str]) -> str:
    began = time.monotonic()
    process = start(env)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert time.monotonic() - began < 10 * busy()
    return errors.strip().splitlines()[-1]


@pytest.mark.parametrize(("variable", "value", "words"), [
    ("SIGNALBOX_REDIS_URL", "unix:///nowhere/redis.sock", "Redis at unix:///nowhere/redis.sock"),
    ("SIGNALBOX_REDIS_URL", "redis://user:hidden@127.0.0.1:1/0", "Redis at redis://127.0.0.1:1"),
    ("SIGNALBOX_REDIS_URL", "http://127.0.0.1:1", "SIGNALBOX_REDIS_URL"),
    ("SIGNALBOX_REDIS_URL", "redis://127.0.0.1:redis", "SIGNALBOX_REDIS_URL"),
    ("SIGNALBOX_REDIS_URL", "redis://user:hidden/1@127.0.0.1:1/0", "SIGNALBOX_REDIS_URL"),
    ("SIGNALBOX_REDIS_URL", "redis+sentinel://127.0.0.1:1/none", "redis+sentinel://127.0.0.1:1/none"),
    ("SIGNALBOX_REDIS_CA_FILE", "/nowhere/ca.pem", "SIGNALBOX_REDIS_CA_FILE"),
    ("SIGNALBOX_SCHEDULER_LISTEN", "nonsense", "SIGNALBOX_SCHEDULER_LISTEN"),
    ("SIGNALBOX_SCHEDULER_LISTEN", "unix:/nowhere/s.sock", "/nowhere/s.sock"),
    ("SIGNALBOX_SCHEDULER_SESSION_LISTEN", "unix:/nowhere/session.sock", "/nowhere/session.sock"),
    ("SIGNALBOX_SHARED_SECRET", "short", "SIGNALBOX_SHARED_SECRET"),
    ("SIGNALBOX_PRICES_FILE", "/nowhere/prices.json", "SIGNALBOX_PRICES_FILE"),
    ("SIGNALBOX_SCHEDULER_REFRESH_S", "0", "SIGNALBOX_SCHEDULER_REFRESH_S"),
])
def test_a_start_that_cannot_work_says_why(directory, redis_server, variable, value, words):
    said = refusal(environment(directory, **{variable: value}))
    assert words in said
    assert "hidden" not in said
    assert "<" not in said, "in words, not as a library writes its objects"


def test_a_server_that_is_no_redis_is_named(directory):
    import socket

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(directory / "redis.sock"))
        listening.listen()
        assert "Redis at unix://" in refusal(environment(directory))


def test_a_redis_that_evicts_is_refused(directory, make):
    server = make.RedisServer(directory, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    server.start()
    try:
        assert "noeviction" in refusal(environment(directory))
    finally:
        server.kill()


async def fetch(directory, path: str) -> tuple[int, str]:
    reader, writer = await asyncio.open_unix_connection(f"{directory}/t.sock")
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    return int(answer.split()[1]), answer


async def until_ready(directory, ready: bool = True) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                if ((await fetch(directory, "/readyz"))[0] == 200) == ready:
                    return
            except OSError:
                pass
            await asyncio.sleep(0.05)


def stub(directory, stage) -> Any:
    channel = rpc.connect(stage.settings(), f"unix:{directory}/s.sock")
    stage.channels.append(channel)
    return SchedulerStub(channel)


async def test_it_serves_and_stops_when_asked(directory, stage, make):
    process = start(environment(directory))
    try:
        await until_ready(directory)
        stage.stubs.append(stub(directory, stage))
        await stage.put(make.account("a"), make.pool("default", "a"), make.key("ada"))
        grant = (await stage.stubs[0].Admit(make.ask("ada"), timeout=30)).grant
        await stage.stubs[0].Admit(make.ask("nobody"), timeout=30)
        window = {"name": "requests", "limit": 100, "remaining": 25, "resets_at_ms": 9_000_000_000_000}
        await stage.stubs[0].Settle(make.ended(grant, windows=[window]), timeout=30)
        wanted = {
            'signalbox_admissions_total{decision="grant",reason=""} 1.0',
            'signalbox_admissions_total{decision="deny",reason="key_invalid"} 1.0',
            'signalbox_account_state{account="default/a",state="Ready"} 1.0',
            'signalbox_account_headroom_ratio{account="default/a",window="requests"} 0.25',
            "signalbox_admission_duration_seconds_count 2.0",
        }
        async with asyncio.timeout(30):
            while not wanted <= set((metrics := (await fetch(directory, "/metrics"))[1]).splitlines()):
                await asyncio.sleep(0.05)
        assert "ada" not in metrics
        process.send_signal(signal.SIGTERM)
        _, errors = await asyncio.to_thread(process.communicate, None, 30)
        assert process.returncode == 0
        assert "Traceback" not in errors
    finally:
        process.kill()


async def test_keys_are_counted_by_how_much_of_their_limits_is_used(directory, stage, make):
    process = start(environment(directory, SIGNALBOX_SCHEDULER_CENSUS_S="0.1"))
    try:
        await until_ready(directory)
        stage.stubs.append(stub(directory, stage))
        day, hour = make.limit("Day", requests=5), make.limit("Hour", requests=4)
        await stage.put(
            make.account("a"), make.pool("default", "a"), make.key("idle", limits=[day]), make.key("free"),
            make.key("ada", limits=[day, hour, make.limit("Day", "day-dear", costUSD="1000")]),
        )
        for _ in range(4):
            grant = (await stage.stubs[0].Admit(make.ask("ada"), timeout=30)).grant
            await stage.stubs[0].Settle(make.ended(grant), timeout=30)
        wanted = {("requests", "Day"): (1, 1, 0), ("requests", "Hour"): (0, 0, 1), ("cost", "Day"): (1, 0, 0)}
        lines = {
            f'signalbox_keys{{dimension="{dimension}",per="{per}",used="{used}"}} {float(number)}'
            for (dimension, per), numbers in wanted.items()
            for used, number in zip(("some", "near", "all"), numbers, strict=True)
        }
        async with asyncio.timeout(30):
            while True:
                page = (await fetch(directory, "/metrics"))[1].splitlines()
                if {line for line in page if line.startswith("signalbox_keys{")} == lines:
                    break
                await asyncio.sleep(0.05)
    finally:
        process.kill()
        process.communicate()


async def test_without_redis_it_lives_but_is_not_ready(directory, stage, make):
    process = start(environment(directory))
    try:
        await until_ready(directory)
        stage.redis.kill()
        await until_ready(directory, False)
        assert (await fetch(directory, "/healthz"))[0] == 200
        answer = await stub(directory, stage).Admit(make.ask("ada"), timeout=30)
        assert answer.denial.error_code == "scheduler_unavailable"
        stage.redis.start()
        await until_ready(directory)
    finally:
        process.kill()
        process.communicate()


async def test_admission_waits_for_the_ledger_at_the_first_start(directory, redis_server, make):
    """Whether Redis lost anything is not known before the ledger was asked."""
    process = start(environment(directory))
    try:
        answer = ""
        async with asyncio.timeout(60):
            while "usage is unavailable" not in answer:
                await asyncio.sleep(0.1)
                with contextlib.suppress(OSError):
                    status, answer = await fetch(directory, "/readyz")
                    assert status == 503
        assert redis_server.cli("EXISTS", "sb:epoch") == "0"
    finally:
        process.kill()
        process.communicate()


async def test_nobody_gets_in_without_the_secret(directory, stage, make):
    await stage.add()
    address = stage.rooms[0]._settings.listen
    async with grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as e:
            await SchedulerStub(channel).Admit(pb.AdmitRequest(), timeout=30)
        assert e.value.code() is grpc.StatusCode.UNAUTHENTICATED
