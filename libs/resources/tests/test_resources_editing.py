"""Edits of fields in place: what changes, what stays byte for byte, what is refused."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from signalbox.resources.documents import edit_file, find_document, render, rotation_changes, state_changes
from signalbox.resources.editing import edit_spec
from signalbox.resources.errors import DocumentNotFound, EditRefused
from signalbox.resources.loading import load_text
from signalbox.resources.reading import Identity

KEY = Identity("RelayKey", "default", "ada")
OLD, NEW = "sha256:" + "0" * 64, "sha256:" + "1" * 64
NOW = datetime(2026, 11, 21, tzinfo=UTC)

BLOCK = f"""\
# keys of the team — 🔑
apiVersion: signalbox.dev/v1alpha1
kind: RelayKey
metadata:
  name: ada   # Lovelace
spec:
  # hers since 1843
  owner: ada@example.com
  keyHash: {OLD}  # generated
  alsoAccept:
  - keyHash: {"sha256:" + "2" * 64}
    until: 2026-12-01T00:00:00Z
  # limits follow

  limits:
  - {{per: Day, requests: 5}}
---
apiVersion: signalbox.dev/v1alpha1
kind: RelayKey
metadata: {{name: bob}}
spec: {{keyHash: "{"sha256:" + "3" * 64}", state: Active}}
"""

SHARED = f"""\
kind: List
apiVersion: v1
items:
- {{apiVersion: signalbox.dev/v1alpha1, kind: RelayKey, metadata: {{name: ada}}, spec: &s {{keyHash: "{OLD}"}}}}
- {{apiVersion: signalbox.dev/v1alpha1, kind: RelayKey, metadata: {{name: bob}}, spec: *s}}
"""


def test_pause_adds_a_line_and_resume_changes_it() -> None:
    paused = edit_spec(BLOCK, KEY, state_changes("Paused", kind="RelayKey"))
    assert paused == BLOCK.replace("  owner: ada@", "  state: Paused\n  owner: ada@")
    assert edit_spec(paused, KEY, state_changes("Active", kind="RelayKey")) == paused.replace("Paused", "Active")


def test_flow_style_is_edited_within_its_braces() -> None:
    bob = Identity("RelayKey", "default", "bob")
    assert edit_spec(BLOCK, bob, {"state": "Paused"}) == BLOCK.replace("state: Active}", '"state": "Paused"}')
    without = edit_spec(BLOCK, bob, {"state": None, "owner": 'b "x"'})
    assert '{"owner": "b \\"x\\"", keyHash: "sha256:3333' in without
    assert without.endswith('3"}\n')


def test_rotation_keeps_the_old_key_for_a_while_and_everything_else_as_it_is() -> None:
    spec = load_text(BLOCK, {}).documents[0].raw["spec"]
    until = datetime(2026, 11, 22, tzinfo=UTC)
    changes = rotation_changes(spec, old_hash=OLD, new_hash=NEW, until=until, now=NOW)
    edited = edit_spec(BLOCK, KEY, changes)
    document = load_text(edited, {}).documents[0]
    assert document.problems == ()
    assert document.raw["spec"]["keyHash"] == NEW
    assert document.raw["spec"]["alsoAccept"] == [
        {"keyHash": "sha256:" + "2" * 64, "until": "2026-12-01T00:00:00Z"},
        {"keyHash": OLD, "until": "2026-11-22T00:00:00Z"},
    ]
    untouched = [
        line for line in BLOCK.splitlines() if "Hash" not in line and "until" not in line and "also" not in line
    ]
    assert [line for line in edited.splitlines() if line in untouched] == untouched
    assert f"keyHash: {NEW}  # generated" in edited


def test_rotation_drops_hashes_that_no_longer_work() -> None:
    spec = {"keyHash": OLD, "alsoAccept": [{"keyHash": NEW[:-1] + "9", "until": "2026-11-20T00:00:00Z"}]}
    changes = rotation_changes(spec, old_hash=OLD, new_hash=NEW, until=NOW, now=NOW)
    assert [h["keyHash"] for h in changes["alsoAccept"]] == [OLD]


def test_key_from_a_secret_gets_its_hash_into_the_document() -> None:
    text = BLOCK.replace(f"keyHash: {OLD}  # generated", "secretRef:\n    name: ada\n    key: relay-key")
    changes = rotation_changes({}, old_hash=OLD, new_hash=NEW, until=NOW, now=NOW)
    document = load_text(edit_spec(text, KEY, changes), {}).documents[0]
    assert document.problems == ()
    assert "secretRef" not in document.raw["spec"]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_line_ends_are_kept(newline: str) -> None:
    text = BLOCK.replace("\n", newline)
    edited = edit_spec(text, KEY, {"state": "Paused"})
    assert edited == text.replace("  owner: ada@", f"  state: Paused{newline}  owner: ada@")


def test_removing_takes_the_whole_entry() -> None:
    edited = edit_spec(BLOCK, KEY, {"alsoAccept": None, "limits": None})
    assert "alsoAccept" not in edited
    assert "  # limits follow\n\n---\n" in edited


def test_document_inside_a_list_is_found() -> None:
    text = f"""\
