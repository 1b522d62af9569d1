"""The operator against a real API server and real rooms: documents come into force, and statuses say what is so."""

import time
from typing import Any

import pytest

from signalbox.core.keys import hash_key, new_key
from tests.support.control_plane import ControlPlane
from tests.support.instance import pool, relay_key, secret
from tests.support.kube import SOON_S, Api, placed, within
from tests.support.rbac import OPERATOR, grant_operator
from tests.support.release import Release
from tests.support.sim import Simulator
from tests.support.tenant import (
    ACCOUNT_KEY,
    account_key,
    apply_account,
    apply_key,
    at_provider,
    relay_key_text,
    served,
    tenant,
)

# What the contract promises, and what a machine busy with other tests may add.
REVOKED_S = 2.0
WATCHED_S, POLLED_S = 2.0, 15.0
SECRET_S = 5.0
SLACK_S = 10.0


def ready(api: Api, kind: str, name: str, ns: str) -> tuple[str, str]:
    condition = api.condition(kind, name, "Ready", ns)
    return condition.get("status", ""), condition.get("reason", "")


def test_what_is_applied_serves_and_says_so(api: Api, release: Release, sim: Simulator, ns: str) -> None:
    began_s = time.monotonic()
    key = tenant(api, release, ns, sim.url)
    print(f"\napply to serving: {time.monotonic() - began_s:.1f} s")
    within(SOON_S, lambda: ready(api, "ClaudeAccount", "acme", ns) == ("True", "Serves"))
    within(SOON_S, lambda: ready(api, "RelayKey", "ada", ns) == ("True", "Serves"))
    within(SOON_S, lambda: api.condition("ClaudeAccount", "acme", "Available", ns).get("reason") == "Serves")
    within(SOON_S, lambda: api.condition("ClaudeAccount", "acme", "CredentialValid", ns).get("status") == "True")
    within(SOON_S, lambda: api.get("ClaudeAccount", "acme", ns)["metadata"].get("finalizers"))
    account = api.get("ClaudeAccount", "acme", ns)
    assert account["status"]["observedGeneration"] == account["metadata"]["generation"]
    assert all(c["observedGeneration"] == 1 for c in account["status"]["conditions"])
    assert account["metadata"]["finalizers"] == ["signalbox.dev/drain"]
    assert "annotations" not in account["metadata"]
    assert release.key_info(key)[0] == 200


def test_a_pool_that_was_implied_gets_a_document(api: Api, release: Release, sim: Simulator, ns: str) -> None:
    """`default` stands in the registry before anybody has written it down."""
    tenant(api, release, ns, sim.url)
    time.sleep(2)  # all that there is to say of it is said
    api.apply(placed(pool("default", ["acme"]), ns))
    within(SOON_S, lambda: ready(api, "AccountPool", "default", ns) == ("True", "Serves"))


def test_what_kubectl_get_shows_of_serving_objects(api: Api, release: Release, sim: Simulator, ns: str) -> None:
    tenant(api, release, ns, sim.url)
    apply_key(api, ns, expiresAt="2099-01-01T00:00:00Z")
    api.apply(placed(pool("both", ["acme", "later"]), ns))
    rows = within(SOON_S, lambda: [r for r in api.table("AccountPool", ns)[1] if r["Accounts"] == "1/1"])
    assert rows[0]["Strategy"] == "Headroom"
    (account,) = within(SOON_S, lambda: [r for r in api.table("ClaudeAccount", ns)[1] if r["Reason"] == "Serves"])
    assert (account["Provider"], account["Ready"], account["In Flight"]) == ("Anthropic", "True", 0)
    (key,) = within(SOON_S, lambda: [r for r in api.table("RelayKey", ns)[1] if r["Expires"]])
    assert (key["Owner"], key["Ready"], key["Reason"]) == ("ada@example.com", "True", "Serves")
    assert key["Expires"] == "2099-01-01T00:00:00Z"


def test_an_edited_secret_is_in_use_within_five_seconds(api: Api, release: Release, sim: Simulator, ns: str) -> None:
    key = tenant(api, release, ns, sim.url)
    fresh = account_key(ns, "edited")
    api.apply(placed(secret("acme", **{"api-key": fresh}), ns), force=True)
    began_s = time.monotonic()

    def used() -> bool:
        release.call(key)
        return any(row["account"] == at_provider(fresh) for row in sim.truth())

    within(SECRET_S + SLACK_S, used)
    print(f"\nSecret change to use: {time.monotonic() - began_s:.1f} s")
    text = "sbx_another_text_of_the_relay_key_" + ns
    api.apply(placed(secret("ada", **{"relay-key": text}), ns), force=True)
    within(SECRET_S + SLACK_S, lambda: release.call(text)[0] == 200 and release.call(key)[0] == 401)


def test_a_deleted_key_is_refused_within_two_seconds(api: Api, release: Release, sim: Simulator, ns: str) -> None:
    key = tenant(api, release, ns, sim.url)
    api.delete("RelayKey", "ada", ns)
    began_s = time.monotonic()
    within(REVOKED_S + SLACK_S, lambda: release.call(key)[0] == 401)
    print(f"\ndelete to refused: {time.monotonic() - began_s:.2f} s")


