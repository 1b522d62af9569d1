"""Objects of the registry, made from the documents in force: an account, a pool, a key. Pure.

Each is made only where something that it depends on has changed since it was made last (state.Made): everything that
goes into an object must be among its inputs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from signalbox.core import keys
from signalbox.resources import conditions
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
from signalbox.resources.models import (
    AccountPool,
    AccountPoolSpec,
    AccountState,
    ClaudeAccount,
    KeyState,
    RelayKey,
    Resource,
)
from signalbox.resources.models.pool import matches_labels
from signalbox.resources.reading import Identity
from signalbox.resources.secrets import Secrets, Unusable, relay_key
from signalbox.resources.seeds import grant_of
from signalbox.resources.state import DesiredObject, Good, Grant, Made, Policy
from signalbox.resources.upstreams import check_token_file, check_upstreams
from signalbox.resources.world import World

# Kinds of credential that documents may hold already and that nothing serves yet.
NOT_IMPLEMENTED_CREDENTIALS = frozenset({"bedrock", "vertex", "foundry"})

_SERVES = Condition(conditions.READY, True, conditions.SERVES)
_EXPIRED = Condition(conditions.READY, False, conditions.EXPIRED, "expiresAt has passed")
_LONG_AGO = datetime.min.replace(tzinfo=UTC)

# A hash that a key answers to, and until when where that is limited.
_Hashes = tuple[tuple[str, datetime | None], ...]


# ---------------------------------------------------------------------- accounts


class _Noting(Mapping[tuple[str, str], Mapping[str, bytes]]):
    """Secrets, with a note of each that was looked for."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self.noted: dict[tuple[str, str], Mapping[str, bytes] | None] = {}

    def __getitem__(self, name: tuple[str, str]) -> Mapping[str, bytes]:
        self.noted[name] = self._secrets.get(name)
        return self._secrets[name]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._secrets)

    def __len__(self) -> int:
        return len(self._secrets)


def make_account(account: ClaudeAccount, world: World, healed: int) -> Made:
    """Make an account and its grant. `healed`: how often its credential became good again."""
    identity = Identity("ClaudeAccount", account.metadata.namespace, account.metadata.name)
    good, judged = world.accepted.good[identity], world.accepted.condition(identity)
    inputs = (good, judged, world.policy, healed, world.has_passed(account.spec.expires_at))
    before = world.made.get(identity)
    if before is not None and before.holds(inputs, world.secrets):
        return before
    secrets = _Noting(world.secrets)
    condition, grant = _SERVES, None
    try:
        grant = _grant(account, secrets, world.policy)
        if world.has_passed(account.spec.expires_at):
            condition = _EXPIRED
    except Unusable as e:
        condition = Condition(conditions.READY, False, e.reason, e.message)
    seed = grant.seed_version + f"+{healed}" * bool(healed) if grant else ""
    item = _object(account, _compiled_account(account, condition), (condition, judged), good, seed=seed)
    return Made(inputs, item, grant, secrets.noted)


def _grant(account: ClaudeAccount, secrets: Secrets, policy: Policy) -> Grant:
    """Return an account's grant. It outlives the account's expiry, which may move. Raises Unusable."""
    spec = account.spec
    if spec.credential.kind in NOT_IMPLEMENTED_CREDENTIALS:
        raise Unusable(conditions.NOT_IMPLEMENTED, f"credentials of kind {spec.credential.kind} are not served yet")
    check_upstreams(spec, account.metadata.namespace, policy)
    check_token_file(spec, policy)
    return grant_of(account, secrets)


def _compiled_account(account: ClaudeAccount, condition: Condition) -> CompiledAccount:
    spec = account.spec
    return CompiledAccount.model_construct(
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
        limit_group=f"{account.metadata.namespace}/{spec.limit_group}" if spec.limit_group else account.id,
        models=spec.models,
        proxied=spec.proxy is not None,
        expires_at=spec.expires_at,
    )


def _state(account: ClaudeAccount) -> AccountState:
    """Return the state in force: an account that is being deleted finishes what it has."""
    leaving = account.metadata.deletion_timestamp is not None and account.spec.state is AccountState.ACTIVE
    return AccountState.DRAINING if leaving else account.spec.state


