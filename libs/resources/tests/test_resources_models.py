"""What is a good document and what is not: the table of bad ones, boundary values, and what is read from them."""

import contextlib
import copy
import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signalbox.resources.models import ClaudeAccount, RelayKey
from signalbox.resources.reading import Document, read_document
from signalbox.resources.schema import crd_schema
from signalbox.resources.testing import BAD, GOOD, HASH, REF, Bad
from signalbox.resources.values import format_duration, parse_duration, parse_money, parse_network, parse_time


def read(kind: str, **changes: Any) -> Document:
    raw = {
        "apiVersion": "signalbox.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": "x"},
        "spec": {**copy.deepcopy(GOOD[kind]), **changes},
    }
    document = read_document(raw)
    assert isinstance(document, Document)
    return document


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_bad_document_is_refused_at_its_path(bad: Bad) -> None:
    document = read_document(bad.document())
    assert isinstance(document, Document)
    assert document.resource is None
    assert [(p.path, p.reason) for p in document.problems if p.path == bad.path and bad.words in p.reason], [
        str(p) for p in document.problems
    ]


@pytest.mark.parametrize("kind", GOOD)
def test_the_documents_that_the_table_changes_are_good(kind: str) -> None:
    assert read(kind).problems == ()


class Refused(Exception):
    def __init__(self, path: str, keyword: str) -> None:
        super().__init__(f"{path}: {keyword}")
        self.path = path


def check(value: Any, schema: dict[str, Any], path: str) -> None:
    """What an API server does with a structural schema, but for CEL. Raises Refused with the path."""
    types = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
    kind = schema.get("type")
    if kind and (not isinstance(value, types[kind]) or (isinstance(value, bool) and kind == "integer")):
        raise Refused(path, "type")
    if schema.get("x-kubernetes-int-or-string") and (not isinstance(value, int | str) or isinstance(value, bool)):
        raise Refused(path, "int-or-string")
    if isinstance(value, str):
        if "pattern" in schema and not re.search(schema["pattern"], value):
            raise Refused(path, "pattern")
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**6):
            raise Refused(path, "length")
        if value not in schema.get("enum", [value]):
            raise Refused(path, "enum")
    if isinstance(value, int) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        raise Refused(path, "range")
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**6):
            raise Refused(path, "items")
        for index, item in enumerate(value):
            check(item, schema["items"], f"{path}[{index}]")
    if isinstance(value, dict):
        if len(value) > schema.get("maxProperties", 10**6):
            raise Refused(path, "properties")
        for key, inner in value.items():
            inside = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
            if inside is None:
                raise Refused(f"{path}.{key}", "unknown")
            check(inner, inside, f"{path}.{key}")
        for key in schema.get("required", []):
            if key not in value:
                raise Refused(f"{path}.{key}", "required")


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_the_schema_refuses_the_same_documents_at_the_same_paths(bad: Bad) -> None:
    schema = crd_schema(bad.kind)["properties"]["spec"]
    if bad.crossing:
        check(bad.document()["spec"], schema, "spec")  # types and bounds are fine; a rule in CEL is broken
        return
    with pytest.raises(Refused) as refused:
        check(bad.document()["spec"], schema, "spec")
    assert refused.value.path == bad.path


def _nodes(schema: dict[str, Any], path: str = "") -> Any:
    yield path, schema
    for key, inner in schema.get("properties", {}).items():
        yield from _nodes(inner, f"{path}.{key}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from _nodes(schema[key], f"{path}[]")


@pytest.mark.parametrize("kind", GOOD)
def test_the_schema_is_structural_bounded_and_described(kind: str) -> None:
    for path, node in _nodes(crd_schema(kind)):
        assert not {"$ref", "anyOf", "allOf", "default", "title", "propertyNames", "nullable"} & set(node), path
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        assert node.get("type") != "array" or "maxItems" in node, path
        assert "additionalProperties" not in node or "maxProperties" in node, path
        bounded = {"maxLength", "enum"} & set(node) or path in (".apiVersion", ".kind")
        assert node.get("type") != "string" or bounded, path
        if path.startswith(".spec") and not path.endswith("[]"):
            assert node.get("description"), path
        for rule in node.get("x-kubernetes-validations", []):
            assert rule["message"], path
            blamed = node
            for part in rule.get("fieldPath", "").split(".")[1:]:
                blamed = blamed["properties"][part]


def test_every_violation_is_reported_at_once() -> None:
    document = read("RelayKey", state="Off", concurrency=0, limits=[{"per": "Day"}], ownr="x")
    assert {p.path for p in document.problems} == {
        "spec.state",
        "spec.concurrency",
        "spec.limits[0]",
        "spec.ownr",
    }


def test_boundary_values_are_good() -> None:
    account = read("ClaudeAccount", priority=1000, weight=1, models={"allow": ["g" * 128] * 64})
    key = read(
        "RelayKey",
        limits=[{"per": "Day", "models": [f"m{n}"], "costUSD": "9000000"} for n in range(15)]
        + [{"per": "Total", "costUSD": "0.000000001"}],
        sourceCIDRs=["0.0.0.0/0", "::/0", "10.1.2.3/8"],
    )
    pool = read("AccountPool", members={"accounts": ["a"] * 256}, failover={"maxAttempts": 10})
    assert (account.problems, key.problems, pool.problems) == ((), (), ())


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8080",
        "http://127.0.0.1:1234/x",
        "http://[::1]:80",
        "http://mock.test.svc",
        "http://mock.test.svc.cluster.local:8080/v1",
        "https://anything.example.com",
    ],
)
def test_plain_http_goes_to_this_machine_and_this_cluster(url: str) -> None:
    assert read("ClaudeAccount", baseURL=url).problems == ()


