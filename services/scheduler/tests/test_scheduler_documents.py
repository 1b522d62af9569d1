"""Real documents, reconciled as both homes reconcile them, become policies that say what the documents say."""

from datetime import UTC, datetime
from pathlib import Path

from signalbox.core.keys import digest
from signalbox.resources.loading import load_directory
from signalbox.resources.reconcile import plan
from signalbox.resources.state import State
from signalbox.scheduler.domain.policies import ACCOUNT, KEY, POOL
from signalbox.scheduler.domain.snapshot import Snapshot
from signalbox.v1.scheduler_pb2 import Object

NOW = datetime(2026, 11, 21, tzinfo=UTC)
DOCUMENTS = """
apiVersion: v1
kind: Secret
metadata: {name: secrets}
stringData: {api-key: sk-upstream-key-of-acme, relay-key: relay-key-of-ada-0001}
---
apiVersion: signalbox.dev/v1alpha1
kind: ClaudeAccount
metadata: {name: acme, labels: {team: a}}
spec:
  provider: Anthropic
  credential: {apiKey: {secretRef: {name: secrets, key: api-key}}}
  state: Draining
  stateReason: moving house
  priority: 3
  weight: 50
  maxConcurrency: 20
  limits: [{per: Minute, requests: 50, inputTokens: 40000}]
  limitGroup: acme-org
  models: {allow: ["claude-*"], deny: ["claude-opus-*"], map: {fast: claude-haiku-4-5}}
  expiresAt: 2027-01-01T00:00:00Z
---
apiVersion: signalbox.dev/v1alpha1
kind: AccountPool
metadata: {name: team-a}
spec:
  members: {matchLabels: {team: a}}
  strategy: LeastConnections
  affinity: {ttl: 30m, onUnavailable: Refuse}
  failover: {maxAttempts: 5}
  timeouts: {connect: 2s, idle: 90s}
---
apiVersion: signalbox.dev/v1alpha1
kind: RelayKey
metadata: {name: ada}
spec:
  owner: ada@example.com
  secretRef: {name: secrets, key: relay-key}
  alsoAccept: [{keyHash: "sha256:%s", until: 2026-12-01T00:00:00Z}]
  pools: [team-a, default]
  lifetime: {duration: 720h}
  models: {deny: ["*fable*"]}
  clients: {allow: [ClaudeCode]}
  sourceCIDRs: ["10.0.0.0/8"]
  concurrency: 5
  limits:
  - {per: Minute, requests: 60, tokens: 100000}
  - {per: Week, models: ["claude-sonnet-*"], costUSD: "20.5", admission: Strict}
""" % ("ab" * 32)


def snapshot_of(directory: Path) -> Snapshot:
    desired = plan(load_directory(directory, {}), State(), now=NOW)
    assert desired.problems == ()
    snapshot = Snapshot()
    for n, o in enumerate(desired.objects):
        obj = Object(kind=o.kind, id=o.id, revision=o.revision, spec_json=o.spec_json.encode(), uid=o.uid)
        snapshot.put(obj, str(n + 1))
    return snapshot


def test_documents_become_policies(tmp_path):
    (tmp_path / "all.yaml").write_text(DOCUMENTS)
    snapshot = snapshot_of(tmp_path)
    now_ms = int(NOW.timestamp() * 1000)
    a = snapshot.accounts["default/acme"]
    assert (a.ready, a.draining, a.state_reason, a.priority, a.weight, a.max_concurrency) == (
        True, True, "moving house", 3, 50, 20,
    )
    assert (a.group, a.base_url, a.fault(now_ms)) == ("default/acme-org", "https://api.anthropic.com", "")
    assert a.fault(int(datetime(2027, 1, 1, tzinfo=UTC).timestamp() * 1000)) == "Expired"
    assert [(c.per, c.requests, c.input_tokens, c.output_tokens) for c in a.caps] == [("Minute", 50, 40_000, -1)]
    assert [a.sends(m) for m in ("fast", "claude-opus-4", "claude-sonnet-4", "gpt")] == [
        "claude-haiku-4-5", None, "claude-sonnet-4", None,
    ]
    p = snapshot.pools["default/team-a"]
    assert (p.accounts, p.strategy, p.pin_ttl_ms, p.refuses, p.max_attempts) == (
        ("default/acme",), "LeastConnections", 1_800_000, True, 5,
    )
    assert (p.timeouts.connect, p.timeouts.idle, p.timeouts.first_content) == (2_000, 90_000, 30_000)
    k = snapshot.key_by_hash(digest("relay-key-of-ada-0001"), now_ms)
    assert k is not None
    assert k is snapshot.key_by_hash(bytes.fromhex("ab" * 32), now_ms)
    assert snapshot.key_by_hash(bytes.fromhex("ab" * 32), now_ms + 30 * 86_400_000) is None
    assert (k.id, k.owner, k.pools, k.lifetime_ms, k.concurrency, k.clients) == (
        "default/ada", "ada@example.com", ("default/team-a", "default/default"), 720 * 3_600_000, 5, {"ClaudeCode"},
    )
    assert (k.permits("claude-sonnet-4"), k.permits("claude-fable-5")) == (True, False)
    assert (k.permits_source("10.9.8.7"), k.permits_source("192.0.2.1")) == (True, False)
    minute, week = k.limits
    assert (minute.name, minute.per, minute.requests, minute.tokens, minute.cost, minute.strict) == (
        "minute", "Minute", 60, 100_000, None, False,
    )
    assert (week.per, week.cost, week.strict) == ("Week", 20_500_000_000, True)
    assert [x.per for x in k.limits_for("claude-opus-4")[0]] == ["Minute"]
    assert [x.per for x in k.limits_for("claude-sonnet-4")[0]] == ["Minute", "Week"]


def test_objects_come_and_go(tmp_path):
    (tmp_path / "all.yaml").write_text(DOCUMENTS)
    snapshot = snapshot_of(tmp_path)
    index = snapshot.index("default/team-a")
    assert index is not None
    assert [a.id for a in index.members] == ["default/acme"]
    snapshot.delete(ACCOUNT, "default/acme")
    again = snapshot.index("default/team-a")
    assert again is not None
    assert again.members == ()
    snapshot.delete(POOL, "default/team-a")
    assert snapshot.index("default/team-a") is None
    snapshot.delete(KEY, "default/ada")
    assert snapshot.key_by_hash(digest("relay-key-of-ada-0001"), 0) is None
    snapshot.delete(KEY, "default/ada")
