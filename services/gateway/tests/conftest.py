"""A gateway's data path over real sockets, with the other rooms' ports as small in-memory fakes."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop
from pydantic import SecretStr

from signalbox.core.clock import SystemClock
from signalbox.core.errors import Unavailable
from signalbox.core.telemetry import Readiness
from signalbox.gateway.adapters.model_lists import ModelLists
from signalbox.gateway.adapters.upstream_pool import UpstreamPool, system_tls
from signalbox.gateway.api.http import CallerRoutes
from signalbox.gateway.api.keycheck import KeyCheck
from signalbox.gateway.api.protocol import RelayProtocol
from signalbox.gateway.api.relay import RequestRelay
from signalbox.gateway.api.sender import Sender
from signalbox.gateway.api.server import PublicServer
from signalbox.gateway.domain.buffers import Buffers
from signalbox.gateway.domain.ports import Credential, CredentialUnusable, JournalUnwritable
from signalbox.gateway.metrics import Metrics
from signalbox.gateway.settings import GatewaySettings
from signalbox.v1.scheduler_pb2 import AdmitResponse, Denial, Grant, InspectResponse, Timeouts

KEY = "a-relay-key-of-some-length"
TLS = system_tls()


class FakeScheduler:
    """Grants accounts in order; records what it is told."""

    def __init__(self) -> None:
        self.accounts: list[tuple[str, str]] = []   # (account id, base URL)
        self.denial: Denial | None = None
        self.inspect_denial: Denial | None = None
        self.retry_denial = Denial(error_code="pool_unavailable", message="nobody is left")
        self.max_attempts = 3
        self.timeouts = Timeouts(
            connect=2000, headers=3000, headers_unstreamed=3000, first_content=3000, idle=3000, total=20000,
        )
        self.send_model = ""
        self.repinned = False
        self.limits: list[Any] = []
        self.redis_ms = SystemClock().now_ms
        self.admits: list[Any] = []
        self.inspects: list[Any] = []
        self.retries: list[Any] = []
        self.settles: list[Any] = []
        self.tracked: list[Any] = []
        self._tried: dict[str, list[str]] = {}
        self._requests: dict[str, tuple[str, str]] = {}
        self.inspect_response = InspectResponse(key_id="default/ada", owner="ada@example.com", state="Active")

    async def inspect(self, request: Any) -> InspectResponse:
        self.inspects.append(request)
        answer = InspectResponse()
        answer.CopyFrom(self.inspect_response)
        if self.inspect_denial is not None:
            answer.denial.CopyFrom(self.inspect_denial)
        return answer

    async def admit(self, request: Any) -> AdmitResponse:
        self.admits.append(request)
        if self.denial is not None:
            return AdmitResponse(denial=self.denial, decision=b"why")
        return self._grant(request.request_id, request.model, self.accounts[0])

    def _grant(self, request_id: str, model: str, account: tuple[str, str]) -> AdmitResponse:
        tried = self._tried.setdefault(request_id, [])
        tried.append(account[0])
        attempt = len(tried)
        lease_id = f"{request_id}/{attempt}"
        self._requests[lease_id] = (request_id, model)
        return AdmitResponse(
            grant=Grant(
                lease_id=lease_id, lease_token=b"token", attempt=attempt, key_id="default/ada", owner="ada@example.com",
                account_id=account[0], pool_id="default/default", provider="Anthropic", base_url=account[1],
                send_model=self.send_model or model, admitted_at_ms=self.redis_ms(), max_attempts=self.max_attempts,
                attempts_left=self.max_attempts - attempt, timeouts=self.timeouts, repinned=self.repinned,
            ),
            decision=b"because", limits=self.limits,
        )

    async def retry(self, request: Any) -> AdmitResponse:
        self.retries.append(request)
        request_id, model = self._requests[request.failed.lease_id]
        tried = self._tried[request_id]
        if request.same_account:
            account = next(a for a in self.accounts if a[0] == tried[-1])
            return self._grant(request_id, model, account)
        for account in self.accounts:
            if account[0] not in tried:
                return self._grant(request_id, model, account)
        return AdmitResponse(denial=self.retry_denial, decision=b"none left")

    def settle(self, request: Any) -> None:
        self.settles.append(request)

    def track(self, lease: Any) -> None:
        self.tracked.append(lease)


class FakeCredentials:
    def __init__(self) -> None:
        self.versions: dict[str, int] = {}
        self.proxies: dict[str, str] = {}
        self.unusable: dict[str, CredentialUnusable] = {}
        self.refreshable = False
        self.rejected: list[tuple[str, str]] = []

    def cached(self, account_id: str) -> Credential | None:
        if account_id in self.unusable:
            return None
        version = self.versions.get(account_id, 1)
        headers = ((b"x-api-key", f"secret-{account_id}-{version}".encode()),)
        return Credential(account_id, str(version), headers, self.proxies.get(account_id, ""))

    async def get(self, account_id: str, rejected_version: str = "") -> Credential:
        if rejected_version:
            self.rejected.append((account_id, rejected_version))
            if not self.refreshable:
                raise CredentialUnusable("CredentialInvalid", "rejected", transient=False)
            self.versions[account_id] = self.versions.get(account_id, 1) + 1
        if account_id in self.unusable:
            raise self.unusable[account_id]
        credential = self.cached(account_id)
        assert credential is not None
        return credential


class FakeJournal:
    def __init__(self) -> None:
        self.broken = False
        self.begun: list[Any] = []
        self.notes: list[Any] = []
        self.rows: list[Any] = []
        self.denials: list[Any] = []

    def begin(self, event: Any) -> None:
        if self.broken:
            raise JournalUnwritable("disk full")
        self.begun.append(event)

    def note(self, event: Any, partial: Any) -> None:
        assert (partial.request_id, partial.attempt) == (event.request_id, event.attempt)
        event.MergeFrom(partial)
        self.notes.append(partial)

    def end(self, event: Any) -> None:
        assert event in self.begun
        self.rows.append(event)

    def deny(self, event: Any) -> None:
        self.denials.append(event)


class FakeReports:
    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.rows: list[Any] = []
        self.away = False

    async def of_key(self, key_id: str, by: str, since_ms: int, until_ms: int) -> list[Any]:
        self.asked.append((key_id, by, since_ms, until_ms))
        if self.away:
            raise Unavailable("usage", "away")
        return self.rows


Handler = Callable[["Wire"], Awaitable[None]]


class Wire:
    """One connection that a provider of the test's own has accepted."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.head = b""
        self.body = b""

    async def request(self) -> bytes:
        self.head = await self.reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in self.head.split(b"\r\n") if line.lower().startswith(b"content-length")),
            0,
        )
        self.body = await self.reader.readexactly(length)
        return self.head

    def write(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))

    def answer(self, status: int, body: bytes, *headers: bytes) -> None:
        lines = [b"HTTP/1.1 %d X" % status, b"content-length: %d" % len(body), b"request-id: req_1", *headers]
        if not any(h.startswith(b"content-type") for h in headers):
            lines.append(b"content-type: application/json")
        self.write(b"\r\n".join(lines), b"\r\n\r\n", body)

    def stream_head(self, *headers: bytes) -> None:
        lines = (b"HTTP/1.1 200 OK", b"content-type: text/event-stream", b"transfer-encoding: chunked",
                 b"request-id: req_1", *headers)
        self.write(b"\r\n".join(lines), b"\r\n\r\n")

    def chunk(self, data: bytes) -> None:
        self.write(b"%x\r\n" % len(data), data, b"\r\n")

    def end(self) -> None:
        self.write(b"0\r\n\r\n")

    def reset(self) -> None:
        self.writer.transport.abort()