kind: List
apiVersion: v1
items:
- apiVersion: signalbox.dev/v1alpha1
  kind: RelayKey
  metadata: {{name: ada}}
  spec:
    keyHash: {OLD}
"""
    assert "    state: Paused\n    keyHash" in edit_spec(text, KEY, {"state": "Paused"})


def test_json_stays_json() -> None:
    text = json.dumps(load_text(BLOCK, {}).documents[0].raw, indent=1)
    edited = edit_spec(text, KEY, {"state": "Paused"})
    assert json.loads(edited)["spec"]["state"] == "Paused"
    assert edited.replace('"state": "Paused", ', "") == text


@pytest.mark.parametrize(
    ("text", "changes", "said"),
    [
        (BLOCK, {"state": "Resting"}, "spec.state: must be one of Active, Paused"),
        (BLOCK, {"keyHash": None}, "exactly one source of the key"),
        ("a: [", {"state": "Paused"}, "repair the file first"),
        (SHARED, {"state": "Paused"}, "edit it by hand"),
    ],
)
def test_edit_that_would_not_be_right_is_refused(text: str, changes: dict[str, str], said: str) -> None:
    with pytest.raises(EditRefused, match=said):
        edit_spec(text, KEY, changes)


def test_unknown_document_is_named() -> None:
    with pytest.raises(DocumentNotFound, match="RelayKey default/eve"):
        edit_spec(BLOCK, Identity("RelayKey", "default", "eve"), {"state": "Paused"})


def test_a_broken_document_can_still_be_paused() -> None:
    broken = BLOCK.replace("  limits:", "  limitz:")
    assert "  state: Paused\n" in edit_spec(broken, KEY, {"state": "Paused"})


@given(
    owner=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40),
    flow=st.booleans(),
)
@example(owner="0E0", flow=False)
@example(owner="1:30", flow=False)
@example(owner="on", flow=False)
def test_any_text_survives_being_written(owner: str, flow: bool) -> None:
    identity = Identity("RelayKey", "default", "bob") if flow else KEY
    edited = edit_spec(BLOCK, identity, {"owner": owner})
    document = next(d for d in load_text(edited, {}).documents if d.identity == identity)
    assert document.raw["spec"]["owner"] == owner


def test_files_are_found_and_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(BLOCK)
    file.chmod(0o640)
    link = tmp_path / "alias.txt"
    link.symlink_to(file)
    assert find_document(tmp_path, KEY).file == str(file)
    edit_file(file, KEY, {"state": "Paused"})
    assert "state: Paused" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == ["alias.txt", "keys.yaml"]
    with pytest.raises(EditRefused):
        edit_file(file, KEY, {"state": "?"})
    with pytest.raises(DocumentNotFound):
        find_document(tmp_path, Identity("RelayKey", "other", "ada"))


def test_new_documents_are_written_in_the_documents_notation() -> None:
    spec = {"owner": "ada@example.com", "keyHash": NEW, "limits": [{"per": "Day", "costUSD": "20.00"}]}
    text = render("RelayKey", "ada", {"spec": spec}, namespace="team", comment="made by hand")
    assert text.startswith("# made by hand\napiVersion: signalbox.dev/v1alpha1\nkind: RelayKey\n")
    loaded = load_text(text, {})
    assert loaded.problems == ()
    assert loaded.documents[0].raw["spec"] == spec
    assert loaded.documents[0].identity.id == "team/ada"
    with pytest.raises(EditRefused, match=r"spec\.keyHash"):
        render("RelayKey", "ada", {"spec": {"keyHash": "x"}})
