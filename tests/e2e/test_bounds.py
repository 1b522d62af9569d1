"""What a whole relay does when too much comes at once: bodies, readers that stall, unknown keys, strangers.

Each crowd is told apart from the people beside it: they are served, within stated times; what the crowd holds is
bounded, in stated bytes; and when it is gone nothing of it is left.
"""

import asyncio
import contextlib
import os
import random
import re
import resource
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

import pytest

from tests.support.caller import Caller, eventually
from tests.support.crowd import Crowd, Watch, in_pieces, message_of, post, pss_bytes, unknown_key
from tests.support.instance import Instance, account, pool, relay_key, secret
from tests.support.machine import busy
from tests.support.rig import redis_command
from tests.support.sim import Simulator
from tests.support.staged import Staged

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

MIB = 1 << 20
KEY = "relay-key-of-those-who-are-not-the-crowd"
CROWD_KEY = "relay-key-of-the-crowd-in-these-tests"
BUFFERED = 128 * MIB
LARGE = 32 * MIB - 4096
HEAD_S = 4.0
STRANGERS = 1000
USUAL_FILES = 1024
CALLERS = 24       # with a large body each
# A process beside what it may buffer, each byte of which lies there twice while bodies are put together: what its
# imports take, and what reading one body takes.
PROCESS = 144 * MIB


def beside_s() -> float:
    """Return within how many seconds others are answered meanwhile: five, on a machine busy with nothing but the crowd."""
    return 5.0 * busy()


class Hall(Staged):
    """One gateway with tight bounds before a provider whose connections hold little."""

    def __init__(self, directory: Any) -> None:
        _, self._files = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._files, self._files))
        self.sim = Simulator({
            "settings": {"send_buffer_bytes": 16 << 10, "capture_body_bytes": 64},
            "accounts": [{"name": "a", "key": "sk-ant-bounds-a"}],
        }).start()
        self.instance = Instance(
            directory,
            [
                secret("a", **{"api-key": "sk-ant-bounds-a"}), account("a", self.sim.url),
                pool("default", ["a"], failover={"maxAttempts": 1}),
                secret("ada", **{"relay-key": KEY}), relay_key("ada"),
                secret("crowd", **{"relay-key": CROWD_KEY}), relay_key("crowd", owner="crowd@example.com"),
            ],
            environment={
                "SIGNALBOX_GATEWAY_MAX_BUFFERED_BYTES": str(BUFFERED),
                "SIGNALBOX_GATEWAY_HEAD_TIMEOUT_SECONDS": str(HEAD_S),
                "SIGNALBOX_GATEWAY_MAX_STRANGERS": str(STRANGERS),
                "SIGNALBOX_STOP_GRACE_SECONDS": "2",
            },
        )

    def __enter__(self) -> Self:
        """Start the relay as most systems would: with a thousand file descriptors unless it takes more."""
        resource.setrlimit(resource.RLIMIT_NOFILE, (USUAL_FILES, self._files))
        try:
            super().__enter__()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self._files, self._files))
        # Tests that run beside these, and whose deadlines are tight, go first.
        for pid in (self.sim.process.pid, *(room["pid"] for room in self.instance.status()["rooms"])):
            os.setpriority(os.PRIO_PROCESS, pid, 5)
        self.health_s()    # what is imported with the first question takes its time and its memory now
        return self

    @property
    def url(self) -> str:
        return self.instance.url

    def memory(self, room: str = "gateway") -> int:
        """Return the bytes that a room's one process takes."""
        [pid] = self.instance.room_pids(room)
        return pss_bytes(pid)

    def healthy_s(self) -> float:
        """Ask for health and for a message as anybody would; return how long the slower of both took."""
        took = []
        for ask in (lambda: Caller(self.url).get("/healthz"), lambda: Caller(self.url, KEY).send("Hello")):
            began_s = time.monotonic()
            answer = ask()
            took.append(time.monotonic() - began_s)
            assert answer.status == 200, answer
        return max(took)

    def health_s(self) -> float:
        """Return how long the answer to a health check took."""
        began_s = time.monotonic()
        assert Caller(self.url).get("/healthz").status == 200
        return time.monotonic() - began_s


