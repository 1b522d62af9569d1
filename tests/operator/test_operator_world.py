"""What the operator remembers of the API server: versions in any order, listings against events, nothing secret twice."""

import base64
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from signalbox.operator.domain.world import World, read
from signalbox.resources.reading import Identity
from signalbox.resources.testing import GOOD

KEY = Identity("RelayKey", "team", "ada")


def raw(version: int, name: str = "ada", **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "signalbox.dev/v1alpha1", "kind": "RelayKey", "spec": GOOD["RelayKey"],
        "metadata": {
            "name": name, "namespace": "team", "uid": "u", "resourceVersion": str(version), "generation": version, **metadata,
        },
    }


def seen(version: int, name: str = "ada", **metadata: Any) -> Any:
    return read(raw(version, name, **metadata))


@given(st.permutations(range(6)), st.integers(0, 6))
def test_the_newest_version_wins_in_whatever_order_things_come(order: list[int], deleted_at: int) -> None:
    world = World()
    for version in order:
        if version == deleted_at:
            world.forget(KEY, version)
        else:
            world.notice(seen(version))
    newest = max(v for v in range(6) if v != deleted_at)
    if deleted_at == 5:
        assert world.get(KEY) is None
    else:
        assert world.get(KEY).version == newest


def test_a_listing_deletes_what_it_does_not_hold_but_nothing_newer() -> None:
    world = World()
    world.notice(seen(3, "old"))
    world.notice(seen(9, "young"))
    news = world.replace("RelayKey", "team", [seen(4, "listed")], 5)
    assert {identity.name for identity in news} == {"old", "listed"}
    assert {s.identity.name for s in world.of_kinds(["RelayKey"])} == {"young", "listed"}


def test_a_listing_does_not_bring_back_what_was_deleted_meanwhile() -> None:
    world = World()
    world.forget(KEY, 7)
    world.replace("RelayKey", "team", [seen(4)], 5)
    assert world.get(KEY) is None


def test_a_listing_of_one_namespace_leaves_the_others_alone() -> None:
    world = World()
    world.notice(seen(1))
    assert world.replace("RelayKey", "elsewhere", [], 5) == set()
    assert world.get(KEY) is not None


def test_a_key_that_is_being_deleted_is_planned_with_no_more() -> None:
    world = World()
    world.notice(seen(1, deletionTimestamp="2026-01-01T00:00:00Z"))
    assert world.documents().documents == ()


def test_what_has_not_changed_is_not_judged_again() -> None:
    before = seen(1, generation=3)
    written = raw(2, generation=3, annotations={"a": "b"}, finalizers=["signalbox.dev/drain"])
    after = read({**written, "status": {"observedGeneration": 3}}, before)
    assert after.document is before.document
    assert (after.version, after.held, after.status) == (2, True, {"observedGeneration": 3})
    for changed in (
        raw(3, generation=4), raw(3, generation=3, labels={"team": "a"}), raw(3, generation=3, uid="another"),
        raw(3, generation=3, deletionTimestamp="2026-01-01T00:00:00Z"),
    ):
        assert read(changed, before).document is not before.document
        assert read(changed, before) == read(changed)


def test_a_secret_is_always_read_anew() -> None:
    def document(value: str) -> dict[str, Any]:
        data = {"api-key": base64.b64encode(value.encode()).decode()}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "team", "uid": "u"}, "data": data}

    assert read(document("two"), read(document("one"))).document.resource.values() == {"api-key": b"two"}


def test_copies_of_secrets_in_metadata_are_not_kept() -> None:
    value = base64.b64encode(b"sk-ant-secret").decode()
    kept = read({
        "apiVersion": "v1", "kind": "Secret", "data": {"api-key": value, "long": "A" * 100_000},
        "metadata": {
            "name": "s", "namespace": "team", "resourceVersion": "1",
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": value}, "managedFields": [{"manager": value}],
        },
    })
    assert kept is not None
    assert kept.document.resource.values() == {"api-key": b"sk-ant-secret"}
    assert kept.document.resource.metadata.annotations is None
    assert value not in repr(kept)
    assert "sk-ant" not in repr(kept)


def test_secrets_that_are_no_credentials_are_not_read() -> None:
    release = {"apiVersion": "v1", "kind": "Secret", "type": "helm.sh/release.v1", "metadata": {"name": "r"}, "data": {}}
    assert read(release) is None


def test_a_bad_document_is_kept_with_its_reason() -> None:
    bad = raw(1)
    bad["spec"] = {"owner": "x"}
    kept = read(bad)
    assert kept.document.resource is None
    assert [p.path for p in kept.document.problems] == ["spec"]
    assert kept.document.raw["spec"] == {"owner": "x"}


def test_who_is_paused_is_told_by_the_newest_good_version() -> None:
    active, bad = raw(1), raw(3)
    paused = {**raw(2), "spec": {**GOOD["RelayKey"], "state": "Paused"}}
    bad["spec"] = {**paused["spec"], "colour": "blue"}
    assert [read(one).is_paused for one in (active, paused, bad)] == [False, True, False]
    assert not read({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "resourceVersion": "1"}}).is_paused
