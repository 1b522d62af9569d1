"""What documents mean and when they take effect, seen by callers: pools, keys, limits, pins, states, last good versions.

One relay holds every document that does not change; what changes has a document of its own. Which error code has
which status and headers is test_contract_http.py's business.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.caller import Caller, eventually
from tests.support.instance import Instance, account, pool, relay_key, secret
from tests.support.sim import Simulator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

IN_FORCE_S = 2.0   # the contract's bound on a revocation; every other change is held to it too
SLACK_S = 3.0
ACCOUNTS = ("a", "b", "c", "full", "mapped", "opus", "paused", "draining", "expired", "ill", "still", "calm", "x", "y", "z")
PAST = "2020-01-01T00:00:00Z"

_numbers = itertools.count()


def text_of(name: str) -> str:
    """Return the text of the relay key that a document `name` stands for."""
    return f"contract-relay-key-{name}"


def digest(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def key(name: str, **spec: Any) -> list[dict[str, Any]]:
    return [secret(f"key-{name}", **{"text": text_of(name)}),
            relay_key(name, **{"secretRef": {"name": f"key-{name}", "key": "text"}, **spec})]


class World:
    """The relay, its provider, and how to change documents."""

    def __init__(self, directory: Path) -> None:
        self.sim = Simulator({"accounts": [{"name": name, "key": f"sk-ant-contract-{name}"} for name in ACCOUNTS]}).start()
        self.instance = Instance(directory, [*self._accounts(), *POOLS, *KEYS], environment={"CONTRACT_KEY": text_of("env")})

    def _accounts(self) -> list[dict[str, Any]]:
        specs: dict[str, dict[str, Any]] = {
            "full": {"maxConcurrency": 1},
            "mapped": {"models": {"map": {"claude-sonnet-latest": "claude-sonnet-5-5"}}},
            "opus": {"models": {"allow": ["claude-opus-*"], "deny": ["claude-opus-4-1*"]}},
            "paused": {"state": "Paused", "stateReason": "on holiday"},
            "draining": {"state": "Draining"},
            "expired": {"expiresAt": PAST},
        }
        documents = [account(name, self.sim.url, **specs.get(name, {})) for name in ACCOUNTS]
        documents += [secret(name, **{"api-key": f"sk-ant-contract-{name}"}) for name in ACCOUNTS]
        bedrock = account("later", self.sim.url)
        bedrock["spec"] = {"provider": "Bedrock", "credential": {"bedrock": {"region": "eu-central-1", "bearerTokenRef": {"name": "a", "key": "api-key"}}}}
        return [*documents, bedrock]

    def caller(self, name: str) -> Caller:
        return Caller(self.instance.url, text_of(name))

    def served_by(self, name: str, **request: Any) -> str:
        """Send one request with a key and return the account that the provider saw, "" where it saw none."""
        before = self.last_seq()
        answer = self.caller(name).send(f"Hello {next(_numbers)}", **request)
        if answer.status != 200:
            return answer.code
        return str(self.sim.truth(since=before)[-1]["account"])

    def last_seq(self) -> int:
        rows = self.sim.truth(path=None)
        return int(rows[-1]["seq"]) if rows else 0

    def state_of(self, plural: str, name: str) -> dict[str, Any]:
        return dict(next(row for row in self.instance.json(plural, "list") if row["name"] == name))


POOLS = [
    pool("default", ["a", "b"]),
    pool("only-a", ["a"]),
    pool("only-full", ["full"], queue={"maxWait": "1s", "maxDepth": 1}),
    pool("only-mapped", ["mapped"]),
    pool("only-opus", ["opus"]),
    pool("only-paused", ["paused", "expired", "later"], failover={"fallbackPools": ["only-b"]}),
    pool("only-b", ["b"]),
    pool("at-rest", ["paused", "expired", "later"]),
    pool("only-draining", ["draining"]),
    pool("only-ill", ["ill"], failover={"maxAttempts": 1}),
    pool("moving", ["x", "y", "z"]),
    pool("staying", ["still", "calm"], affinity={"mode": "Session", "onUnavailable": "Refuse"}),
    pool("nobody", ["missing"]),
]
WINDOWS = ("Minute", "Hour", "Day", "Week", "Month", "Total")
KEYS = [
    document
    for documents in (
        key("ada"), key("a-then-b", pools=["only-a", "only-b"]), key("ill-then-b", pools=["only-paused", "only-b"]),
        key("fallback", pools=["only-paused"]), key("rest", pools=["at-rest"]), key("mapped", pools=["only-mapped"]),
        key("opus", pools=["only-opus"]), key("drain", pools=["only-draining"]), key("ill", pools=["only-ill"]),
        key("full", pools=["only-full"]), key("moving", pools=["moving"]), key("staying", pools=["staying"]),
        key("nobody", pools=["nobody"]), key("paused", state="Paused"), key("expired", expiresAt=PAST),
        key("foreign", pools=["elsewhere/pool"]), key("models", models={"allow": ["claude-*"], "deny": ["claude-opus-*"]}),
        key("clients", clients={"allow": ["ClaudeCode"]}), key("source", sourceCIDRs=["10.0.0.0/8"]),
        key("local", sourceCIDRs=["127.0.0.0/8"]), key("one", concurrency=1),
        key("brief", lifetime={"duration": "2s"}),
        *(key(f"per-{per.lower()}", limits=[{"per": per, "requests": 2}]) for per in WINDOWS),
        key("opus-limit", limits=[{"per": "Day", "models": ["claude-opus-*"], "requests": 1}]),
    )
    for document in documents
] + [
    {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key-env"}, "stringData": {"text": "${CONTRACT_KEY}"}},
    relay_key("env", secretRef={"name": "key-env", "key": "text"}),
    relay_key("twin-a", secretRef={"name": "key-ada", "key": "text"}),   # `ada` comes first by name
    {**relay_key("hashed"), "spec": {"owner": "ada", "keyHash": digest(text_of("hashed")), "alsoAccept": [
        {"keyHash": digest(text_of("former")), "until": "2099-01-01T00:00:00Z"}, {"keyHash": digest(text_of("gone")), "until": PAST}]}},
]


STATES: dict[tuple[str, str], dict[str, Any]] = {
    ("accounts", "a"): {"state": "Active", "available": True, "reason": "", "provider": "Anthropic"},
    ("accounts", "paused"): {"state": "Paused", "state_reason": "on holiday", "available": False},
    ("accounts", "draining"): {"state": "Draining"},
    ("accounts", "expired"): {"available": False, "reason": "Expired"},
    ("accounts", "later"): {"provider": "Bedrock", "available": False, "reason": "NotImplemented"},
    ("pools", "moving"): {"strategy": "Headroom", "accounts": {"Ready": 3}},
    ("pools", "at-rest"): {"accounts": {"NotReady": 2, "Paused": 1}},
    ("keys", "ada"): {"state": "Active", "owner": "ada@example.com", "reason": ""},
    ("keys", "paused"): {"state": "Paused"},
    ("keys", "expired"): {"state": "Expired"},
    ("keys", "twin-a"): {"state": "DuplicateKey", "reason": "DuplicateKey"},
    ("keys", "foreign"): {"reason": "PoolNotAllowed"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("documents"))
    try:
        with made.instance:
            yield made
    finally:
        made.sim.stop()


# ---------------------------------------------------------------------------------------------- who serves

@pytest.mark.parametrize(("name", "request_", "account_"), [
    ("a-then-b", {}, "a"), ("ill-then-b", {}, "b"), ("fallback", {}, "b"),
    ("rest", {}, "pool_unavailable"), ("drain", {}, "pool_unavailable"), ("nobody", {}, "pool_empty"),
    ("opus", {"model": "claude-opus-5-5"}, "opus"), ("opus", {}, "no_account_for_model"),
    ("opus", {"model": "claude-opus-4-1-20250805"}, "no_account_for_model"), ("mapped", {"model": "claude-sonnet-latest"}, "mapped"),
    ("paused", {}, "key_paused"), ("expired", {}, "key_expired"), ("foreign", {}, "pool_not_allowed"), ("source", {}, "source_not_allowed"),
    ("local", {}, "a|b"), ("clients", {}, "client_not_allowed"), ("clients", {"headers": {"user_agent": "claude-cli/2.1.0 (external, cli)"}}, "a|b"),
    ("models", {"model": "claude-opus-5-5"}, "model_not_allowed"), ("models", {}, "a|b"), ("models", {"model": "gpt-5"}, "model_not_allowed"),
    ("env", {}, "a|b"), ("hashed", {}, "a|b"), ("former", {}, "a|b"), ("gone", {}, "key_invalid"),
])
def test_who_serves_a_key(world: World, name: str, request_: dict[str, Any], account_: str) -> None:
    assert world.served_by(name, **request_) in account_.split("|")


def test_a_mapped_model_is_sent_under_its_own_name(world: World) -> None:
    before = world.last_seq()
    assert world.caller("mapped").send(model="claude-sonnet-latest").status == 200
    assert world.sim.truth(since=before)[-1]["model"] == "claude-sonnet-5-5"
    listed = {model["id"] for model in world.caller("mapped").get("/v1/models?limit=1000").json["data"]}
    assert "claude-sonnet-latest" in listed
    assert world.caller("mapped").get("/v1/models/claude-sonnet-latest").json["id"] == "claude-sonnet-latest"
    assert {m["id"] for m in world.caller("opus").get("/v1/models?limit=1000").json["data"]} <= {m for m in listed if m.startswith("claude-opus-")}


def test_an_account_of_the_provider_that_fails_is_not_the_callers_business(world: World) -> None:
    world.sim.script(standing={"status": 401}, account="ill")
    assert world.served_by("ill") == "pool_unavailable"
    row = eventually(lambda: world.state_of("accounts", "ill"), within_s=IN_FORCE_S + SLACK_S, wanted=lambda r: not r["available"])
    assert row["reason"] == "CredentialInvalid"


def test_states_as_the_lists_show_them(world: World) -> None:
    listed = {(plural, row["name"]): row for plural in ("accounts", "pools", "keys") for row in world.instance.json(plural, "list")}
    for (plural, name), fields in STATES.items():
        assert {field: listed[plural, name][field] for field in fields} == fields, (plural, name)


def test_an_account_without_a_credential_says_why_it_cannot_be_tested(world: World) -> None:
    done = world.instance.run("accounts", "test", "later", check=False)
    assert done.returncode == 1
    assert "default/later has no credential to test: NotImplemented, " in done.stderr


# ---------------------------------------------------------------------------------------------- limits

@pytest.mark.parametrize("per", WINDOWS)
def test_requests_are_counted_exactly_over_each_period(world: World, per: str) -> None:
    name = f"per-{per.lower()}"
    with ThreadPoolExecutor(6) as callers:
        answers = list(callers.map(lambda n: world.caller(name).send(f"{name} {n}"), range(6)))
    assert sorted(a.code for a in answers) == ["", "", *["key_limit_requests"] * 4]
    denied = next(a for a in answers if a.code)
    if per == "Total":
        assert "retry-after" not in denied.headers   # it never will pass
    else:
        longest = {"Minute": 61, "Hour": 3660, "Day": 86400, "Week": 7 * 86400, "Month": 31 * 86400}[per]
        assert 1 <= int(denied.headers["retry-after"]) <= longest
    assert denied.headers["anthropic-ratelimit-requests-limit"] == "2"
    assert denied.headers["anthropic-ratelimit-requests-remaining"] == "0"
    info = world.caller(name).get("/v1/key-info")
    assert info.status == 200
    assert info.json["limits"][0]["per"] == per
    assert info.json["limits"][0]["requests"] == {"limit": 2, "used": 2, "reserved": 0}
    assert world.state_of("keys", name)["state"] == "Limited"
    assert world.caller(name).ask("POST", "/v1/messages/count_tokens", {"model": "claude-sonnet-5-5", "messages": []}).code == ""


def test_a_limit_of_some_models_counts_only_these(world: World) -> None:
    assert [world.served_by("opus-limit", model=m) in ("a", "b") for m in ("claude-opus-5-5", "claude-sonnet-5-5", "claude-sonnet-5-5")] == [True] * 3
    assert world.served_by("opus-limit", model="claude-opus-5-5") == "key_limit_requests"


def test_concurrency_is_exact_and_ends_with_the_request(world: World) -> None:
    with ThreadPoolExecutor(4) as callers:
        answers = list(callers.map(lambda n: world.caller("one").send(f"[[sim delay_s=3]] {n}"), range(4)))
    assert sorted(a.code for a in answers) == ["", *["key_limit_concurrency"] * 3]
    assert {a.headers["retry-after"] for a in answers if a.code} == {"1"}
    eventually(lambda: world.caller("one").send().status, within_s=SLACK_S, wanted=lambda status: status == 200)


def test_an_account_never_runs_more_than_its_maximum(world: World) -> None:
    with ThreadPoolExecutor(5) as callers:
        answers = list(callers.map(lambda n: world.caller("full").send(f"[[sim delay_s=0.4]] full {n}"), range(5)))
    assert world.sim.concurrent()["full"]["max"] == 1
    assert {a.code for a in answers} <= {"", "pool_limited"}
    assert all("retry-after" in a.headers for a in answers if a.code)


def test_a_key_lives_as_long_as_its_lifetime_from_first_use(world: World) -> None:
    assert world.caller("brief").send().status == 200
    eventually(lambda: world.caller("brief").send().code, within_s=2.0 + SLACK_S, wanted=lambda code: code == "key_expired")
    assert world.state_of("keys", "brief")["state"] == "Expired"


# ---------------------------------------------------------------------------------------------- pins

@pytest.mark.parametrize("header", ["x_claude_code_session_id", "x_session_id", "session_id"])
def test_a_conversation_stays_with_its_account(world: World, header: str) -> None:
    first = world.served_by("moving", headers={header: "one conversation"})
    assert {world.served_by("moving", headers={header: "one conversation"}) for _ in range(5)} == {first}


def test_sessions_are_read_in_the_contracts_order(world: World) -> None:
    pinned = {}
    for n in range(12):   # a conversation on each of two accounts
        pinned.setdefault(world.served_by("moving", headers={"x_claude_code_session_id": f"s{n}"}), f"s{n}")
    (here, one), (_, other) = list(pinned.items())[:2]
    strongest_first = {"x_claude_code_session_id": one, "x_session_id": other, "session_id": other}
    assert world.served_by("moving", headers=strongest_first, metadata={"user_id": json.dumps({"session_id": other})}) == here
    assert world.served_by("moving", headers={"x_session_id": one, "session_id": other}, prompt_cache_key=other) == here
    assert world.served_by("moving", headers={"session_id": one}, metadata={"user_id": json.dumps({"session_id": other})}) == here
    assert world.served_by("moving", metadata={"user_id": json.dumps({"session_id": one})}, prompt_cache_key=other) == here


def test_a_pin_moves_when_its_account_fails_and_says_so(world: World) -> None:
    session = {"x_session_id": "a conversation that moves"}
    home = world.served_by("moving", headers=session)
    world.sim.script(standing={"status": 529}, account=home)
    try:
        answer = world.caller("moving").send(headers=session)
    finally:
        world.sim.clear_script(home)
    assert answer.status == 200
    assert answer.headers["x-signalbox-repinned"] == "true"
    assert int(answer.headers["x-signalbox-attempts"]) > 1


def test_a_conversation_that_must_not_move_is_refused(world: World) -> None:
    home, session = next(
        (served, session) for n in range(50)
        if (served := world.served_by("staying", headers=(session := {"x_session_id": f"stays {n}"}))) == "still"
    )
    world.sim.script({"status": 429, "retry_after": 1}, account=home)
    refused = world.caller("staying").send(headers=session)
    assert (refused.status, refused.code, refused.headers.get("retry-after")) == (429, "pool_limited", "1")
    assert world.served_by("staying") == "calm"   # who has no such conversation is not held up
    eventually(lambda: world.served_by("staying", headers=session), within_s=1 + SLACK_S, wanted=lambda served: served == home)


# ---------------------------------------------------------------------------------------------- changes

def change(world: World, *documents: dict[str, Any]) -> None:
    for document in documents:
        world.instance.write(document)


def introduce(world: World, *documents: dict[str, Any]) -> None:
    """Write documents and wait until something is in force: whoever asks for a key too early is told so for two seconds."""
    passes = sum("documents_in_force" in line for line in world.instance.log)
    change(world, *documents)
    eventually(lambda: sum("documents_in_force" in line for line in world.instance.log), within_s=IN_FORCE_S + SLACK_S, wanted=lambda n: n > passes)


def becomes(world: World, name: str, wanted: str, within_s: float = IN_FORCE_S) -> None:
    eventually(lambda: world.served_by(name), within_s=within_s + SLACK_S, wanted=lambda seen: seen in wanted.split("|"))


def test_a_key_is_revoked_within_two_seconds_however_it_is_done(world: World) -> None:
    introduce(world, *key("revoked"))
    becomes(world, "revoked", "a|b")
    change(world, *key("revoked", state="Paused"))
    becomes(world, "revoked", "key_paused")
    change(world, *key("revoked"))
    becomes(world, "revoked", "a|b")
    change(world, *key("revoked", expiresAt=PAST))
    becomes(world, "revoked", "key_expired")
    world.instance.remove("RelayKey", "revoked")
    becomes(world, "revoked", "key_invalid")
    change(world, *key("revoked"))
    becomes(world, "revoked", "a|b")
    world.instance.remove("Secret", "key-revoked")
    becomes(world, "revoked", "key_invalid")


def test_a_changed_secret_changes_the_key(world: World) -> None:
    introduce(world, *key("turned"))
    becomes(world, "turned", "a|b")
    introduce(world, secret("key-turned", text=text_of("turned-anew")))
    becomes(world, "turned-anew", "a|b")
    becomes(world, "turned", "key_invalid")


def test_a_changed_account_secret_is_used_at_once(world: World) -> None:
    world.sim.accounts({"name": "rotated", "key": "sk-ant-contract-new"}, add=True)
    introduce(world, secret("turning", **{"api-key": "sk-ant-contract-wrong"}), account("turning", world.sim.url), pool("turning", ["turning"]), *key("turning", pools=["turning"]))
    becomes(world, "turning", "pool_unavailable")
    change(world, secret("turning", **{"api-key": "sk-ant-contract-new"}))
    becomes(world, "turning", "rotated")   # the bench went with the credential


def test_a_refused_document_keeps_its_last_good_version_but_for_state_and_expiry(world: World) -> None:
    introduce(world, *key("kept", pools=["only-a"]))
    becomes(world, "kept", "a")
    change(world, *key("kept", pools=["only-b"], colour="red"))
    eventually(world.instance.status, within_s=IN_FORCE_S + SLACK_S, wanted=lambda s: any("colour" in str(p) for p in s["problems"]))
    assert world.served_by("kept") == "a"
    assert world.served_by("ada") in ("a", "b")
    change(world, *key("kept", pools=["only-b"], colour="red", state="Paused"))
    becomes(world, "kept", "key_paused")
    change(world, *key("kept", pools=["only-b"], colour="red", expiresAt=PAST))
    becomes(world, "kept", "key_expired")
    change(world, *key("kept", pools=["only-b"]))
    becomes(world, "kept", "b")
    eventually(world.instance.status, within_s=SLACK_S, wanted=lambda s: not any("colour" in str(p) for p in s["problems"]))


def test_an_unreadable_file_keeps_its_documents_and_a_missing_one_deletes_them(world: World) -> None:
    introduce(world, *key("torn"))
    becomes(world, "torn", "a|b")
    file = world.instance.manifests / "relaykey-torn.yaml"
    file.write_text("spec: [unclosed\n  kind: {")
    eventually(world.instance.status, within_s=IN_FORCE_S + SLACK_S, wanted=lambda s: any("torn" in str(p) for p in s["problems"]))
    assert world.served_by("torn") in ("a", "b")
    file.unlink()
    becomes(world, "torn", "key_invalid")


def test_a_paused_account_serves_nobody_and_a_draining_one_its_own(world: World) -> None:
    introduce(world, secret("walks", **{"api-key": "sk-ant-contract-c"}), account("walks", world.sim.url), pool("walks", ["walks"]), *key("walks", pools=["walks"]))
    becomes(world, "walks", "c")
    session = {"x_session_id": "begun before"}
    assert world.served_by("walks", headers=session) == "c"
    change(world, account("walks", world.sim.url, state="Draining"))
    becomes(world, "walks", "pool_unavailable")
    assert world.served_by("walks", headers=session) == "c"
    change(world, account("walks", world.sim.url, state="Paused"))
    eventually(lambda: world.served_by("walks", headers=session), within_s=IN_FORCE_S + SLACK_S, wanted=lambda seen: seen == "pool_unavailable")
    change(world, account("walks", world.sim.url))
    becomes(world, "walks", "c")


def test_recreating_a_key_keeps_its_counters(world: World) -> None:
    documents = key("reborn", limits=[{"per": "Day", "requests": 1}])
    introduce(world, *documents)
    becomes(world, "reborn", "a|b")
    world.instance.remove("RelayKey", "reborn")
    becomes(world, "reborn", "key_invalid")
    change(world, *documents)
    seen = eventually(lambda: world.served_by("reborn"), within_s=IN_FORCE_S + SLACK_S, wanted=lambda seen: seen != "key_invalid")
    assert seen == "key_limit_requests"


def test_a_hash_that_stops_working_at_a_time_does(world: World) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=3)).isoformat().replace("+00:00", "Z")
    document = relay_key("overlap")
    document["spec"] = {"owner": "ada", "keyHash": digest(text_of("overlap")), "alsoAccept": [{"keyHash": digest(text_of("overlap-former")), "until": soon}]}
    introduce(world, document)
    becomes(world, "overlap-former", "a|b")
    assert world.served_by("overlap") in ("a", "b"), "both keys work until then"
    assert world.caller("overlap-former").get("/v1/key-info").json["key"] == "default/overlap"
    becomes(world, "overlap-former", "key_invalid", within_s=5.0)
    assert world.served_by("overlap") in ("a", "b")


def test_the_namespace_has_a_default_pool_without_a_document(world: World) -> None:
    namespaced = [secret("z", **{"api-key": "sk-ant-contract-c"}), account("z", world.sim.url), *key("zed")]
    for document in namespaced:
        document["metadata"]["namespace"] = "zone"
    introduce(world, *namespaced)
    becomes(world, "zed", "c")
    row = next(r for r in world.instance.json("pools", "list") if r["namespace"] == "zone")
    assert (row["name"], row["accounts"]) == ("default", {"Ready": 1})


def test_a_pool_says_whose_keys_may_name_it(world: World) -> None:
    pools = {
        "for-all": {"from": "All"}, "for-its-own": {"from": "Same"},
        "for-some": {"from": "Selector", "matchLabels": {"tier": "shared"}},
    }
    guests = {
        (place, name): key(f"{place}-{name}", pools=[f"default/{name}"]) for place in ("guest", "stranger") for name in pools
    }
    for (place, _), documents in guests.items():
        for document in documents:
            document["metadata"]["namespace"] = place
    introduce(
        world, *(pool(name, ["a"], allowedNamespaces=allowed) for name, allowed in pools.items()),
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "guest", "labels": {"tier": "shared"}}},
        *(document for documents in guests.values() for document in documents), *key("at-home", pools=["for-its-own"]),
    )
    becomes(world, "at-home", "a")
    assert {who: world.served_by(f"{who[0]}-{who[1]}") for who in guests} == {
        ("guest", "for-all"): "a", ("guest", "for-its-own"): "pool_not_allowed", ("guest", "for-some"): "a",
        ("stranger", "for-all"): "a", ("stranger", "for-its-own"): "pool_not_allowed",
        ("stranger", "for-some"): "pool_not_allowed",
    }


def test_nothing_of_this_disturbed_a_room(world: World) -> None:
    assert {room["restarts"] for room in world.instance.status()["rooms"]} == {0}
    assert not world.sim.errors()
