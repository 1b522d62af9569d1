"""The table of documents that must be refused: what to change in a good one, at which path, and words of the reason.

For tests only: those of the models, of the schema, and those that ask a real API server share it.
"""

import copy
from dataclasses import dataclass
from typing import Any

HASH = "sha256:" + "ab" * 32

GOOD: dict[str, dict[str, Any]] = {
    "ClaudeAccount": {
        "provider": "Anthropic",
        "credential": {"apiKey": {"secretRef": {"name": "acme", "key": "api-key"}}},
    },
    "AccountPool": {"members": {"matchLabels": {"team": "a"}}},
    "RelayKey": {"owner": "ada@example.com", "keyHash": HASH},
}

REF = {"name": "s", "key": "k"}
OAUTH = {"tokenURL": "https://a.example/t", "clientID": "c", "refreshTokenRef": REF}
FEDERATION = {"organizationID": "o", "federationRuleID": "f", "identityTokenFile": "/t"}


@dataclass(frozen=True)
class Bad:
    """A good document of `kind` with parts of its spec replaced (`...` takes one away), and how it is refused.

    `crossing`: by a rule between fields, which the schema says in CEL and not by types and bounds.
    """

    kind: str
    spec: dict[str, Any]
    path: str
    words: str
    crossing: bool = False

    def document(self) -> dict[str, Any]:
        """Return the whole document."""
        spec = {k: v for k, v in {**copy.deepcopy(GOOD[self.kind]), **self.spec}.items() if v is not ...}
        return {
            "apiVersion": "signalbox.dev/v1alpha1",
            "kind": self.kind,
            "metadata": {"name": "bad"},
            "spec": spec,
        }

    def __str__(self) -> str:
        return f"{self.kind}-{self.path}-{self.words}".replace(" ", "_")


def _account(path: str, words: str, crossing: bool = False, **spec: Any) -> Bad:
    return Bad("ClaudeAccount", spec, path, words, crossing)


def _pool(path: str, words: str, crossing: bool = False, **spec: Any) -> Bad:
    return Bad("AccountPool", spec, path, words, crossing)


def _key(path: str, words: str, crossing: bool = False, **spec: Any) -> Bad:
    return Bad("RelayKey", spec, path, words, crossing)


def _bedrock(path: str, words: str, crossing: bool = True, **fields: Any) -> Bad:
    credential = {"bedrock": {"region": "us-east-1", **fields}}
    return _account(f"spec.credential.bedrock{path}", words, crossing, provider="Bedrock", credential=credential)


