"""Directories of documents: where problems are said to be, what kubectl would do, what must not hurt."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signalbox.resources.errors import UnreadableDirectory
from signalbox.resources.loading import FileCache, load_directory, load_text
from signalbox.resources.models import AccountPool, ClaudeAccount, Secret
from signalbox.resources.reading import Identity, read_document

EXAMPLES = Path(__file__).parents[3] / "deploy" / "examples"
ENV = {"ANTHROPIC_API_KEY": "sk-ant-not-a-real-key", "ADA_RELAY_KEY": "a-key-that-ada-has-already"}

POOL = """\
apiVersion: signalbox.dev/v1alpha1
kind: AccountPool
metadata: {name: p}
spec:
  members: {matchLabels: {}}
"""


def problems(text: str) -> list[str]:
    return [str(problem) for problem in load_text(text, {}, "f.yaml").problems]


def test_examples_are_good() -> None:
    loaded = load_directory(EXAMPLES, ENV)
    assert loaded.problems == ()
    assert {d.identity.kind for d in loaded.documents} >= {"ClaudeAccount", "AccountPool", "RelayKey", "Secret"}


def test_problem_stands_at_the_line_of_its_field() -> None:
    text = (
        "# comment\n---\n"
        + POOL
        + "  queue:\n    maxDepth: 1\n    maxWait: soon\n  failover: {}\n  strateggy: Headroom\n"
    )
    assert problems(text) == [
        "f.yaml:10: spec.queue.maxWait: must be a duration such as 5s, 100ms, 1h30m (units: ms, s, m, h)",
        "f.yaml:12: spec.strateggy: is not a known field: did you mean strategy?",
    ]


def test_what_is_missing_is_blamed_on_what_is_around_it() -> None:
    text = POOL.replace("  members: {matchLabels: {}}\n", "  queue: {}\n")
    assert problems(text) == ["f.yaml:4: spec.members: is required"]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("  strategy: Priority\n  strategy: Headroom\n", "f.yaml:7: spec.strategy: is written twice (first in line 6)"),
        ("  queue: {maxDepth: 1, maxDepth: 2}\n", "f.yaml:6: spec.queue.maxDepth: is written twice"),
        ("  queue:\n", "f.yaml:6: spec.queue: is empty"),
        ("  queue: {<<: {maxDepth: 1}}\n", "f.yaml:6: spec.queue: has a merge key"),
        ("  queue: {maxDepth: !!binary aGk=}\n", "f.yaml:6: spec.queue.maxDepth: has the tag binary"),
        ("  queue: {maxDepth: .nan}\n", "f.yaml:6: spec.queue.maxDepth: is not a finite number"),
        ("  queue: {[a]: 1}\n", "f.yaml:6: spec.queue: has a key that is not text"),
    ],
)
def test_text_that_is_yaml_but_no_document(extra: str, said: str) -> None:
    (problem,) = problems(POOL + extra)
    assert problem.startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [\n", "f.yaml:2: is not YAML"),
        ("\tb: c\n", "f.yaml:1: is not YAML"),
        ("a: b: c\n", "f.yaml:1: is not YAML"),
        ("[" * 100_000, "f.yaml:1: nests deeper than 64 levels"),
        ("x: &a [*a]\n", "f.yaml:1: expands to too much"),
        ("a: \x00\n", "f.yaml: is not YAML"),
        ("- text\n", "f.yaml:1: must be a document"),
        (POOL.replace("AccountPool", "AccountPol"), "f.yaml:2: kind: must be one of ClaudeAccount"),
        (POOL.replace("{name: p}", "{}"), "f.yaml:3: metadata.name: is required"),
        (POOL.replace("{name: p}", "{name: P!}"), "f.yaml:3: metadata.name: must be a DNS name"),
        (POOL.replace("{name: p}", "{name: p, name: q}"), "f.yaml:3: metadata.name: is written twice"),
        (POOL.replace("metadata: {name: p}\n", ""), "f.yaml:1: metadata: is required"),
    ],
)
def test_file_whose_documents_cannot_be_told_is_incomplete(text: str, said: str) -> None:
    loaded = load_text(text, {}, "f.yaml")
    assert str(loaded.problems[0]).startswith(said)
    assert loaded.incomplete == {"f.yaml"}


def test_aliases_are_read_and_bombs_are_not() -> None:
    text = POOL + "  timeouts: {connect: &t 7s, idle: *t}\n"
    (document,) = load_text(text, {}).documents
    assert isinstance(document.resource, AccountPool)
    assert document.resource.spec.timeouts.idle == 7.0
    bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{','.join(['*' + old] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert "expands to too much" in problems(bomb)[0]


def test_size_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_text("#" * (4 * 1024 * 1024 + 1))
    loaded = load_directory(tmp_path, {})
    assert "larger than 4 MiB" in str(loaded.problems[0])


@pytest.mark.parametrize(
    ("written", "read"),
    [
        *[("yes", True), ("off", False), ("'yes'", "yes"), ("1_000", 1000), ("0x10", 16), ("010", 8), ("08", 8)],
        *[("2027-01-01", "2027-01-01"), ("12:30", "12:30"), ("5.0", 5), ("1e3", 1000), ("~", None), ("-3", -3)],
    ],
)
def test_scalars_mean_what_they_mean_to_kubectl(written: str, read: object) -> None:
    (document,) = load_text(f"{POOL}extra: {written}\n", {}).documents
    assert document.raw["extra"] == read
    assert type(document.raw["extra"]) is type(read)


def test_wrong_api_version_is_refused_by_name() -> None:
    loaded = load_text(POOL.replace("v1alpha1", "v1beta1"), {}, "f.yaml")
    assert [str(p) for p in loaded.problems] == ["f.yaml:1: apiVersion: must be signalbox.dev/v1alpha1"]
    assert loaded.documents[0].identity == Identity("AccountPool", "default", "p")
    assert loaded.incomplete == frozenset()


def test_another_programs_document_is_named_and_hurts_nothing() -> None:
    loaded = load_text("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n---\n" + POOL, {}, "f.yaml")
    assert [str(p) for p in loaded.problems] == [
        "f.yaml:1: apiVersion: apps/v1 Deployment is not read by Signalbox: keep it elsewhere"
    ]
    assert loaded.incomplete == frozenset()
    assert len(loaded.documents) == 1


def test_list_kinds_and_what_the_api_server_adds_are_accepted() -> None:
    text = """\
