"""Two tenants in one cluster, and what each tries on the other: as an attacker with a tenant's rights would."""

import base64
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from signalbox.core.keys import hash_key, new_key
from tests.support.control_plane import ControlPlane
from tests.support.instance import account, pool, relay_key, secret
from tests.support.kube import SOON_S, Api, Refusal, placed, within
from tests.support.rbac import grant_tenant
from tests.support.release import Release
from tests.support.sim import Simulator
from tests.support.tenant import account_key, apply_account, at_provider, relay_key_text, served, tenant


class Two(NamedTuple):
    """A victim that serves, and an attacker who may write documents and Secrets in a namespace of their own only."""

    victim: str
    key: str
    attacker: str
    api: Api


@pytest.fixture
def two(plane: ControlPlane, api: Api, release: Release, sim: Simulator, ns: str) -> Iterator[Two]:
    attacker = f"{ns}-attacker"
    api.namespace(attacker)
    user = f"mallory-{ns}"
    grant_tenant(api, user, attacker)
    key = tenant(api, release, ns, sim.url)
    yield Two(ns, key, attacker, Api(plane.identity(user)))
    for kind in ("RelayKey", "AccountPool", "ClaudeAccount"):
        api.delete_all(kind, attacker)


def reason(api: Api, kind: str, name: str, ns: str) -> str:
    return str(api.condition(kind, name, "Ready", ns).get("reason", ""))


def test_the_attacker_has_no_rights_outside(two: Two) -> None:
    two.api.apply(placed(relay_key("own"), two.attacker))
    for attempt in (
        lambda: two.api.namespace(two.attacker, tier="shared"),  # to be let in where others let labels in
        lambda: two.api.merge("RelayKey", "own", {"status": {"firstUsedAt": None}}, two.attacker, part="status"),
        lambda: two.api.list("RelayKey", two.victim),
        lambda: two.api.get("Secret", "acme", two.victim),
        lambda: two.api.get("Secret", "acme", two.attacker),
        lambda: two.api.list("RelayKey", None),
    ):
        with pytest.raises(Refusal) as refused:
            attempt()
        assert refused.value.code == 403


def test_the_attackers_key_cannot_use_the_victims_pool(two: Two, release: Release) -> None:
    for number, pools in enumerate(([f"{two.victim}/default"], ["default", f"{two.victim}/default"])):
        text = relay_key_text(two.attacker, f"k{number}")
        two.api.apply(placed(secret(f"k{number}", **{"relay-key": text}), two.attacker), force=True)
        two.api.apply(placed(relay_key(f"k{number}", pools=pools), two.attacker))
        within(SOON_S, lambda n=number: reason(two.api, "RelayKey", f"k{n}", two.attacker) == "PoolNotAllowed")
        assert "pool_not_allowed" in release.call(text)[1]


def test_a_pool_of_the_victims_cannot_be_told_from_one_that_is_not_there(two: Two, release: Release) -> None:
    messages = set()
    for name in ("default", "no-such-pool"):
        two.api.apply(placed(relay_key(name, pools=[f"{two.victim}/{name}"]), two.attacker))
        two.api.apply(placed(secret(name, **{"relay-key": relay_key_text(two.attacker, name)}), two.attacker), force=True)
        within(SOON_S, lambda name=name: reason(two.api, "RelayKey", name, two.attacker) == "PoolNotAllowed")
        message = two.api.condition("RelayKey", name, "Ready", two.attacker)["message"]
        messages.add(message.replace(name, "NAME"))
    assert len(messages) == 1


