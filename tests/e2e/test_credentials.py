"""OAuth and federated accounts through a whole instance: what callers see while tokens expire, are revoked, are lost.

The simulator rotates refresh tokens and revokes a family whose spent token comes again, as the strictest providers do.
"""

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from tests.support.caller import Answer, Caller, eventually
from tests.support.instance import SIGNALBOX, Instance, account, pool, relay_key, secret
from tests.support.sim import Simulator

pytestmark = pytest.mark.slow

CLIENT_SECRET = "the-operators-own-client-secret"
SPARE_KEY = "sk-ant-api03-spare"
TOKEN_PATH = "/v1/oauth/token"
BETA = "oauth-2025-04-20"
# One account a test, each in a pool of its own beside the spare one; its scope tells its token requests apart.
OAUTH = ("plain", "fleeting", "revoked", "dead", "refused", "misread", "away", "moved")


class Issuer:
    """Signs identity tokens as a cluster would, into a file."""

    def __init__(self, file: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.file = file
        self.write()

    @property
    def rule(self) -> dict[str, Any]:
        """The provider's federation rule that trusts it."""
        public = json.loads(ECAlgorithm.to_jwk(self._key.public_key())) | {"kid": "k", "use": "sig"}
        return {"id": "fdrl_1", "organization_id": "org-fed", "account": "fed", "issuer": "https://issuer.example",
                "audience": "anthropic", "keys": {"keys": [public]}, "token_lifetime_seconds": 6}

    def write(self, *, expired: bool = False) -> None:
        """Put a fresh token into the file, as a kubelet does every now and then."""
        now = int(time.time())
        claims = {"iss": "https://issuer.example", "aud": "anthropic", "sub": "system:serviceaccount:a:b",
                  "iat": now - 60, "exp": now - 30 if expired else now + 600}
        self.file.write_text(jwt.encode(claims, self._key, "ES256", headers={"kid": "k"}) + "\n")


class World:
    """An instance with OAuth accounts, a federated one and a spare one with an API key."""

    def __init__(self, directory: Path) -> None:
        self.issuer = Issuer(directory / "identity-token")
        self.sim = Simulator({
            "accounts": [*({"name": name} for name in (*OAUTH, "fed", "new")), {"name": "spare", "key": SPARE_KEY}],
            "oauth": {"clients": [{"id": "signalbox", "secret": CLIENT_SECRET}, {"id": "public", "account": "new"}],
                      "expires_in": 3600,
                      "grants": [consent(name) for name in OAUTH], "rules": [self.issuer.rule]},
        }).start()
        self.sim.script(standing={"expires_in": 6}, match={"path": TOKEN_PATH, "body": "scope=fleeting"})
        self.sim.script(standing={"expires_in": 20}, match={"path": TOKEN_PATH, "body": "scope=away"})
        documents = [secret("spare", **{"api-key": SPARE_KEY}), account("spare", self.sim.url, priority=1)]
        for name in OAUTH:
            documents += [self.secret(name), self.account(name)]
        documents.append(account("fed", self.sim.url, credential={"federation": {
            "organizationID": "org-fed", "federationRuleID": "fdrl_1", "identityTokenFile": str(self.issuer.file)}}))
        documents.append(account("new", self.sim.url, credential={"oauth": {
            "tokenURL": self.sim.url + TOKEN_PATH, "authorizationURL": self.sim.url + "/oauth/authorize",
            "clientID": "public", "headers": {"X-Tenant": "new"}}}))
        for name in (*OAUTH, "fed", "new"):
            documents += [
                pool(name, [name, "spare"], strategy="Priority", affinity={"mode": "None"}),
                secret(f"key-{name}", **{"relay-key": key_of(name)}),
                relay_key(name, pools=[name], secretRef={"name": f"key-{name}", "key": "relay-key"}),
            ]
        self.instance = Instance(directory, documents, environment={"SIGNALBOX_STOP_GRACE_SECONDS": "2"}).start()

    def secret(self, name: str, number: int = 1) -> dict[str, Any]:
        return secret(name, **{"refresh-token": seed_of(name, number), "client-secret": CLIENT_SECRET})

    def account(self, name: str, state: str = "Active", **fields: Any) -> dict[str, Any]:
        return account(name, self.sim.url, state=state, credential={"oauth": {
            "tokenURL": self.sim.url + TOKEN_PATH, "clientID": "signalbox", "scopes": [name],
            "clientSecretRef": {"name": name, "key": "client-secret"},
            "refreshTokenRef": {"name": name, "key": "refresh-token"}, "headers": {"X-Tenant": name}, **fields}})

    def row(self, name: str) -> dict[str, Any]:
        """Return an account as it is listed, {} where its document has not been read yet."""
        return next((dict(a) for a in self.instance.json("accounts", "list") if a["name"] == name), {})

    def becomes(self, name: str, *, available: bool, reason: str = "") -> dict[str, Any]:
        return eventually(lambda: self.row(name), within_s=40,
                          wanted=lambda row: (row.get("available"), row.get("reason")) == (available, reason))

    def ask(self, name: str) -> Answer:
        return Caller(self.instance.url, key_of(name)).send("Hello", headers={"x-session-id": name})

    def serves(self, name: str) -> bool:
        """Ask with the key of `name`, and return whether the account of that name served."""
        before = len(self.attempts(name))
        assert self.ask(name).status == 200
        return len(self.attempts(name)) > before

    def attempts(self, name: str) -> list[dict[str, Any]]:
        """Return what the provider got from the account."""
        return self.sim.truth(account=name)

    def token_requests(self, name: str) -> list[dict[str, Any]]:
        return [row for row in self.sim.truth(path=TOKEN_PATH) if headers_of(row).get("x-tenant") == name]

    def grant(self, name: str) -> dict[str, Any]:
        return next(grant for grant in self.sim.grants() if grant["account"] == name)


def consent(name: str, number: int = 1) -> dict[str, Any]:
    return {"account": name, "client_id": "signalbox", "refresh_token": seed_of(name, number)}


def seed_of(name: str, number: int = 1) -> str:
    return f"sk-ant-ort-seed-{number}-of-{name}"


def key_of(name: str) -> str:
    return f"relay-key-of-{name:_<10}"


def headers_of(row: dict[str, Any]) -> dict[str, str]:
    return {name.lower(): value for name, value in row["headers"]}


def sample(page: str, name: str, account_id: str, **labels: str) -> float | None:
    """Return a metric's value for an account."""
    wanted = [f'account="{account_id}"', *(f'{label}="{value}"' for label, value in labels.items())]
    for line in page.splitlines():
        if line.startswith(name + "{") and all(label in line for label in wanted):
            return float(line.rsplit(" ", 1)[1])
    return None


@pytest.fixture(scope="module")
def w(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("credentials"))
    try:
        yield made
        assert made.instance.stop() == 0
        said = "".join(made.instance.log)
        for hidden in ("sk-ant-o", CLIENT_SECRET, SPARE_KEY, "eyJ"):
            assert hidden not in said
    finally:
        made.instance.process.kill()
        made.sim.stop()
    assert not made.sim.errors()


@pytest.fixture(scope="module", autouse=True)
def fleeting(w: World) -> Iterator[Future[list[int]]]:
    """Ask with tokens that last seconds for twenty of them, beside the other tests; the statuses of the answers."""

    def ask() -> list[int]:
        w.becomes("fleeting", available=True)
        end_s = time.monotonic() + 20
        statuses = []
        while time.monotonic() < end_s:
            statuses.append(w.ask("fleeting").status)
            time.sleep(0.1)
        return statuses

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(ask)


def test_an_oauth_account_serves_and_headers_go_where_they_belong(w: World) -> None:
    row = w.becomes("plain", available=True)
    assert ("CredentialValid", "True") in {(c["type"], c["status"]) for c in row["conditions"]}
    (refresh,) = w.token_requests("plain")
    assert headers_of(refresh)["content-type"] == "application/x-www-form-urlencoded"
    assert headers_of(refresh)["authorization"].startswith("Basic ")
    assert w.serves("plain")
    headers = headers_of(w.attempts("plain")[-1])
    assert headers["authorization"].startswith("Bearer sk-ant-oat-sim-")
    assert headers["anthropic-beta"] == BETA
    assert not {"x-tenant", "x-api-key"} & headers.keys()
    caller = Caller(w.instance.url, key_of("plain"))
    assert caller.send("Hello", headers={"anthropic-beta": "context-1m-2025-08-07"}).status == 200
    assert headers_of(w.attempts("plain")[-1])["anthropic-beta"] == f"context-1m-2025-08-07,{BETA}"
    assert w.instance.run("accounts", "test", "plain").returncode == 0
    page = w.instance.metrics()
    assert sample(page, "signalbox_refreshes_total", "default/plain", outcome="renewed") == 1
    assert 3000 < (sample(page, "signalbox_credential_expiry_seconds", "default/plain") or 0) < 3600


def test_a_revoked_token_is_replaced_and_the_request_retried_out_of_sight(w: World) -> None:
    w.becomes("revoked", available=True)
    for round_ in range(1, 4):
        assert w.ask("revoked").status == 200
        w.sim.revoke("revoked")
        answer = w.ask("revoked")
        assert (answer.status, answer.headers["x-signalbox-attempts"]) == (200, "2")
        assert w.grant("revoked")["refreshes"] == 1 + round_
        assert w.attempts("revoked")[-1]["status"] == 200
    assert w.grant("revoked")["reuses"] == 0
    assert w.row("revoked")["available"]


def test_a_revoked_family_is_visible_and_others_serve(w: World) -> None:
    w.becomes("dead", available=True)
    assert w.serves("dead")
    w.sim.revoke("dead", family=True)
    before = len(w.attempts("spare"))
    assert w.ask("dead").status == 200
    assert len(w.attempts("spare")) == before + 1
    row = w.becomes("dead", available=False, reason="NeedsAuthorization")
    condition = next(c for c in row["conditions"] if c["type"] == "CredentialValid")
    assert (condition["status"], condition["reason"]) == ("False", "NeedsAuthorization")
    assert "authorise the account anew" in condition["message"]
    assert "NeedsAuthorization" in w.instance.run("accounts", "describe", "dead").stdout
    page = w.instance.metrics()
    assert sample(page, "signalbox_credential_valid", "default/dead", reason="NeedsAuthorization") == 0
    assert sample(page, "signalbox_refreshes_total", "default/dead", outcome="needs_authorization") == 1
    eventually(lambda: any('"event": "credential_lost"' in line for line in w.instance.log), within_s=10)
    for _ in range(5):
        assert w.ask("dead").status == 200
    assert len(w.token_requests("dead")) == 2, "a dead token is not sent again"
    # A new seed makes it well again, and the account is tried at once.
    w.sim.oauth({"grants": [consent("dead", 2)]})
    w.instance.write(w.secret("dead", 2))
    w.becomes("dead", available=True)
    assert w.serves("dead")


def test_an_operator_authorises_an_account_with_a_browser(w: World) -> None:
    w.becomes("new", available=False, reason="NeedsAuthorization")
    assert not w.serves("new")
    command = [SIGNALBOX, "accounts", "authorize", "new", "--no-browser", "--data", str(w.instance.data)]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        url = next(line.strip() for line in running.stdout if line.startswith("http"))
        callback = parse_qs(urlsplit(url).query)["redirect_uri"][0]
        # Somebody else on this machine guesses: it is not taken for the answer.
        with urllib.request.urlopen(f"{callback}?state=guessed&code=mine", timeout=30):
            pass
        with urllib.request.urlopen(url, timeout=30) as page:
            assert page.url.startswith(callback)
            assert b"close this page" in page.read()
        said, complained = running.communicate(timeout=60)
        assert (running.returncode, said.strip()) == (0, "default/new is authorised"), complained
    w.becomes("new", available=True)
    assert w.serves("new")
    (exchanged,) = w.token_requests("new")
    assert parse_qs(exchanged["request_body"])["grant_type"] == ["authorization_code"]
    w.sim.revoke("new")
    assert w.serves("new"), "and what it was given is renewed"
    refused = w.instance.run("accounts", "authorize", "plain", "--no-browser", check=False)
    assert refused.returncode != 0
    assert "authorizationURL" in refused.stderr


def test_a_provider_that_refuses_fresh_tokens_too_has_the_account_benched(w: World) -> None:
    w.becomes("refused", available=True)
    w.sim.script(standing={"status": 401}, account="refused")
    assert w.ask("refused").status == 200
    assert [r["status"] for r in w.attempts("refused")] == [401, 401], "refreshed once, then left alone"
    w.becomes("refused", available=False, reason="NeedsAuthorization")
    assert w.ask("refused").status == 200
    assert len(w.token_requests("refused")) == 2


def test_configuration_errors_are_named_and_mended_by_the_document(w: World) -> None:
    w.becomes("misread", available=True)
    w.instance.write(w.account("misread", clientID="nobody"))
    row = w.becomes("misread", available=False, reason="CredentialInvalid")
    assert "invalid_client" in json.dumps(row["conditions"])
    assert w.ask("misread").status == 200
    w.instance.write(w.account("misread"))
    w.becomes("misread", available=True)
    grant = w.grant("misread")
    assert (grant["refreshes"], grant["reuses"]) == (2, 0), "what was earned outlived the mistake"


def test_a_token_endpoint_that_is_away_costs_nothing_while_the_token_lasts(w: World) -> None:
    w.becomes("away", available=True)
    w.sim.script(standing={"status": 503}, match={"path": TOKEN_PATH, "body": "scope=away"})
    failing = len(w.token_requests("away"))
    eventually(lambda: len(w.token_requests("away")), within_s=30, wanted=lambda n: n > failing)
    assert w.serves("away"), "the old token does"
    row = w.becomes("away", available=False, reason="RefreshFailing")
    assert "503" in json.dumps(row["conditions"])
    assert not w.serves("away")
    w.sim.script(standing={"expires_in": 3600}, match={"path": TOKEN_PATH, "body": "scope=away"})
    w.becomes("away", available=True)
    assert w.grant("away")["reuses"] == 0


def test_tokens_that_expire_all_the_time_are_never_noticed(w: World, fleeting: Future[list[int]]) -> None:
    statuses = fleeting.result()
    assert set(statuses) == {200}
    assert w.grant("fleeting")["refreshes"] >= 3
    assert w.grant("fleeting")["reuses"] == 0
    assert {r["status"] for r in w.attempts("fleeting")} == {200}, "the provider never saw an expired token"
    assert len(w.attempts("fleeting")) == len(statuses)


def test_an_account_that_is_removed_and_comes_back_has_its_grant_still(w: World) -> None:
    w.becomes("moved", available=True)
    w.instance.remove("ClaudeAccount", "moved")
    eventually(lambda: [a["name"] for a in w.instance.json("accounts", "list")], within_s=20,
               wanted=lambda names: "moved" not in names)
    w.instance.write(w.account("moved"))
    w.becomes("moved", available=True)
    assert w.serves("moved")
    assert w.grant("moved")["reuses"] == 0


def test_an_identity_token_is_read_anew_and_its_mending_noticed(w: World) -> None:
    w.becomes("fed", available=True)
    assert w.serves("fed")
    w.issuer.write(expired=True)
    row = w.becomes("fed", available=False, reason="CredentialInvalid")
    assert "invalid_grant" in json.dumps(row["conditions"])
    assert not w.serves("fed")
    w.issuer.write()
    w.becomes("fed", available=True)
