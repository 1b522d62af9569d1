"""The token-refresher over a real socket: credentials, pushes, rejection, probes against a provider of the tests' own."""

import asyncio
import base64
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from signalbox.core import rpc
from signalbox.core.clock import SystemClock
from signalbox.token_refresher.adapters.file_store import SUFFIX, FileStore
from signalbox.token_refresher.app import Room
from signalbox.token_refresher.metrics import Metrics
from signalbox.token_refresher.settings import TokenRefresherSettings
from signalbox.v1 import token_refresher_pb2 as pb
from signalbox.v1.token_refresher_pb2_grpc import TokenRefresherStub, add_TokenRefresherServicer_to_server
from tests.support.machine import busy
from tests.support.proxies import TestProxy

SECRET = "0123456789abcdef0123456789abcdef"
KEY = "sk-ant-api03-very-secret-value"
ACME = "default/acme"
Event = pb.CredentialEvent
Code = grpc.StatusCode


class Running:
    def __init__(self, directory: Path, key: int = 1, **settings: Any) -> None:
        self.directory = directory / "credentials"
        self.registry = CollectorRegistry()
        clock = SystemClock()
        self._settings = TokenRefresherSettings(
            shared_secret=SECRET, store_dir=self.directory, probe_limit_s=5.0, request_limit_s=2.0,
            encryption_key=base64.b64encode(bytes([key]) * 32).decode(), **settings,
        )
        self._address = f"unix:{directory}/refresher-{key}-{os.urandom(4).hex()}.sock"
        store = FileStore(self.directory, self._settings.keyring())
        self.room = Room(self._settings, store, clock, Metrics(clock, self.registry))
        self._server = rpc.Server(self._settings, self._address, ["signalbox.v1.TokenRefresher"])
        add_TokenRefresherServicer_to_server(self.room.service, self._server.grpc)

    async def start(self) -> "Running":
        await self.room.start()
        await self._server.start()
        self._channel = rpc.connect(self._settings, self._address)
        self.stub: Any = TokenRefresherStub(self._channel)
        return self

    async def stop(self) -> None:
        self.room.service.stop()
        await self._server.stop(2)
        await self.room.close(5)
        await self._channel.close()

    def files(self) -> list[Path]:
        return [path for path in self.directory.iterdir() if not path.name.startswith(".")]

    async def put(self, key: str = KEY, seed: str = "seed-1", kind: str = "apiKey", **config: str) -> pb.GrantStatus:
        proxy = config.pop("proxyURL", "")
        material = {"apiKey": key, **({"proxyURL": proxy} if proxy else {})}
        request = pb.PutGrantRequest(account_id=ACME, kind=kind, material=material, config=config, seed_version=seed)
        return await self.stub.PutGrant(request, timeout=30)

    async def get(self, rejected: str = "") -> pb.Credential:
        request = pb.GetCredentialRequest(account_id=ACME, rejected_version=rejected)
        return await self.stub.GetCredential(request, timeout=30)

    async def status(self) -> pb.GrantStatus:
        (status,) = (await self.stub.Status(pb.GrantStatusRequest(account_ids=[ACME]), timeout=30)).grants
        return status

    async def probe(self, base_url: str = "", model: str = "claude-sonnet-5-5") -> pb.ProbeResponse:
        request = pb.ProbeRequest(account_id=ACME, base_url=base_url, model=model)
        return await self.stub.Probe(request, timeout=30)


@contextlib.asynccontextmanager
async def running(directory: Path, key: int = 1, **settings: Any) -> AsyncIterator[Running]:
    refresher = await Running(directory, key, **settings).start()
    try:
        yield refresher
    finally:
        await refresher.stop()


@pytest.fixture
async def refresher(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path) as one:
        yield one


@contextlib.asynccontextmanager
async def refused(code: grpc.StatusCode) -> AsyncIterator[list[str]]:
    details: list[str] = []
    with pytest.raises(grpc.aio.AioRpcError) as error:
        yield details
    assert error.value.code() is code
    details.append(error.value.details() or "")


class Provider:
    """Answers every request with the same bytes and keeps what it was sent."""

    def __init__(self, answer: bytes, delay_s: float = 0.0) -> None:
        self.answer = answer
        self.delay_s = delay_s
        self.requests: list[bytes] = []

    async def __aenter__(self) -> "Provider":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n")
                       if line.startswith(b"content-length")), 0)
        self.requests.append(head + await reader.readexactly(length))
        await asyncio.sleep(self.delay_s)
        writer.write(self.answer)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    def headers(self) -> dict[str, str]:
        head = self.requests[-1].split(b"\r\n\r\n")[0].decode()
        return dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:])


def answer(status: int, body: object, *more: str) -> bytes:
    data = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} x", f"content-length: {len(data)}", "content-type: application/json", *more, "", ""]
    return "\r\n".join(lines).encode() + data