BAD = [
    # accounts
    _account("spec.provider", "is required", provider=...),
    _account("spec.provider", "must be one of Anthropic, Bedrock", provider="anthropic"),
    _account("spec.provider", "must match the credential", True, provider="Bedrock"),
    _account("spec.credential", "is required", credential=...),
    _account("spec.credential", "exactly one kind of credential", True, credential={}),
    _account(
        *("spec.credential", "exactly one kind of credential", True),
        credential={"apiKey": {"secretRef": REF}, "oauth": OAUTH},
    ),
    _account(
        "spec.credential.apiKey.secretRef.key", "is required", credential={"apiKey": {"secretRef": {"name": "a"}}}
    ),
    _account(
        "spec.credential.apiKey.secretRef.name",
        "DNS name",
        credential={"apiKey": {"secretRef": {"name": "Acme!", "key": "k"}}},
    ),
    _account("spec.credential.apiKey.value", "not a known field", credential={"apiKey": {"value": "x"}}),
    _account("spec.baseUrl", "did you mean baseURL", baseUrl="https://a.example"),
    _account("spec.baseURL", "http(s) URL", baseURL="ftp://a.example"),
    _account("spec.baseURL", "http(s) URL", baseURL="https://user:pass@a.example"),
    _account("spec.baseURL", "http(s) URL", baseURL="https://a.example/?q=1"),
    _account("spec.baseURL", "longer than 2048", baseURL="https://a.example/" + "x" * 2048),
    _account("spec.baseURL", "must be https", True, baseURL="http://api.example.com"),
    _account("spec.baseURL", "must be https", True, baseURL="http://localhost.example.com"),
    _account("spec.baseURL", "must be https", True, baseURL="http://svc.cluster.local"),
    _account("spec.baseURL", "must be https", True, baseURL="http://a.b.svc.example.com"),
    _account(
        *("spec.credential.oauth.tokenURL", "must be https", True),
        credential={"oauth": {**OAUTH, "tokenURL": "http://a.example/t"}},
    ),
    _account(
        *("spec.credential.federation.tokenURL", "must be https", True),
        credential={"federation": {**FEDERATION, "tokenURL": "http://a.example/t"}},
    ),
    _account(
        "spec.credential.federation.identityTokenFile",
        "absolute path",
        credential={"federation": {**FEDERATION, "identityTokenFile": "tokens/a"}},
    ),
    _bedrock("", "exactly one way to sign in"),
    _bedrock("", "exactly one way to sign in", bearerTokenRef=REF, accessKeyRef=REF, secretKeyRef=REF),
    _bedrock("", "accessKeyRef and secretKeyRef go together", accessKeyRef=REF),
    _bedrock("", "roleARN and webIdentityTokenFile go together", roleARN="arn:aws:iam::1:role/a"),
    _bedrock(".region", "a region's name", crossing=False, region="US EAST", bearerTokenRef=REF),
    _account("spec.allowInsecure", "true or false", allowInsecure="yes"),
    _account("spec.state", "must be one of Active, Paused, Draining", state="paused"),
    _account("spec.stateReason", "longer than 256", stateReason="x" * 257),
    _account("spec.priority", "at least 0", priority=-1),
    _account("spec.priority", "at most 1000", priority=1001),
    _account("spec.priority", "must be an integer", priority="5"),
    _account("spec.priority", "must be an integer", priority=True),
    _account("spec.weight", "at least 1", weight=0),
    _account("spec.weight", "at most 1000", weight=1001),
    _account("spec.maxConcurrency", "at least 1", maxConcurrency=0),
    _account("spec.limits[0]", "at least one number", True, limits=[{"per": "Minute"}]),
    _account("spec.limits[0].per", "must be one of", limits=[{"per": "minute", "requests": 1}]),
    _account("spec.limits[0].requests", "at least 0", limits=[{"per": "Minute", "requests": -1}]),
    _account("spec.limits", "two limits for one period", True, limits=[{"per": "Hour", "requests": n} for n in (1, 2)]),
    _account("spec.models.allow", "more than 64 entries", models={"allow": ["a"] * 65}),
    _account("spec.models.allow[1]", "longer than 128", models={"allow": ["a", "b" * 129]}),
    _account("spec.models.deny[0]", "is empty", models={"deny": [""]}),
    _account("spec.models.map", "more than 64 entries", models={"map": {f"m{n}": "x" for n in range(65)}}),
    _account("spec.models.map.a", "must be a string", models={"map": {"a": 5}}),
    _account("spec.models.map", "must be a model name", True, models={"map": {"two words": "x"}}),
    _account(
        *("spec.credential.oauth.headers", "must be a header's name", True),
        credential={"oauth": {**OAUTH, "headers": {"x:y": "z"}}},
    ),
    _account("spec.proxy.url", "did you mean urlRef", proxy={"url": "http://p.example"}),
    _account("spec.expiresAt", "a time with its zone", expiresAt="2027-01-01"),
    _account("spec.expiresAt", "a time with its zone", expiresAt="2027-01-01T00:00:00"),
    _account("spec.limitGroup", "is empty", limitGroup=None),
    # pools
    _pool("spec.members", "is required", members=...),
    _pool("spec.members", "exactly one way", True, members={}),
    _pool("spec.members", "exactly one way", True, members={"matchLabels": {"a": "b"}, "accounts": ["a"]}),
    _pool("spec.members.accounts", "more than 256 entries", members={"accounts": ["a"] * 257}),
    _pool("spec.members.accounts[0]", "DNS name", members={"accounts": ["other/acme"]}),
    _pool("spec.members.matchLabels.team", "a label's value", members={"matchLabels": {"team": "a b"}}),
    _pool("spec.members.matchLabels", "must be a label's name", True, members={"matchLabels": {"a b": "c"}}),
    _pool("spec.members.matchLabels", "must be a mapping", members={"matchLabels": ["team"]}),
    _pool("spec.allowedNamespaces.from", "must be one of Same, All, Selector", allowedNamespaces={"from": "Everyone"}),
    _pool("spec.allowedNamespaces.matchLabels", "is needed with", True, allowedNamespaces={"from": "Selector"}),
    _pool(
        *("spec.allowedNamespaces.matchLabels", "is needed with", True),
        allowedNamespaces={"from": "Selector", "matchLabels": {}},
    ),
    _pool(
        *("spec.allowedNamespaces.matchLabels", "only with it", True),
        allowedNamespaces={"from": "All", "matchLabels": {"a": "b"}},
    ),
    _pool("spec.strategy", "must be one of Headroom", strategy="Random"),
    _pool("spec.affinity.mode", "must be one of Session, None", affinity={"mode": "Sticky"}),
    _pool("spec.affinity.ttl", "must be a duration", affinity={"ttl": "1 hour"}),
    _pool("spec.affinity.ttl", "must be a string", affinity={"ttl": 3600}),
    _pool("spec.affinity.onUnavailable", "must be one of Repin, Refuse", affinity={"onUnavailable": "Wait"}),
    _pool("spec.failover.maxAttempts", "at least 1", failover={"maxAttempts": 0}),
    _pool("spec.failover.maxAttempts", "at most 10", failover={"maxAttempts": 11}),
    _pool("spec.failover.fallbackPools[0]", "namespace/name", failover={"fallbackPools": ["a/b/c"]}),
    _pool("spec.queue.maxWait", "longer than zero", True, queue={"maxWait": "0s"}),
    _pool("spec.queue.maxWait", "must be a duration", queue={"maxWait": "-1s"}),
    _pool("spec.queue.maxDepth", "at least 0", queue={"maxDepth": -1}),
    _pool("spec.timeouts.connect", "longer than zero", True, timeouts={"connect": "0h0m"}),
    _pool("spec.timeouts.total", "longer than zero and at most", True, timeouts={"total": "87601h"}),
    _pool("spec.timeouts.header", "did you mean headers", timeouts={"header": "1s"}),
    # keys
    _key("spec", "exactly one source of the key", True, keyHash=...),
    _key("spec", "exactly one source of the key", True, secretRef=REF),
    _key("spec.keyHash", "64 lower-case", keyHash="sha256:" + "AB" * 32),
    _key("spec.keyHash", "64 lower-case", keyHash="ab" * 32),
    _key("spec.alsoAccept[0].until", "is required", alsoAccept=[{"keyHash": HASH}]),
    _key("spec.alsoAccept[0].keyHash", "is required", alsoAccept=[{"until": "2027-01-01T00:00:00Z"}]),
    _key("spec.pools", "needs at least 1", pools=[]),
    _key("spec.pools", "must be a list", pools="default"),
    _key("spec.pools[1]", "namespace/name", pools=["default", "Default"]),
    _key("spec.state", "must be one of Active, Paused", state="Draining"),
    _key(
        *("spec.lifetime", "expiresAt excludes lifetime", True),
        expiresAt="2027-01-01T00:00:00Z",
        lifetime={"duration": "720h"},
    ),
    _key("spec.lifetime.duration", "is required", lifetime={}),
    _key("spec.clients.allow[0]", "must be one of ClaudeCode", clients={"allow": ["claude-code"]}),
    _key("spec.sourceCIDRs[0]", "a network with a slash", sourceCIDRs=["10.0.0.1"]),
    _key("spec.sourceCIDRs[0]", "a network with a slash", sourceCIDRs=["10.0.0.0/255.0.0.0"]),
    _key("spec.sourceCIDRs[0]", "a network with a slash", True, sourceCIDRs=["10.0.0.0/33"]),
    _key("spec.concurrency", "at least 1", concurrency=0),
    _key(
        "spec.limits",
        "more than 16 entries",
        limits=[{"per": "Day", "models": [f"m{n}"], "requests": 1} for n in range(17)],
    ),
    _key("spec.limits[0]", "at least one number", True, limits=[{"per": "Day"}]),
    _key("spec.limits[0].per", "is required", limits=[{"requests": 1}]),
    _key("spec.limits[0].per", "must be one of Minute", limits=[{"per": "Year", "requests": 1}]),
    _key("spec.limits[0].tokens", "must be an integer", limits=[{"per": "Day", "tokens": 1.5}]),
    _key("spec.limits[0].costUSD", "at most 9 places", limits=[{"per": "Day", "costUSD": "0.0000000001"}]),
    _key("spec.limits[0].costUSD", "from 0 to 9000000", limits=[{"per": "Day", "costUSD": "9000000.000000001"}]),
    _key("spec.limits[0].costUSD", "from 0 to 9000000", limits=[{"per": "Day", "costUSD": 9_000_001}]),
    _key("spec.limits[0].costUSD", "from 0 to 9000000", limits=[{"per": "Day", "costUSD": "-1"}]),
    _key("spec.limits[0].costUSD", "in quotes", limits=[{"per": "Day", "costUSD": 0.5}]),
    _key("spec.limits[0].costUSD", "in quotes", limits=[{"per": "Day", "costUSD": True}]),
    _key(
        "spec.limits[0].admission",
        "must be one of Estimated, Strict",
        limits=[{"per": "Day", "requests": 1, "admission": "strict"}],
    ),
    _key("spec.limits[0].name", "DNS label", limits=[{"name": "a:b", "per": "Day", "requests": 1}]),
    _key("spec.limits", "same models", True, limits=[{"per": "Day", "requests": 1}, {"per": "Day", "tokens": 1}]),
    _key(
        *("spec.limits", "same models", True),
        limits=[
            {"name": "x", "per": "Day", "models": ["a", "b"], "requests": 1},
            {"name": "y", "per": "Day", "models": ["b", "a"], "tokens": 1},
        ],
    ),
    _key(
        *("spec.limits", "two limits of one name", True),
        limits=[{"name": "day", "per": "Week", "requests": 1}, {"per": "Day", "tokens": 1}],
    ),
    _key("spec.limits[0].since", "a time with its zone", limits=[{"per": "Total", "requests": 1, "since": "today"}]),
    _key("spec.owner", "must be a string", owner=5),
]
