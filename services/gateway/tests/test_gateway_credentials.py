"""Credentials from a token-refresher that is there, comes late or has gone, over real sockets."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from signalbox.core import rpc
from signalbox.core.settings import RoomSettings
from signalbox.gateway.adapters import credentials
from signalbox.gateway.adapters.credentials import CredentialCache
from signalbox.gateway.domain.ports import CredentialUnusable
from signalbox.v1 import token_refresher_pb2 as pb
from signalbox.v1 import token_refresher_pb2_grpc

SETTINGS = RoomSettings(shared_secret="s" * 32)


class FakeRefresher(token_refresher_pb2_grpc.TokenRefresherServicer):
    """Has a credential for every account; what is watched is empty."""

    async def GetCredential(self, request: pb.GetCredentialRequest, context: Any) -> pb.Credential:
        return pb.Credential(account_id=request.account_id, version="1")

    async def Watch(self, request: pb.WatchCredentialsRequest, context: Any):
        yield pb.CredentialEvent(type=pb.CredentialEvent.SYNCED)
        await asyncio.Event().wait()


async def serve(address: str) -> rpc.Server:
    server = rpc.Server(SETTINGS, address, ["signalbox.v1.TokenRefresher"])
    token_refresher_pb2_grpc.add_TokenRefresherServicer_to_server(FakeRefresher(), server.grpc)
    await server.start()
    return server


async def test_a_gateway_that_has_just_started_waits_for_the_token_refresher(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/r.sock"
    channel = rpc.connect(SETTINGS, address)
    cache = CredentialCache(channel)
    cache.start()
    asking = asyncio.create_task(cache.get("default/a"))
    await asyncio.sleep(0.3)
    assert not asking.done()
    server = await serve(address)
    assert (await asyncio.wait_for(asking, 10)).version == "1"
    await cache.close()
    await channel.close()
    await server.grpc.stop(0)


async def test_it_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "CALL_LIMIT_S", 0.5)
    channel = rpc.connect(SETTINGS, f"unix:{tmp_path}/r.sock")
    with pytest.raises(CredentialUnusable) as refused:
        await asyncio.wait_for(CredentialCache(channel).get("default/a"), 10)
    assert (refused.value.reason, refused.value.transient) == ("TokenRefresherUnavailable", True)
    await channel.close()


async def test_one_that_has_credentials_goes_on_to_another_account_at_once(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/r.sock"
    server = await serve(address)
    channel = rpc.connect(SETTINGS, address)
    cache = CredentialCache(channel)
    cache.start()
    async with asyncio.timeout(10):
        await cache.synced.wait()
        kept = await cache.get("default/a")
        await server.grpc.stop(0)
        assert await cache.get("default/a") is kept
        began_s = time.monotonic()
        with pytest.raises(CredentialUnusable):
            await cache.get("default/b")
    assert time.monotonic() - began_s < credentials.CALL_LIMIT_S / 2
    await cache.close()
    await channel.close()
