"""The token endpoints: rotation, reuse, faults around a refresh, and the exchange of identity tokens."""

import base64
import json
import time
import urllib.parse

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from tests.simulator.tests.rawhttp import Answer, Raw, ask, body
from tests.support.sim import Simulator

OAUTH = {"anthropic-beta": "oauth-2025-04-20"}
FEDERATION = {"anthropic-beta": "oauth-2025-04-20,oidc-federation-2026-04-01"}
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
SEED = "sk-ant-ort-seed"
CLIENT = {"client_id": "console", "client_secret": "s3cret"}


def config(**oauth):
    return {
        "accounts": [{"name": "one", "key": "sk-one", "organization": "org-one"}],
        "oauth": {"clients": [{"id": "console", "secret": "s3cret"}], "expires_in": 3600,
                  "grants": [{"account": "one", "client_id": "console", "refresh_token": SEED}], **oauth},
    }


@pytest.fixture
def sim(sim: Simulator) -> Simulator:
    start_anew(sim)
    return sim


def start_anew(sim: Simulator, **oauth) -> None:
    document = config(**oauth)
    sim.clear_oauth()
    sim.accounts(*document["accounts"])
    sim.oauth(document["oauth"])


def refresh(sim: Simulator, token: str, **fields) -> Answer:
    request = {"grant_type": "refresh_token", "refresh_token": token, **CLIENT, **fields}
    return ask(sim.url, request, path="/v1/oauth/token", key=None, headers=OAUTH)


def message(sim: Simulator, access_token: str, headers=OAUTH) -> int:
    return ask(sim.url, body(), key=None, headers={"authorization": f"Bearer {access_token}", **headers}).status


def test_refresh_rotates_and_opens_the_api(sim):
    first = refresh(sim, SEED).json
    assert (first["token_type"], first["expires_in"]) == ("Bearer", 3600)
    assert message(sim, first["access_token"]) == 200
    assert message(sim, first["access_token"], headers={}) == 401, "the beta is required with such tokens"
    second = refresh(sim, first["refresh_token"]).json
    assert len({SEED, first["refresh_token"], second["refresh_token"]}) == 3
    assert sim.grants()[0]["refreshes"] == 2
    assert sim.truth(path="/v1/oauth/token")[0]["outcome"] == "complete"


def test_reuse_revokes_the_whole_family(sim):
    first = refresh(sim, SEED).json
    again = refresh(sim, SEED)
    assert (again.status, again.json["error"]) == (400, "invalid_grant")
    assert refresh(sim, first["refresh_token"]).json["error"] == "invalid_grant"
    assert message(sim, first["access_token"]) == 401
    assert sim.grants()[0]["reuses"] == 1


def test_reuse_within_the_grace_gets_the_same_answer(sim):
    start_anew(sim, reuse_grace_s=30)
    first, second = (refresh(sim, SEED).json for _ in range(2))
    assert first == second
    third = refresh(sim, first["refresh_token"]).json
    assert refresh(sim, SEED).json["error"] == "invalid_grant", "only the newest spent token has a grace"
    assert refresh(sim, third["refresh_token"]).json["error"] == "invalid_grant"


def test_lost_answer_has_rotated_the_token(sim):
    sim.script({"drop": "reset", "apply_first": True}, match={"path": "/v1/oauth/token"})
    assert refresh(sim, SEED).ended == "rst"
    assert sim.grants()[0]["spent"] == [SEED]


def test_request_lost_before_it_took_effect(sim):
    sim.script({"drop": "reset"}, match={"path": "*/oauth/token"})
    assert refresh(sim, SEED).ended == "rst"
    assert refresh(sim, SEED).status == 200


def test_answer_cut_in_the_middle_has_rotated(sim):
    sim.script({"cut": "fin"}, match={"path": "*/oauth/token"})
    answer = refresh(sim, SEED)
    assert (answer.status, answer.whole) == (200, False)
    assert sim.grants()[0]["refreshes"] == 1


@pytest.mark.parametrize(("behaviour", "status", "error"), [
    ({"oauth_error": "invalid_grant"}, 400, "invalid_grant"),
    ({"oauth_error": "invalid_client", "status": 200}, 200, "invalid_client"),
    ({"status": 429, "retry_after": 2}, 429, "rate_limit_error"),
    ({"status": 503}, 503, "api_error"),
])
def test_scripted_refusals_leave_the_grant_alone(sim, behaviour, status, error):
    sim.script(behaviour, match={"path": "*/oauth/token"})
    answer = refresh(sim, SEED)
    said = answer.json["error"]
    assert (answer.status, said if isinstance(said, str) else said["type"]) == (status, error)
    assert refresh(sim, SEED).status == 200