def test_a_key_that_only_waits_for_others_to_let_it_go_is_refused_too(
    api: Api, release: Release, sim: Simulator, ns: str,
) -> None:
    key = tenant(api, release, ns, sim.url)
    api.merge("RelayKey", "ada", {"metadata": {"finalizers": ["example.com/slow"]}}, ns)
    api.delete("RelayKey", "ada", ns)
    within(REVOKED_S + SLACK_S, lambda: release.call(key)[0] == 401)
    assert api.get("RelayKey", "ada", ns) is not None
    api.merge("RelayKey", "ada", {"metadata": {"finalizers": None}}, ns)


def test_a_paused_key_is_refused_and_shown_as_asked_for(api: Api, release: Release, sim: Simulator, ns: str) -> None:
    key = tenant(api, release, ns, sim.url)
    api.merge("RelayKey", "ada", {"spec": {"state": "Paused"}}, ns)
    within(REVOKED_S + SLACK_S, lambda: "key_paused" in release.call(key)[1])
    within(SOON_S, lambda: ready(api, "RelayKey", "ada", ns) == ("True", "Paused"))
    api.merge("RelayKey", "ada", {"spec": {"state": None}}, ns)
    served(release, key)


def test_a_deleted_secret_takes_its_account_out(api: Api, release: Release, sim: Simulator, ns: str) -> None:
    key = tenant(api, release, ns, sim.url)
    api.delete("Secret", "acme", ns)
    within(SOON_S, lambda: release.call(key)[0] == 503)
    within(SOON_S, lambda: ready(api, "ClaudeAccount", "acme", ns) == ("False", "SecretNotFound"))
    within(SOON_S, lambda: "SecretNotFound" in dict(api.events("acme", ns)))
    apply_account(api, ns, sim.url)
    served(release, key)
    within(SOON_S, lambda: "Recovered" in dict(api.events("acme", ns)))


def test_of_two_keys_with_one_text_the_older_serves(api: Api, release: Release, sim: Simulator, ns: str) -> None:
    key = tenant(api, release, ns, sim.url)
    time.sleep(1.1)  # creation times are whole seconds
    text = relay_key_text(ns)
    api.apply(placed(secret("bob", **{"relay-key": text}), ns))
    api.apply(placed(relay_key("bob", owner="bob@example.com"), ns))
    within(SOON_S, lambda: ready(api, "RelayKey", "bob", ns) == ("False", "DuplicateKey"))
    assert "ada@example.com" in release.key_info(key)[1]


def test_limits_and_spend_are_in_the_status(api: Api, release: Release, sim: Simulator, ns: str) -> None:
    apply_account(api, ns, sim.url)
    key = apply_key(api, ns, limits=[{"per": "Day", "requests": 3, "costUSD": "5"}])
    served(release, key)
    within(SOON_S, lambda: release.call(key)[0] == 429)

    def used() -> Any:
        limits = (api.get("RelayKey", "ada", ns)["status"].get("limits") or [{}])
        return limits[0] if limits[0].get("requests", {}).get("used") == 3 else None

    shown = within(SOON_S, used)
    assert (shown["name"], shown["requests"]["limit"]) == ("day", 3)
    assert 0 < float(shown["costUSD"]["used"]) < 5
    within(SOON_S, lambda: ready(api, "RelayKey", "ada", ns) == ("True", "Limited"))
    within(SOON_S, lambda: [r for r, _ in api.events("ada", ns)].count("KeyExhausted") == 1)  # after the status it tells of
    assert api.get("RelayKey", "ada", ns)["status"]["firstUsedAt"]


def test_a_limited_account_says_until_when(api: Api, release: Release, sim: Simulator, ns: str) -> None:
    key = tenant(api, release, ns, sim.url)
    sim.script(standing={"status": 429, "retry_after": 300}, account=at_provider(account_key(ns)))
    within(SOON_S, lambda: "pool_limited" in release.call(key)[1])
    sim.clear_script(at_provider(account_key(ns)))
    within(SOON_S, lambda: api.condition("ClaudeAccount", "acme", "Available", ns).get("reason") == "Limited")
    status = api.get("ClaudeAccount", "acme", ns)["status"]
    assert status["limitedUntil"] > time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    assert ready(api, "ClaudeAccount", "acme", ns) == ("True", "Serves")
    (shown,) = api.table("ClaudeAccount", ns)[1]
    assert (shown["Reason"], shown["Limited Until"]) == ("Limited", status["limitedUntil"])
    within(SOON_S, lambda: [r for r, _ in api.events("acme", ns)].count("Limited") == 1)