COUNTED = answer(200, {"input_tokens": 8})
UNAUTHORISED = answer(401, {"type": "error", "error": {"type": "authentication_error", "message": f"bad key {KEY}"}})


async def test_an_api_key_is_handed_out_with_what_a_request_needs(refresher: Running) -> None:
    status = await refresher.put(proxyURL="http://user:password@127.0.0.1:1")
    assert (status.valid, status.reason, status.seed_version) == (True, "Valid", "seed-1")
    credential = await refresher.get()
    assert [(h.name, h.value) for h in credential.headers] == [("x-api-key", KEY)]
    assert credential.version == status.version
    assert credential.proxy_url == "http://user:password@127.0.0.1:1"
    assert credential.expires_at_ms == 0


async def test_what_is_not_there_is_not_found(refresher: Running) -> None:
    async with refused(Code.NOT_FOUND):
        await refresher.get()
    async with refused(Code.NOT_FOUND):
        await refresher.probe()
    assert not (await refresher.stub.Status(pb.GrantStatusRequest(account_ids=[ACME]), timeout=30)).grants
    await refresher.stub.DeleteGrant(pb.DeleteGrantRequest(account_id=ACME), timeout=30)


async def test_the_same_seed_changes_nothing_and_another_replaces_it(refresher: Running) -> None:
    first = await refresher.put()
    (file,) = refresher.files()
    written = file.stat().st_ino
    assert await refresher.put() == first
    assert file.stat().st_ino == written
    second = await refresher.put("another-key", "seed-2")
    assert second.version != first.version
    assert (await refresher.get()).headers[0].value == "another-key"
    back = await refresher.put()
    assert back.version not in (first.version, second.version)


async def test_a_rejected_key_rests_until_its_seed_changes(refresher: Running) -> None:
    version = (await refresher.put()).version
    async with refused(Code.FAILED_PRECONDITION) as details:
        await refresher.get(rejected=version)
    assert details == ["CredentialInvalid"]
    assert not (await refresher.put()).valid, "the same seed again is the same key"
    assert (await refresher.status()).reason == "CredentialInvalid"
    assert refresher.registry.get_sample_value(
        "signalbox_refreshes_total", {"account": ACME, "outcome": "rejected"}) == 1
    await refresher.put("fresh-key", "seed-2")
    assert (await refresher.get(rejected=version)).headers[0].value == "fresh-key", "an old 401 says nothing"


async def test_grants_and_rejections_outlive_the_process(tmp_path: Path) -> None:
    async with running(tmp_path) as before:
        put = await before.put()
        await asyncio.sleep(0.01)
        async with refused(Code.FAILED_PRECONDITION):
            await before.get(rejected=put.version)
        turned_ms = (await before.status()).last_transition_ms
        assert put.last_transition_ms < turned_ms <= time.time() * 1000
    async with running(tmp_path) as after:
        status = await after.status()
        assert (status.version, status.reason) == (put.version, "CredentialInvalid")
        assert status.last_transition_ms == turned_ms


@pytest.mark.parametrize("kind", ["bedrock", "vertex", "foundry"])
async def test_later_kinds_are_kept_encrypted_and_said_to_be_missing(refresher: Running, kind: str) -> None:
    status = await refresher.put(kind=kind)
    assert (status.valid, status.reason) == (False, "NotImplemented")
    async with refused(Code.FAILED_PRECONDITION) as details:
        await refresher.get()
    assert details == ["NotImplemented"]
    (file,) = refresher.files()
    assert KEY.encode() not in file.read_bytes()


@pytest.mark.parametrize("fields", [
    {"kind": "password"}, {"key": ""}, {"key": "two\nlines"}, {"key": "späce"}, {"key": " padded "}, {"seed": ""},
])
async def test_a_seed_that_cannot_work_is_refused_without_quoting_it(refresher: Running, fields: dict[str, str]) -> None:
    async with refused(Code.INVALID_ARGUMENT) as details:
        await refresher.put(**fields)
    assert not fields.get("key", "").strip() or fields["key"] not in details[0]
    assert refresher.files() == []


async def test_watch_gives_what_exists_then_what_changes_within_a_second(refresher: Running) -> None:
    version = (await refresher.put()).version
    watch = refresher.stub.Watch(pb.WatchCredentialsRequest(), timeout=20)
    first = await watch.read()
    assert (first.type, first.credential.version) == (Event.PUT, version)
    assert (await watch.read()).type == Event.SYNCED

    async def pushed(doing: Any) -> pb.CredentialEvent:
        began_s = time.monotonic()
        await doing
        event = await watch.read()
        assert time.monotonic() - began_s < busy()
        return event

    event = await pushed(refresher.put("second-key", "seed-2"))
    assert (event.type, event.credential.headers[0].value) == (Event.PUT, "second-key")
    with pytest.raises(grpc.aio.AioRpcError):
        await refresher.get(rejected=event.credential.version)
    assert (await watch.read()).type == Event.REMOVED
    assert (await pushed(refresher.put("third-key", "seed-3"))).type == Event.PUT
    gone = await pushed(refresher.stub.DeleteGrant(pb.DeleteGrantRequest(account_id=ACME), timeout=30))
    assert (gone.type, gone.account_id) == (Event.REMOVED, ACME)
    assert refresher.files() == []