apiVersion: v1
kind: List
items:
- apiVersion: signalbox.dev/v1alpha1
  kind: AccountPool
  metadata:
    name: p
    uid: 0b1c
    creationTimestamp: null
    generation: 3
    resourceVersion: "77"
    managedFields: [{manager: kubectl}]
  spec: {members: {matchLabels: {}}}
  status: {conditions: []}
- apiVersion: signalbox.dev/v1alpha1
  kind: AccountPool
  metadata: {name: q}
  spec: {members: {matchLabels: {}}, strategy: Best}
"""
    loaded = load_text(text, {}, "f.yaml")
    assert [str(p) for p in loaded.problems] == [
        "f.yaml:18: items[1].spec.strategy: must be one of Headroom, Priority, RoundRobin, LeastConnections"
    ]
    assert [d.resource is not None for d in loaded.documents] == [True, False]


def test_secrets_take_text_base64_and_the_environment() -> None:
    text = """\
apiVersion: v1
kind: Secret
metadata: {name: s}
data: {a: aGVsbG8=, b: !!str d29ybGQ=}
stringData: {b: "<${ONE}-${TWO}>", c: "$ONE ${not a name}"}
"""
    (document,) = load_text(text, {"ONE": "1", "TWO": "${ONE}"}).documents
    assert isinstance(document.resource, Secret)
    assert document.resource.values() == {"a": b"hello", "b": b"<1-${ONE}>", "c": b"$ONE ${not a name}"}
    assert "hello" not in repr(document)


def test_secret_problems_name_the_place_and_never_the_value() -> None:
    text = """\
apiVersion: v1
kind: Secret
metadata: {name: s}
data: {a: not-base64-hunter2}
stringData:
  b: hunter2-${MISSING}
  c: [hunter2]
