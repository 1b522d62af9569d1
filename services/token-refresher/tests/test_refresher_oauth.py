"""Token endpoints over real sockets: what is sent, what each answer means, through which proxy, and nothing followed."""

import asyncio
import base64
import contextlib
import json
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from signalbox.core.clock import SystemClock
from signalbox.token_refresher.adapters.identity import IdentityFiles
from signalbox.token_refresher.adapters.token_endpoint import TokenEndpoint
from signalbox.token_refresher.domain.grants import Grant, GrantRejected, Seed, check, seeded
from signalbox.token_refresher.domain.oauth import (
    Busy,
    Issued,
    Lost,
    Refusal,
    Refused,
    Reply,
    TokenRequest,
    Unsent,
    authorization_url,
    federation_request,
    read_reply,
    refresh_request,
)
from signalbox.token_refresher.domain.renewal import IdentityUnusable
from tests.support.certificates import self_signed
from tests.support.proxies import TestProxy

TOKEN = "the-refresh-token"
NOW_MS = 1_795_219_200_000


def oauth(url: str = "https://auth.example/token", material: dict[str, str] | None = None, **config: str) -> Grant:
    material = {"refreshToken": TOKEN, **(material or {})}
    return seeded(None, Seed("default/a", "oauth", material, {"tokenURL": url, "clientID": "me", **config}, "s"), 0)


def form(request: TokenRequest) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(request.body.decode()).items()}


# ---------------------------------------------------------------------------------------------------- requests


def test_a_public_client_names_itself_in_the_form() -> None:
    request = refresh_request(oauth(scopes="a b"))
    assert form(request) == {"grant_type": "refresh_token", "refresh_token": TOKEN, "client_id": "me", "scope": "a b"}
    assert dict(request.headers) == {"accept": "application/json", "content-type": "application/x-www-form-urlencoded"}


def test_a_confidential_client_authenticates_by_basic() -> None:
    request = refresh_request(oauth(material={"clientSecret": "s/:ü"}))
    assert "client_secret" not in form(request)
    scheme, value = dict(request.headers)["authorization"].split()
    assert (scheme, base64.b64decode(value).decode()) == ("Basic", "me:s%2F%3A%C3%BC")


def test_a_document_may_want_json_or_its_own_authorization() -> None:
    headers = json.dumps({"Content-Type": "application/json", "anthropic-beta": "oauth-2025-04-20"})
    request = refresh_request(oauth(material={"clientSecret": "s"}, headers=headers))
    assert json.loads(request.body) == {
        "grant_type": "refresh_token", "refresh_token": TOKEN, "client_id": "me", "client_secret": "s",
    }
    assert dict(request.headers)["anthropic-beta"] == "oauth-2025-04-20"
    own = refresh_request(oauth(headers=json.dumps({"Authorization": "Custom x"}), material={"clientSecret": "s"}))
    assert dict(own.headers)["authorization"] == "Custom x"
    assert form(own)["client_secret"] == "s"


def test_a_federated_request_is_what_the_provider_documents() -> None:
    config = {"tokenURL": "https://api.example/t", "organizationID": "o", "federationRuleID": "r",
              "identityTokenFile": "/t", "workspaceID": "w"}
    request = federation_request(seeded(None, Seed("default/f", "federation", {}, config, "s"), 0), "e.y.J")
    assert json.loads(request.body) == {
        "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": "e.y.J", "organization_id": "o",
        "federation_rule_id": "r", "workspace_id": "w",
    }
    assert dict(request.headers)["anthropic-beta"] == "oauth-2025-04-20,oidc-federation-2026-04-01"


def test_an_authorisation_url_has_an_s256_challenge() -> None:
    # The example of RFC 7636, appendix B.
    verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    seed = oauth(authorizationURL="https://auth.example/authorize", scopes="a b").seed
    address, _, query = authorization_url(seed, "http://127.0.0.1:9/callback", "the-state", verifier).partition("?")
    assert address == "https://auth.example/authorize"
    assert {name: values[0] for name, values in parse_qs(query).items()} == {
        "response_type": "code", "client_id": "me", "redirect_uri": "http://127.0.0.1:9/callback",
        "state": "the-state", "code_challenge": "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",
        "code_challenge_method": "S256", "scope": "a b",
    }


