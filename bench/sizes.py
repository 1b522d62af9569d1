#!/usr/bin/env python3
"""Bytes: what an account, a key, a pin, a lease and a request take in Redis, and an attempt in the ledger's databases.

`python bench/sizes.py` prints a table; docs/sizing.md quotes it. A whole instance is asked for real requests, and its
Redis and its ledger are asked for their sizes before and after. Sizes, not times: a busy machine does not matter.
"""

import asyncio
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import redis

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.support import postgres
from tests.support.instance import Instance, account, relay_key, secret
from tests.support.load import ask, message
from tests.support.sim import Simulator

DOCUMENTS, PINS, LEASES, REQUESTS = 200, 500, 200, 1500
AT_ONCE = 20
SETTLES_S = 5.0
HEARTBEAT_S = 12.0
KEY = "the key that asks for all of it"
LIMITS = [
    {"per": "Minute", "requests": 100_000, "tokens": 900_000_000}, {"per": "Day", "costUSD": "9000"},
    {"per": "Month", "costUSD": "90000"},
]
STREAM = "Take your time. [[sim deltas=300 delta_delay_s=0.1]]"


class Found(dict[str, float]):
    """Sizes by what has them; each is printed when it is known."""

    def __setitem__(self, what: str, size: float) -> None:
        super().__setitem__(what, size)
        print(f"| {what} | {size:,.0f} |", flush=True)


class Bench:
    """One instance and its Redis."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self._redis = redis.Redis(unix_socket_path=str(instance.data / "run/redis.sock"))

    def used(self) -> int:
        """Return Redis's memory for data once it no longer moves."""
        before = -1
        for _ in range(5):
            now = int(self._redis.info("memory")["used_memory_dataset"])  # type: ignore[index]
            if abs(now - before) < 2000:
                break
            before = now
            time.sleep(1)
        return now

    def each(self, number: int, act: Callable[[], Any]) -> float:
        """Return what each of `number` things takes that `act` makes."""
        before = self.used()
        act()
        return (self.used() - before) / number

    def documents(self, kind: str, documents: list[dict[str, Any]]) -> None:
        """Write documents and wait until they are in force."""
        known = len(self.instance.json(kind, "list"))
        for document in documents:
            self.instance.write(document)
        wanted = known + sum(d["kind"] != "Secret" for d in documents)
        while len(self.instance.json(kind, "list")) < wanted:
            time.sleep(1)

    def ask(self, keys: list[str], prompts: list[str], sessions: list[str]) -> None:
        """Make a request for each prompt, some at once; the other two lists go round."""
        asyncio.run(self._ask(keys, prompts, sessions))

    async def _ask(self, keys: list[str], prompts: list[str], sessions: list[str]) -> None:
        turns = asyncio.Semaphore(AT_ONCE)

        async def one(number: int, prompt: str) -> None:
            async with turns:
                metadata = {"user_id": f"u_session_{sessions[number % len(sessions)]}"}
                body = message(prompt, stream=number % 2 == 0, metadata=metadata)
                seen = await ask(http, keys[number % len(keys)], body)
                assert seen.whole, seen

        limits = httpx2.Limits(max_connections=1000)
        async with httpx2.AsyncClient(base_url=self.instance.url, timeout=90, limits=limits) as http:
            await asyncio.gather(*(one(n, p) for n, p in enumerate(prompts)))

    def leases(self) -> float:
        """Return what a lease takes while its stream runs, by the keys that hold leases: all else moves meanwhile."""

        async def hold() -> float:
            limits = httpx2.Limits(max_connections=1000)
            async with httpx2.AsyncClient(base_url=self.instance.url, timeout=90, limits=limits) as http:
                body = message(STREAM, stream=True, metadata={"user_id": "u_session_one"})
                streams = [asyncio.create_task(ask(http, KEY, body)) for _ in range(LEASES)]
                await asyncio.sleep(HEARTBEAT_S)  # each says how far it is, which is kept with it
                (size, _), (ends, number) = self._held(":leases"), self._held(":expiry")
                assert number > LEASES / 2, number
                await asyncio.gather(*streams)
                return (size + ends) / number

        return asyncio.run(hold())

    def _held(self, name: str) -> tuple[int, int]:
        """Return the bytes and the members of the keys whose names end so."""
        keys = list(self._redis.scan_iter(f"sb:*{name}"))
        sizes = [self._redis.memory_usage(key, samples=0) or 0 for key in keys]
        members = [int(self._redis.zcard(key)) if name == ":expiry" else 0 for key in keys]  # type: ignore[arg-type]
        return sum(sizes), sum(members)  # type: ignore[arg-type]