@pytest.mark.slow
def test_slow_short_lived_without_rotation_and_without_refresh_token(sim):
    sim.script({"delay_s": 0.2, "expires_in": 1, "rotate": False}, {"omit_refresh_token": True},
               match={"path": "*/oauth/token"})
    begun_s = time.monotonic()
    kept = refresh(sim, SEED).json
    assert time.monotonic() - begun_s > 0.19
    assert "refresh_token" not in kept
    assert message(sim, kept["access_token"]) == 200
    time.sleep(1.1)
    assert message(sim, kept["access_token"]) == 401
    assert "refresh_token" not in refresh(sim, SEED).json, "rotated, but the answer does not say so"
    assert refresh(sim, SEED).json["error"] == "invalid_grant"


def test_clients_are_checked_in_body_form_and_basic(sim):
    assert refresh(sim, SEED, client_secret="wrong").json["error"] == "invalid_client"
    unknown = refresh(sim, SEED, client_id="other")
    assert (unknown.status, unknown.json["error"]) == (401, "invalid_client")
    form = urllib.parse.urlencode({"grant_type": "refresh_token", "refresh_token": SEED}).encode()
    basic = "Basic " + base64.b64encode(b"console:s3cret").decode()
    headers = {"content-type": "application/x-www-form-urlencoded", "authorization": basic}
    assert ask(sim.url, form, path="/oauth/token", key=None, headers=headers).status == 200


def test_unknown_grants_and_bad_requests(sim):
    assert refresh(sim, "no such token").json["error"] == "invalid_grant"
    with Raw(sim.url) as raw:
        assert raw.send(b"{", path="/v1/oauth/token", key=None).read().json["error"] == "invalid_request"
    assert refresh(sim, SEED, grant_type="password").json["error"] == "unsupported_grant_type"


def test_revocation_from_outside(sim):
    first = refresh(sim, SEED).json
    sim.revoke("one")
    assert message(sim, first["access_token"]) == 401
    second = refresh(sim, first["refresh_token"]).json
    sim.revoke("one", family=True)
    assert refresh(sim, second["refresh_token"]).json["error"] == "invalid_grant"


# ---------------------------------------------------------------------- federation

ISSUER = "https://kubernetes.default.svc"
AUDIENCE = "https://api.anthropic.com"
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
KEYS = {"keys": [
    {**json.loads(RSAAlgorithm.to_jwk(RSA_KEY.public_key())), "kid": "r", "alg": "RS256", "use": "sig"},
    {**json.loads(ECAlgorithm.to_jwk(EC_KEY.public_key())), "kid": "e", "alg": "ES256", "use": "sig"},
]}
RULE = {"id": "fedrule_1", "organization_id": "org-one", "account": "one", "issuer": ISSUER, "audience": AUDIENCE,
        "subject": "system:serviceaccount:prod:*", "keys": KEYS, "service_account_id": "svac_1",
        "token_lifetime_seconds": 300}


@pytest.fixture
def federated(sim):
    sim.oauth({"rules": [RULE]})
    return sim


def assertion(key=RSA_KEY, kid="r", algorithm="RS256", **claims):
    now = int(time.time())
    default = {"iss": ISSUER, "aud": [AUDIENCE], "sub": "system:serviceaccount:prod:relay", "iat": now, "exp": now + 600}
    return jwt.encode({**default, **claims}, key, algorithm=algorithm, headers={"kid": kid})


def exchange(sim, token, headers=FEDERATION, **fields):
    request = {"grant_type": JWT_BEARER, "assertion": token, "federation_rule_id": "fedrule_1",
               "organization_id": "org-one", "service_account_id": "svac_1", **fields}
    return ask(sim.url, request, path="/v1/oauth/token", key=None, headers=headers)


@pytest.mark.parametrize(("key", "kid", "algorithm"), [(RSA_KEY, "r", "RS256"), (EC_KEY, "e", "ES256")])
def test_identity_token_is_exchanged(federated, key, kid, algorithm):
    answer = exchange(federated, assertion(key, kid, algorithm)).json
    assert answer["expires_in"] == 300
    assert "refresh_token" not in answer
    assert message(federated, answer["access_token"]) == 200
    assert federated.truth()[0]["account"] == "one"


def refused(answer, status=401, error="invalid_grant"):
    return (answer.status, answer.json["error"]) == (status, error)


def test_identity_tokens_that_are_refused(federated):
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert refused(exchange(federated, assertion(stranger)))
    assert refused(exchange(federated, assertion(kid="unknown")))
    assert refused(exchange(federated, assertion(exp=int(time.time()) - 60)))
    assert refused(exchange(federated, assertion(aud="https://elsewhere")))
    assert refused(exchange(federated, assertion(iss="https://elsewhere")))
    assert refused(exchange(federated, assertion(sub="system:serviceaccount:dev:relay")))
    assert refused(exchange(federated, "not a token"))
    assert refused(exchange(federated, assertion(), organization_id="org-two"))
    assert refused(exchange(federated, assertion(), federation_rule_id="fedrule_2"))
    assert refused(exchange(federated, assertion(), service_account_id="svac_2"))
    assert refused(exchange(federated, assertion(), headers=OAUTH), 400, "invalid_request")
    none = jwt.encode({"sub": "x"}, None, algorithm="none", headers={"kid": "r"})
    assert refused(exchange(federated, none))
