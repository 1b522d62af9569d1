"""The custom resources at a real API server: what it refuses, what it keeps, what `kubectl get` shows."""

import copy
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from signalbox.resources.testing import BAD, GOOD, HASH, OAUTH, REF
from tests.support.kube import SOON_S, Api, Document, Refusal, within

EXAMPLES = Path(__file__).resolve().parents[2] / "deploy" / "examples"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "kubernetes.md"
SIGNALBOX = str(Path(sys.executable).parent / "signalbox")


def document(kind: str, spec: Document, name: str = "good", namespace: str = "default") -> Document:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "signalbox.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


# ---------------------------------------------------------------------- what is refused


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> dict[int, set[str]]:
    """The paths that `signalbox check` blames in each bad document, by its number in the table."""
    directory = tmp_path_factory.mktemp("bad")
    for number, bad in enumerate(BAD):
        named = {**bad.document(), "metadata": {"name": f"bad-{number}"}}
        (directory / f"{number:03}.yaml").write_text(yaml.safe_dump(named))
    result = subprocess.run([SIGNALBOX, "check", str(directory)], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    paths: dict[int, set[str]] = {}
    for line in (result.stdout + result.stderr).splitlines():
        if found := re.match(r".*/(\d{3})\.yaml:\d+: ([^ :]+): ", line):
            paths.setdefault(int(found[1]), set()).add(found[2])
    return paths


@pytest.mark.parametrize("number", range(len(BAD)), ids=lambda number: str(BAD[number]))
def test_a_bad_document_is_refused_for_the_same_path_by_both(api: Api, checked: dict[int, set[str]], number: int) -> None:
    bad = BAD[number]
    assert bad.path in checked[number]
    if None in bad.spec.values():
        assert bad.path.removeprefix("spec.") not in api.create(bad.document(), dry_run=True)["spec"]
        return  # an API server drops null before it validates
    with pytest.raises(Refusal) as refused:
        api.create(bad.document(), dry_run=True)
    assert refused.value.code in (400, 422)
    blamed = _blamed(refused.value)
    assert bad.path in blamed, (blamed, str(refused.value))
    assert blamed <= checked[number], (checked[number], str(refused.value))


def _blamed(refusal: Refusal) -> set[str]:
    """Return the paths that the API server names, in its causes or (unknown fields, wrong types) in its message."""
    named = {_plain(path) for path, _ in refusal.causes if path not in ("", "<nil>")}
    named |= set(re.findall(r'unknown field "([^"]+)"', str(refusal)))
    return named


def _plain(path: str) -> str:
    """Return a path with map keys after dots, as documents' paths are written."""
    return re.sub(r"\[([^\d\]][^\]]*)\]", r".\1", path)


def test_messages_say_what_to_do(api: Api) -> None:
    bad = next(b for b in BAD if b.path == "spec.provider" and "match" in b.words)
    with pytest.raises(Refusal, match="apiKey, oauth and federation belong to Anthropic"):
        api.create(bad.document(), dry_run=True)


def test_a_provider_cannot_be_changed(api: Api, ns: str) -> None:
    account = document("ClaudeAccount", GOOD["ClaudeAccount"], namespace=ns)
    api.create(account)
    credential = {"foundry": {"resource": "r", "apiKeyRef": REF}}
    with pytest.raises(Refusal, match="delete the account and create it anew"):
        api.merge("ClaudeAccount", "good", {"spec": {"provider": "Foundry", "credential": {"apiKey": None, **credential}}}, ns)


def test_unknown_fields_are_refused(api: Api) -> None:
    with pytest.raises(Refusal, match="unknown field"):
        api.create(document("RelayKey", {**GOOD["RelayKey"], "onwer": "x"}), dry_run=True)


# ---------------------------------------------------------------------- what is kept


MANY = [f"m{n}" for n in range(64)]
FULL: list[tuple[str, Document]] = [
    ("ClaudeAccount", {
        **GOOD["ClaudeAccount"], "baseURL": "https://api.anthropic.com", "allowInsecure": False, "state": "Draining",
        "stateReason": "x" * 256, "priority": 1000, "weight": 1, "maxConcurrency": 1_000_000,
        "limits": [
            {"per": per, "requests": 0, "inputTokens": 9_000_000_000_000_000, "outputTokens": 1}
            for per in ("Minute", "Hour", "Day", "Week", "Month")
        ],
        "limitGroup": "g", "models": {"allow": MANY, "deny": ["*"], "map": {f"m{n}": "x" * 128 for n in range(64)}},
        "proxy": {"urlRef": REF}, "expiresAt": "2027-01-01T00:00:00.5+01:00",
    }),
    ("ClaudeAccount", {"provider": "Anthropic", "credential": {"oauth": {
        **OAUTH, "clientSecretRef": REF, "scopes": MANY, "headers": {"x-a": "b"},
        "tokenURL": "https://h/" + "x" * 2038, "authorizationURL": "https://h/authorize",
    }}}),
    ("ClaudeAccount", {"provider": "Anthropic", "credential": {"federation": {
        "tokenURL": "http://tokens.team.svc:8080/t", "organizationID": "o", "federationRuleID": "f",
        "serviceAccountID": "s", "workspaceID": "w", "identityTokenFile": "/var/run/secrets/signalbox/tokens/a",
    }}}),
    ("ClaudeAccount", {"provider": "Bedrock", "credential": {"bedrock": {
        "region": "us-east-1", "roleARN": "arn:aws:iam::1:role/a", "webIdentityTokenFile": "/t",
    }}}),
    ("ClaudeAccount", {"provider": "Bedrock", "credential": {"bedrock": {
        "region": "eu-central-1", "accessKeyRef": REF, "secretKeyRef": REF,
    }}}),
    ("ClaudeAccount", {"provider": "Bedrock", "credential": {"bedrock": {"region": "us-east-1", "bearerTokenRef": REF}}}),
    ("ClaudeAccount", {"provider": "Vertex", "credential": {"vertex": {
        "projectID": "p", "region": "global", "serviceAccountRef": REF,
    }}}),
    ("ClaudeAccount", {"provider": "Foundry", "credential": {"foundry": {"resource": "r", "apiKeyRef": REF}}}),
    ("ClaudeAccount", {**GOOD["ClaudeAccount"], "baseURL": "http://anywhere.example.com", "allowInsecure": True}),
    ("AccountPool", {
        "members": {"accounts": [f"a{n}" for n in range(256)]},
        "allowedNamespaces": {"from": "Selector", "matchLabels": {"kubernetes.io/metadata.name": "x", "e": ""}},
        "strategy": "RoundRobin", "affinity": {"mode": "None", "ttl": "87600h", "onUnavailable": "Refuse"},
        "failover": {"maxAttempts": 10, "fallbackPools": ["a/b", "c"]}, "queue": {"maxWait": "1ms", "maxDepth": 0},
        "timeouts": {"connect": "1.5s", "headers": "1h30m", "headersUnstreamed": "1m1s500ms", "firstContent": "1s",
                     "idle": "1s", "total": "1h"},
    }),
    ("AccountPool", {"members": {"matchLabels": {}}}),
    ("RelayKey", {
        **GOOD["RelayKey"], "alsoAccept": [{"keyHash": HASH, "until": "2027-01-01T00:00:00Z"}],
        "pools": ["default", "platform/shared"], "state": "Paused", "lifetime": {"duration": "720h"},
        "models": {"allow": ["claude-*"], "deny": ["claude-opus-?"]},
        "clients": {"allow": ["ClaudeCode", "Codex", "GeminiCLI", "AnthropicSDK", "OpenAISDK"]},
        "sourceCIDRs": ["10.0.0.0/8", "2001:db8::/32", "0.0.0.0/0"], "concurrency": 1,
        "limits": [
            {"name": "a", "per": "Minute", "requests": 0, "tokens": 0, "costUSD": 9_000_000},
            {"per": "Day", "models": ["claude-opus-*"], "costUSD": "0.000000001", "admission": "Strict"},
            {"per": "Total", "costUSD": "9000000.000000000", "since": "2026-01-01T00:00:00Z"},
            *({"per": "Week", "models": [*MANY[:63], f"x{n}"], "requests": 1} for n in range(13)),
        ],
    }),
    ("RelayKey", {"secretRef": REF, "expiresAt": "2027-01-01T00:00:00Z"}),
]


def test_the_good_documents_leave_no_field_out(api: Api) -> None:
    for kind in GOOD:
        definition = api.get("CustomResourceDefinition", f"{kind.lower()}s.signalbox.dev")
        schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        used = set().union(*(_fields_used(schema, spec) for k, spec in FULL if k == kind))
        assert _fields(schema) - used == set()


def _fields(schema: Document, path: str = "spec") -> set[str]:
    """Return the path of every field that a schema has."""
    inner = {f"{path}.{name}": part for name, part in schema.get("properties", {}).items()}
    if "items" in schema:
        inner[f"{path}[]"] = schema["items"]
    return {path}.union(*(_fields(part, name) for name, part in inner.items()))


def _fields_used(schema: Document, value: Any, path: str = "spec") -> set[str]:
    """Return those that a document has."""
    used = {path}
    for name, part in schema.get("properties", {}).items():
        if name in value:
            used |= _fields_used(part, value[name], f"{path}.{name}")
    for each in value if "items" in schema else ():
        used |= _fields_used(schema["items"], each, f"{path}[]")
    return used


@pytest.mark.parametrize("number", range(len(FULL)))
def test_a_good_document_is_kept_as_it_was_applied(api: Api, ns: str, number: int) -> None:
    kind, spec = FULL[number]
    good = document(kind, copy.deepcopy(spec), namespace=ns)
    assert api.apply(good)["spec"] == spec, "something was injected, dropped or rewritten"

    def is_no_change() -> bool:
        """Whether applying twice leaves one version: a first status, stored or written in between, makes another."""
        first, again = api.apply(good), api.apply(good)
        assert again["metadata"]["generation"] == 1
        return bool(first["metadata"]["resourceVersion"] == again["metadata"]["resourceVersion"])

    within(SOON_S, is_no_change, what="applying again changes nothing")
    assert api.apply(good, "another-manager")["spec"] == spec


def test_two_managers_that_apply_do_not_fight(api: Api, ns: str) -> None:
    """GitOps applies the document; a person pauses it by another manager; each keeps its own fields."""
    key = document("RelayKey", GOOD["RelayKey"], namespace=ns)
    api.apply(key, "gitops")
    patch = {"apiVersion": key["apiVersion"], "kind": "RelayKey", "metadata": key["metadata"], "spec": {"state": "Paused"}}
    api.apply(patch, "person")
    after = api.apply(key, "gitops")
    assert after["spec"] == {**GOOD["RelayKey"], "state": "Paused"}
    with pytest.raises(Refusal, match="conflict"):
        api.apply({**patch, "spec": {"owner": "somebody@example.com"}}, "person")


def test_conditions_are_there_before_the_operator_has_looked(api: Api, ns: str) -> None:
    made = api.create(document("ClaudeAccount", GOOD["ClaudeAccount"], namespace=ns))
    states = {c["type"]: (c["status"], c["reason"]) for c in made["status"]["conditions"]}
    assert states == dict.fromkeys(("Ready", "CredentialValid", "Available", "Accepted"), ("Unknown", "Pending"))


def test_status_is_a_part_of_its_own(api: Api, ns: str) -> None:
    with_status = {**document("RelayKey", GOOD["RelayKey"], namespace=ns), "status": {"expiresAt": "2027-01-01T00:00:00Z"}}
    assert "expiresAt" not in api.create(with_status)["status"]
    before = api.get("RelayKey", "good", ns)
    changed = {"status": {"observedGeneration": 1}, "spec": {"owner": "x"}}
    after = api.merge("RelayKey", "good", changed, ns, part="status")
    assert after["spec"] == before["spec"]
    assert after["metadata"]["generation"] == before["metadata"]["generation"]


def test_what_kubectl_get_shows(api: Api, ns: str) -> None:
    for kind in GOOD:
        api.create(document(kind, GOOD[kind], namespace=ns))
    shown = {kind: [c.lower() for c in api.table(kind, ns)[0]] for kind in GOOD}
    assert shown == {
        "ClaudeAccount": ["name", "provider", "ready", "reason", "limited until", "in flight", "age"],
        "AccountPool": ["name", "strategy", "accounts", "age"],
        "RelayKey": ["name", "owner", "ready", "reason", "expires", "age"],
    }
    # Other tests may have installed definitions of others in the same cluster.
    specs = [crd["spec"] for crd in api.list("CustomResourceDefinition", None)]
    names = [spec["names"] for spec in specs if spec["group"] == "signalbox.dev"]
    assert {(n["kind"], *n["shortNames"], *n["categories"]) for n in names} == {
        ("ClaudeAccount", "cla", "signalbox"), ("AccountPool", "clp", "signalbox"), ("RelayKey", "rk", "signalbox"),
    }


def test_fields_can_be_selected_by(api: Api, ns: str) -> None:
    for name, spec in (("a", {"state": "Paused"}), ("b", {})):
        api.create(document("RelayKey", {**GOOD["RelayKey"], **spec}, name, ns))
    found = api.list("RelayKey", ns, fieldSelector="spec.state=Paused")
    assert [key["metadata"]["name"] for key in found] == ["a"]
    assert len(api.list("RelayKey", ns, fieldSelector="spec.owner=ada@example.com")) == 2
    api.create(document("AccountPool", {**GOOD["AccountPool"], "strategy": "Priority"}, namespace=ns))
    api.create(document("ClaudeAccount", {**GOOD["ClaudeAccount"], "limitGroup": "g"}, namespace=ns))
    for kind, field, value, other in (
        ("AccountPool", "strategy", "Priority", "Headroom"), ("ClaudeAccount", "provider", "Anthropic", "Vertex"),
        ("ClaudeAccount", "limitGroup", "g", "h"),
    ):
        assert len(api.list(kind, ns, fieldSelector=f"spec.{field}={value}")) == 1
        assert api.list(kind, ns, fieldSelector=f"spec.{field}={other}") == []


# ---------------------------------------------------------------------- the examples


def _examples() -> Iterator[Any]:
    for file in sorted(EXAMPLES.glob("*.yaml")):
        for number, example in enumerate(yaml.safe_load_all(file.read_text())):
            yield pytest.param(example, id=f"{file.stem}-{number}")
    for number, fence in enumerate(re.findall(r"^( *)```yaml\n(.*?)^ *```$", PAGE.read_text(), re.M | re.S)):
        for example in yaml.safe_load_all(textwrap.dedent(fence[1])):
            if "apiVersion" in example:
                yield pytest.param(example, id=f"{PAGE.stem}-{number}")


@pytest.mark.parametrize("example", list(_examples()))
def test_the_examples_can_be_applied(api: Api, example: Document) -> None:
    namespace = example["metadata"].get("namespace")
    if namespace is not None:
        api.namespace(namespace)
    api.apply(_as_json(example), "examples", force=True)
    name = example["metadata"]["name"]
    assert within(SOON_S, lambda: api.get(example["kind"], name, namespace or "default"))


def _as_json(value: Any) -> Any:
    """Return YAML's timestamps as the text that kubectl sends."""
    if isinstance(value, dict):
        return {key: _as_json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_as_json(inner) for inner in value]
    return value.isoformat().replace("+00:00", "Z") if hasattr(value, "isoformat") else value