def sqlite_bytes(instance: Instance) -> float:
    """Return the bytes a row of `attempts`, with its indexes, of a SQLite ledger."""
    [file] = (instance.data / "ledger").glob("*.db")
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as ledger:
        names = [n for (n,) in ledger.execute("SELECT name FROM sqlite_master WHERE tbl_name = 'attempts'")]
        marks = ",".join("?" * len(names))
        [size] = ledger.execute(f"SELECT sum(pgsize) FROM dbstat WHERE name IN ({marks})", names).fetchone()
        [rows] = ledger.execute("SELECT count(*) FROM attempts").fetchone()
    return float(size) / rows


def postgresql_bytes(url: str) -> float:
    """Return the same of a PostgreSQL ledger."""
    with psycopg.connect(url) as ledger:
        found = ledger.execute("SELECT pg_total_relation_size('attempts'), count(*) FROM attempts").fetchone()
    assert found is not None
    return float(found[0]) / float(found[1])


@contextmanager
def busy_instance(directory: Path, environment: dict[str, str], found: dict[str, float]) -> Iterator[Instance]:
    """Yield an instance that has served REQUESTS requests; note Redis's sizes before, where it is the embedded one."""
    with Simulator() as sim:
        documents = [secret("a", **{"api-key": "sk-a"}), account("a", sim.url)]
        documents += [secret("k", **{"relay-key": KEY}), relay_key("k")]
        with Instance(directory, documents, environment=environment) as instance:
            bench = Bench(instance)
            if not environment:
                note_redis(bench, sim.url, found)
            bench.ask([KEY], [f"Question {n}" for n in range(REQUESTS)], ["one"])
            time.sleep(SETTLES_S)
            yield instance


def note_redis(bench: Bench, url: str, found: dict[str, float]) -> None:
    """Note what each kind of thing takes in Redis."""
    names = [f"more-{n:04}" for n in range(DOCUMENTS)]
    # Accounts with one credential among them, paused: they must take room, and no requests.
    paused = [{**account("a", url, state="Paused"), "metadata": {"name": name}} for name in names]
    found["an account"] = bench.each(DOCUMENTS, lambda: bench.documents("accounts", paused))
    texts = [f"the relay key of {name}" for name in names]
    keys = [
        d for name, text in zip(names, texts, strict=True)
        for d in (secret(name, **{"relay-key": text}), relay_key(name, limits=LIMITS))
    ]
    found["a key with three limits, unused"] = bench.each(DOCUMENTS, lambda: bench.documents("keys", keys))
    found["its counters and a pin, once used"] = bench.each(
        DOCUMENTS, lambda: bench.ask(texts, ["Hello"] * DOCUMENTS, ["one"]),
    )
    sessions = [f"session-{n}" for n in range(PINS)]
    found["a pin"] = bench.each(PINS, lambda: bench.ask([KEY], ["Hello"] * PINS, sessions))
    found["a lease (a request that runs)"] = bench.leases()


def main() -> None:
    """Print the table."""
    found = Found()
    print("| What | Bytes |\n|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        with busy_instance(Path(directory) / "sqlite", {}, found) as instance:
            found["an attempt in a SQLite ledger"] = sqlite_bytes(instance)
        try:
            with postgres.running() as server:
                url = server.create_database("ledger")
                with busy_instance(Path(directory) / "postgresql", {"SIGNALBOX_DATABASE_URL": url}, found):
                    found["an attempt in a PostgreSQL ledger"] = postgresql_bytes(url)
        except postgres.CannotRun as e:
            print(f"PostgreSQL can't run here: {e}", file=sys.stderr)


if __name__ == "__main__":
    main()