async def test_an_unreadable_grant_is_visible_and_heals_by_its_seed(tmp_path: Path) -> None:
    async with running(tmp_path, key=1) as before:
        await before.put()
    async with running(tmp_path, key=2) as after:
        status = await after.status()
        assert (status.valid, status.reason, status.seed_version) == (False, "NeedsAuthorization", "")
        assert "not among the configured ones" in status.message
        async with refused(Code.FAILED_PRECONDITION):
            await after.get()
        assert (await after.put()).valid
        assert (await after.get()).headers[0].value == KEY
        assert len(list(after.directory.glob(f"*{SUFFIX}*"))) == 2, "the old file is kept"


async def test_a_probe_speaks_for_the_account_and_for_nobody_else(refresher: Running) -> None:
    async with Provider(COUNTED) as provider:
        await refresher.put(baseURL=provider.url + "/")
        verdict = await refresher.probe()
        assert (verdict.ok, verdict.status, verdict.input_tokens, verdict.error_type) == (True, 200, 8, "")
        (request,) = provider.requests
        assert request.startswith(b"POST /v1/messages/count_tokens HTTP/1.1\r\n")
        assert provider.headers().keys() == {
            "host", "x-api-key", "anthropic-version", "content-type", "accept-encoding", "content-length",
        }
        assert provider.headers()["anthropic-version"] == "2023-06-01"
        assert json.loads(request.split(b"\r\n\r\n", 1)[1])["model"] == "claude-sonnet-5-5"


async def test_a_good_probe_brings_a_rejected_key_back_and_a_401_rejects_it(refresher: Running) -> None:
    version = (await refresher.put()).version
    async with Provider(UNAUTHORISED) as provider:
        verdict = await refresher.probe(provider.url)
        assert (verdict.ok, verdict.status, verdict.error_type) == (False, 401, "authentication_error")
        assert KEY not in verdict.message
        assert (await refresher.status()).reason == "CredentialInvalid"
        provider.answer = COUNTED
        assert (await refresher.probe(provider.url)).ok
    assert (await refresher.get()).version == version


@pytest.mark.parametrize(("reply", "status", "text"), [
    (answer(302, {}, "location: http://127.0.0.1:9/steal"), 302, "redirect"),
    (answer(529, {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}), 529, "busy"),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnope", 200, "no count_tokens answer"),
    (answer(200, {"input_tokens": 10**30}), 200, "no count_tokens answer"),
    (answer(200, {"input_tokens": -1}), 200, "no count_tokens answer"),
    (b"not http at all\r\n\r\n", 0, "can't be reached"),
    (b"", 0, "can't be reached"),
])
async def test_what_a_provider_may_answer_instead(refresher: Running, reply: bytes, status: int, text: str) -> None:
    await refresher.put()
    async with Provider(reply) as provider:
        verdict = await refresher.probe(provider.url)
        assert not verdict.ok
        assert verdict.status == status
        assert text in verdict.message
        assert verdict.error_type
        assert len(provider.requests) == 1
    assert (await refresher.status()).valid, "only a 401 says something about the key"


@pytest.mark.slow
async def test_a_silent_provider_is_given_up(refresher: Running) -> None:
    await refresher.put()
    async with Provider(COUNTED, delay_s=30) as provider:
        verdict = await refresher.probe(provider.url)
    assert (verdict.status, verdict.error_type) == (0, "timeout_error")


async def test_a_probe_goes_through_the_account_proxy(refresher: Running) -> None:
    async with Provider(COUNTED) as provider:
        for number, scheme in enumerate(("http", "socks5h")):
            proxy = await TestProxy(scheme, password=True).start()
            await refresher.put(seed=f"seed-{scheme}", proxyURL=proxy.url())
            verdict = await refresher.probe(provider.url)
            assert verdict.ok
            assert proxy.asked == [provider.url.removeprefix("http://")]
            assert provider.requests[number].startswith(b"POST /v1/messages/count_tokens ")
            assert b"proxy-authorization" not in provider.requests[number].lower()
            proxy.stop()
        await refresher.put(seed="seed-2", proxyURL="socks5://user:password@127.0.0.1:9")
        verdict = await refresher.probe("http://provider.invalid")
        assert (verdict.status, verdict.error_type) == (0, "connection_error")
        assert "password" not in verdict.message
