"""A session is the same by either way to a scheduler: the listener of its own, and the gRPC library's address."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest

from signalbox.core.grpc_stream import Endpoint
from signalbox.scheduler.app import SESSION
from signalbox.v1 import scheduler_pb2 as pb

HELLO = pb.GatewayBatch(hello=pb.Hello(gateway_id="g", protocol="v1"))


@pytest.fixture(params=["Session", "library_session"])
async def session(request, stage, make) -> Any:
    stub = await stage.add()
    await stage.put(make.account("a"), make.pool("default", "a"), make.key("ada"))
    call = getattr(stub, request.param)(timeout=60)
    await call.write(HELLO)
    assert not (await call.read()).ByteSize()
    assert stage.rooms[0]._sessions.gateways == {"g"}
    return call


async def test_all_that_was_asked_is_answered_before_the_end(stage, make, session):
    for seq in range(1, 51):
        await session.write(pb.GatewayBatch(admits=[make.ask("ada", seq=seq)]))
    await session.done_writing()
    answered = [a.seq async for batch in session for a in batch.admits if a.HasField("grant")]
    assert answered == list(range(1, 51))
    assert await session.code() is grpc.StatusCode.OK
    await left(stage)


@pytest.mark.slow
async def test_a_gateway_that_asks_faster_than_is_answered_is_slowed_down_and_loses_nothing(stage, make, session):
    settles = [pb.SettleRequest(seq=n, lease_id=f"nobody{n}.1", unused=True) for n in range(1, 20_001)]

    async def write() -> None:
        for at in range(0, len(settles), 50):
            await session.write(pb.GatewayBatch(settles=settles[at : at + 50]))
        await session.done_writing()

    writing = asyncio.create_task(write())
    answered = [s.seq async for batch in session for s in batch.settles]
    await writing
    assert answered == list(range(1, 20_001))


async def test_a_gateway_that_hangs_up_is_forgotten(stage, session):
    session.cancel()
    await left(stage)


async def test_a_stopping_scheduler_tells_its_gateways(stage, session):
    stopping = asyncio.create_task(stage.rooms[0].stop())
    assert (await session.read()).draining
    session.cancel()
    await stopping
    stage.rooms.clear()


async def test_an_unreadable_batch_ends_the_session(stage):
    await stage.add()
    settings = stage.rooms[0]._settings
    stream = await Endpoint(settings, settings.session_listen).open(SESSION, lambda _: None)
    stream.send(b"\xff\xff\xff")
    async with asyncio.timeout(5):
        assert await stream.ended == "the batch is unreadable"
    await left(stage)


async def left(stage) -> None:
    async with asyncio.timeout(5):
        while stage.rooms[0]._sessions.gateways:
            await asyncio.sleep(0.01)