def test_the_attackers_pool_cannot_hold_the_victims_accounts(two: Two, release: Release) -> None:
    with pytest.raises(Refusal):
        two.api.apply(placed(pool("grab", [f"{two.victim}/acme"]), two.attacker))
    two.api.apply(placed(pool("grab", ["acme"], failover={"fallbackPools": [f"{two.victim}/default"]}), two.attacker))
    everything = placed(pool("everything", []), two.attacker)
    everything["spec"]["members"] = {"matchLabels": {}}
    two.api.apply(everything)
    for name in ("grab", "everything"):
        text = relay_key_text(two.attacker, name)
        two.api.apply(placed(secret(name, **{"relay-key": text}), two.attacker), force=True)
        two.api.apply(placed(relay_key(name, pools=[name]), two.attacker))
        # Until it is in force, the key is unknown, or its pool.
        within(SOON_S, lambda text=text: "pool_empty" in release.call(text)[1])


def test_the_victims_accounts_do_not_rest_with_the_attackers(
    two: Two, api: Api, release: Release, sim: Simulator,
) -> None:
    """A limitGroup of the same name is another one: else whoever is limited on purpose would stop the others."""
    apply_account(api, two.victim, sim.url, limitGroup="shared")
    apply_account(api, two.attacker, sim.url, limitGroup="shared")
    text = relay_key_text(two.attacker)
    two.api.apply(placed(secret("ada", **{"relay-key": text}), two.attacker), force=True)
    two.api.apply(placed(relay_key("ada"), two.attacker))
    served(release, text)
    limited = at_provider(account_key(two.attacker))
    sim.script(standing={"status": 429, "retry_after": 300}, account=limited)
    within(SOON_S, lambda: "pool_limited" in release.call(text)[1])
    sim.clear_script(limited)
    assert api.get("ClaudeAccount", "acme", two.victim)["spec"]["limitGroup"] == "shared"
    assert release.call(two.key)[0] == 200


def test_the_victims_key_cannot_be_hijacked(two: Two, api: Api, release: Release, sim: Simulator) -> None:
    """Who knows a key's hash, or even its text, gets a duplicate that does not serve: the older one keeps the key."""
    time.sleep(1.1)  # creation times are whole seconds
    stolen = placed(relay_key("by-hash"), two.attacker)
    stolen["spec"] = {"owner": "mallory", "keyHash": hash_key(two.key)}
    two.api.apply(stolen)
    two.api.apply(placed(secret("by-text", **{"relay-key": two.key}), two.attacker), force=True)
    two.api.apply(placed(relay_key("by-text", owner="mallory"), two.attacker))
    overlap = placed(relay_key("by-overlap"), two.attacker)
    overlap["spec"] = {
        "owner": "mallory", "keyHash": hash_key(relay_key_text(two.attacker, "own")),
        "alsoAccept": [{"keyHash": hash_key(two.key), "until": "2099-01-01T00:00:00Z"}],
    }
    two.api.apply(overlap)
    for name in ("by-hash", "by-text", "by-overlap"):
        within(SOON_S, lambda name=name: reason(two.api, "RelayKey", name, two.attacker) == "DuplicateKey")
    assert "ada@example.com" in release.key_info(two.key)[1]
    sim.clear_truth()
    assert release.call(two.key)[0] == 200
    assert {row["account"] for row in sim.truth()} == {at_provider(account_key(two.victim))}


def test_of_two_namespaces_documents_with_one_hash_the_older_has_the_key(
    two: Two, api: Api, release: Release, sim: Simulator,
) -> None:
    """What docs/kubernetes.md warns of: hashes are confidential among tenants, because age alone decides."""
    text = new_key()
    apply_account(api, two.attacker, sim.url)
    older = placed(relay_key("older"), two.attacker)
    older["spec"] = {"owner": "mallory", "keyHash": hash_key(new_key())}
    two.api.apply(older)
    time.sleep(1.1)  # creation times are whole seconds
    younger = placed(relay_key("younger"), two.victim)
    younger["spec"] = {"owner": "grace@example.com", "keyHash": hash_key(text)}
    api.apply(younger)
    served(release, text)
    assert "grace@example.com" in release.key_info(text)[1]
    older["spec"]["keyHash"] = hash_key(text)
    two.api.apply(older)
    within(SOON_S, lambda: reason(api, "RelayKey", "younger", two.victim) == "DuplicateKey")
    within(SOON_S, lambda: "mallory" in release.key_info(text)[1])
    sim.clear_truth()
    assert release.call(text)[0] == 200
    assert {row["account"] for row in sim.truth()} == {at_provider(account_key(two.attacker))}, "its own accounts only"
    older["spec"]["keyHash"] = hash_key(new_key())
    two.api.apply(older)
    within(SOON_S, lambda: reason(api, "RelayKey", "younger", two.victim) == "Serves")
    within(SOON_S, lambda: "grace@example.com" in release.key_info(text)[1])


