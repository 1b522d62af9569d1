"""Renewable grants behind the gRPC service, against the simulated provider: states, seeds, rotation of keys, sign-ins."""

import asyncio
import base64
import contextlib
import os
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import grpc
import pytest
from prometheus_client import CollectorRegistry

from signalbox.core import rpc
from signalbox.core.clock import SystemClock
from signalbox.core.tracing import Tracing
from signalbox.token_refresher.adapters.file_store import FileStore
from signalbox.token_refresher.app import Room
from signalbox.token_refresher.domain.ports import Traces
from signalbox.token_refresher.domain.renewal import Demand
from signalbox.token_refresher.metrics import Metrics
from signalbox.token_refresher.settings import TokenRefresherSettings
from signalbox.token_refresher.spans import Spans
from signalbox.v1 import token_refresher_pb2 as pb
from signalbox.v1.token_refresher_pb2_grpc import TokenRefresherStub, add_TokenRefresherServicer_to_server
from tests.support.collector import Collector, attributes
from tests.support.sim import Simulator

SECRET = "0123456789abcdef0123456789abcdef"
ACCOUNT = "default/web"
REDIRECT = "http://127.0.0.1:9/callback"
Code = grpc.StatusCode


def key(number: int) -> str:
    return base64.b64encode(bytes([number]) * 32).decode()


class Running:
    """One token-refresher in this process, over a socket."""

    def __init__(self, directory: Path, url: str, keys: str, traces: Traces | None = None) -> None:
        self.url = url
        self.registry = CollectorRegistry()
        settings = TokenRefresherSettings(
            shared_secret=SECRET, store_dir=directory / "credentials", encryption_key=keys, request_limit_s=5.0,
        )
        clock = SystemClock()
        self.store = FileStore(settings.store_dir, settings.keyring())
        self.room = Room(settings, self.store, clock, Metrics(clock, self.registry), traces)
        self._settings, self._address = settings, f"unix:{directory}/{os.urandom(4).hex()}.sock"
        self._server = rpc.Server(settings, self._address, ["signalbox.v1.TokenRefresher"])
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

    async def put(self, token: str = "seed-web", seed: str = "1", **config: str) -> pb.GrantStatus:
        config = {"tokenURL": self.url + "/v1/oauth/token", "clientID": "c", "baseURL": self.url, **config}
        material = {"refreshToken": token} if token else {}
        request = pb.PutGrantRequest(
            account_id=ACCOUNT, kind="oauth", material=material, config=config, seed_version=seed)
        return await self.stub.PutGrant(request, timeout=30)

    async def get(self, rejected: str = "") -> pb.Credential:
        request = pb.GetCredentialRequest(account_id=ACCOUNT, rejected_version=rejected)
        return await self.stub.GetCredential(request, timeout=30)

    async def status(self) -> pb.GrantStatus:
        (status,) = (await self.stub.Status(pb.GrantStatusRequest(account_ids=[ACCOUNT]), timeout=30)).grants
        return status

    async def becomes(self, reason: str) -> pb.GrantStatus:
        async with asyncio.timeout(60):
            while (status := await self.status()).reason != reason:
                await asyncio.sleep(0.02)
        return status

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"account": ACCOUNT, **labels})


@pytest.fixture(scope="module")
def provider() -> Iterator[Simulator]:
    with Simulator({"accounts": [{"name": "web"}]}) as running:
        yield running
        assert running.errors() == ""


@pytest.fixture
def sim(provider: Simulator) -> Simulator:
    """The provider, as if it had just begun."""
    provider.clear_script()
    provider.clear_truth()
    provider.clear_oauth()
    provider.oauth({"clients": [{"id": "c", "account": "web"}], "expires_in": 600, "grants": [
        {"account": "web", "client_id": "c", "refresh_token": token} for token in ("seed-web", "other")]})
    return provider


@contextlib.asynccontextmanager
async def refresher(
    directory: Path, sim: Simulator, keys: str = key(1), traces: Traces | None = None,
) -> AsyncIterator[Running]:
    running = await Running(directory, sim.url, keys, traces).start()
    try:
        yield running
    finally:
        await running.stop()


@contextlib.asynccontextmanager
async def refused(code: grpc.StatusCode) -> AsyncIterator[list[str]]:
    details: list[str] = []
    with pytest.raises(grpc.aio.AioRpcError) as error:
        yield details
    assert error.value.code() is code, error.value.details()
    details.append(error.value.details() or "")


async def test_a_seed_becomes_a_token_by_itself(tmp_path: Path, sim: Simulator) -> None:
    async with refresher(tmp_path, sim) as one:
        await one.put()
        status = await one.becomes("Valid")
        assert status.expires_at_ms - status.refreshed_at_ms == 600_000
        assert 0.7 < (status.next_refresh_at_ms - status.refreshed_at_ms) / 600_000 <= 0.8
        given = await one.get()
        headers = {h.name: h.value for h in given.headers}
        assert headers["authorization"].startswith("Bearer sk-ant-oat-sim-")
        assert headers["anthropic-beta"] == "oauth-2025-04-20"
        assert (given.version, given.expires_at_ms) == (status.version, status.expires_at_ms)
        assert one.metric("signalbox_refreshes_total", outcome="renewed") == 1
        assert 590 < (one.metric("signalbox_credential_expiry_seconds") or 0) <= 600
        assert one.metric("signalbox_credential_valid", reason="Valid") == 1