def test_what_is_used_of_the_providers_windows_is_in_the_status(api: Api, release: Release, ns: str) -> None:
    taught = {"5h-utilization": "0.62", "5h-reset": "+7200", "5h-status": "allowed"}
    with Simulator({"accounts": [{"name": "acme", "key": account_key(ns), "unified": taught}]}) as provider:
        tenant(api, release, ns, provider.url)
        (window,) = within(SOON_S, lambda: api.get("ClaudeAccount", "acme", ns)["status"].get("limits"))
    assert window["utilizationPermille"] == 620
    assert window["resetsAt"] > time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def test_a_pool_lets_other_namespaces_in_by_their_labels(api: Api, release: Release, sim: Simulator, ns: str) -> None:
    guest = f"{ns}-guest"
    api.namespace(guest)
    apply_account(api, ns, sim.url)
    selector = {"allowedNamespaces": {"from": "Selector", "matchLabels": {"tier": "shared"}}}
    api.apply(placed(pool("shared", ["acme"], **selector), ns))
    key = apply_key(api, guest, pools=[f"{ns}/shared"])
    within(SOON_S, lambda: ready(api, "RelayKey", "ada", guest) == ("False", "PoolNotAllowed"))
    assert "pool_not_allowed" in release.call(key)[1]
    api.namespace(guest, tier="shared")
    served(release, key)
    api.namespace(guest, tier="private")
    within(SOON_S, lambda: "pool_not_allowed" in release.call(key)[1])


@pytest.mark.parametrize("user", [OPERATOR, "operator-that-may-only-get-namespaces"])
def test_namespaces_that_are_watched_by_name_are_followed_too(
    plane: ControlPlane, api: Api, release: Release, sim: Simulator, ns: str, user: str,
) -> None:
    """At once where the operator may watch namespaces, else within some seconds."""
    guest = f"{ns}-guest"
    api.namespace(guest)
    grant_operator(api, "operator-that-may-only-get-namespaces", namespaces=["get"])
    kubeconfig = str(plane.identity(f"{user}-{ns}", user=user))
    release.restart(
        "operator", SIGNALBOX_WATCH_NAMESPACES=f"{ns},{guest}", SIGNALBOX_OPERATOR_KUBECONFIG=kubeconfig,
        KUBECONFIG=kubeconfig,
    )
    try:
        apply_account(api, ns, sim.url)
        selector = {"allowedNamespaces": {"from": "Selector", "matchLabels": {"tier": "shared"}}}
        api.apply(placed(pool("shared", ["acme"], **selector), ns))
        key = apply_key(api, guest, pools=[f"{ns}/shared"])
        within(SOON_S, lambda: ready(api, "RelayKey", "ada", guest) == ("False", "PoolNotAllowed"))
        polled = f'"namespace": "{guest}"' in "".join(x for x in release.log["operator"] if "namespace_polled" in x)
        assert polled == (user != OPERATOR)
        began_s = time.monotonic()
        api.namespace(guest, tier="shared")
        limit_s = WATCHED_S if user == OPERATOR else POLLED_S
        within(limit_s + SLACK_S, lambda: release.call(key)[0] == 200)
        print(f"\nlabels to serving, {user}: {time.monotonic() - began_s:.1f} s")
    finally:
        api.delete_all("RelayKey", guest)
        release.restart("operator")


def test_key_hashes_serve_without_any_secret(api: Api, release: Release, sim: Simulator, ns: str) -> None:
    apply_account(api, ns, sim.url)
    key = new_key()
    document = placed(relay_key("eve"), ns)
    document["spec"] = {"owner": "eve@example.com", "keyHash": hash_key(key)}
    api.apply(document)
    served(release, key)


def test_a_deleted_account_drains_and_then_goes(api: Api, release: Release, sim: Simulator, ns: str) -> None:
    key = tenant(api, release, ns, sim.url)
    within(SOON_S, lambda: api.get("ClaudeAccount", "acme", ns)["metadata"].get("finalizers"))
    api.delete("ClaudeAccount", "acme", ns)
    within(SOON_S, lambda: api.get("ClaudeAccount", "acme", ns) is None)
    within(SOON_S, lambda: "pool_empty" in release.call(key)[1])


def test_nothing_secret_is_anywhere_it_does_not_belong(api: Api, release: Release, sim: Simulator, ns: str) -> None:
    key = tenant(api, release, ns, sim.url)
    within(SOON_S, lambda: ready(api, "RelayKey", "ada", ns)[0] == "True")
    objects = [api.list(kind, ns) for kind in ("ClaudeAccount", "AccountPool", "RelayKey", "Event")]
    secrets = [s for s in api.list("Secret", ns) if "signalbox" in str(s["metadata"].get("annotations"))]
    said = "".join(line for lines in release.log.values() for line in lines)
    pages = release.page("operator", "/metrics")[1] + release.page("operator", "/readyz")[1]
    for text in (key, ACCOUNT_KEY):
        assert not any(text in where for where in (str(objects), said, pages)), "a secret"
    assert not secrets, "kopf wrote into a Secret"


def test_the_operators_pages(release: Release) -> None:
    assert release.page("operator", "/healthz") == (200, '{"live": true}')
    assert release.metric("operator", "signalbox_heartbeat_timestamp_seconds") > 0
    assert release.metric("operator", "signalbox_reconcile_total") > 0
    loops = {line for line in release.page("operator", "/metrics")[1].splitlines() if "heartbeat_timestamp" in line}
    assert any('loop="watch"' in line for line in loops)
