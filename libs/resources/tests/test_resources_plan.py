"""From documents to what should be in force: compiled specs, conditions, last good versions, and the actions."""

import json
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from signalbox.core.keys import hash_key, new_key
from signalbox.resources import conditions as c
from signalbox.resources.actions import diff
from signalbox.resources.compiled import CompiledAccount, CompiledKey, CompiledPool
from signalbox.resources.loading import LoadResult, load_directory, load_text
from signalbox.resources.reconcile import plan
from signalbox.resources.state import (
    DeleteGrant,
    DeleteObject,
    Desired,
    DesiredObject,
    Policy,
    PutGrant,
    PutObject,
    State,
)

NOW = datetime(2026, 11, 21, 4, 0, tzinfo=UTC)
FILE = "f.yaml"
TEXT = "ada-has-had-this-key-for-long"


def document(kind: str, name: str, spec: Mapping[str, Any], **metadata: Any) -> dict[str, Any]:
    meta = {"name": name, **metadata}
    return {"apiVersion": "signalbox.dev/v1alpha1", "kind": kind, "metadata": meta, "spec": dict(spec)}
OAUTH = {"tokenURL": "https://a.example/t", "clientID": "c", "refreshTokenRef": {"name": "acme", "key": "api-key"}}


def account(name: str = "acme", secret: str = "acme", *, labels: dict[str, str] | None = None, **spec: Any) -> Any:
    credential = {"apiKey": {"secretRef": {"name": secret, "key": "api-key"}}}
    metadata = {"labels": labels} if labels else {}
    namespace = spec.pop("namespace", None)
    metadata |= {"namespace": namespace} if namespace else {}
    return document("ClaudeAccount", name, {"provider": "Anthropic", "credential": credential, **spec}, **metadata)


def secret(name: str = "acme", namespace: str = "default", **values: str) -> dict[str, Any]:
    values = {k.replace("_", "-"): v for k, v in (values or {"api_key": "sk-ant-1"}).items()}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "stringData": values,
    }


def key(name: str = "ada", text: str | None = TEXT, **spec: Any) -> dict[str, Any]:
    metadata = {k: spec.pop(k) for k in ("namespace", "uid", "creationTimestamp") if k in spec}
    hashed = {"keyHash": hash_key(text)} if text else {}
    return document("RelayKey", name, {**hashed, **spec}, **metadata)


