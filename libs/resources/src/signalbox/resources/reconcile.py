"""From documents to what should be in force: one pure function, shared by the file watcher and the operator.

Gather (the caller), decide (here), act (the caller, by actions.diff). Which version of a document counts is decided
in accepting.py; here every object is compiled and judged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from signalbox.core import keys
from signalbox.resources import conditions
from signalbox.resources.accepting import Accepted, accept
from signalbox.resources.compiled import (
    Compiled,
    CompiledAccount,
    CompiledKey,
    CompiledKeyHash,
    CompiledLimit,
    CompiledPool,
    digest,
)
from signalbox.resources.conditions import Condition
from signalbox.resources.loading import LoadResult
from signalbox.resources.models import (
    DEFAULT_POOL,
    AccountPool,
    AccountPoolSpec,
    AccountState,
    ClaudeAccount,
    Metadata,
    Namespace,
    RelayKey,
    RelayKeySpec,
    Resource,
    Secret,
)
from signalbox.resources.models.pool import Members, matches_labels
from signalbox.resources.reading import Identity
from signalbox.resources.secrets import Secrets, Unusable, relay_key
from signalbox.resources.seeds import grant_of
from signalbox.resources.state import Desired, DesiredObject, Grant, Policy, State
from signalbox.resources.upstreams import check_token_file, check_upstreams

# Kinds of credential that documents may hold already and that nothing serves yet.
NOT_IMPLEMENTED_CREDENTIALS = frozenset({"bedrock", "vertex", "foundry"})

_SERVES = Condition(conditions.READY, True, conditions.SERVES)
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_R = TypeVar("_R", bound=Resource)


def plan(
    loaded: LoadResult, previous: State, *, now: datetime, policy: Policy | None = None,
    healings: Mapping[str, int] | None = None,
) -> Desired:
    """Return what should be in force, given all documents, what was in force before, and the time.

    `healings` tells by account how often its credential became good again (the token-refresher's Status): each time
    makes a new revision of the account, so that the scheduler tries it again, as after a change of its document.

    Pure. A refused document keeps its last good version (see accepting.py); what cannot serve is still an object,
    with Ready=False and the reason. The same arguments always give the same revisions.
    """
    accepted = accept(loaded, previous)
    world = _World.of(accepted, now, policy or Policy())
    objects: list[DesiredObject] = []
    grants: list[Grant] = []
    for account in world.accounts.values():
        compiled, condition, grant = _account(account, world)
        healed = (healings or {}).get(account.id, 0)
        seed = grant.seed_version + f"+{healed}" * bool(healed) if grant else ""
        objects.append(_object(account, compiled, condition, accepted, seed=seed))
        grants += [grant] if grant else []
    objects += [_object(pool, *_pool(pool, world), accepted) for pool in world.pools.values()]
    taken: dict[str, str] = {}
    for key in sorted(world.keys.values(), key=_age):
        objects.append(_object(key, *_key(key, world, taken), accepted))
    return Desired(
        objects=tuple(objects),
        grants=tuple(grants),
        problems=tuple(sorted({*loaded.problems, *accepted.problems})),
        state=State(accepted.good),
        next_change_at=_next_change(world),
    )


@dataclass(frozen=True)
class _World:
    """All versions in force, by kind and id, and what they are judged by."""

    accounts: Mapping[str, ClaudeAccount]
    pools: Mapping[str, AccountPool]
    keys: Mapping[str, RelayKey]
    secrets: Secrets
    namespaces: Mapping[str, Mapping[str, str]]
    now: datetime
    policy: Policy

    @classmethod
    def of(cls, accepted: Accepted, now: datetime, policy: Policy) -> "_World":
        accounts = _of_kind(ClaudeAccount, accepted)
        relay_keys = _of_kind(RelayKey, accepted)
        pools = _of_kind(AccountPool, accepted)
        for namespace in sorted({r.metadata.namespace for r in (*accounts.values(), *relay_keys.values())}):
            pools.setdefault(f"{namespace}/{DEFAULT_POOL}", _implicit_pool(namespace))
        secrets = _of_kind(Secret, accepted).values()
        labelled = {n.metadata.name: n.metadata.labels or {} for n in _of_kind(Namespace, accepted).values()}
        return cls(
            accounts=accounts,
            pools=pools,
            keys=relay_keys,
            secrets={(s.metadata.namespace, s.metadata.name): s.values() for s in secrets},
            namespaces=labelled,
            now=now,
            policy=policy,
        )

    def labels_of(self, namespace: str) -> dict[str, str]:
        """Return a namespace's labels, with the one that Kubernetes gives to every namespace."""
        return {**self.namespaces.get(namespace, {}), "kubernetes.io/metadata.name": namespace}


def _of_kind(kind: type[_R], accepted: Accepted) -> dict[str, _R]:
    return {
        identity.id: good.resource
        for identity, good in sorted(accepted.good.items())
        if isinstance(good.resource, kind)
    }


def _implicit_pool(namespace: str) -> AccountPool:
    members = Members.model_construct(match_labels={}, accounts=None)
    return AccountPool(metadata=Metadata(name=DEFAULT_POOL, namespace=namespace), spec=AccountPoolSpec(members=members))


def _account(account: ClaudeAccount, world: _World) -> tuple[CompiledAccount, Condition, Grant | None]:
    spec, namespace = account.spec, account.metadata.namespace
    condition, grant = _SERVES, None
    try:
        if spec.credential.kind in NOT_IMPLEMENTED_CREDENTIALS:
            raise Unusable(conditions.NOT_IMPLEMENTED, f"credentials of kind {spec.credential.kind} are not served yet")
        check_upstreams(spec, namespace, world.policy)
        check_token_file(spec, world.policy)
        grant = grant_of(account, world.secrets)
        _refuse_expired(spec.expires_at, world.now)
    except Unusable as e:
        condition = Condition(conditions.READY, False, e.reason, e.message)
    group = f"{namespace}/{spec.limit_group}" if spec.limit_group else account.id
    compiled = CompiledAccount.model_construct(
        ready=condition.status,
        reason=condition.reason,
        provider=spec.provider,
        base_url=spec.upstream_url,
        state=_state(account),
        state_reason=spec.state_reason or "",
        credential_kind=spec.credential.kind,
        priority=spec.priority,
        weight=spec.weight,
        max_concurrency=spec.max_concurrency,
        limits=spec.limits,
        limit_group=group,
        models=spec.models,
        proxied=spec.proxy is not None,
        expires_at=spec.expires_at,
    )
    return compiled, condition, grant


def _state(account: ClaudeAccount) -> AccountState:
    """Return the state in force: an account that is being deleted finishes what it has."""
    leaving = account.metadata.deletion_timestamp is not None and account.spec.state is AccountState.ACTIVE
    return AccountState.DRAINING if leaving else account.spec.state


def _pool(pool: AccountPool, world: _World) -> tuple[CompiledPool, Condition]:
    spec, namespace = pool.spec, pool.metadata.namespace
    members = sorted(a.id for a in world.accounts.values() if a.metadata.namespace == namespace and _holds(spec, a))
    condition = _SERVES if members else Condition(conditions.READY, False, conditions.NO_MEMBERS, "has no account")
    named = {f"{namespace}/{name}" for name in spec.members.accounts or ()}
    if members and (missing := sorted(named - set(members))):
        condition = Condition(
            conditions.READY, True, conditions.SERVES, f"without {', '.join(missing)}, which do not exist"
        )
    fallbacks = tuple(_pool_id(name, namespace) for name in spec.failover.fallback_pools)
    compiled = CompiledPool.model_construct(
        ready=condition.status,
        reason=condition.reason,
        accounts=tuple(members),
        strategy=spec.strategy,
        affinity=spec.affinity,
        failover=spec.failover.model_copy(update={"fallback_pools": fallbacks}),
        queue=spec.queue,
        timeouts=spec.timeouts,
    )
    return compiled, condition


def _holds(spec: AccountPoolSpec, account: ClaudeAccount) -> bool:
    if spec.members.accounts is not None:
        return account.metadata.name in spec.members.accounts
    return matches_labels(spec.members.match_labels or {}, account.metadata.labels or {})


def _key(key: RelayKey, world: _World, taken: dict[str, str]) -> tuple[CompiledKey, Condition]:
    """Compile a key. `taken` maps the hashes of older keys to their ids; this key's are added."""
    spec, namespace = key.spec, key.metadata.namespace
    condition = _SERVES
    hashes: tuple[CompiledKeyHash, ...] = ()
    pools: tuple[str, ...] = ()
    try:
        hashes = _claim(key, _hashes(key, world), taken, world)
        pools = _pools(spec, namespace, world)
        if missing := [name for name in spec.pools if _pool_id(name, namespace) not in pools]:
            message = f"without {', '.join(missing)}, which do not exist"
            condition = Condition(conditions.READY, True, conditions.SERVES, message)
        _refuse_expired(spec.expires_at, world.now)
    except Unusable as e:
        condition = Condition(conditions.READY, False, e.reason, e.message)
    compiled = CompiledKey.model_construct(
        ready=condition.status,
        reason=condition.reason,
        owner=spec.owner or "",
        key_hashes=hashes,
        pools=pools,
        fallback_pools=_fallbacks(pools, namespace, world),
        state=spec.state,
        expires_at=spec.expires_at,
        lifetime=spec.lifetime,
        models=spec.models,
        clients=spec.clients.allow,
        source_cidrs=spec.source_cidrs,
        concurrency=spec.concurrency,
        limits=tuple(
            CompiledLimit.model_construct(**{**dict(limit), "name": limit.effective_name}) for limit in spec.limits
        ),
    )
    return compiled, condition


def _hashes(key: RelayKey, world: _World) -> tuple[CompiledKeyHash, ...]:
    spec = key.spec
    current = spec.key_hash
    if current is None:
        assert spec.secret_ref is not None, "the model holds exactly one of them"
        current = keys.hash_key(relay_key(world.secrets, key.metadata.namespace, spec.secret_ref))
    former = [
        CompiledKeyHash.model_construct(hash=h.key_hash, until=h.until)
        for h in spec.also_accept
        if h.key_hash != current
    ]
    return (CompiledKeyHash.model_construct(hash=current, until=None), *former)


def _claim(
    key: RelayKey, hashes: tuple[CompiledKeyHash, ...], taken: dict[str, str], world: _World
) -> tuple[CompiledKeyHash, ...]:
    """Take the hashes for this key, or say which older key has one of them."""
    live = [h.hash for h in hashes if h.until is None or world.now < h.until]
    owner = next((taken[h] for h in live if h in taken), None)
    if owner is not None:
        # In a cluster the name of another tenant's key is none of this one's business.
        named = owner.startswith(f"{key.metadata.namespace}/") or not world.policy.cluster
        whose = f"RelayKey {owner}" if named else "a RelayKey elsewhere"
        raise Unusable(conditions.DUPLICATE_KEY, f"{whose} has the same key and is older")
    taken.update(dict.fromkeys(live, key.id))
    return hashes


def _age(key: RelayKey) -> tuple[datetime, str, str, str]:
    """Order keys by who came first: creation, then UID; without them (locally) by name."""
    metadata = key.metadata
    return (metadata.creation_timestamp or _LONG_AGO, metadata.uid, metadata.name, metadata.namespace)


def _pools(spec: RelayKeySpec, namespace: str, world: _World) -> tuple[str, ...]:
    """Resolve the pools that a key names. A foreign pool that does not exist looks like one that is not allowed."""
    found = []
    for name in spec.pools:
        pool_id = _pool_id(name, namespace)
        if not _may_use(pool_id, namespace, world):
            raise Unusable(conditions.POOL_NOT_ALLOWED, f"pool {pool_id} does not let namespace {namespace} in")
        if pool_id in world.pools:
            found.append(pool_id)
    if not found:
        raise Unusable(conditions.POOL_NOT_FOUND, f"pool {', '.join(spec.pools)} does not exist")
    return tuple(dict.fromkeys(found))


def _may_use(pool_id: str, namespace: str, world: _World) -> bool:
    if pool_id.partition("/")[0] == namespace:
        return True
    pool = world.pools.get(pool_id)
    return pool is not None and pool.spec.allowed_namespaces.permit(world.labels_of(namespace))


def _fallbacks(pools: tuple[str, ...], namespace: str, world: _World) -> tuple[str, ...]:
    """Return the fallback pools of a key's pools, in order: those that exist and that the key may use."""
    named = (
        _pool_id(name, pool_id.partition("/")[0])
        for pool_id in pools
        for name in world.pools[pool_id].spec.failover.fallback_pools
    )
    usable = (i for i in named if i in world.pools and i not in pools and _may_use(i, namespace, world))
    return tuple(dict.fromkeys(usable))


def _pool_id(name: str, namespace: str) -> str:
    return name if "/" in name else f"{namespace}/{name}"


def _refuse_expired(expires_at: datetime | None, now: datetime) -> None:
    if expires_at is not None and expires_at <= now:
        raise Unusable(conditions.EXPIRED, "expiresAt has passed")


def _next_change(world: _World) -> datetime | None:
    times = [a.spec.expires_at for a in world.accounts.values()]
    for key in world.keys.values():
        times += [key.spec.expires_at, *(h.until for h in key.spec.also_accept)]
    return min((t for t in times if t is not None and t > world.now), default=None)


def _object(
    resource: Resource, compiled: Compiled, ready: Condition, accepted: Accepted, *, seed: str = "",
) -> DesiredObject:
    """Return the registry's object. A changed seed makes a new revision: the scheduler then tries the account again."""
    kind, metadata = type(resource).__name__, resource.metadata
    identity = Identity(kind, metadata.namespace, metadata.name)
    good = accepted.good.get(identity)
    spec_json = compiled.write()
    judged = (ready, accepted.condition(identity))
    labels = metadata.labels or {}
    told = [[c.type, c.status, c.reason, c.message] for c in judged]
    return DesiredObject(
        kind=kind,
        id=resource.id,
        revision=digest([spec_json, told, labels, metadata.uid, seed]),
        spec_json=spec_json,
        conditions=judged,
        uid=metadata.uid,
        created_at=metadata.creation_timestamp,
        labels=labels,
        source=good.source if good else "implicit",
    )
