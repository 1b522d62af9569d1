"""What the operator survives: Redis wiped, rivals, lost peers, schemas and documents that are not as they should be."""

import concurrent.futures
import itertools
import time
from collections.abc import Iterator

import pytest

from tests.support.instance import account, relay_key, secret
from tests.support.kube import SOON_S, Api, placed, within
from tests.support.release import Release
from tests.support.sim import Simulator
from tests.support.tenant import apply_account, apply_key, served, tenant

TOKEN_PATH = "/v1/oauth/token"
# In which an operator that has just started would have taken back what it said.
SETTLED_S = 4.0
WRITTEN = 'signalbox_status_writes_total{kind="ClaudeAccount",result="done"}'
DONE = 'signalbox_reconcile_total{kind="ClaudeAccount",result="done"}'


def available(api: Api, ns: str) -> str:
    return str(api.condition("ClaudeAccount", "acme", "Available", ns).get("reason", ""))


def times_told(api: Api, ns: str, name: str, reason: str) -> int:
    return [told for told, _ in api.events(name, ns)].count(reason)


def test_redis_is_wiped(api: Api, alone: Release, sim: Simulator, ns: str) -> None:
    key = tenant(api, alone, ns, sim.url)
    alone.flush_redis()
    served(alone, key, 40)
    alone.kill("scheduler")
    alone.flush_redis()
    alone.start("scheduler")
    served(alone, key, 40)
    within(SOON_S, lambda: available(api, ns) == "Serves")


def test_the_refresher_loses_its_grants(api: Api, alone: Release, sim: Simulator, ns: str) -> None:
    key = tenant(api, alone, ns, sim.url)
    alone.kill("token_refresher")
    for file in (alone.directory / "credentials").iterdir():
        if file.is_file():
            file.unlink()
    alone.start("token_refresher")
    served(alone, key, 40)