async def test_each_renewal_is_a_trace_that_holds_no_token(tmp_path: Path, sim: Simulator) -> None:
    collector = Collector()
    tracing = Tracing("token-refresher", "one", f"{collector.url}/v1/traces")
    async with refresher(tmp_path, sim, traces=Spans(tracing.tracer())) as one:
        await one.put()
        await one.becomes("Valid")
        given = await one.get()
        await one.put("a-token-that-nobody-gave", seed="2")
        await one.becomes("NeedsAuthorization")
        await tracing.close(5)
    collector.stop()
    renewed, refused = collector.named("renew")
    assert collector.services == {"signalbox-token-refresher"}
    assert attributes(renewed) == {"signalbox.account": ACCOUNT, "signalbox.outcome": "renewed"}
    assert attributes(refused) == {
        "signalbox.account": ACCOUNT, "signalbox.outcome": "needs_authorization", "error.type": "needs_authorization",
    }
    assert renewed.trace_id != refused.trace_id
    assert renewed.start_time_unix_nano < renewed.end_time_unix_nano <= refused.start_time_unix_nano
    for hidden in ("seed-web", "a-token-that-nobody-gave", given.headers[0].value.removeprefix("Bearer ")):
        assert hidden.encode() not in collector.raw


async def test_a_restart_asks_for_nothing_that_it_has(tmp_path: Path, sim: Simulator) -> None:
    async with refresher(tmp_path, sim) as one:
        await one.put()
        version = (await one.becomes("Valid")).version
    async with refresher(tmp_path, sim) as again:
        assert (await again.get()).version == version
        assert (await again.put()).version == version
        assert sim.grants()[0]["refreshes"] == 1


async def test_only_another_refresh_token_replaces_the_grant(tmp_path: Path, sim: Simulator) -> None:
    async with refresher(tmp_path, sim) as one:
        await one.put()
        await one.becomes("Valid")
        await one.put(seed="2", baseURL="https://elsewhere.example")
        await one.get()
        assert (sim.grants()[0]["refreshes"], sim.grants()[0]["reuses"]) == (1, 0)
        await one.put("other", seed="3")
        await one.becomes("Valid")
        assert sim.grants()[1]["refreshes"] == 1
        await one.put(seed="4")
        status = await one.status()
        assert status.reason == "NeedsAuthorization"
        assert "was exchanged before" in status.message
        assert sim.grants()[0]["reuses"] == 0, "a spent token is not even tried"


async def test_callers_that_come_at_any_moment_of_a_renewal_are_answered(tmp_path: Path, sim: Simulator) -> None:
    """Also between its end and the noting of it: that once spun the event loop for ever."""
    async with refresher(tmp_path, sim) as one:
        await one.put()
        await one.becomes("Valid")

        renewals, other = one.room.renewals, Demand("another version")
        late = 0

        async def lie_in_wait() -> None:
            nonlocal late
            while late < 10:
                running = renewals._running.get(ACCOUNT)
                if running is not None and running.done():
                    late += 1
                    await renewals.demand(ACCOUNT, other)
                await asyncio.sleep(0)

        waiting = [asyncio.create_task(lie_in_wait()) for _ in range(5)]
        while late < 10:
            await renewals.demand(ACCOUNT, other)
        await asyncio.gather(*waiting)
        assert sim.grants()[0]["refreshes"] == 1


@pytest.mark.slow
async def test_a_waiting_caller_is_told_what_is_the_matter(tmp_path: Path, sim: Simulator) -> None:
    async with refresher(tmp_path, sim) as one:
        sim.script(standing={"status": 503}, match={"path": "*/oauth/token"})
        await one.put()
        await one.becomes("RefreshFailing")
        async with refused(Code.UNAVAILABLE) as details:
            await one.get()
        assert details == ["RefreshFailing"]
        sim.clear_script()
        sim.script({"oauth_error": "invalid_client", "status": 401}, match={"path": "*/oauth/token"})
        await one.becomes("CredentialInvalid")
        async with refused(Code.FAILED_PRECONDITION) as details:
            await one.get()
        assert details == ["CredentialInvalid"]
        assert one.metric("signalbox_credential_valid", reason="CredentialInvalid") == 0
        healings = (await one.status()).healings
        probed = await one.stub.Probe(pb.ProbeRequest(account_id=ACCOUNT), timeout=30)
        assert probed.ok, "a test tries at once what would be tried in minutes"
        assert (await one.status()).healings > healings