class Provider:
    """A provider made of one handler per request; connections are kept open between requests."""

    def __init__(self) -> None:
        self.handlers: list[Handler] = []
        self.standing: Handler | None = None
        self.wires: list[Wire] = []
        self.requests: list[tuple[bytes, bytes]] = []
        self.closed_at_s: list[float] = []

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer)
        self.wires.append(wire)
        try:
            while True:
                await wire.request()
                self.requests.append((wire.head, wire.body))
                handler = self.handlers.pop(0) if self.handlers else self.standing
                assert handler is not None, "a request came that the test did not expect"
                await handler(wire)
                if writer.is_closing():
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.closed_at_s.append(asyncio.get_running_loop().time())
            writer.close()

    def stop(self) -> None:
        self._server.close()
        for wire in self.wires:
            wire.writer.transport.abort()


@dataclasses.dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error_code(self) -> str:
        return str(json.loads(self.body)["error"]["details"]["error_code"])


class Client:
    """A raw HTTP/1.1 client, so that nothing is read or written that the test does not see."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    @staticmethod
    def message(
        body: bytes, path: str = "/v1/messages", headers: dict[str, str] | None = None, method: str = "POST",
    ) -> bytes:
        fields = {"host": "relay", "x-api-key": KEY, "content-type": "application/json",
                  "anthropic-version": "2023-06-01", "content-length": str(len(body)), **(headers or {})}
        lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items() if v != "-")]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    async def read(self, reader: asyncio.StreamReader, *, head_only: bool = False) -> Reply:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").strip().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        body = b""
        if head_only:
            pass
        elif headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readline(), 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.readexactly(2)
        elif "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        else:
            body = await reader.read()
        return Reply(int(first.split(" ")[1]), headers, body)

    async def get(self, path: str, method: str = "GET", **headers: str) -> Reply:
        fields = {"content-length": "-", **{k.replace("_", "-"): v for k, v in headers.items()}}
        reader, writer = await self.connect()
        writer.write(self.message(b"", path, fields, method))
        try:
            return await self.read(reader, head_only=method == "HEAD")
        finally:
            writer.close()

    async def send(self, raw: bytes) -> Reply:
        reader, writer = await self.connect()
        writer.write(raw)
        try:
            return await self.read(reader)
        finally:
            writer.close()

    async def post(self, body: bytes | dict[str, Any], path: str = "/v1/messages", **headers: str) -> Reply:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        return await self.send(self.message(data, path, {k.replace("_", "-"): v for k, v in headers.items()}))


BODY = {"model": "claude-sonnet-5-5", "max_tokens": 16, "messages": [{"role": "user", "content": "hello"}]}
STREAM = {**BODY, "stream": True}


def frame(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


MESSAGE = json.dumps({
    "id": "msg_1", "type": "message", "model": "claude-sonnet-5-5-20260901", "content": [{"type": "text", "text": "hi"}],
    "stop_reason": "end_turn", "usage": {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 3},
}).encode()
START = frame("message_start", message={
    "id": "msg_1", "type": "message", "model": "claude-sonnet-5-5-20260901", "usage": {"input_tokens": 10, "output_tokens": 1},
})
PING = frame("ping")
DELTA = frame("content_block_delta", index=0, delta={"type": "text_delta", "text": "hällo"})
CONTENT = frame("content_block_start", index=0, content_block={"type": "text", "text": ""}) + DELTA
LAST = frame("content_block_stop", index=0) + frame(
    "message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 7},
)
STOP = frame("message_stop")
ERROR = frame("error", error={"type": "overloaded_error", "message": "Overloaded"})


class Gate:
    """A running gateway without its neighbours."""

    def __init__(self, settings: GatewaySettings, traces: Any = None) -> None:
        self.settings = settings
        self.scheduler = FakeScheduler()
        self.credentials = FakeCredentials()
        self.journal = FakeJournal()
        self.buffers = Buffers(settings.max_buffered_bytes)
        self.clock = SystemClock()
        self.pool = UpstreamPool(idle_s=settings.upstream_idle_s, idle_per_route=8, tls=TLS)
        self.keys = KeyCheck(self.scheduler, settings.trusted_proxies, self.clock)
        self.sender = Sender(
            clock=self.clock, scheduler=self.scheduler, credentials=self.credentials, journal=self.journal,
            pool=self.pool, buffers=self.buffers, client_stall_s=settings.client_stall_s,
        )
        self.relay = RequestRelay(
            clock=self.clock, scheduler=self.scheduler, credentials=self.credentials, journal=self.journal,
            keys=self.keys, sender=self.sender, metrics=Metrics(), secret=settings.secret, traces=traces,
        )
        self.providers: list[Provider] = []
        self.readiness = Readiness("scheduler")
        self.reports = FakeReports()
        self.models = ModelLists(self.credentials, self.pool)

    async def start(self) -> None:
        routes = CallerRoutes(
            clock=self.clock, keys=self.keys, journal=self.journal, models=self.models, reports=self.reports,
            readiness=self.readiness,
        )
        self.server = PublicServer(
            self.settings, routes.application(), RelayProtocol.bind(self.relay, self.settings, self.buffers),
        )
        self.server.bind()
        await self.server.start()
        self.client = Client(self.server.port)

    async def provider(self, *handlers: Handler, account: str = "") -> Provider:
        """Add an account whose provider answers with `handlers`, one per request."""
        provider = Provider()
        provider.handlers = list(handlers)
        url = await provider.start()
        self.providers.append(provider)
        self.scheduler.accounts.append((account or f"default/a{len(self.providers)}", url))
        return provider

    async def quiet(self) -> None:
        """Wait until every request is over for the gateway too."""
        for _ in range(4000):
            if not self.server._server.server_state.tasks:
                return
            await asyncio.sleep(0.005)
        raise AssertionError("requests are still running")

    async def stop(self) -> None:
        for provider in self.providers:
            provider.stop()
        self.pool.close()
        self.server._task.cancel()
        for connection in list(self.server._server.server_state.connections):
            connection.transport.abort()
        self.server._socket.close()
        await asyncio.sleep(0)


def gateway_settings(**overrides: Any) -> GatewaySettings:
    values = {
        "listen": "127.0.0.1:0", "shared_secret": SecretStr("s" * 32), "scheduler_address": ("127.0.0.1:1",),
        "token_refresher_address": "127.0.0.1:1", "usage_address": "127.0.0.1:1", "journal_dir": "/nonexistent",
        **overrides,
    }
    return GatewaySettings(**values)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gateway_settings(**settings): settings of the `gate` fixture")


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Any]:
    """Run on the loop that gateways run on; its transports behave differently from asyncio's own."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def traces() -> Any:
    """Where the gate's traces go: nowhere, unless a module says otherwise."""
    return None


@pytest.fixture
async def gate(request: pytest.FixtureRequest, traces: Any) -> AsyncIterator[Gate]:
    marker = request.node.get_closest_marker("gateway_settings")
    running = Gate(gateway_settings(**(marker.kwargs if marker else {})), traces)
    await running.start()
    yield running
    await running.stop()


def body_of(size: int = 0) -> bytes:
    return json.dumps({**BODY, "system": "x" * size}).encode()


@pytest.fixture
def ok() -> Handler:
    """A provider's plain answer."""

    async def answer(w: Any) -> None:
        w.answer(200, MESSAGE)

    return answer


@pytest.fixture(scope="session")
def wire() -> SimpleNamespace:
    """Pieces of a provider's answers, and requests."""
    return SimpleNamespace(
        KEY=KEY, TLS=TLS, BODY=BODY, STREAM=STREAM, MESSAGE=MESSAGE, START=START, PING=PING, DELTA=DELTA, CONTENT=CONTENT,
        LAST=LAST, STOP=STOP, ERROR=ERROR, frame=frame, Provider=Provider, settings=gateway_settings, body=body_of,
    )
