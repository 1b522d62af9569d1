"""Everything that a plan looks at: the versions in force, by kind, and what they are judged by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache

from signalbox.resources.accepting import Accepted
from signalbox.resources.compiled import CompiledPool
from signalbox.resources.models import (
    DEFAULT_POOL,
    AccountPool,
    AccountPoolSpec,
    ClaudeAccount,
    Metadata,
    Namespace,
    RelayKey,
    Resource,
    Secret,
)
from signalbox.resources.models.pool import Members
from signalbox.resources.reading import Identity
from signalbox.resources.secrets import Secrets
from signalbox.resources.state import DesiredObject, Made, Policy


@dataclass(frozen=True)
class World:
    """All versions in force, by kind and id, what they are judged by, and what was made of them last."""

    accepted: Accepted
    made: Mapping[Identity, Made]
    accounts: Mapping[str, ClaudeAccount]
    pools: Mapping[str, AccountPool]
    keys: Mapping[str, RelayKey]
    secrets: Secrets
    namespaces: Mapping[str, Mapping[str, str]]
    now: datetime
    policy: Policy
    kept: Sequence[DesiredObject] = ()
    """What serves on although its document is refused and no good version of it is known (amending.py)."""

    @classmethod
    def of(
        cls, accepted: Accepted, made: Mapping[Identity, Made], now: datetime, policy: Policy,
        kept: Sequence[DesiredObject],
    ) -> "World":
        """Sort the accepted versions."""
        by_kind: dict[type[Resource], dict[str, Resource]] = {}
        for identity, good in sorted(accepted.good.items()):
            by_kind.setdefault(type(good.resource), {})[identity.id] = good.resource
        accounts = {i: a for i, a in by_kind.get(ClaudeAccount, {}).items() if isinstance(a, ClaudeAccount)}
        pools = {i: p for i, p in by_kind.get(AccountPool, {}).items() if isinstance(p, AccountPool)}
        relay_keys = {i: k for i, k in by_kind.get(RelayKey, {}).items() if isinstance(k, RelayKey)}
        lived_in = {r.metadata.namespace for r in (*accounts.values(), *relay_keys.values())}
        kept_pools = {item.id for item in kept if item.kind == "AccountPool"}
        for namespace in sorted(lived_in | {item.id.partition("/")[0] for item in kept}):
            if (pool_id := f"{namespace}/{DEFAULT_POOL}") not in kept_pools:
                pools.setdefault(pool_id, _implicit_pool(namespace))
        return cls(
            accepted=accepted,
            made=made,
            accounts=accounts,
            pools=pools,
            keys=relay_keys,
            secrets=secrets_in(accepted),
            namespaces={n.metadata.name: n.metadata.labels or {} for n in by_kind.get(Namespace, {}).values()},
            now=now,
            policy=policy,
            kept=kept,
        )

    @cached_property
    def kept_pools(self) -> Mapping[str, CompiledPool]:
        """The pools among what is kept; keys of other namespaces do not get them."""
        return {item.id: CompiledPool.read(item.spec_json) for item in self.kept if item.kind == "AccountPool"}

    @cached_property
    def accounts_of(self) -> Mapping[str, Sequence[tuple[str, str, dict[str, str]]]]:
        """Id, name and labels of all accounts, by namespace."""
        found: dict[str, list[tuple[str, str, dict[str, str]]]] = {}
        for account in self.accounts.values():
            metadata = account.metadata
            found.setdefault(metadata.namespace, []).append((account.id, metadata.name, metadata.labels or {}))
        for item in self.kept:
            namespace, _, name = item.id.partition("/")
            if item.kind == "ClaudeAccount":
                found.setdefault(namespace, []).append((item.id, name, dict(item.labels)))
        return found

    def labels_of(self, namespace: str) -> dict[str, str]:
        """Return a namespace's labels, with the one that Kubernetes gives to every namespace."""
        return {**self.namespaces.get(namespace, {}), "kubernetes.io/metadata.name": namespace}

    def has_passed(self, moment: datetime | None) -> bool:
        """Whether an expiry lies behind us."""
        return moment is not None and moment <= self.now


def secrets_in(accepted: Accepted) -> Secrets:
    """Return the values of all Secrets."""
    found = (good.resource for good in accepted.good.values())
    return {(s.metadata.namespace, s.metadata.name): s.values() for s in found if isinstance(s, Secret)}


@lru_cache(4096)
def _implicit_pool(namespace: str) -> AccountPool:
    members = Members.model_construct(match_labels={}, accounts=None)
    return AccountPool(metadata=Metadata(name=DEFAULT_POOL, namespace=namespace), spec=AccountPoolSpec(members=members))