@pytest.mark.parametrize(("kind", "material", "config", "said"), [
    ("oauth", {}, {"tokenURL": "https://x", "clientID": "c"}, "refreshToken"),
    ("oauth", {"refreshToken": "two\nlines"}, {"tokenURL": "https://x", "clientID": "c", "authorizationURL": "y"},
     "refreshToken"),
    ("oauth", {"refreshToken": "r"}, {"tokenURL": "https://x"}, "clientID"),
    ("federation", {}, {"tokenURL": "https://x", "organizationID": "o", "federationRuleID": "r"}, "identityTokenFile"),
])
def test_a_seed_that_lacks_something_is_refused(
    kind: str, material: dict[str, str], config: dict[str, str], said: str,
) -> None:
    with pytest.raises(GrantRejected, match=said):
        check(Seed("default/a", kind, material, config, "s"))


# ---------------------------------------------------------------------------------------------------- answers

GOOD = {"token_type": "Bearer", "access_token": "at", "expires_in": 60}
ERRORS = [
    (400, {"error": "invalid_grant"}, Refusal.GRANT),
    (401, {"error": "invalid_grant"}, Refusal.GRANT),
    *((400, {"error": error}, Refusal.CONFIGURATION) for error in (
        "invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_scope", "invalid_request")),
    (200, {"error": "invalid_client"}, Refusal.CONFIGURATION),
    (400, {"error": "something_new"}, Refusal.CONFIGURATION),
    (401, {"type": "error", "error": {"type": "authentication_error", "message": "m"}}, Refusal.CONFIGURATION),
    (404, "nothing here", Refusal.CONFIGURATION),
    (302, "", Refusal.CONFIGURATION),
    (429, {"error": "slow_down"}, None),
    (400, {"error": "temporarily_unavailable"}, None),
    (403, "<html>blocked</html>", None),
    (500, {"error": "server_error"}, None),
    (503, "", None),
]


def reply(status: int, body: Any, **headers: str) -> Reply:
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return Reply(status, headers, data)


@pytest.mark.parametrize(("status", "body", "about"), ERRORS)
def test_what_a_refusal_is_about(status: int, body: Any, about: Refusal | None) -> None:
    answer = read_reply(reply(status, body), refresh_request(oauth()), NOW_MS)
    if about is None:
        assert isinstance(answer, Busy)
    else:
        assert isinstance(answer, Refused)
        assert answer.about is about
    assert answer.message


def test_a_refusal_is_shown_without_the_secrets_that_it_quotes() -> None:
    request = refresh_request(oauth(material={"clientSecret": "hunter2"}))
    body = {"error": "invalid_client", "error_description": f"{TOKEN} of hunter2\nis bad" + "x" * 1000}
    answer = read_reply(reply(400, body), request, NOW_MS)
    assert isinstance(answer, Refused)
    assert "*** of *** is bad" in answer.message
    assert len(answer.message) < 400
    assert TOKEN not in repr(request)


@pytest.mark.parametrize(("fields", "expires_in_s"), [
    ({}, 60), ({"expires_in": "120"}, 120), ({"expires_in": 1.5}, 1.5), ({"expires_in": None}, 3600),
    ({"expires_in": -1}, 3600), ({"expires_in": "soon"}, 3600), ({"expires_in": 10**400}, 3600), ({"token_type": "bearer"}, 60),
])
def test_a_token_lasts_from_when_it_was_asked_for(fields: dict[str, Any], expires_in_s: float) -> None:
    answer = read_reply(reply(200, {**GOOD, **fields}), refresh_request(oauth()), NOW_MS)
    assert isinstance(answer, Issued)
    assert answer.tokens.expires_at_ms == NOW_MS + expires_in_s * 1000


@pytest.mark.parametrize("body", [
    "", "nope", [], {"access_token": ""}, {"access_token": 5}, {**GOOD, "token_type": "mac"},
    {**GOOD, "access_token": "two\nlines"}, "[" * 100_000,
])
def test_a_success_that_cannot_be_read_counts_as_lost(body: Any) -> None:
    assert isinstance(read_reply(reply(200, body), refresh_request(oauth()), NOW_MS), Lost)