def test_a_duplicate_says_nothing_of_the_victims_name(two: Two) -> None:
    time.sleep(1.1)
    stolen = placed(relay_key("by-hash"), two.attacker)
    stolen["spec"] = {"owner": "mallory", "keyHash": hash_key(two.key)}
    two.api.apply(stolen)
    within(SOON_S, lambda: reason(two.api, "RelayKey", "by-hash", two.attacker) == "DuplicateKey")
    message = two.api.condition("RelayKey", "by-hash", "Ready", two.attacker)["message"]
    assert two.victim not in message


def test_secrets_cannot_be_sent_to_a_host_of_the_attackers(two: Two) -> None:
    """By writing an account: whoever may write documents but not read Secrets would read them at their own server."""
    two.api.apply(placed(secret("acme", **{"api-key": "sk-ant-somebody-elses-key"}), two.attacker), force=True)
    hosts = {
        "plain": {"baseURL": "https://evil.example.com"},
        "suffix": {"baseURL": "https://evil-anthropic.com"},
        "prefix": {"baseURL": "https://api.anthropic.com.evil.example.com"},
        "port": {"baseURL": "https://evil.example.com:443"},
        "insecure": {"baseURL": "http://evil.example.com", "allowInsecure": True},
        "service": {"baseURL": f"http://steal.{two.victim}.svc"},
        "address": {"baseURL": "https://169.254.169.254"},
    }
    for name, spec in hosts.items():
        document = account(name, "", **spec)
        document["spec"]["credential"]["apiKey"]["secretRef"]["name"] = "acme"
        two.api.apply(placed(document, two.attacker))
    oauth = {
        "tokenURL": "https://evil.example.com/token", "clientID": "c", "refreshTokenRef": {"name": "acme", "key": "api-key"},
    }
    document = account("oauth", "https://api.anthropic.com")
    document["spec"]["credential"] = {"oauth": oauth}
    two.api.apply(placed(document, two.attacker))
    for name in hosts:
        found = within(SOON_S, lambda name=name: reason(two.api, "ClaudeAccount", name, two.attacker).replace("Pending", ""))
        assert found == "UpstreamNotAllowed", (name, found)
    found = within(SOON_S, lambda: reason(two.api, "ClaudeAccount", "oauth", two.attacker).replace("Pending", ""))
    assert found == "UpstreamNotAllowed"


def test_the_url_itself_cannot_hide_its_host(two: Two) -> None:
    for url in (
        "https://api.anthropic.com@evil.example.com", "https://evil.example.com#.anthropic.com",
        "https://evil.example.com?.anthropic.com", "https://evil.example.com\\.anthropic.com",
        "https://evil.example.com%2f.anthropic.com", "https://[::1%25eth0]", "//evil.example.com",
        "https://api.anthropic.com.", "https://api.anthropic.com\nevil.example.com",
    ):
        with pytest.raises(Refusal):
            two.api.apply(placed(account("hidden", url), two.attacker), force=True)


