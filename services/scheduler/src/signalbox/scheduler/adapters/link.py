"""One connection to Redis on which commands are written as they come and answered in order.

The library connects: URL, TLS, passwords and Sentinel are its business, and so are subscriptions. Once connected, the
transport is taken over by a protocol of our own around the library's parser: its streams, timeouts and pool cost nine
times as much for each command, more than the command itself.
"""

import asyncio
import contextlib
from collections import deque
from typing import Any

import hiredis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

_UNFINISHED = object()
_DEMOTED = "READONLY"


class Link:
    """Opens its connection when it is needed, and anew after it broke; what was under way then fails."""

    def __init__(self, redis: Redis, timeout_s: float) -> None:
        self._redis = redis
        self._timeout_s = timeout_s
        self._opening = asyncio.Lock()
        self._connection: Any = None  # kept, because the library closes what nobody holds
        self._pipe: _Pipe | None = None

    async def call(self, *command: str | int | bytes) -> Any:
        """Run one command; return its answer with texts as bytes. Raises redis.exceptions.RedisError and OSError."""
        pipe = self._pipe
        if pipe is None or pipe.broken:
            pipe = await self._open()
        return await pipe.send(command)

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                await self._connection.disconnect(nowait=True)
            self._connection = self._pipe = None

    async def _open(self) -> "_Pipe":
        async with self._opening:
            if self._pipe is not None and not self._pipe.broken:
                return self._pipe
            await self.close()
            pool: Any = self._redis.connection_pool
            connection = pool.make_connection()
            await connection.connect()
            transport: asyncio.Transport = connection._writer.transport  # there is no public way to it
            self._connection, self._pipe = connection, _Pipe(transport, self._timeout_s)
            transport.set_protocol(self._pipe)
            return self._pipe


class _Pipe(asyncio.Protocol):
    """The commands under way on one connection, oldest first, each with the time by which its answer must be there."""

    def __init__(self, transport: asyncio.Transport, timeout_s: float) -> None:
        self._transport = transport
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(replyError=ResponseError, notEnoughData=_UNFINISHED)
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._watch: asyncio.TimerHandle | None = None
        self._timed_out = False
        self.broken = transport.is_closing()

    def send(self, command: tuple[Any, ...]) -> "asyncio.Future[Any]":
        """Write a command; the answer comes in the future."""
        answer: asyncio.Future[Any] = self._loop.create_future()
        end_s = self._loop.time() + self._timeout_s
        self._waiting.append((answer, end_s))
        if self._watch is None:
            self._watch = self._loop.call_at(end_s, self._look)
        self._transport.write(hiredis.pack_command(command))
        return answer

    def data_received(self, data: bytes) -> None:
        """Hand answers to those who wait for them."""
        try:
            self._reader.feed(data)
            while (answer := self._reader.gets()) is not _UNFINISHED:
                if not isinstance(answer, hiredis.PushNotification):
                    self._answer(answer)
        except (hiredis.ProtocolError, IndexError):
            self.broken = True
            self._transport.abort()

    def _answer(self, answer: Any) -> None:
        future, _ = self._waiting.popleft()
        if future.done():
            return  # whoever asked was cancelled
        if isinstance(answer, ResponseError) and str(answer).startswith(_DEMOTED):
            future.set_exception(RedisConnectionError("this server is no primary any more"))
            self.broken = True
            self._transport.abort()    # whoever connects anew asks who is
        elif isinstance(answer, ResponseError):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is under way."""
        self.broken = True
        if self._watch is not None:
            self._watch.cancel()
        for future, _ in self._waiting:
            if not future.done():
                future.set_exception(
                    RedisTimeoutError("no answer in time") if self._timed_out
                    else RedisConnectionError(str(exc) if exc else "the server closed the connection"),
                )
        self._waiting.clear()

    def _look(self) -> None:
        """Give the connection up where the oldest answer is late: nothing can overtake it."""
        self._watch = None
        if not self._waiting:
            return
        end_s = self._waiting[0][1]
        if end_s > self._loop.time():
            self._watch = self._loop.call_at(end_s, self._look)
            return
        self.broken = self._timed_out = True
        self._transport.abort()