def test_a_successor_is_kept_although_the_access_token_is_unusable() -> None:
    answer = read_reply(reply(200, {"access_token": "", "refresh_token": "next"}), refresh_request(oauth()), NOW_MS)
    assert isinstance(answer, Issued)
    assert (answer.tokens.access_token, answer.tokens.refresh_token) == ("", "next")


@pytest.mark.parametrize(("text", "asked_ms"), [("7", 7000), ("soon", 0), ("-1", 0), ("", 0), ("9" * 30, 0)])
def test_retry_after_is_read(text: str, asked_ms: int) -> None:
    answer = read_reply(reply(429, "", **{"retry-after": text}), refresh_request(oauth()), NOW_MS)
    assert answer == Busy("the token endpoint answered 429", asked_ms)


# ---------------------------------------------------------------------------------------------------- the network


class Peer:
    """A server on loopback that does as told with each connection and keeps what it was sent."""

    def __init__(self, *answers: bytes | None, tls: ssl.SSLContext | None = None) -> None:
        self._answers, self._tls = list(answers), tls
        self.heard: list[bytes] = []

    async def __aenter__(self) -> "Peer":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n")
                           if line.startswith(b"content-length")), 0)
            self.heard.append(head + await reader.readexactly(length))
            answer = self._answers.pop(0)
            if answer is None:
                await reader.read()     # silence, until the caller leaves
            else:
                writer.write(answer)
                await writer.drain()
        writer.close()


def http(status: int, body: Any, *more: str, length: int | None = None) -> bytes:
    data = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} x", f"content-length: {len(data) if length is None else length}", *more, "", ""]
    return "\r\n".join(lines).encode() + data


@pytest.fixture(scope="module")
def endpoint() -> TokenEndpoint:
    return TokenEndpoint(SystemClock(), 20.0)


async def test_an_exchange_over_the_wire(endpoint: TokenEndpoint) -> None:
    async with Peer(http(200, {**GOOD, "refresh_token": "next"})) as peer:
        answer = await endpoint.ask(refresh_request(oauth(peer.url + "/token", headers='{"x-tenant":"acme"}')))
    assert isinstance(answer, Issued)
    assert (answer.tokens.access_token, answer.tokens.refresh_token) == ("at", "next")
    head = peer.heard[0].lower()
    assert head.startswith(b"post /token http/1.1\r\n")
    assert b"x-tenant: acme\r\n" in head
    assert b"user-agent: signalbox/" in head


@pytest.mark.parametrize(("answer", "kind"), [
    (b"", Lost),
    (b"not http\r\n\r\n", Lost),
    (http(200, GOOD, length=1000), Lost),
    (http(200, "x" * 300_000), Lost),
    (http(200, GOOD, "content-encoding: gzip"), Lost),
    (http(302, {}, "location: http://127.0.0.1:9/steal"), Refused),
])
async def test_what_may_come_back_instead(endpoint: TokenEndpoint, answer: bytes, kind: type) -> None:
    async with Peer(answer) as peer:
        assert isinstance(await endpoint.ask(refresh_request(oauth(peer.url))), kind)
        assert len(peer.heard) == 1, "nothing is followed, nothing sent again"


@pytest.mark.slow
async def test_what_was_never_sent_is_told_from_what_was_lost() -> None:
    endpoint = TokenEndpoint(SystemClock(), 1.5)
    async with Peer(None) as silent:
        answer = await endpoint.ask(refresh_request(oauth(silent.url)))
    assert answer == Lost("the token endpoint: no answer within 1.5 s")
    for url in (silent.url, "http://nowhere.invalid", "https://127.0.0.1:1"):
        answer = await endpoint.ask(refresh_request(oauth(url)))
        assert isinstance(answer, Unsent), url


@pytest.mark.slow
async def test_a_server_that_speaks_no_tls_got_nothing() -> None:
    async with Peer(b"what?") as peer:
        answer = await TokenEndpoint(SystemClock(), 1.0).ask(refresh_request(oauth(peer.url.replace("http:", "https:"))))
    assert isinstance(answer, Unsent)