def test_no_file_can_be_read_through_a_token_path(two: Two) -> None:
    for number, path in enumerate((
        "/var/run/secrets/kubernetes.io/serviceaccount/token",
        "/var/run/secrets/signalbox/tokens/../../kubernetes.io/serviceaccount/token",
        "/var/run/secrets/signalbox/tokens", "/proc/self/environ", "//etc/passwd",
    )):
        document = account(f"file-{number}", "https://api.anthropic.com")
        document["spec"]["credential"] = {"federation": {
            "organizationID": "o", "federationRuleID": "f", "identityTokenFile": path,
        }}
        two.api.apply(placed(document, two.attacker))
        found = within(SOON_S, lambda n=number: reason(two.api, "ClaudeAccount", f"file-{n}", two.attacker).replace("Pending", ""))
        assert found == "TokenFileNotAllowed", (path, found)


def test_secrets_of_another_namespace_cannot_be_named(two: Two) -> None:
    for name in (f"{two.victim}/acme", f"../{two.victim}/acme"):
        document = account("foreign", "https://api.anthropic.com")
        document["spec"]["credential"]["apiKey"]["secretRef"]["name"] = name
        with pytest.raises(Refusal):
            two.api.apply(placed(document, two.attacker))
    document = account("foreign", "https://api.anthropic.com")  # `acme` exists in the victim's namespace only
    document["spec"]["credential"]["apiKey"]["secretRef"]["name"] = "only-there"
    two.api.apply(placed(document, two.attacker))
    within(SOON_S, lambda: reason(two.api, "ClaudeAccount", "foreign", two.attacker) == "SecretNotFound")


def test_statuses_and_events_quote_no_secret(two: Two, api: Api) -> None:
    value = "not-a-key-\n-but-a-secret-all-the-same"
    document = secret("acme")
    document.pop("stringData")
    document["data"] = {"api-key": base64.b64encode(value.encode()).decode()}
    two.api.apply(placed(document, two.attacker), force=True)
    two.api.apply(placed(account("odd", "https://api.anthropic.com"), two.attacker))
    odd = account("odd", "https://api.anthropic.com")
    odd["spec"]["credential"]["apiKey"]["secretRef"]["name"] = "acme"
    two.api.apply(placed(odd, two.attacker), force=True)
    through = account("through", "https://api.anthropic.com", proxy={"urlRef": {"name": "acme", "key": "api-key"}})
    two.api.apply(placed(secret("through", **{"api-key": account_key(two.attacker)}), two.attacker), force=True)
    two.api.apply(placed(through, two.attacker))
    spelled = relay_key("spelled")
    spelled["spec"]["secretRef"] = {"name": "acme", "key": "api-key"}
    two.api.apply(placed(spelled, two.attacker))
    for kind, name in (("ClaudeAccount", "odd"), ("ClaudeAccount", "through"), ("RelayKey", "spelled")):
        within(SOON_S, lambda k=kind, n=name: reason(two.api, k, n, two.attacker) == "SecretInvalid")
    shown = str([api.list(kind, two.attacker) for kind in ("ClaudeAccount", "RelayKey", "Event")])
    assert "but-a-secret" not in shown


@pytest.mark.parametrize("watched", ["named", "own"])
def test_an_unwatched_namespace_serves_nobody(
    api: Api, release: Release, sim: Simulator, ns: str, watched: str,
) -> None:
    """Where a release watches one namespace, by name or its own, keys and accounts elsewhere do not exist for it."""
    other = f"{ns}-unwatched"
    api.namespace(other)
    named, own = (ns, "default") if watched == "named" else ("", ns)
    release.restart("operator", SIGNALBOX_WATCH_NAMESPACES=named, SIGNALBOX_OPERATOR_NAMESPACE=own)
    try:
        tenant(api, release, ns, sim.url)
        apply_account(api, other, sim.url)
        text = relay_key_text(other)
        api.apply(placed(secret("ada", **{"relay-key": text}), other), force=True)
        api.apply(placed(relay_key("ada"), other))
        time.sleep(2)
        assert "key_invalid" in release.call(text)[1]
        assert api.condition("RelayKey", "ada", "Ready", other)["reason"] == "Pending"
    finally:
        release.restart("operator")
