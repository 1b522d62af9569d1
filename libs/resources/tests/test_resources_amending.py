"""What withdraws access without a good version of its own: refused documents beside the registry's, early pauses."""

from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

from signalbox.core.keys import hash_key
from signalbox.resources import conditions as c
from signalbox.resources.actions import diff
from signalbox.resources.amending import paused
from signalbox.resources.compiled import CompiledAccount, CompiledKey, CompiledPool
from signalbox.resources.loading import load_text
from signalbox.resources.reading import Identity
from signalbox.resources.reconcile import plan
from signalbox.resources.state import Desired, DesiredObject, State

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
TEXT = "ada-has-had-this-key-for-long"
REF = {"name": "ada", "key": "relay-key"}


def document(kind: str, name: str, spec: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": "signalbox.dev/v1alpha1", "kind": kind, "metadata": {"name": name, **metadata}, "spec": spec}


def secret(name: str, key: str, value: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {key: value}}


def account(**spec: Any) -> dict[str, Any]:
    credential = {"apiKey": {"secretRef": {"name": "acme", "key": "api-key"}}}
    return document("ClaudeAccount", "acme", {"provider": "Anthropic", "credential": credential, **spec}, uid="1")


def key(**spec: Any) -> dict[str, Any]:
    return document("RelayKey", "ada", {"owner": "ada@example.com", "secretRef": REF, **spec}, uid="2")


SECRETS = [secret("acme", "api-key", "sk-ant-1"), secret("ada", "relay-key", TEXT)]


def load(*documents: Any) -> Any:
    return load_text(yaml.dump_all(documents, Dumper=yaml.CSafeDumper), {}, "f.yaml")


def serving(*documents: Any) -> dict[Identity, DesiredObject]:
    """What a registry holds once these documents are in force."""
    desired = plan(load(*documents), State(), now=NOW)
    return {Identity(o.kind, *o.id.split("/", 1)): o for o in desired.objects}


def restarted(*documents: Any, before: dict[Identity, DesiredObject]) -> Desired:
    """The plan of a process that has never seen these documents good."""
    return plan(load(*documents), State(), now=NOW, kept=before)


def the(desired: Desired, kind: str) -> DesiredObject:
    (found,) = (o for o in desired.objects if o.kind == kind)
    return found


def test_the_last_good_version_serves_on_with_its_account_and_its_pool() -> None:
    before = serving(account(), key(), *SECRETS)
    desired = restarted(account(colour="blue"), key(colour="blue"), *SECRETS, before=before)
    ada, acme = CompiledKey.read(the(desired, "RelayKey").spec_json), the(desired, "ClaudeAccount")
    assert ada == CompiledKey.read(before[Identity("RelayKey", "default", "ada")].spec_json)
    assert CompiledPool.read(the(desired, "AccountPool").spec_json).accounts == ("default/acme",)
    assert acme.serves
    assert acme.spec_json == before[Identity("ClaudeAccount", "default", "acme")].spec_json
    (accepted,) = (x for x in the(desired, "RelayKey").conditions if x.type == c.ACCEPTED)
    assert (accepted.status, accepted.reason, "colour" in accepted.message) == (False, c.INVALID, True)
    # And once that is in force, there is nothing more to do.
    again = restarted(account(colour="blue"), key(colour="blue"), *SECRETS, before=before)
    assert diff(again, desired.revisions(), {}) == []


@pytest.mark.parametrize(
    ("spec", "state", "ready", "serves"),
    [
        ({"state": "Paused"}, "Paused", c.SERVES, False),
        ({"state": "Puased"}, "Active", c.SERVES, True),  # malformed itself: what was before
        ({"expiresAt": "2026-01-01T00:00:00Z"}, "Active", c.EXPIRED, False),
        ({"expiresAt": "2027-01-01T00:00:00Z"}, "Active", c.SERVES, True),
    ],
)
def test_state_and_expiry_apply(spec: dict[str, Any], state: str, ready: str, serves: bool) -> None:
    before = serving(account(), key(), *SECRETS)
    found = the(restarted(account(), key(colour="blue", **spec), *SECRETS, before=before), "RelayKey")
    assert (CompiledKey.read(found.spec_json).state, found.ready.reason, found.serves) == (state, ready, serves)
    found = the(restarted(account(colour="blue", **spec), *SECRETS, before=before), "ClaudeAccount")
    assert (CompiledAccount.read(found.spec_json).state, found.ready.reason, found.serves) == (state, ready, serves)


def test_what_had_expired_can_be_prolonged() -> None:
    before = serving(account(), key(expiresAt="2026-01-01T00:00:00Z"), *SECRETS)
    found = the(restarted(account(), key(colour="blue", expiresAt="2027-01-01T00:00:00Z"), *SECRETS, before=before), "RelayKey")
    assert found.ready.status


def test_a_deleted_secret_applies() -> None:
    before = serving(account(), key(), *SECRETS)
    desired = restarted(account(colour="blue"), key(colour="blue"), before=before)
    for kind in ("RelayKey", "ClaudeAccount"):
        assert the(desired, kind).ready.reason == c.SECRET_NOT_FOUND
    assert CompiledKey.read(the(desired, "RelayKey").spec_json).key_hashes == ()


def test_a_deleted_document_and_one_made_anew_are_not_kept() -> None:
    before = serving(account(), key(), *SECRETS)
    for documents in ([], [document("RelayKey", "ada", {"colour": "blue"}, uid="3")]):
        assert [o.kind for o in restarted(*documents, before=before).objects if o.kind == "RelayKey"] == []


def test_an_account_that_is_being_deleted_drains() -> None:
    before = serving(account(), *SECRETS)
    leaving = account(colour="blue")
    leaving["metadata"]["deletionTimestamp"] = "2026-11-25T11:00:00Z"
    found = the(restarted(leaving, *SECRETS, before=before), "ClaudeAccount")
    assert CompiledAccount.read(found.spec_json).state == "Draining"


def test_what_is_kept_has_its_hash_and_a_good_version_replaces_it() -> None:
    before = serving(account(), key(), *SECRETS)
    thief = document("RelayKey", "bob", {"keyHash": hash_key(TEXT)}, uid="0")
    desired = restarted(account(), key(colour="blue"), thief, *SECRETS, before=before)
    reasons = {o.id: o.ready.reason for o in desired.objects if o.kind == "RelayKey"}
    assert reasons == {"default/ada": c.SERVES, "default/bob": c.DUPLICATE_KEY}
    mended = plan(load(account(), key(owner="eve"), *SECRETS), desired.state, now=NOW, kept=before)
    assert CompiledKey.read(the(mended, "RelayKey").spec_json).owner == "eve"


def test_a_kept_pool_is_still_there_for_its_own_namespace() -> None:
    pool = document("AccountPool", "p", {"members": {"accounts": ["acme"]}, "allowedNamespaces": {"from": "All"}}, uid="4")
    before = serving(account(), pool, key(pools=["p"]), *SECRETS)
    spoilt = document("AccountPool", "p", {"colour": "blue"}, uid="4")
    desired = restarted(account(), spoilt, key(pools=["p"]), *SECRETS, before=before)
    assert CompiledKey.read(the(desired, "RelayKey").spec_json).pools == ("default/p",)
    assert CompiledPool.read(next(o for o in desired.objects if o.id == "default/p").spec_json).accounts == ("default/acme",)


@pytest.mark.parametrize(("kind", "name"), [("RelayKey", "ada"), ("ClaudeAccount", "acme")])
def test_a_pause_ahead_of_the_plan_is_what_the_plan_will_say(kind: str, name: str) -> None:
    active = plan(load(account(), key(), *SECRETS), State(), now=NOW)
    ahead = paused(the(active, kind))
    spec = {"state": "Paused"}
    planned = plan(load(account(**spec), key(**spec), *SECRETS), active.state, now=NOW)
    assert not ahead.serves
    assert ahead.spec_json == the(planned, kind).spec_json
    # The registry takes each of the three for news, in whichever order they come.
    assert len({ahead.revision, the(active, kind).revision, the(planned, kind).revision}) == 3
    assert paused(the(active, kind)) == ahead