"""
    said = problems(text)
    assert said == [
        "f.yaml:4: data.a: must be base64; plain text belongs under stringData",
        "f.yaml:6: stringData.b: needs the environment variable MISSING, which is not set",
        "f.yaml:7: stringData.c: must be a string; put it in quotes",
    ]


def test_directory_is_read_as_kubectl_reads_it(tmp_path: Path) -> None:
    (tmp_path / "b.yml").write_text(POOL.replace("name: p", "name: b"))
    (tmp_path / "a.json").write_text(
        '{"apiVersion": "signalbox.dev/v1alpha1", "kind": "AccountPool",\n'
        ' "metadata": {"name": "a"}, "spec": {"members": {"matchLabels": {}}}}'
    )
    (tmp_path / "notes.txt").write_text("not: [read")
    (tmp_path / ".hidden.yaml").write_text("not: [read")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "c.yaml").write_text("not: [read")
    (tmp_path / "empty.yaml").write_text("# nothing yet\n---\n")
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbf" + POOL.replace("name: p", "name: c").encode())
    loaded = load_directory(tmp_path, {})
    assert loaded.problems == ()
    assert [d.identity.name for d in loaded.documents] == ["a", "b", "c"]


def test_unusable_files_are_reported_and_block_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"# caf\xe9\n")
    (tmp_path / "dangling.yaml").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "good.yaml").write_text(POOL)
    loaded = load_directory(tmp_path, {})
    assert [(Path(p.file).name, p.reason) for p in loaded.problems] == [
        ("dangling.yaml", "cannot be read: No such file or directory"),
        ("fifo.yaml", "is not a regular file"),
        ("folder.yaml", "is not a regular file"),
        ("latin.yaml", "is not UTF-8 text"),
    ]
    assert len(loaded.incomplete) == 4
    assert [d.identity.name for d in loaded.documents] == ["p"]


def test_missing_directory_is_an_error_rather_than_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(UnreadableDirectory, match="name a directory"):
        load_directory(tmp_path / "nowhere", {})


def test_of_two_documents_with_one_identity_the_one_in_force_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(POOL + "  strategy: Priority\n")
    (tmp_path / "b.yaml").write_text(POOL)
    first = load_directory(tmp_path, {})
    assert [Path(d.file).name for d in first.documents] == ["a.yaml"]
    assert [p.path for p in first.problems] == ["metadata.name"]
    assert "AccountPool default/p is already in" in first.problems[0].reason
    owners = {Identity("AccountPool", "default", "p"): str(tmp_path / "b.yaml")}
    again = load_directory(tmp_path, {}, owners)
    assert [Path(d.file).name for d in again.documents] == ["b.yaml"]


def test_unchanged_files_are_not_parsed_again(tmp_path: Path) -> None:
    one, two = tmp_path / "1.yaml", tmp_path / "2.yaml"
    one.write_text(POOL.replace("name: p", "name: a"))
    two.write_text(POOL.replace("name: p", "name: b"))
    cache = FileCache()
    first = load_directory(tmp_path, {}, cache=cache)
    two.write_text(POOL.replace("name: p", "name: c"))
    second = load_directory(tmp_path, {}, cache=cache)
    assert [d.identity.name for d in second.documents] == ["a", "c"]
    assert second.documents[0] is first.documents[0]
    two.unlink()
    two.write_text("a: [")
    assert load_directory(tmp_path, {}, cache=cache).incomplete == {str(two)}
    two.unlink()
    assert [d.identity.name for d in load_directory(tmp_path, {}, cache=cache).documents] == ["a"]


def test_accounts_of_two_namespaces_may_share_a_name() -> None:
    one = (EXAMPLES / "1-account.yaml").read_text()
    two = one.replace("  name: acme\n", "  name: acme\n  namespace: other\n")
    loaded = load_text(f"{one}\n---\n{two}", ENV)
    assert loaded.problems == ()
    assert sum(isinstance(d.resource, ClaudeAccount) for d in loaded.documents) == 2


@given(st.text(max_size=200))
def test_no_text_breaks_the_loader(text: str) -> None:
    for attempt in (text, POOL + text, f"{POOL}---\n{text}"):
        loaded = load_text(attempt, {}, "f.yaml")
        for problem in loaded.problems:
            assert problem.reason


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=8) | st.sampled_from(["limits", "per", "pools", "models"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_no_value_breaks_the_judge(value: object) -> None:
    key = {"apiVersion": "signalbox.dev/v1alpha1", "kind": "RelayKey", "metadata": {"name": "x"}, "spec": {}}
    for raw in (value, *({**key, part: value} for part in key)):
        read_document(raw)
        load_text(json.dumps(raw), {})