async def test_a_probe_renews_a_token_that_is_refused(tmp_path: Path, sim: Simulator) -> None:
    async with refresher(tmp_path, sim) as one:
        await one.put()
        await one.becomes("Valid")
        sim.revoke("web")
        probed = await one.stub.Probe(pb.ProbeRequest(account_id=ACCOUNT), timeout=30)
        assert (probed.ok, sim.grants()[0]["refreshes"]) == (True, 2)
        sim.revoke("web", family=True)
        probed = await one.stub.Probe(pb.ProbeRequest(account_id=ACCOUNT), timeout=30)
        assert (probed.ok, probed.status) == (False, 401)
        async with refused(Code.FAILED_PRECONDITION) as details:
            await one.stub.Probe(pb.ProbeRequest(account_id=ACCOUNT), timeout=30)
        assert details[0].startswith("NeedsAuthorization: ")


async def test_keys_are_changed_as_the_documentation_says(tmp_path: Path, sim: Simulator) -> None:
    async with refresher(tmp_path, sim, key(1)) as one:
        await one.put()
        version = (await one.becomes("Valid")).version
    for keys in (f"{key(1)},{key(2)}", f"{key(2)}\n{key(1)}\n", key(2)):
        async with refresher(tmp_path, sim, keys) as one:
            assert (await one.get()).version == version
    async with refresher(tmp_path, sim, key(1)) as one:
        status = await one.status()
        assert (status.valid, status.reason) == (False, "NeedsAuthorization")
    assert sim.grants()[0]["refreshes"] == 1


async def test_a_deleted_grant_is_kept_in_case_it_comes_back(tmp_path: Path, sim: Simulator) -> None:
    async with refresher(tmp_path, sim) as one:
        await one.put()
        await one.becomes("Valid")
        await one.stub.DeleteGrant(pb.DeleteGrantRequest(account_id=ACCOUNT), timeout=30)
        async with refused(Code.NOT_FOUND):
            await one.get()
        assert not (await one.stub.Status(pb.GrantStatusRequest(), timeout=30)).grants
        assert one.metric("signalbox_credential_expiry_seconds") is None
    async with refresher(tmp_path, sim) as one:
        assert not (await one.stub.Status(pb.GrantStatusRequest(), timeout=30)).grants
        await one.put()
        await one.becomes("Valid")
        assert (sim.grants()[0]["refreshes"], sim.grants()[0]["reuses"]) == (2, 0)


async def test_an_operator_signs_in(tmp_path: Path, sim: Simulator) -> None:
    async with refresher(tmp_path, sim) as one:
        status = await one.put("", authorizationURL=sim.url + "/oauth/authorize")
        assert status.reason == "NeedsAuthorization"
        begun = await one.stub.BeginAuthorization(
            pb.BeginAuthorizationRequest(account_id=ACCOUNT, redirect_uri=REDIRECT), timeout=30)
        code = await asyncio.to_thread(_consent, begun.authorization_url)
        status = await one.stub.CompleteAuthorization(
            pb.CompleteAuthorizationRequest(state=begun.state, code=code), timeout=30)
        assert (status.reason, status.healings) == ("Valid", 1)
        given = await one.get()
        assert (await one.get(given.version)).version != given.version, "its refresh token works"
        async with refused(Code.FAILED_PRECONDITION) as details:
            await one.stub.CompleteAuthorization(
                pb.CompleteAuthorizationRequest(state=begun.state, code=code), timeout=30)
        assert "invalid_grant" in details[0]
        assert code not in details[0]


async def test_what_makes_a_sign_in_impossible_is_said(tmp_path: Path, sim: Simulator) -> None:
    async with refresher(tmp_path, sim) as one:

        async def begin(redirect_uri: str = REDIRECT) -> pb.BeginAuthorizationResponse:
            request = pb.BeginAuthorizationRequest(account_id=ACCOUNT, redirect_uri=redirect_uri)
            return await one.stub.BeginAuthorization(request, timeout=30)

        async with refused(Code.FAILED_PRECONDITION):
            await begin()
        await one.put()
        async with refused(Code.FAILED_PRECONDITION) as details:
            await begin()
        assert "authorizationURL" in details[0]
        await one.put(seed="2", authorizationURL=sim.url + "/oauth/authorize")
        for elsewhere in ("https://evil.example/", "http://127.0.0.1.evil.example:1/", "http://127.0.0.1:1/?x=y", ""):
            async with refused(Code.FAILED_PRECONDITION) as details:
                await begin(elsewhere)
            assert "loopback" in details[0]
        begun = await begin()
        for state in ("", "forged", begun.state[:-4] + "AAAA"):
            async with refused(Code.FAILED_PRECONDITION) as details:
                await one.stub.CompleteAuthorization(pb.CompleteAuthorizationRequest(state=state, code="c"), timeout=30)
            assert "state" in details[0]
        await one.put("other", seed="3", authorizationURL=sim.url + "/oauth/authorize")
        async with refused(Code.FAILED_PRECONDITION) as details:
            await one.stub.CompleteAuthorization(pb.CompleteAuthorizationRequest(state=begun.state, code="c"), timeout=30)
        assert "changed meanwhile" in details[0]


def _consent(url: str) -> str:
    """Be the browser: return the code with which the provider sends it back."""

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            return None

    try:
        urllib.request.build_opener(Stay).open(url, timeout=30)
    except urllib.error.HTTPError as answer:
        return parse_qs(urlsplit(answer.headers["location"]).query)["code"][0]
    raise AssertionError("the provider did not send the browser back")