@pytest.mark.parametrize("port", ["0", "080", "65536", "99999", "100000"])
def test_a_port_that_no_connection_has_is_refused(port: str) -> None:
    (problem,) = read("ClaudeAccount", baseURL=f"https://api.example.com:{port}/v1").problems
    assert problem.path == "spec.baseURL"
    assert read("ClaudeAccount", baseURL="https://api.example.com:65535/v1").problems == ()


def test_plain_http_goes_anywhere_on_request() -> None:
    assert read("ClaudeAccount", baseURL="http://api.example.com", allowInsecure=True).problems == ()


def test_values_are_read_into_units() -> None:
    key = read(
        "RelayKey",
        lifetime={"duration": "1h30m"},
        alsoAccept=[{"keyHash": HASH, "until": "2027-01-01T02:00:00+02:00"}],
        limits=[{"per": "Day", "costUSD": "20.5"}, {"per": "Week", "costUSD": 3}],
    ).resource
    assert isinstance(key, RelayKey)
    assert key.spec.lifetime is not None
    assert key.spec.lifetime.duration == 5400.0
    assert key.spec.also_accept[0].until == datetime(2027, 1, 1, tzinfo=UTC)
    assert [limit.cost_usd for limit in key.spec.limits] == [20_500_000_000, 3_000_000_000]


def test_limits_without_a_name_are_named_by_period_and_models() -> None:
    long = [f"claude-model-number-{n}" for n in range(9)]
    key = read(
        "RelayKey",
        limits=[
            {"per": "Minute", "requests": 1},
            {"per": "Week", "models": ["b-*", "a-*"], "requests": 1},
            {"per": "Day", "models": long, "requests": 1},
            {"name": "mine", "per": "Day", "requests": 1},
        ],
    ).resource
    assert isinstance(key, RelayKey)
    names = [limit.effective_name for limit in key.spec.limits]
    assert names[:2] + names[3:] == ["minute", "week:a-*,b-*", "mine"]
    assert names[2].startswith("day:")
    assert len(names[2]) <= 63


@pytest.mark.parametrize(
    ("provider", "credential", "url"),
    [
        ("Anthropic", {"apiKey": {"secretRef": REF}}, "https://api.anthropic.com"),
        (
            "Bedrock",
            {"bedrock": {"region": "eu-west-1", "bearerTokenRef": REF}},
            "https://bedrock-runtime.eu-west-1.amazonaws.com",
        ),
        (
            "Vertex",
            {"vertex": {"projectID": "p", "region": "europe-west1"}},
            "https://europe-west1-aiplatform.googleapis.com",
        ),
        ("Vertex", {"vertex": {"projectID": "p", "region": "global"}}, "https://aiplatform.googleapis.com"),
        (
            "Foundry",
            {"foundry": {"resource": "acme", "apiKeyRef": REF}},
            "https://acme.services.ai.azure.com/anthropic",
        ),
    ],
)
def test_each_provider_has_an_address(provider: str, credential: dict[str, Any], url: str) -> None:
    account = read("ClaudeAccount", provider=provider, credential=credential).resource
    assert isinstance(account, ClaudeAccount)
    assert account.spec.upstream_url == url


@pytest.mark.parametrize("kind", GOOD)
def test_round_trip_through_the_document_notation(kind: str) -> None:
    first = read(kind).resource
    assert first is not None
    raw = {"apiVersion": "signalbox.dev/v1alpha1", "kind": kind, **first.to_document()}
    again = read_document(json.loads(json.dumps(raw)))
    assert isinstance(again, Document)
    assert again.resource == first


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5.0), ("100ms", 0.1), ("1h30m", 5400.0), ("720h", 2_592_000.0), ("1.5s", 1.5), ("2s500ms", 2.5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.integers(min_value=1, max_value=87_600 * 3_600_000))
def test_durations_survive_writing_and_reading(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.integers(min_value=0, max_value=9_000_000 * 10**9))
def test_money_is_exact(nano: int) -> None:
    whole, fraction = divmod(nano, 10**9)
    assert parse_money(f"{whole}.{fraction:09d}") == nano


@given(st.text(max_size=30))
def test_no_text_breaks_the_parsers(text: str) -> None:
    for parse in (parse_duration, parse_money, parse_time, parse_network):
        with contextlib.suppress(ValueError):
            assert parse(text) is not None


def test_a_list_of_bad_entries_is_not_called_short() -> None:
    [problem] = read("RelayKey", pools=["a/b/c"]).problems
    assert problem.path == "spec.pools[0]"
