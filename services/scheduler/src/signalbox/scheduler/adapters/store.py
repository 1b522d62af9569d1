"""The connection to Redis: checks that it is fit, loads the functions, runs batches of operations.

What the operations mean is in lua/; when to recover a lost Redis is recovery.py's business.
"""

import contextlib
import hashlib
import time
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import msgspec
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import RedisError, ResponseError

from signalbox.core.errors import StartupError, Unavailable
from signalbox.scheduler.adapters.client import client
from signalbox.scheduler.adapters.link import Link
from signalbox.scheduler.domain.operations import encode
from signalbox.scheduler.settings import SchedulerSettings

Operation = tuple[msgspec.Struct | dict[str, Any], bytes, bytes]
EVENTS_CHANNEL = "sb:events"
_OLDEST_MAJOR = 7


class LostState(Exception):
    """Redis does not hold the epoch that this scheduler confirmed: it restarted, was flushed or replaced."""


def library() -> tuple[str, str]:
    """Return the functions' source and the name of the one to call. The name carries the source's digest, so that
    schedulers of two versions can share a Redis.
    """
    parts = sorted(files("signalbox.scheduler.adapters").joinpath("lua").iterdir(), key=lambda p: p.name)
    source = "\n".join(p.read_text() for p in parts if p.name.endswith(".lua"))
    name = "signalbox_" + hashlib.sha256(source.encode()).hexdigest()[:12]
    return f"#!lua name={name}\n" + source.replace("@FUNCTION@", name), name


class Store:
    """All that the scheduler asks of Redis."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self.redis, self.where = client(settings)
        self._link = Link(self.redis, settings.redis_timeout_s)
        self._source, self._function = library()
        self.epoch = ""
        self._offset_ms = 0

    async def check(self) -> list[str]:
        """Make sure that Redis is fit and the functions are there; return warnings. Raises StartupError."""
        try:
            server = await self.redis.info("server")
            version = str(server.get("redis_version", "0"))
            if int(version.split(".", maxsplit=1)[0]) < _OLDEST_MAJOR:
                raise StartupError(f"Redis at {self.where}", f"is version {version}; at least 7.0 is needed")
            memory = await self.redis.info("memory")
            await self.load()
        except (RedisError, OSError, ValueError) as e:
            raise StartupError(f"Redis at {self.where}", _why(e)) from e
        policy = memory.get("maxmemory_policy", "noeviction")
        if policy != "noeviction" and memory.get("maxmemory", 0):
            raise StartupError(
                f"Redis at {self.where}", f"maxmemory-policy is {policy}, which drops counters; set it to noeviction",
            )
        return [] if policy == "noeviction" else [f"maxmemory-policy is {policy}; set it to noeviction"]

    async def load(self) -> None:
        """Load the functions where this version of them is missing; replacing them would unconfirm the epoch."""
        try:
            await self._link.call("FUNCTION", "LOAD", self._source)
        except ResponseError as e:
            if "already exists" not in str(e):
                raise

    async def run(self, operations: Sequence[Operation]) -> list[Any]:
        """Run operations at one instant; return Redis time in ms, then one answer for each.

        An operation that failed by itself answers [b"error", why]. Raises Unavailable where Redis cannot be reached or
        refuses, LostState where its state may be incomplete.
        """
        args: list[Any] = [self.epoch]
        for operation, first, second in operations:
            args += (encode(operation), first, second)
        try:
            answers = await self._call(args)
        except (RedisError, OSError, TimeoutError) as e:
            raise Unavailable("Redis", _why(e)) from e
        self._offset_ms = answers[0] - time.time_ns() // 1_000_000
        if len(answers) > 1 and answers[1] and answers[1][0] == b"lost":
            raise LostState
        return answers

    def now_ms(self) -> int:
        """Return Redis time as far as it is known without asking: this machine's, set right by the last batch."""
        return time.time_ns() // 1_000_000 + self._offset_ms

    async def one(self, operation: msgspec.Struct | dict[str, Any], first: bytes = b"", second: bytes = b"") -> Any:
        """Run a single operation; see `run`."""
        answer = (await self.run([(operation, first, second)]))[1]
        if answer and answer[0] == b"error":
            raise Unavailable("Redis", answer[1].decode())
        return answer

    async def confirm(self) -> str:
        """Take over the stored epoch if nothing can have been lost; return open, recovering or lost."""
        try:
            await self.load()
            answers = await self._call(["", encode({"op": "confirm"}), b"", b""])
        except (RedisError, OSError, TimeoutError) as e:
            raise Unavailable("Redis", _why(e)) from e
        state: str = answers[1][0].decode()
        epoch: str = answers[1][1].decode()
        self.epoch = epoch if state != "lost" else ""
        return state

    async def begin(self, epoch: str) -> None:
        """Begin a new epoch. Raises Unavailable."""
        try:
            await self._call(["", encode({"op": "begin", "id": epoch}), b"", b""])
        except (RedisError, OSError, TimeoutError) as e:
            raise Unavailable("Redis", _why(e)) from e
        self.epoch = epoch

    async def publish(self, what: bytes) -> None:
        """Tell the other schedulers that something changed; they find out by themselves where this fails."""
        with contextlib.suppress(RedisError, OSError):
            await self._link.call("PUBLISH", EVENTS_CHANNEL, what)

    async def command(self, *args: str | int | bytes) -> Any:
        """Run one plain command. Raises Unavailable."""
        try:
            return await self._link.call(*args)
        except (RedisError, OSError, TimeoutError) as e:
            raise Unavailable("Redis", _why(e)) from e

    async def _call(self, args: list[Any]) -> list[Any]:
        try:
            answers: list[Any] = await self._link.call("FCALL", self._function, 0, *args)
        except ResponseError as e:
            if "Function not found" not in str(e):
                raise
            await self.load()
            answers = await self._link.call("FCALL", self._function, 0, *args)
        return answers

    async def close(self) -> None:
        """Close all connections."""
        await self._link.close()
        await self.redis.aclose()


def _why(error: Exception) -> str:
    """Say what failed; Redis errors hold no credentials."""
    if isinstance(error, MasterNotFoundError):    # its text is the client's, a line of a thousand characters
        return "no Sentinel that answers knows a primary of this name"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def pairs(answer: Any) -> list[tuple[Any, Any]]:
    """Return a hash's fields or a sorted set's members with their values, in whatever shape the client gives them."""
    if isinstance(answer, dict):
        return list(answer.items())
    if answer and isinstance(answer[0], list | tuple):
        return [(name, value) for name, value in answer]
    return list(zip(answer[::2], answer[1::2], strict=True))