@pytest.fixture(scope="module")
def hall(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hall]:
    with Hall(tmp_path_factory.mktemp("bounds")) as hall:
        yield hall


@pytest.fixture
async def crowd(hall: Hall) -> AsyncIterator[Crowd]:
    hall.sim.clear_script()
    hall.sim.clear_truth()
    crowd = Crowd(hall.url)
    yield crowd
    await crowd.close()
    eventually(lambda: hall.instance.metric("signalbox_in_flight"), within_s=10, wanted=lambda n: n == 0)
    eventually(lambda: hall.instance.metric("signalbox_gateway_buffered_bytes"), within_s=5, wanted=lambda n: n == 0)


# ---------------------------------------------------------------------------------------------- bodies


async def test_large_bodies_are_buffered_up_to_the_bound_and_refused_beyond_it(hall: Hall, crowd: Crowd) -> None:
    hall.sim.script(standing={"delay_s": 2.0}, match={"body": "xxxx"})
    body = in_pieces(post(CROWD_KEY, message_of(LARGE)))
    async with Watch(hall.memory) as memory, Watch(hall.health_s) as health:
        replies = await asyncio.gather(*(crowd.ask(*body) for _ in range(CALLERS)))
    kinds = Counter(reply.kind for reply in replies)
    assert kinds["whole"] == BUFFERED // LARGE, kinds
    assert kinds == {"whole": kinds["whole"], "overloaded": CALLERS - kinds["whole"]}
    refused = [reply for reply in replies if reply.code == "overloaded"]
    assert {reply.status for reply in refused} == {503}
    assert all("retry-after: 1" in reply.head for reply in refused)
    assert max(memory.seen) < 2 * BUFFERED + PROCESS, f"{max(memory.seen) / MIB:.0f} MiB"
    assert max(health.seen) < beside_s(), health.seen
    print(f"\n{dict(kinds)}; at most {max(memory.seen) / MIB:.0f} MiB, health within {max(health.seen):.2f} s")


async def test_bodies_without_a_valid_key_are_not_read(hall: Hall, crowd: Crowd) -> None:
    before, body = hall.memory(), in_pieces(message_of(LARGE))
    wanted = [post(f"a-relay-key-nobody-has-{n:06}", b"", length=LARGE) for n in range(32)]
    async with Watch(hall.memory) as memory:
        replies = await asyncio.gather(*(crowd.ask(head, *body) for head in wanted))
    assert Counter(reply.kind for reply in replies) == {"key_invalid": 32}
    assert {reply.status for reply in replies} == {401}
    grown = max(memory.seen) - before
    assert grown < 32 * MIB, f"{grown / MIB:.0f} MiB for 32 bodies of 32 MiB that nobody may send"
    assert hall.healthy_s() < beside_s()


