"""The lean connection to Redis: order, errors, cancellations, late answers, loss and return of the server."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from signalbox.scheduler.adapters.link import Link

LATE_S = 0.5


@pytest.fixture
async def link(redis_server) -> AsyncIterator[Link]:
    async with Redis.from_url(redis_server.url) as redis:
        link = Link(redis, LATE_S)
        yield link
        await link.close()


async def test_each_gets_its_own_answer_whoever_else_was_cancelled_or_wrong(link):
    asked = [asyncio.ensure_future(link.call("ECHO", f"{n}")) for n in range(200)]
    wrong = asyncio.ensure_future(link.call("INCR", "a", "b"))
    await asyncio.sleep(0)
    for one in asked[::3]:
        one.cancel()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert all(a == b"%d" % n for n, a in enumerate(answers) if n % 3)
    with pytest.raises(ResponseError, match="wrong number"):
        await wrong
    assert await link.call("ECHO", b"\r\n\0" * 100_000) == b"\r\n\0" * 100_000


async def test_a_late_answer_fails_all_under_way_and_the_next_call_finds_a_new_connection(link):
    late = [asyncio.ensure_future(link.call("BLPOP", "nothing", 30)), asyncio.ensure_future(link.call("PING"))]
    async with asyncio.timeout(LATE_S + 2):
        for one in late:
            with pytest.raises(RedisTimeoutError):
                await one
        assert await link.call("ECHO", "again") == b"again"


async def test_a_server_that_went_and_came_back(link, redis_server):
    assert await link.call("ECHO", "1") == b"1"
    waiting = asyncio.ensure_future(link.call("BLPOP", "nothing", 30))
    await asyncio.sleep(0.05)
    redis_server.kill()
    with pytest.raises(RedisConnectionError):
        await waiting
    with pytest.raises((RedisConnectionError, OSError)):
        await link.call("PING")
    redis_server.start()
    assert await link.call("ECHO", "2") == b"2"


async def test_the_library_opens_the_connection(directory, make):
    """What is in the URL counts: here a password and a database."""
    server = make.RedisServer(directory)
    server.start()
    try:
        server.cli("CONFIG", "SET", "requirepass", "open sesame")
        async with Redis.from_url(f"{server.url}?db=3", password="open sesame") as redis:
            link = Link(redis, LATE_S)
            assert b"db=3" in await link.call("CLIENT", "INFO")
            await link.close()
        async with Redis.from_url(server.url, password="wrong") as redis:
            with pytest.raises(RedisConnectionError):
                await Link(redis, LATE_S).call("PING")
    finally:
        server.kill()