@pytest.mark.parametrize("password", [True, False], ids=["password", "open"])
@pytest.mark.parametrize("scheme", ["http", "socks5", "socks5h"])
async def test_a_tunnel_through_the_account_proxy_is_used(
    endpoint: TokenEndpoint, scheme: str, *, password: bool,
) -> None:
    """For plain http too, though the proxy's answers come in pieces; names are looked up by whom the scheme says."""
    proxy = await TestProxy(scheme, password=password).start()
    async with Peer(http(200, GOOD)) as peer:
        grant = oauth(f"http://localhost:{peer.port}/token", material={"proxyURL": proxy.url()})
        assert isinstance(await endpoint.ask(refresh_request(grant)), Issued)
        assert proxy.asked == [f"{'127.0.0.1' if scheme == 'socks5' else 'localhost'}:{peer.port}"]
    proxy.stop()
    head = peer.heard[0].lower()
    assert head.startswith(b"post /token http/1.1\r\n")
    assert b"proxy-authorization" not in head


@pytest.mark.parametrize("scheme", ["http", "https", "socks5h"])
async def test_tls_runs_inside_the_tunnel(tmp_path: Path, scheme: str) -> None:
    server, cert = self_signed(tmp_path)
    trusting = ssl.create_default_context(cafile=str(cert))
    proxy = await TestProxy(scheme, tls=server if scheme == "https" else None, password=True).start()
    endpoint = TokenEndpoint(SystemClock(), 20.0, trusting)
    async with Peer(http(200, GOOD), tls=server) as peer:
        grant = oauth(f"https://localhost:{peer.port}/token", material={"proxyURL": proxy.url("localhost")})
        assert isinstance(await endpoint.ask(refresh_request(grant)), Issued)
    proxy.stop()
    assert peer.heard[0].startswith(b"POST /token ")
    assert not any(TOKEN.encode() in seen for seen in proxy.seen)


@pytest.mark.parametrize("fault", ["refuses", "hangs up", "garbage", "silent"])
@pytest.mark.parametrize("scheme", ["http", "socks5h"])
async def test_a_proxy_that_opens_no_tunnel_got_no_token(scheme: str, fault: str) -> None:
    proxy = await TestProxy(scheme, password=True, fault=fault).start()
    grant = oauth("https://auth.example/token", material={"proxyURL": proxy.url()})
    answer = await TokenEndpoint(SystemClock(), 0.5 if fault == "silent" else 20.0).ask(refresh_request(grant))
    proxy.stop()
    assert isinstance(answer, Unsent)
    assert "signal" not in answer.message
    assert "ss/w" not in answer.message
    assert proxy.asked == ([] if fault != "refuses" else ["auth.example:443"])


async def test_a_refused_password_of_a_proxy_is_quoted_by_nobody(endpoint: TokenEndpoint) -> None:
    proxy = await TestProxy("http", password=True).start()
    grant = oauth("https://auth.example/token", material={"proxyURL": proxy.url(password="hunter2")})
    answer = await endpoint.ask(refresh_request(grant))
    proxy.stop()
    assert isinstance(answer, Unsent)
    assert "hunter2" not in answer.message


# ---------------------------------------------------------------------------------------------------- identity files


async def test_identity_tokens_come_from_the_allowed_directory_only(tmp_path: Path) -> None:
    root = tmp_path / "tokens"
    (root / "..data").mkdir(parents=True)
    (root / "..data" / "one").write_text(" e.y.J \n")
    (root / "one").symlink_to("..data/one")         # as a projected volume has it
    secret = tmp_path / "secret"
    secret.write_text("not-yours")
    (root / "escape").symlink_to(secret)
    alias = tmp_path / "alias"
    alias.symlink_to(root)
    (root / "empty").write_text("")
    (root / "large").write_bytes(b"x" * 100_000)
    bounded, anywhere = IdentityFiles(alias), IdentityFiles(None)
    for path in (root / "one", alias / "one"):
        assert await bounded.read(str(path)) == "e.y.J"
    for path in (secret, root / "escape", root / ".." / "secret", root / "empty", root / "large", root / "none", root):
        answer = await bounded.read(str(path))
        assert isinstance(answer, IdentityUnusable), path
        assert "not-yours" not in answer.why
    assert await anywhere.read(str(secret)) == "not-yours"
