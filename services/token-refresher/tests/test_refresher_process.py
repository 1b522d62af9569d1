"""The token-refresher as a process: killed while it takes grants, started on what is unusable, and silent on secrets."""

import asyncio
import random
import signal
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from signalbox.core import rpc
from signalbox.core.settings import RoomSettings
from signalbox.v1 import token_refresher_pb2 as pb
from signalbox.v1.token_refresher_pb2_grpc import TokenRefresherStub
from tests.support.machine import busy
from tests.support.refresher import ENCRYPTION_KEY, SECRET, process

ACME = "default/acme"
pytestmark = pytest.mark.slow


def secret(number: int) -> str:
    return f"sk-ant-secret-{number:06}"


def put(number: int) -> pb.PutGrantRequest:
    return pb.PutGrantRequest(account_id=ACME, kind="apiKey", material={"apiKey": secret(number)},
                              config={"baseURL": "http://127.0.0.1:9"}, seed_version=f"seed-{number}")


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_killed_while_it_takes_a_grant_it_has_the_old_or_the_new_one(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with process(tmp_path) as running:
        async with rpc.connect(RoomSettings(shared_secret=SECRET), running.address) as channel:
            stub: Any = TokenRefresherStub(channel)
            acknowledged = sent = 0
            some_taken = asyncio.Event()

            async def keep_putting() -> None:
                nonlocal acknowledged, sent
                while True:
                    sent += 1
                    await stub.PutGrant(put(sent), wait_for_ready=True, timeout=30)
                    acknowledged = sent
                    if sent == 3:
                        some_taken.set()

            putting = asyncio.create_task(keep_putting())
            await asyncio.wait_for(some_taken.wait(), 30)
            await asyncio.sleep(chance.uniform(0, 0.1))
            running.kill()
            putting.cancel()
            await asyncio.gather(putting, return_exceptions=True)
            running.start()
        # The old channel may not have noticed yet that its process is gone.
        async with rpc.connect(RoomSettings(shared_secret=SECRET), running.address) as channel:
            stub = TokenRefresherStub(channel)
            found = await stub.GetCredential(pb.GetCredentialRequest(account_id=ACME), wait_for_ready=True, timeout=30)
            assert found.headers[0].value in (secret(acknowledged), secret(sent))


async def test_it_stops_when_asked_and_has_said_no_secret(tmp_path: Path) -> None:
    with process(tmp_path) as running:
        async with rpc.connect(RoomSettings(shared_secret=SECRET), running.address) as channel:
            stub: Any = TokenRefresherStub(channel)
            status = await stub.PutGrant(put(1), wait_for_ready=True, timeout=30)
            watch = stub.Watch(pb.WatchCredentialsRequest(), timeout=30)
            await watch.read()
            await stub.Probe(pb.ProbeRequest(account_id=ACME, base_url="http://127.0.0.1:9"), timeout=30)
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.PutGrant(pb.PutGrantRequest(account_id=ACME, kind=secret(2), seed_version="s"), timeout=30)
            rejection = pb.GetCredentialRequest(account_id=ACME, rejected_version=status.version)
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.GetCredential(rejection, timeout=30)
            began_s = time.monotonic()
            running.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(running.process.wait, 60) == 0
            assert time.monotonic() - began_s < 5 * busy()
    said = running.log.read_text()
    assert "credential_rejected" in said
    for hidden in ("sk-ant", SECRET, ENCRYPTION_KEY):
        assert hidden not in said


@pytest.mark.parametrize(("environment", "named"), [
    ({"SIGNALBOX_TOKEN_REFRESHER_ENCRYPTION_KEY": ""}, "SIGNALBOX_TOKEN_REFRESHER_ENCRYPTION_KEY"),
    ({"SIGNALBOX_TOKEN_REFRESHER_ENCRYPTION_KEY": "hunter2"}, "SIGNALBOX_TOKEN_REFRESHER_ENCRYPTION_KEY"),
    ({"SIGNALBOX_TOKEN_REFRESHER_ENCRYPTION_KEY_FILE": "/nonexistent"}, "/nonexistent"),
    ({"SIGNALBOX_TOKEN_REFRESHER_STORE_DIR": "/dev/null/credentials"}, "grant store /dev/null/credentials"),
])
def test_what_is_unusable_is_named(tmp_path: Path, environment: dict[str, str], named: str) -> None:
    with process(tmp_path, **environment) as running:
        assert running.process.wait(60) == 2
        said = running.log.read_text()
        assert "signalbox.token_refresher: cannot start: " in said
        assert named in said
        assert "hunter2" not in said