# ---------------------------------------------------------------------- pools


def make_pool(pool: AccountPool, world: World) -> Made:
    """Make a pool with its members resolved."""
    spec, namespace = pool.spec, pool.metadata.namespace
    identity = Identity("AccountPool", namespace, pool.metadata.name)
    good, judged = world.accepted.good.get(identity), world.accepted.condition(identity)
    accounts = world.accounts_of.get(namespace, ())
    members = tuple(sorted(account for account, name, labels in accounts if _holds(spec, name, labels)))
    inputs = (good, judged, members)
    before = world.made.get(identity)
    if before is not None and before.holds(inputs, world.secrets):
        return before
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
        accounts=members,
        strategy=spec.strategy,
        affinity=spec.affinity,
        failover=spec.failover.model_copy(update={"fallback_pools": fallbacks}),
        queue=spec.queue,
        timeouts=spec.timeouts,
    )
    return Made(inputs, _object(pool, compiled, (condition, judged), good))


def _holds(spec: AccountPoolSpec, name: str, labels: dict[str, str]) -> bool:
    if spec.members.accounts is not None:
        return name in spec.members.accounts
    return matches_labels(spec.members.match_labels or {}, labels)


# ---------------------------------------------------------------------- keys


@dataclass(frozen=True)
class _Pools:
    """The pools that a key gets, or why it gets none."""

    condition: Condition
    pools: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()