def pool(name: str, members: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    namespace = {"namespace": spec.pop("namespace")} if "namespace" in spec else {}
    return document("AccountPool", name, {"members": members or {"matchLabels": {}}, **spec}, **namespace)


def load(*documents: Any, file: str = FILE) -> LoadResult:
    return load_text(yaml.dump_all(documents, Dumper=yaml.CSafeDumper, sort_keys=False), {}, file)


def planned(*documents: Any, before: State | None = None, now: datetime = NOW, policy: Policy | None = None) -> Desired:
    return plan(load(*documents), before or State(), now=now, policy=policy)


def get(desired: Desired, kind: str, name: str) -> DesiredObject:
    (found,) = (o for o in desired.objects if o.kind == kind and o.id in (name, f"default/{name}"))
    return found


def the_key(desired: Desired, name: str = "ada") -> CompiledKey:
    return CompiledKey.read(get(desired, "RelayKey", name).spec_json)


# ---- compiled specs


def test_account_is_compiled_with_its_defaults_and_without_its_secret() -> None:
    desired = planned(account(), secret())
    assert json.loads(get(desired, "ClaudeAccount", "acme").spec_json) == {
        "ready": True,
        "reason": "Serves",
        "provider": "Anthropic",
        "baseURL": "https://api.anthropic.com",
        "state": "Active",
        "stateReason": "",
        "credentialKind": "apiKey",
        "priority": 0,
        "weight": 100,
        "limits": [],
        "limitGroup": "default/acme",
        "models": {"allow": [], "deny": [], "map": {}},
        "proxied": False,
    }
    assert "sk-ant-1" not in repr(desired)


def test_key_is_compiled_with_hashes_pools_and_named_limits() -> None:
    until = NOW + timedelta(days=1)
    desired = planned(
        account(),
        secret(),
        key(
            alsoAccept=[{"keyHash": hash_key("x" * 20), "until": until.isoformat()}],
            limits=[{"per": "Day", "costUSD": "20.00"}],
            lifetime={"duration": "720h"},
        ),
    )
    compiled = the_key(desired)
    assert [(h.hash, h.until) for h in compiled.key_hashes] == [(hash_key(TEXT), None), (hash_key("x" * 20), until)]
    assert compiled.hashes_at(until) == (hash_key(TEXT),)
    assert compiled.pools == ("default/default",)
    assert compiled.limits[0].name == "day"
    assert compiled.limits[0].cost_usd == 20_000_000_000
    assert compiled.lifetime is not None
    assert compiled.lifetime.duration == 2_592_000.0
    assert desired.next_change_at == until


def test_compiled_specs_are_written_and_read_alike() -> None:
    desired = planned(account(), secret(), key(), pool("p", failover={"fallbackPools": ["default"]}))
    readers = {"ClaudeAccount": CompiledAccount, "AccountPool": CompiledPool, "RelayKey": CompiledKey}
    for desired_object in desired.objects:
        again = readers[desired_object.kind].read(desired_object.spec_json)
        assert again.write() == desired_object.spec_json


def test_pool_defaults() -> None:
    compiled = CompiledPool.read(get(planned(account(), secret()), "AccountPool", "default").spec_json)
    assert compiled.accounts == ("default/acme",)
    assert (compiled.affinity.mode, compiled.affinity.ttl, compiled.affinity.on_unavailable) == (
        "Session",
        3600,
        "Repin",
    )
    assert compiled.failover.max_attempts == 3
    assert (compiled.queue.max_wait, compiled.queue.max_depth) == (10.0, 100)
    t = compiled.timeouts
    assert (t.connect, t.headers, t.headers_unstreamed, t.first_content, t.idle, t.total) == (5, 120, 600, 30, 60, 3600)


def test_examples_serve_but_for_credentials_that_come_later() -> None:
    env = {"ANTHROPIC_API_KEY": "sk-ant-not-a-real-key", "ADA_RELAY_KEY": "a-key-that-ada-has-already"}
    desired = plan(load_directory(Path(__file__).parents[3] / "deploy" / "examples", env), State(), now=NOW)
    assert desired.problems == ()
    assert {o.ready.reason for o in desired.objects} == {c.SERVES, c.NOT_IMPLEMENTED}
    assert {o.kind for o in desired.objects if o.ready.reason == c.NOT_IMPLEMENTED} == {"ClaudeAccount"}


# ---- pools


def test_implicit_pool_holds_all_accounts_of_its_namespace_alone() -> None:
    desired = planned(account("a"), account("b"), account("c", namespace="other"), secret())
    pools = {o.id: CompiledPool.read(o.spec_json).accounts for o in desired.objects if o.kind == "AccountPool"}
    assert pools == {"default/default": ("default/a", "default/b"), "other/default": ("other/c",)}
    assert get(desired, "AccountPool", "default").source == "implicit"


def test_document_named_default_replaces_the_implicit_pool() -> None:
    desired = planned(account("a"), account("b"), secret(), pool("default", {"accounts": ["b"]}))
    assert CompiledPool.read(get(desired, "AccountPool", "default").spec_json).accounts == ("default/b",)


def test_members_by_label_and_by_name() -> None:
    desired = planned(
        account("a", labels={"team": "a", "tier": "1"}),
        account("b", labels={"team": "b"}),
        account("c", namespace="other", labels={"team": "a"}),
        secret(),
        pool("by-label", {"matchLabels": {"team": "a"}}),
        pool("by-name", {"accounts": ["b", "gone"]}),
        pool("empty", {"matchLabels": {"team": "z"}}),
    )
    by_label, by_name, empty = (get(desired, "AccountPool", n) for n in ("by-label", "by-name", "empty"))
    assert CompiledPool.read(by_label.spec_json).accounts == ("default/a",)
    assert CompiledPool.read(by_name.spec_json).accounts == ("default/b",)
    assert by_name.ready.status
    assert "default/gone" in by_name.ready.message
    assert (empty.ready.status, empty.ready.reason) == (False, c.NO_MEMBERS)


@pytest.mark.parametrize(
    ("allowed", "reason"),
    [
        ({}, c.POOL_NOT_ALLOWED),
        ({"from": "All"}, c.SERVES),
        ({"from": "Selector", "matchLabels": {"tier": "x"}}, c.SERVES),
        ({"from": "Selector", "matchLabels": {"tier": "y"}}, c.POOL_NOT_ALLOWED),
        ({"from": "Selector", "matchLabels": {"kubernetes.io/metadata.name": "team"}}, c.SERVES),
    ],
)
def test_pool_says_whose_keys_may_name_it(allowed: dict[str, Any], reason: str) -> None:
    desired = planned(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team", "labels": {"tier": "x"}}},
        pool("shared", namespace="platform", allowedNamespaces=allowed),
        key(namespace="team", pools=["default", "platform/shared"]),
    )
    found = get(desired, "RelayKey", "team/ada")
    assert found.ready.reason == reason
    compiled = CompiledKey.read(found.spec_json)
    assert compiled.pools == (("team/default", "platform/shared") if reason == c.SERVES else ())
    assert compiled.key_hashes, "a key without its pools is still known, to be told why"


def test_foreign_pool_that_does_not_exist_looks_forbidden_and_an_own_one_missing() -> None:
    desired = planned(
        key("a", pools=["other/x"]), key("b", "b" * 20, pools=["x"]), key("c", "c" * 20, pools=["x", "default"])
    )
    assert get(desired, "RelayKey", "a").ready.reason == c.POOL_NOT_ALLOWED
    assert get(desired, "RelayKey", "b").ready.reason == c.POOL_NOT_FOUND
    assert get(desired, "RelayKey", "c").ready.status
    assert the_key(desired, "c").pools == ("default/default",)


def test_fallback_pools_come_after_all_pools_and_only_where_allowed() -> None:
    desired = planned(
        pool("a", failover={"fallbackPools": ["c", "b", "platform/closed", "platform/open"]}),
        pool("b"),
        pool("c", failover={"fallbackPools": ["d"]}),
        pool("d"),
        pool("open", namespace="platform", allowedNamespaces={"from": "All"}),
        pool("closed", namespace="platform"),
        key(pools=["a", "b"]),
    )
    assert the_key(desired).pools == ("default/a", "default/b")
    assert the_key(desired).fallback_pools == ("default/c", "platform/open")


# ---- accounts that cannot serve, and grants


def test_grant_holds_the_secret_and_its_version_follows_it() -> None:
    one, same, other = (planned(account(), secret(api_key=k)) for k in ("sk-1", " sk-1\n", "sk-2"))
    (grant,) = one.grants
    assert (grant.account, grant.kind) == ("default/acme", "apiKey")
    assert (grant.material, grant.config) == ({"apiKey": "sk-1"}, {"baseURL": "https://api.anthropic.com"})
    assert same.seed_versions() == one.seed_versions() != other.seed_versions()


def test_an_oauth_grant_is_seeded_with_what_a_refresh_needs() -> None:
    credential = {"oauth": {
        **OAUTH, "refreshTokenRef": {"name": "acme", "key": "r"}, "clientSecretRef": {"name": "acme", "key": "s"},
        "scopes": ["a", "b"], "headers": {"X-Tenant": "acme"}, "authorizationURL": "https://a.example/authorize",
    }}
    desired = planned(account(credential=credential), secret(r="refresh-1", s="client-1"))
    (grant,) = desired.grants
    assert grant.kind == "oauth"
    assert grant.material == {"refreshToken": "refresh-1", "clientSecret": "client-1"}
    assert grant.config == {
        "baseURL": "https://api.anthropic.com", "tokenURL": "https://a.example/t", "clientID": "c", "scopes": "a b",
        "headers": '{"X-Tenant":"acme"}', "authorizationURL": "https://a.example/authorize",
    }
    found = get(desired, "ClaudeAccount", "acme")
    assert found.ready.status
    assert "refresh-1" not in found.spec_json + repr(desired)


def test_an_oauth_account_to_be_authorised_needs_no_refresh_token() -> None:
    oauth = {name: value for name, value in OAUTH.items() if name != "refreshTokenRef"}
    bare = planned(account(credential={"oauth": oauth}))
    assert [str(p.path) for p in bare.problems] == ["spec.credential.oauth.refreshTokenRef"]
    desired = planned(account(credential={"oauth": {**oauth, "authorizationURL": "https://a.example/authorize"}}))
    assert desired.grants[0].material == {}


@pytest.mark.parametrize(("spec", "token_url"), [
    ({}, "https://api.anthropic.com/v1/oauth/token"),
    ({"baseURL": "https://api.example/"}, "https://api.example/v1/oauth/token"),
])
def test_a_federated_grant_is_seeded_with_names_alone(spec: dict[str, Any], token_url: str) -> None:
    federation = {"organizationID": "o", "federationRuleID": "f", "identityTokenFile": "/t", "workspaceID": "w"}
    (grant,) = planned(account(credential={"federation": federation}, **spec)).grants
    assert (grant.kind, grant.material) == ("federation", {})
    assert grant.config == {**federation, "tokenURL": token_url, "baseURL": token_url.removesuffix("/v1/oauth/token")}
    (grant,) = planned(account(credential={"federation": {**federation, "tokenURL": "https://t.example/x"}})).grants
    assert grant.config["tokenURL"] == "https://t.example/x"


def test_proxy_url_travels_with_the_grant() -> None:
    url = "socks5h://u:p@proxy.example:1080"
    desired = planned(account(proxy={"urlRef": {"name": "acme", "key": "proxy"}}), secret(api_key="sk-1", proxy=url))
    assert desired.grants[0].material["proxyURL"] == url
    assert CompiledAccount.read(get(desired, "ClaudeAccount", "acme").spec_json).proxied
    assert url not in get(desired, "ClaudeAccount", "acme").spec_json


@pytest.mark.parametrize(
    ("documents", "reason", "said"),
    [
        ([account()], c.SECRET_NOT_FOUND, "Secret default/acme does not exist"),
        ([account(), secret(other="x")], c.SECRET_NOT_FOUND, "has no key api-key"),
        ([account(), secret(namespace="other")], c.SECRET_NOT_FOUND, "does not exist"),
        ([account(), secret(api_key="  ")], c.SECRET_INVALID, "printable ASCII"),
        ([account(), secret(api_key="two\nlines")], c.SECRET_INVALID, "in one line"),
        (
            [account(proxy={"urlRef": {"name": "acme", "key": "p"}}), secret(api_key="k", p="ftp://hunter2")],
            *(c.SECRET_INVALID, "must be a URL with host"),
        ),
        ([account(expiresAt="2026-11-21T04:00:00Z"), secret()], c.EXPIRED, "expiresAt has passed"),
        (
            [
                account(
                    provider="Foundry", credential={"foundry": {"resource": "r", "apiKeyRef": {"name": "a", "key": "k"}}}
                )
            ],
            *(c.NOT_IMPLEMENTED, "credentials of kind foundry"),
        ),
        (
            [account(credential={"oauth": {**OAUTH, "refreshTokenRef": {"name": "acme", "key": "r"}}}), secret()],
            *(c.SECRET_NOT_FOUND, "has no key r"),
        ),
    ],
)
def test_account_that_cannot_serve_says_why(documents: list[Any], reason: str, said: str) -> None:
    desired = planned(*documents)
    found = get(desired, "ClaudeAccount", "acme")
    assert (found.ready.status, found.ready.reason) == (False, reason)
    assert said in found.ready.message
    assert "hunter2" not in repr(desired)
    assert bool(desired.grants) == (reason == c.EXPIRED)
    compiled = CompiledAccount.read(found.spec_json)
    assert (compiled.ready, compiled.reason) == (False, reason)


CLUSTER = Policy(cluster=True)


@pytest.mark.parametrize(
    ("url", "policy", "allowed"),
    [
        ("https://api.anthropic.com", CLUSTER, True),
        ("https://api.anthropic.com.evil.example", CLUSTER, False),
        ("https://evilanthropic.com", CLUSTER, False),
        ("https://evil.example", CLUSTER, False),
        ("https://evil.example", Policy(), True),
        ("https://bedrock-runtime.eu-west-1.amazonaws.com", CLUSTER, True),
        ("https://ec2-1-2-3-4.compute.amazonaws.com", CLUSTER, False),
        ("http://mock.default.svc:8080", CLUSTER, True),
        ("http://mock.default.svc.cluster.local", CLUSTER, True),
        ("http://mock.other.svc", CLUSTER, False),
        ("http://127.0.0.1:8080", CLUSTER, False),
        ("https://a.corp.example:8443", Policy(cluster=True, allowed_upstream_hosts=("*.corp.example",)), True),
        ("https://corp.example", Policy(cluster=True, allowed_upstream_hosts=("*.corp.example",)), False),
        ("https://api.anthropic.com", Policy(cluster=True, allowed_upstream_hosts=("*.corp.example",)), False),
        ("https://API.Corp.example", Policy(cluster=True, allowed_upstream_hosts=("api.corp.EXAMPLE",)), True),
    ],
)
def test_in_a_cluster_credentials_go_to_allowed_hosts_only(url: str, policy: Policy, allowed: bool) -> None:
    desired = planned(account(baseURL=url), secret(), policy=policy)
    assert get(desired, "ClaudeAccount", "acme").ready.reason == (c.SERVES if allowed else c.UPSTREAM_NOT_ALLOWED)
    assert bool(desired.grants) == allowed


def test_in_a_cluster_plain_http_does_not_go_through_a_proxy() -> None:
    documents = (
        account(baseURL="http://mock.default.svc", proxy={"urlRef": {"name": "acme", "key": "p"}}),
        secret(api_key="k", p="http://proxy:1"),
    )
    assert get(planned(*documents, policy=CLUSTER), "ClaudeAccount", "acme").ready.reason == c.UPSTREAM_NOT_ALLOWED
    assert get(planned(*documents), "ClaudeAccount", "acme").ready.status


# ---- keys


def test_key_text_comes_from_its_secret() -> None:
    text = new_key()
    ref = {"name": "ada", "key": "relay-key"}
    desired = planned(key(text=None, secretRef=ref), secret("ada", relay_key=text + "\n"))
    assert the_key(desired).hashes_at(NOW) == (hash_key(text),)
    assert text not in repr(desired)
    for values, reason in (({"relay_key": "short"}, c.SECRET_INVALID), ({"other": text}, c.SECRET_NOT_FOUND)):
        refused = planned(key(text=None, secretRef=ref), secret("ada", **values))
        assert get(refused, "RelayKey", "ada").ready.reason == reason
        assert the_key(refused).key_hashes == ()


def test_of_two_keys_with_one_hash_the_first_by_name_serves_locally() -> None:
    desired = planned(key("bob"), key("ada", state="Paused"), key("eve", namespace="other"))
    assert get(desired, "RelayKey", "ada").ready.status
    for name in ("bob", "other/eve"):
        found = get(desired, "RelayKey", name)
        assert found.ready.reason == c.DUPLICATE_KEY
        assert "default/ada" in found.ready.message
        assert CompiledKey.read(found.spec_json).key_hashes == ()


def test_of_two_keys_with_one_hash_the_oldest_serves_in_a_cluster() -> None:
    def at(minute: int) -> str:
        return f"2026-01-01T00:{minute:02}:00Z"

    desired = planned(
        key("a", uid="3", creationTimestamp=at(2)),
        key("b", uid="2", creationTimestamp=at(1)),
        key("c", uid="1", creationTimestamp=at(1)),
    )
    assert [o.id for o in desired.objects if o.kind == "RelayKey" and o.ready.status] == ["default/c"]


def test_former_hash_counts_as_a_duplicate_only_while_it_works() -> None:
    former = [{"keyHash": hash_key(TEXT), "until": "2026-12-01T00:00:00Z"}]
    documents = (key("a", "a" * 20, alsoAccept=former), key("b"))
    assert get(planned(*documents), "RelayKey", "b").ready.reason == c.DUPLICATE_KEY
    later = planned(*documents, now=datetime(2026, 12, 1, tzinfo=UTC))
    assert get(later, "RelayKey", "b").ready.status


def test_expiry_changes_the_plan_at_the_announced_time() -> None:
    documents = (key(expiresAt="2026-11-22T00:00:00Z"),)
    first = planned(*documents)
    assert first.next_change_at == datetime(2026, 11, 22, tzinfo=UTC)
    second = planned(*documents, now=first.next_change_at)
    assert get(second, "RelayKey", "ada").ready.reason == c.EXPIRED
    assert second.next_change_at is None
    assert diff(second, first.revisions(), {}) == [PutObject(get(second, "RelayKey", "ada"))]


# ---- last good versions


def test_bad_document_keeps_its_last_good_version_and_disturbs_no_other() -> None:
    before = planned(account(), secret(), key(concurrency=5))
    after = planned(account(), secret(), key(concurrency="many"), before=before.state)
    assert the_key(after).concurrency == 5
    accepted = next(x for x in get(after, "RelayKey", "ada").conditions if x.type == c.ACCEPTED)
    assert (accepted.status, accepted.reason) == (False, c.INVALID)
    assert accepted.message == "spec.concurrency: must be an integer"
    assert [p.path for p in after.problems] == ["spec.concurrency"]
    assert diff(after, before.revisions(), before.seed_versions()) == [PutObject(get(after, "RelayKey", "ada"))]
    repaired = planned(account(), secret(), key(concurrency=7), before=after.state)
    assert the_key(repaired).concurrency == 7


def test_bad_document_that_never_was_good_is_no_object() -> None:
    desired = planned(key(concurrency="many"))
    assert [o for o in desired.objects if o.kind == "RelayKey"] == []


def test_state_and_expiry_of_a_bad_document_apply() -> None:
    before = planned(key("ada", concurrency=5), account(), secret())
    after = planned(
        key(concurrency="many", state="Paused", expiresAt="2026-11-20T00:00:00Z"),
        account(wait=1, state="Draining", stateReason="leaving"),
        secret(),
        before=before.state,
    )
    compiled = the_key(after)
    assert (compiled.state, compiled.concurrency) == ("Paused", 5)
    assert compiled.expires_at == datetime(2026, 11, 20, tzinfo=UTC)
    assert get(after, "RelayKey", "ada").ready.reason == c.EXPIRED
    drained = CompiledAccount.read(get(after, "ClaudeAccount", "acme").spec_json)
    assert (drained.state, drained.state_reason) == ("Draining", "leaving")
    resumed = planned(key(concurrency="many"), before=after.state)
    assert the_key(resumed).state == "Active"
    assert the_key(resumed).expires_at is None


def test_malformed_state_of_a_bad_document_does_not_resume_it() -> None:
    before = planned(key(state="Paused"))
    after = planned(key(state="Resumed"), before=before.state)
    assert the_key(after).state == "Paused"


def test_expiry_of_a_bad_document_applies_even_beside_a_lifetime() -> None:
    before = planned(key(lifetime={"duration": "1h"}))
    after = planned(key(lifetime={"duration": "1h"}, expiresAt="2026-11-22T00:00:00Z"), before=before.state)
    assert the_key(after).expires_at == datetime(2026, 11, 22, tzinfo=UTC)
    assert the_key(after).lifetime is not None


def test_deleting_a_bad_document_deletes_it() -> None:
    before = planned(key(), key("bob", "b" * 20))
    broken = planned(key(concurrency="x"), key("bob", "b" * 20), before=before.state)
    after = planned(key("bob", "b" * 20), before=broken.state)
    assert diff(after, broken.revisions(), {}) == [DeleteObject("RelayKey", "default/ada")]


def test_secret_that_is_deleted_or_emptied_applies_beside_bad_documents() -> None:
    before = planned(account(), secret())
    after = planned(account(priority=-5), before=before.state)
    assert get(after, "ClaudeAccount", "acme").ready.reason == c.SECRET_NOT_FOUND
    assert DeleteGrant("default/acme") in diff(after, before.revisions(), before.seed_versions())


def test_bad_secret_keeps_its_last_good_values() -> None:
    before = planned(account(), secret())
    broken = {**secret(), "data": {"api-key": "%%"}, "stringData": {}}
    assert planned(account(), broken, before=before.state).seed_versions() == before.seed_versions()


def test_unparseable_file_keeps_its_documents_and_a_missing_one_deletes_them() -> None:
    before = planned(account(), secret(), key())
    unparseable = plan(load_text("a: [", {}, FILE), before.state, now=NOW)
    assert {o.id for o in unparseable.objects} == {o.id for o in before.objects}
    assert the_key(unparseable).hashes_at(NOW) == the_key(before).hashes_at(NOW)
    assert unparseable.seed_versions() == before.seed_versions()
    missing = plan(LoadResult(), unparseable.state, now=NOW)
    assert (missing.objects, missing.grants) == ((), ())


def test_document_that_lost_its_name_is_kept_and_its_neighbours_are_read() -> None:
    before = planned(key(), key("bob", "b" * 20))
    nameless = key()
    nameless["metadata"] = {"nmae": "ada"}
    after = planned(nameless, key("bob", "b" * 20, state="Paused"), before=before.state)
    assert the_key(after).state == "Active"
    assert the_key(after, "bob").state == "Paused"


def test_unparseable_file_does_not_hold_back_other_files() -> None:
    one, two = load(key(), file="a.yaml"), load(key("bob", "b" * 20), file="b.yaml")
    before = plan(LoadResult(documents=one.documents + two.documents), State(), now=NOW)
    after = plan(LoadResult(incomplete=frozenset({"a.yaml"})), before.state, now=NOW)
    assert [o.id for o in after.objects if o.kind == "RelayKey"] == ["default/ada"]


def test_provider_cannot_be_changed_but_anew() -> None:
    before = planned(account(), secret())
    foundry = document(
        "ClaudeAccount",
        "acme",
        {"provider": "Foundry", "credential": {"foundry": {"resource": "r", "apiKeyRef": {"name": "a", "key": "b"}}}},
    )
    after = planned(foundry, secret(), before=before.state)
    assert [(p.path, p.line) for p in after.problems] == [("spec.provider", 1)]
    assert CompiledAccount.read(get(after, "ClaudeAccount", "acme").spec_json).provider == "Anthropic"
    gone = planned(secret(), before=after.state)
    anew = planned(foundry, secret(), before=gone.state)
    assert CompiledAccount.read(get(anew, "ClaudeAccount", "acme").spec_json).provider == "Foundry"
    foundry["metadata"]["uid"] = "another-object"
    assert planned(foundry, secret(), before=before.state).problems == ()


# ---- actions


def test_actions_come_in_a_safe_order() -> None:
    before = planned(account("old"), secret(), key("old-key", "o" * 20), pool("old-pool"))
    after = planned(account(), secret(), key(), pool("p"))
    actions = diff(after, before.revisions(), before.seed_versions())
    told = [(type(a).__name__, a.object.kind if isinstance(a, PutObject) else getattr(a, "kind", "")) for a in actions]
    assert told == [
        ("DeleteObject", "RelayKey"),
        ("PutGrant", ""),
        ("PutObject", "ClaudeAccount"),
        ("PutObject", "AccountPool"),
        ("PutObject", "AccountPool"),
        ("PutObject", "RelayKey"),
        ("DeleteObject", "AccountPool"),
        ("DeleteObject", "ClaudeAccount"),
        ("DeleteGrant", ""),
    ]


def test_key_that_gives_a_hash_up_goes_before_the_one_that_takes_it() -> None:
    before = planned(key("b"), key("c", "c" * 20))
    after = planned(key("a"), key("b"), key("c", "c" * 20), before=before.state)
    puts = [a.object.id for a in diff(after, before.revisions(), {}) if isinstance(a, PutObject)]
    assert puts == ["default/b", "default/a"]


def test_who_loses_access_loses_it_before_anybody_gets_some() -> None:
    documents = [account(), account("b", "b"), secret(), secret("b"), key("a", "a" * 20), key("b", "b" * 20)]
    before = planned(*documents)
    after = planned(
        account(state="Paused"), account("b", "b"), account("c"), secret(), secret("b", api_key="sk-ant-2"),
        key("a", "a" * 20), key("b", "b" * 20, state="Paused"), key("c", "c" * 20), before=before.state,
    )
    actions = diff(after, before.revisions(), before.seed_versions())
    told = [a.object.id if isinstance(a, PutObject) else a.grant.account for a in actions if not isinstance(a, DeleteGrant)]
    assert told[:2] == ["default/b", "default/acme"]
    assert [type(a) for a in actions[:4]] == [PutObject, PutObject, PutGrant, PutGrant]


def test_changed_secret_replaces_the_grant_and_has_the_account_tried_again() -> None:
    before = planned(account(), secret())
    after = planned(account(), secret(api_key="sk-ant-2"), before=before.state)
    actions = diff(after, before.revisions(), before.seed_versions())
    assert [type(a) for a in actions] == [PutGrant, PutObject]
    assert get(before, "ClaudeAccount", "acme").spec_json == get(after, "ClaudeAccount", "acme").spec_json


NAMES = st.sampled_from(["a", "b", "c"])
SPECS = st.one_of(
    st.builds(
        lambda n, p, s: account(n, priority=p, namespace=s), NAMES, st.integers(-1, 3), st.sampled_from(["x", "y"])
    ),
    st.builds(lambda n, k: key(n, k * 20), NAMES, NAMES),
    st.builds(
        lambda n, k, p: key(n, k * 20, pools=p, expiresAt="2026-11-22T00:00:00Z"), NAMES, NAMES,
        st.sampled_from([["a"], ["a/a", "b"], ["x/b"]]),
    ),
    st.builds(
        lambda n, k: key(n, "z" * 20, alsoAccept=[{"keyHash": hash_key(k * 20), "until": "2026-11-23T00:00:00Z"}]),
        NAMES, NAMES,
    ),
    st.builds(lambda n, m, s: pool(n, m, namespace=s), NAMES, st.sampled_from([{"accounts": ["a"]}, {}, None]), NAMES),
    st.builds(
        lambda n, s, v: secret(n, s, api_key=v), NAMES, st.sampled_from(["x", "y"]), st.sampled_from(["sk-1", "sk-2"]),
    ),
    st.builds(lambda n: key(n, None), NAMES),
)


STEPS = st.lists(
    st.tuples(st.lists(SPECS, max_size=8), st.integers(0, 3), st.booleans(), st.integers(0, 1)), min_size=1, max_size=4,
)


@settings(deadline=None)  # on a busy machine an example takes what it takes
@given(STEPS)
def test_what_a_plan_takes_over_from_the_last_one_is_what_it_would_have_made(steps: list[Any]) -> None:
    """Documents, time, policy and healings change from step to step."""
    state = State()
    for documents, days, cluster, healed in steps:
        loaded, policy = load(*documents), Policy(cluster=cluster)
        now = NOW + timedelta(days=days)
        told: dict[str, Any] = {"now": now, "policy": policy, "healings": {"x/a": healed}}
        taken_over = plan(loaded, state, **told)
        assert taken_over == plan(loaded, State(state.good), **told)
        assert plan(loaded, taken_over.state, **told).objects == taken_over.objects
        state = taken_over.state


@settings(deadline=None)  # on a busy machine an example takes what it takes
@given(st.lists(SPECS, max_size=8), st.lists(SPECS, max_size=8), st.randoms(use_true_random=False))
def test_plan_is_idempotent_ordered_and_converges(first: list[Any], second: list[Any], rng: random.Random) -> None:
    before = planned(*first)
    after = planned(*second, before=before.state)
    again = planned(*second, before=after.state)
    assert diff(again, after.revisions(), after.seed_versions()) == []
    assert again.problems == after.problems
    # What the actions do to a registry is what was desired.
    registry, granted = before.revisions(), before.seed_versions()
    for action in diff(after, registry, granted):
        match action:
            case PutObject(o):
                registry[o.kind, o.id] = o.revision
            case DeleteObject(kind, name):
                del registry[kind, name]
            case PutGrant(grant):
                granted[grant.account] = grant.seed_version
            case DeleteGrant(name):
                del granted[name]
    assert (registry, granted) == (after.revisions(), after.seed_versions())
    # The order of distinct documents does not matter.
    unique = {(d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]): d for d in first}.values()
    shuffled = list(unique)
    rng.shuffle(shuffled)
    assert planned(*shuffled).revisions() == planned(*unique).revisions()