def test_a_rival_that_writes_statuses_is_outlasted_without_a_fight(
    api: Api, alone: Release, sim: Simulator, ns: str,
) -> None:
    tenant(api, alone, ns, sim.url)
    within(SOON_S, lambda: available(api, ns) == "Serves")
    foreign = {"type": "Reviewed", "status": "True", "reason": "ByHand", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    status = api.get("ClaudeAccount", "acme", ns)["status"]
    changed = [{**c, "reason": "Wrong"} if c["type"] == "Ready" else c for c in status["conditions"]]
    before = alone.metric("operator", WRITTEN)
    api.merge("ClaudeAccount", "acme", {"status": {"conditions": [*changed, foreign]}}, ns, part="status")
    within(SOON_S, lambda: api.condition("ClaudeAccount", "acme", "Ready", ns).get("reason") == "Serves")
    assert api.condition("ClaudeAccount", "acme", "Reviewed", ns)["reason"] == "ByHand"
    time.sleep(5)
    assert alone.metric("operator", WRITTEN) - before <= 4, "two writers, round and round"


def test_a_status_that_the_schema_refuses_stops_nothing(api: Api, alone: Release, sim: Simulator, ns: str) -> None:
    """An older schema in the cluster, as after an upgrade in the wrong order."""
    key = tenant(api, alone, ns, sim.url)
    crd = api.get("CustomResourceDefinition", "claudeaccounts.signalbox.dev")
    properties = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    properties["conditions"]["items"]["properties"]["reason"]["enum"] = ["Pending"]
    api.merge("CustomResourceDefinition", crd["metadata"]["name"], {"spec": crd["spec"]})
    try:
        states = itertools.cycle(["Paused", "Active"])

        def refused() -> float:
            # Each change gives a condition another reason (what a schema refuses may stay as it is where it does not
            # change); the new schema is in force a moment after it was applied.
            api.merge("ClaudeAccount", "acme", {"spec": {"state": next(states)}}, ns)
            time.sleep(0.5)
            return alone.metric("operator", 'signalbox_status_writes_total{kind="ClaudeAccount",result="refused"}')

        within(SOON_S, refused)
        api.merge("RelayKey", "ada", {"spec": {"state": "Paused"}}, ns)
        within(SOON_S, lambda: "key_paused" in alone.call(key)[1])
        assert alone.page("operator", "/healthz")[0] == 200
    finally:
        api.install_crds()
    generation = api.get("ClaudeAccount", "acme", ns)["metadata"]["generation"]
    within(SOON_S, lambda: api.get("ClaudeAccount", "acme", ns)["status"].get("observedGeneration") == generation)


def test_deletion_does_not_hang_when_the_schedulers_are_gone_for_good(
    api: Api, alone: Release, sim: Simulator, ns: str,
) -> None:
    tenant(api, alone, ns, sim.url)
    within(SOON_S, lambda: api.get("ClaudeAccount", "acme", ns)["metadata"].get("finalizers"))
    alone.kill("scheduler")
    alone.kill("token_refresher")
    api.delete("ClaudeAccount", "acme", ns)
    within(SOON_S, lambda: api.get("ClaudeAccount", "acme", ns) is None)
    within(SOON_S, lambda: "DrainLimitReached" in dict(api.events("acme", ns)))


def test_a_namespace_goes_although_the_peers_are_gone_for_good(
    api: Api, alone: Release, sim: Simulator, ns: str,
) -> None:
    """The operator never met them since its start, and nothing can be told in a namespace that is being deleted."""
    leaving = f"{ns}-leaving"
    api.namespace(leaving)
    tenant(api, alone, leaving, sim.url)
    within(SOON_S, lambda: api.get("ClaudeAccount", "acme", leaving)["metadata"].get("finalizers"))
    for room in ("scheduler", "token_refresher", "operator"):
        alone.kill(room)
    alone.start("operator", wait=False)
    api.delete("Namespace", leaving)
    within(SOON_S, lambda: api.get("ClaudeAccount", "acme", leaving) is None)
    within(SOON_S, lambda: api.get("Namespace", leaving) is None)


def test_the_documented_escape_when_the_operator_is_gone(api: Api, alone: Release, sim: Simulator, ns: str) -> None:
    tenant(api, alone, ns, sim.url)
    within(SOON_S, lambda: api.get("ClaudeAccount", "acme", ns)["metadata"].get("finalizers"))
    alone.kill("operator")
    api.delete("ClaudeAccount", "acme", ns)
    assert api.get("ClaudeAccount", "acme", ns) is not None
    api.merge("ClaudeAccount", "acme", {"metadata": {"finalizers": None}}, ns)
    within(SOON_S, lambda: api.get("ClaudeAccount", "acme", ns) is None)


def test_an_account_goes_only_when_its_requests_have_ended(api: Api, alone: Release, sim: Simulator, ns: str) -> None:
    key = tenant(api, alone, ns, sim.url)
    within(SOON_S, lambda: api.get("ClaudeAccount", "acme", ns)["metadata"].get("finalizers"))
    sim.script({"delay_s": 5})
    with concurrent.futures.ThreadPoolExecutor() as pool:
        slow = pool.submit(alone.call, key)
        within(SOON_S, lambda: sim.summary()["in_flight"])
        api.delete("ClaudeAccount", "acme", ns)
        time.sleep(1.5)
        assert api.get("ClaudeAccount", "acme", ns) is not None, "it did not wait"
        assert slow.result(40)[0] == 200
    within(SOON_S, lambda: api.get("ClaudeAccount", "acme", ns) is None)


def test_a_bad_document_disturbs_no_other(api: Api, alone: Release, sim: Simulator, ns: str) -> None:
    """The schema lets through what only the models refuse: here, by a Secret that is no key."""
    key = tenant(api, alone, ns, sim.url)
    api.apply(placed(secret("odd", **{"relay-key": "short"}), ns))
    api.apply(placed(relay_key("odd"), ns))
    within(SOON_S, lambda: api.condition("RelayKey", "odd", "Ready", ns).get("reason") == "SecretInvalid")
    assert alone.call(key)[0] == 200
    apply_account(api, ns, sim.url, "two")
    within(SOON_S, lambda: api.condition("ClaudeAccount", "two", "Available", ns).get("reason") == "Serves")


@pytest.fixture
def lax(api: Api) -> Iterator[None]:
    """Definitions that let unknown fields through, as those of another version may."""
    for plural in ("relaykeys", "claudeaccounts"):
        crd = api.get("CustomResourceDefinition", f"{plural}.signalbox.dev")
        spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        spec["x-kubernetes-preserve-unknown-fields"] = True
        api.merge("CustomResourceDefinition", crd["metadata"]["name"], {"spec": crd["spec"]})
    yield
    api.install_crds()


def test_a_document_that_was_refused_before_the_start_can_still_be_withdrawn(
    api: Api, alone: Release, sim: Simulator, ns: str, lax: None,
) -> None:
    """Its last good version serves on, as an earlier start left it; state, expiry and deletions apply."""
    key = tenant(api, alone, ns, sim.url)
    other = apply_key(api, ns, "bob")
    served(alone, other)

    def spoil(kind: str, name: str) -> None:
        def spoiled() -> bool:
            api.merge(kind, name, {"spec": {"colour": f"blue-{time.monotonic_ns()}"}}, ns)
            return bool(api.get(kind, name, ns)["spec"].get("colour"))

        within(SOON_S, spoiled)  # definitions take a moment to come into force

    for kind, name in (("ClaudeAccount", "acme"), ("RelayKey", "ada"), ("RelayKey", "bob")):
        spoil(kind, name)
    within(SOON_S, lambda: api.condition("RelayKey", "bob", "Accepted", ns).get("reason") == "Invalid")
    within(SOON_S, lambda: times_told(api, ns, "bob", "Invalid") == 1)
    alone.restart("operator")
    within(SOON_S, lambda: alone.metric("operator", "signalbox_reconcile_pass_seconds"))
    time.sleep(SETTLED_S)
    assert times_told(api, ns, "bob", "Invalid") == 1, "an operator that starts anew does not tell it again"
    assert alone.call(key)[0] == 200, "the last good version serves on, with its account and its pool"
    api.merge("RelayKey", "ada", {"spec": {"state": "Paused"}}, ns)
    within(SOON_S, lambda: "key_paused" in alone.call(key)[1])
    assert alone.call(other)[0] == 200
    api.merge("RelayKey", "ada", {"spec": {"state": "Active", "expiresAt": "2026-01-01T00:00:00Z"}}, ns)
    within(SOON_S, lambda: "key_expired" in alone.call(key)[1])
    api.merge("RelayKey", "ada", {"spec": {"expiresAt": None}}, ns)
    served(alone, key)
    alone.restart("operator")
    api.merge("ClaudeAccount", "acme", {"spec": {"state": "Paused"}}, ns)
    within(SOON_S, lambda: alone.call(key)[0] in (429, 503))
    api.merge("ClaudeAccount", "acme", {"spec": {"state": "Active"}}, ns)
    served(alone, key)
    within(SOON_S, lambda: api.condition("RelayKey", "ada", "Accepted", ns).get("status") == "False")
    api.delete("Secret", "bob", ns)
    within(SOON_S, lambda: alone.call(other)[0] == 401)
    api.delete("RelayKey", "ada", ns)
    within(SOON_S, lambda: alone.call(key)[0] == 401)


def test_a_credential_that_becomes_good_again_has_its_account_tried_at_once(
    api: Api, alone: Release, ns: str,
) -> None:
    """Refused by the token endpoint until somebody tries it by hand; the document never changes.

    What happens is told by constant reasons, and not again by an operator that starts anew. The Secret that the grant
    began with stays as its owner wrote it, whatever becomes of the grant.
    """
    client = {"id": "signalbox", "secret": "the-operators-own-client-secret"}
    grant = {"account": "acme", "client_id": "signalbox", "refresh_token": "sk-ant-ort-seed-of-acme"}
    oauth = {"clients": [client], "expires_in": 3600, "grants": [grant]}
    with Simulator({"accounts": [{"name": "acme"}], "oauth": oauth}) as provider:
        provider.script(standing={"oauth_error": "invalid_client", "status": 401}, match={"path": TOKEN_PATH})
        api.apply(placed(secret("acme", **{"refresh-token": grant["refresh_token"], "client-secret": client["secret"]}), ns))
        seed = api.get("Secret", "acme", ns)
        document = account("acme", provider.url)
        document["spec"]["credential"] = {"oauth": {
            "tokenURL": provider.url + TOKEN_PATH, "clientID": client["id"],
            "clientSecretRef": {"name": "acme", "key": "client-secret"},
            "refreshTokenRef": {"name": "acme", "key": "refresh-token"},
        }}
        api.apply(placed(document, ns))
        key = apply_key(api, ns)
        within(SOON_S, lambda: api.condition("ClaudeAccount", "acme", "CredentialValid", ns).get("reason") == "CredentialInvalid")
        within(SOON_S, lambda: alone.call(key)[0] in (429, 503))
        before = alone.metric("operator", DONE)
        provider.clear_script()
        tried = alone.run("accounts", "test", f"{ns}/acme")
        assert tried.returncode == 0, tried.stdout + tried.stderr
        within(SOON_S, lambda: alone.metric("operator", DONE) > before)
        served(alone, key)
        within(SOON_S, lambda: times_told(api, ns, "acme", "Recovered"))
        provider.revoke("acme", family=True)
        within(SOON_S, lambda: alone.call(key)[0] in (429, 503))
        within(SOON_S, lambda: api.condition("ClaudeAccount", "acme", "CredentialValid", ns).get("reason") == "NeedsAuthorization")
        within(SOON_S, lambda: times_told(api, ns, "acme", "NeedsAuthorization") == 1)
        said, told = api.get("ClaudeAccount", "acme", ns)["status"]["conditions"], sorted(api.events("acme", ns))
        alone.restart("operator")
        within(SOON_S, lambda: alone.metric("operator", "signalbox_reconcile_pass_seconds"))
        time.sleep(SETTLED_S)
        assert api.get("ClaudeAccount", "acme", ns)["status"]["conditions"] == said
        assert sorted(api.events("acme", ns)) == told
        assert {"CredentialInvalid", "Recovered", "NeedsAuthorization"} <= {reason for reason, _ in told}
        assert api.get("Secret", "acme", ns) == seed