class Claims:
    """What keys share: which one has which hash (the first that claims it, and they claim in the order of their age),
    and what all of a namespace get that name the same pools.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._pools: dict[tuple[str, tuple[str, ...]], _Pools] = {}
        kept = {item.id: CompiledKey.read(item.spec_json) for item in world.kept if item.kind == "RelayKey"}
        self._taken = {text: key_id for key_id, key in kept.items() for text in key.hashes_at(world.now)}

    def take(self, key: RelayKey, hashes: _Hashes) -> None:
        """Take the hashes for this key. Raises Unusable, which says which older key has one of them."""
        live = [text for text, until in hashes if not self._world.has_passed(until)]
        owner = next((self._taken[text] for text in live if text in self._taken), None)
        if owner is not None:
            # In a cluster the name of another tenant's key is none of this one's business.
            named = owner.startswith(f"{key.metadata.namespace}/") or not self._world.policy.cluster
            whose = f"RelayKey {owner}" if named else "a RelayKey elsewhere"
            raise Unusable(conditions.DUPLICATE_KEY, f"{whose} has the same key and is older")
        self._taken.update(dict.fromkeys(live, key.id))


    def pools(self, named: tuple[str, ...], namespace: str) -> _Pools:
        """Return the pools that a key gets."""
        if (known := self._pools.get((namespace, named))) is None:
            known = self._pools[namespace, named] = _resolve(named, namespace, self._world)
        return known


def age_of(key: RelayKey) -> tuple[datetime, str, str, str]:
    """Order keys by who came first: creation, then UID; without them (locally) by name."""
    metadata = key.metadata
    return (metadata.creation_timestamp or _LONG_AGO, metadata.uid, metadata.name, metadata.namespace)


def make_key(key: RelayKey, world: World, claims: Claims) -> Made:
    """Make a key with its hashes computed and its pools resolved. Its hashes are claimed."""
    spec, namespace = key.spec, key.metadata.namespace
    identity = Identity("RelayKey", namespace, key.metadata.name)
    good, judged = world.accepted.good[identity], world.accepted.condition(identity)
    hashes: _Hashes = ()
    found = _Pools(_SERVES)
    try:
        wanted = _hashes(key, world.secrets)
        claims.take(key, wanted)
        hashes, found = wanted, claims.pools(spec.pools, namespace)
        condition = found.condition
        if condition.status and world.has_passed(spec.expires_at):
            condition = _EXPIRED
    except Unusable as e:
        condition = Condition(conditions.READY, False, e.reason, e.message)
    inputs = (good, judged, condition, hashes, found.pools, found.fallbacks)
    before = world.made.get(identity)
    if before is not None and before.holds(inputs, world.secrets):
        return before
    compiled = CompiledKey.model_construct(
        ready=condition.status,
        reason=condition.reason,
        owner=spec.owner or "",
        key_hashes=tuple(CompiledKeyHash.model_construct(hash=text, until=until) for text, until in hashes),
        pools=found.pools,
        fallback_pools=found.fallbacks,
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
    return Made(inputs, _object(key, compiled, (condition, judged), good))


def _hashes(key: RelayKey, secrets: Secrets) -> _Hashes:
    spec = key.spec
    current = spec.key_hash
    if current is None:
        assert spec.secret_ref is not None, "the model holds exactly one of them"
        current = keys.hash_key(relay_key(secrets, key.metadata.namespace, spec.secret_ref))
    return ((current, None), *((h.key_hash, h.until) for h in spec.also_accept if h.key_hash != current))


def _resolve(named: tuple[str, ...], namespace: str, world: World) -> _Pools:
    """Resolve the pools that a key names. A foreign pool that does not exist looks like one that is not allowed."""
    ids = [_pool_id(name, namespace) for name in named]
    for pool_id in ids:
        if not _may_use(pool_id, namespace, world):
            message = f"pool {pool_id} does not let namespace {namespace} in"
            return _Pools(Condition(conditions.READY, False, conditions.POOL_NOT_ALLOWED, message))
    found = tuple(dict.fromkeys(i for i in ids if i in world.pools or i in world.kept_pools))
    if not found:
        message = f"pool {', '.join(named)} does not exist"
        return _Pools(Condition(conditions.READY, False, conditions.POOL_NOT_FOUND, message))
    condition = _SERVES
    if missing := [name for name in named if _pool_id(name, namespace) not in found]:
        message = f"without {', '.join(missing)}, which do not exist"
        condition = Condition(conditions.READY, True, conditions.SERVES, message)
    return _Pools(condition, found, _fallbacks(found, namespace, world))


def _may_use(pool_id: str, namespace: str, world: World) -> bool:
    if pool_id.partition("/")[0] == namespace:
        return True
    pool = world.pools.get(pool_id)
    return pool is not None and pool.spec.allowed_namespaces.permit(world.labels_of(namespace))


def _fallbacks(pools: tuple[str, ...], namespace: str, world: World) -> tuple[str, ...]:
    """Return the fallback pools of a key's pools, in order: those that exist and that the key may use."""
    named = (
        _pool_id(name, pool_id.partition("/")[0])
        for pool_id in pools
        for name in (
            world.pools[pool_id].spec.failover if pool_id in world.pools else world.kept_pools[pool_id].failover
        ).fallback_pools
    )
    usable = (i for i in named if i in world.pools and i not in pools and _may_use(i, namespace, world))
    return tuple(dict.fromkeys(usable))


def _pool_id(name: str, namespace: str) -> str:
    return name if "/" in name else f"{namespace}/{name}"


# ---------------------------------------------------------------------- all of them


def _object(
    resource: Resource, compiled: CompiledAccount | CompiledPool | CompiledKey, judged: tuple[Condition, Condition],
    good: Good | None, *, seed: str = "",
) -> DesiredObject:
    """Return the registry's object. A changed seed makes a new revision: the scheduler then tries the account again."""
    metadata = resource.metadata
    spec_json = compiled.write()
    labels = metadata.labels or {}
    told = [[c.type, c.status, c.reason, c.message] for c in judged]
    return DesiredObject(
        kind=type(resource).__name__,
        id=resource.id,
        revision=digest([spec_json, told, labels, metadata.uid, seed]),
        spec_json=spec_json,
        conditions=judged,
        uid=metadata.uid,
        created_at=metadata.creation_timestamp,
        labels=labels,
        source=good.source if good else "implicit",
        serves=compiled.ready and not _is_paused(compiled),
    )


def _is_paused(compiled: Compiled) -> bool:
    match compiled:
        case CompiledAccount(state=state):
            return state is AccountState.PAUSED
        case CompiledKey(state=state):
            return state is KeyState.PAUSED
    return False
