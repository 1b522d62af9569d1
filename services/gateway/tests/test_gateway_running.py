"""A request's coroutine runs without a task: it goes on when what it waits for is there, and its end is told."""

import asyncio

import pytest

from signalbox.gateway.api.running import Running


async def test_a_coroutine_goes_on_when_what_it_waits_for_is_there():
    loop = asyncio.get_running_loop()
    first, second, seen, over = loop.create_future(), loop.create_future(), [], loop.create_future()

    async def inner():
        seen.append(await first)
        try:
            await second
        except asyncio.CancelledError:
            seen.append("cancelled")
        await asyncio.ensure_future(asyncio.sleep(0))    # a task is a future as well
        seen.append("end")

    running = Running(inner(), over.set_result)
    running.go_on()
    first.set_result("first")
    assert seen == []
    await asyncio.sleep(0)
    assert seen == ["first"]
    second.cancel()
    assert await over is running
    assert seen == ["first", "cancelled", "end"]


def test_a_coroutine_that_raises_has_ended_too():
    over = []

    async def inner():
        raise ValueError("told to whoever drives it")

    running = Running(inner(), over.append)
    with pytest.raises(ValueError, match="whoever"):
        running.go_on()
    assert over == [running]