async def test_bodies_that_trickle_make_room_for_others(hall: Hall, crowd: Crowd) -> None:
    body = message_of(LARGE)
    trickling = [
        asyncio.create_task(crowd.ask(post(CROWD_KEY, b"", length=LARGE), body[: 1 << 20], *[b"x"] * 120, pause_s=0.25))
        for _ in range(BUFFERED // LARGE)
    ]
    await _until(lambda: hall.instance.metric("signalbox_gateway_buffered_bytes") > BUFFERED - LARGE)
    refused, began_s = 0, time.monotonic()
    while (reply := await crowd.ask(*in_pieces(post(KEY, body)))).code == "overloaded":
        assert time.monotonic() - began_s < 20, "who trickles keeps everybody else out"
        refused += 1
        await asyncio.sleep(1.0)
    assert reply.whole, reply.kind
    assert refused, "there was no room to begin with"
    gave_way = [await task for task in trickling if task.done()]
    assert gave_way, "somebody had to make room"
    assert {given.code for given in gave_way} == {"overloaded"}
    for task in trickling:
        task.cancel()
    print(f"\nroom for others after {time.monotonic() - began_s:.1f} s and {refused} refusals")


# ---------------------------------------------------------------------------------------------- readers that stall


READERS = int(os.environ.get("E2E_READERS", "2000"))
# Several times what all buffers on the way hold.
LONG = {"times": 100, "bytes": 16 << 10}
# Of a stream in the gateway, beside what waits for its caller (twice, see gateway/api/unread.py): connections, parser,
# attempt; most of them at once, as fast as they came.
STREAM = 32 * 1024


async def test_readers_that_stall_hold_their_provider_back_and_nobody_else(hall: Hall, crowd: Crowd) -> None:
    hall.sim.script(standing={"flood": LONG}, match={"body": "a long answer"})
    ask = post(CROWD_KEY, message_of(300, "a long answer", stream=True), close=False)
    # What came just before may still be on its way to the ledger.
    await _until(lambda: not hall.instance.metric("signalbox_journal_pending"))
    before, rows_before = hall.memory(), _outcomes(hall)
    beside: list[float] = []
    async with Watch(hall.memory, 0.5) as memory:
        for n in range(100, READERS + 1, 100):
            await asyncio.gather(*(crowd.hold(ask, small=True) for _ in range(100)))
            await _until(lambda n=n: _arrived(hall) >= n + len(beside), within_s=90)
            if n % 500 == 0:
                beside.append(await asyncio.to_thread(hall.healthy_s))
        unread = hall.instance.metric("signalbox_gateway_unread_bytes")
    cut_off = hall.instance.metric("signalbox_gateway_stalled_closed_total")
    assert max(beside) < beside_s(), beside
    assert BUFFERED / 8 < unread <= BUFFERED / 4
    assert 0 < cut_off < READERS
    grown = max(memory.seen) - before
    assert grown < 2 * BUFFERED / 4 + READERS * STREAM, f"{grown / MIB:.0f} MiB"
    await crowd.close()
    await _until(lambda: not hall.instance.metric("signalbox_in_flight"), within_s=60)
    sent = [row["delta_bytes"] for row in hall.sim.wait_quiet(30) if row["stream"]]
    assert len(sent) == READERS
    most = LONG["times"] * LONG["bytes"]
    assert max(sent) < most / 2, "the provider went on although nobody read"
    await _until(lambda: sum((_outcomes(hall) - rows_before).values()) >= READERS + len(beside), within_s=60)
    assert _outcomes(hall) - rows_before == Counter(client_gone=READERS, ok=len(beside))
    print(f"\n{READERS} readers, {cut_off:.0f} of them cut off: at most {grown / MIB:.0f} MiB, "
          f"{sum(sent) / READERS / 1024:.0f} of {most / 1024:.0f} KiB sent; others within {max(beside):.2f} s")


def _arrived(hall: Hall) -> int:
    """Return how many requests the provider has had."""
    summary = hall.sim.summary()
    return int(summary["requests"] + summary["in_flight"])


def _outcomes(hall: Hall) -> Counter[str]:
    """Count the ledger's attempts by how they ended."""
    with _ledger(hall) as database:
        return Counter(dict(database.execute("SELECT outcome, count(*) FROM attempts WHERE attempt > 0 GROUP BY outcome")))


# ---------------------------------------------------------------------------------------------- no valid key


async def test_a_flood_of_unknown_keys_leaves_nothing_behind(hall: Hall, crowd: Crowd) -> None:
    redis = hall.instance.data / "run" / "redis.sock"
    hall.healthy_s()
    keys_before, memory_before = int(redis_command(redis, "DBSIZE")[1:]), hall.memory("scheduler")
    denied_before, log_before = _denials(hall), len(hall.instance.log)
    seen: Counter[bytes] = Counter()
    beside: list[float] = []
    began_s = time.monotonic()
    end_s = began_s + 4.0

    def over() -> bool:
        """Whether it has lasted long enough, and been a flood; a busy machine takes longer to see one."""
        return time.monotonic() > end_s and (seen.total() > 500 or time.monotonic() > end_s + 60)

    async def stranger(n: int) -> None:
        rng = random.Random(n)
        while not over():
            keys = [unknown_key(rng, good=rng.random() < 0.5) for _ in range(20)]
            reply = await crowd.ask(*(post(key, message_of(300), close=key is keys[-1]) for key in keys))
            seen.update(re.findall(rb'"error_code":"(\w+)"', reply.raw))

    async def neighbour() -> None:
        while not over():
            beside.append(await asyncio.to_thread(hall.healthy_s))
            await asyncio.sleep(0.2)

    await asyncio.gather(*(stranger(n) for n in range(16)), neighbour())
    asked = seen[b"key_invalid"]
    assert seen == {b"key_invalid": asked}, seen
    assert asked > 500, "that was no flood"
    assert max(beside) < beside_s(), beside
    keys = int(redis_command(redis, "DBSIZE")[1:]) - keys_before
    assert keys < 20, f"{keys} keys more in Redis after {asked} unknown ones"
    grown = hall.memory("scheduler") - memory_before
    assert grown < 16 * MIB, f"{grown / MIB:.0f} MiB more in the scheduler"
    assert len(hall.instance.log) - log_before < 20, hall.instance.log[log_before:][:20]
    recorded = _denials(hall) - denied_before
    most = 50 * (time.monotonic() - began_s + 2)    # a second's in advance; what came just before may be late
    assert recorded < most, f"{recorded} of {asked} are in the ledger"
    print(f"\n{asked} unknown keys in {time.monotonic() - began_s:.0f} s; others within {max(beside):.2f} s; {keys} keys more in Redis, "
          f"{grown / MIB:.1f} MiB in the scheduler, {recorded} denials recorded")


def _denials(hall: Hall) -> int:
    """Count the ledger's rows without an attempt."""
    with _ledger(hall) as database:
        return int(database.execute("SELECT count(*) FROM attempts WHERE attempt = 0").fetchone()[0])


@contextlib.contextmanager
def _ledger(hall: Hall) -> Iterator[sqlite3.Connection]:
    """Open the ledger to be read."""
    [file] = (hall.instance.data / "ledger").glob("*.db")
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        yield database


CROWDED = 2000


@pytest.mark.parametrize("what", ["silent", "slow heads", "huge heads", "pipelined"])
async def test_connections_without_a_key_are_bounded(hall: Hall, crowd: Crowd, what: str) -> None:
    head = post("", message_of(300))
    begun = {
        "silent": b"", "slow heads": head[:40], "huge heads": b"GET / HTTP/1.1\r\nx-long: " + b"y" * 60_000,
        "pipelined": post("", message_of(300), close=False) * 4,
    }[what]
    before = hall.memory()
    async with Watch(hall.memory, 0.5) as memory:
        for n in range(0, CROWDED, 100):
            await asyncio.gather(*(crowd.hold(begun) for _ in range(100)))
            if n % 1000 == 0:
                assert await asyncio.to_thread(hall.healthy_s) < beside_s()
        assert await asyncio.to_thread(hall.healthy_s) < beside_s()
    grown = max(memory.seen) - before
    assert grown < STRANGERS * 144 * 1024, f"{grown / MIB:.0f} MiB"
    await _until(lambda: crowd.left <= STRANGERS)
    print(f"\n{what}: {grown / MIB:.0f} MiB more for {CROWDED}, {crowd.left} left")


async def _until(look: Any, *, within_s: float = 15.0) -> Any:
    """Look, in a thread, until it is true."""
    return await asyncio.to_thread(eventually, look, within_s=within_s)
