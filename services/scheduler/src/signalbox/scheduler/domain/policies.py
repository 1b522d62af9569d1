"""Documents compiled for admission: immutable policies of keys, pools and accounts.

Built from the registry's objects once per version; how they are kept and found is snapshot.py's business.
"""

import ipaddress
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, lru_cache

from signalbox.core.clock import to_ms
from signalbox.core.globs import allowed, matches_any
from signalbox.resources.compiled import CompiledAccount, CompiledKey, CompiledLimit, CompiledPool
from signalbox.resources.models import AffinityMode, OnUnavailable
from signalbox.scheduler.domain.operations import Candidate, Cap, Limit
from signalbox.v1.scheduler_pb2 import Grant, Timeouts

ACCOUNT, POOL, KEY = "ClaudeAccount", "AccountPool", "RelayKey"
KINDS = (ACCOUNT, POOL, KEY)

# Model families that providers limit apart from one another; every other model counts as a family of its own.
MODEL_CLASSES = ("opus", "sonnet", "haiku", "fable", "mythos")
LEASE_TTL_MS = 30_000
_MOST_CACHED_MODELS = 256
_MOST_CACHED_GRANTS = 64

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@lru_cache(maxsize=4096)
def model_class(model: str) -> str:
    """Return the family of a model's name, the name itself where it is of no known one."""
    return next((c for c in MODEL_CLASSES if c in model), model)


def _or_none(number: int | None) -> int:
    return -1 if number is None else number


def _ms(when: datetime | None) -> int:
    return 0 if when is None else to_ms(when)


@dataclass(frozen=True)
class KeyLimit:
    """One limit of a key. Numbers are None where they do not limit; cost in nano-dollars."""

    name: str
    per: str
    models: tuple[str, ...]
    requests: int | None
    tokens: int | None
    cost: int | None
    strict: bool
    since_ms: int

    def applies_to(self, model: str) -> bool:
        """Whether requests for, or sent as, `model` count against this limit."""
        return not self.models or matches_any(self.models, model)

    @cached_property
    def operand(self) -> Limit:
        """The limit as the Redis functions take it."""
        return Limit(
            self.name, self.per, _or_none(self.requests), _or_none(self.tokens), _or_none(self.cost), int(self.strict),
        )


@dataclass(frozen=True)
class KeyPolicy:
    """What a key may do. Times in Unix milliseconds, 0 for never."""

    id: str
    version: str
    owner: str
    ready: bool
    reason: str
    paused: bool
    hashes: tuple[tuple[bytes, int], ...]
    pools: tuple[str, ...]
    expires_at_ms: int
    lifetime_ms: int
    allow: tuple[str, ...]
    deny: tuple[str, ...]
    clients: frozenset[str]
    networks: tuple[Network, ...]
    concurrency: int
    limits: tuple[KeyLimit, ...]
    rank: tuple[int, str, str] = (0, "", "")
    """Which of two keys with one hash serves: the lowest (creation, uid, id)."""
    _models: dict[str, bool] = field(default_factory=dict, repr=False, compare=False)
    _limits: dict[str, tuple[tuple[KeyLimit, ...], tuple[Limit, ...]]] = field(
        default_factory=dict, repr=False, compare=False,
    )

    def permits(self, model: str) -> bool:
        """Whether `model` may be asked for."""
        known = self._models.get(model)
        if known is None:
            known = allowed(model, self.allow, self.deny)
            if len(self._models) < _MOST_CACHED_MODELS:
                self._models[model] = known
        return known

    def limits_for(self, model: str) -> tuple[tuple[KeyLimit, ...], tuple[Limit, ...]]:
        """Return the limits that `model` counts against, and the same as the Redis functions take them."""
        known = self._limits.get(model)
        if known is None:
            applying = tuple(x for x in self.limits if x.applies_to(model))
            known = applying, tuple(x.operand for x in applying)
            if len(self._limits) < _MOST_CACHED_MODELS:
                self._limits[model] = known
        return known

    @cached_property
    def measures_amounts(self) -> bool:
        """Whether any limit counts tokens or cost."""
        return any(x.tokens is not None or x.cost is not None for x in self.limits)

    def permits_source(self, address: str) -> bool:
        """Whether a client at `address` may use the key; an unreadable address is no member of any network."""
        if not self.networks:
            return True
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = getattr(ip, "ipv4_mapped", None)
        return any((mapped or ip) in n for n in self.networks)


@dataclass(frozen=True)
class AccountPolicy:
    """What an account can serve."""

    id: str
    version: str
    provider: str
    base_url: str
    ready: bool
    reason: str
    state: str
    state_reason: str
    priority: int
    weight: int
    max_concurrency: int
    caps: tuple[Cap, ...]
    group: str
    allow: tuple[str, ...]
    deny: tuple[str, ...]
    renames: dict[str, str]
    proxied: bool
    expires_at_ms: int
    _sent: dict[str, str | None] = field(default_factory=dict, repr=False, compare=False)
    _candidates: dict[tuple[int, str, bool], Candidate] = field(default_factory=dict, repr=False, compare=False)
    _grants: dict[tuple[str, str], Grant] = field(default_factory=dict, repr=False, compare=False)

    def sends(self, model: str) -> str | None:
        """Return the name under which the account serves `model`, None where it does not."""
        if model in self._sent:
            return self._sent[model]
        name: str | None = self.renames.get(model, model)
        if name is not None and not allowed(name, self.allow, self.deny):
            name = None
        if len(self._sent) < _MOST_CACHED_MODELS:
            self._sent[model] = name
        return name

    def fault(self, now_ms: int) -> str:
        """Return why the documents keep the account out, "" where they do not."""
        if self.state == "Paused":
            return "Paused"
        if self.expires_at_ms and now_ms >= self.expires_at_ms:
            return "Expired"
        return "" if self.ready else self.reason

    def candidate(self, pool: int, sends: str, limits: tuple[Limit, ...], *, counts: bool) -> Candidate:
        """Return the account as the Redis functions take it; `limits` are those that only the name sent falls under."""
        known = self._candidates.get((pool, sends, counts)) if not limits else None
        if known is None:
            known = Candidate(
                self.id, self.group, self.max_concurrency, pool, sends, model_class(sends), limits,
                self.caps if counts else (), int(self.draining),
            )
            if not limits and len(self._candidates) < _MOST_CACHED_MODELS:
                self._candidates[pool, sends, counts] = known
        return known

    def grant_in(self, pool: "PoolPolicy") -> Grant:
        """Return what all grants of the account in a pool have in common; to be copied, not changed."""
        known = self._grants.get((pool.id, pool.version))
        if known is None:
            known = Grant(
                account_id=self.id, pool_id=pool.id, provider=self.provider, base_url=self.base_url,
                has_proxy=self.proxied, max_attempts=pool.max_attempts, timeouts=pool.timeouts,
                lease_ttl_ms=LEASE_TTL_MS,
            )
            if len(self._grants) >= _MOST_CACHED_GRANTS:
                self._grants.clear()  # the pool has changed that often
            self._grants[pool.id, pool.version] = known
        return known

    @cached_property
    def salt(self) -> int:
        """A number of the account's own, the same in every process; breaks ties differently for each request."""
        return zlib.crc32(self.id.encode())

    @property
    def draining(self) -> bool:
        """Whether the account serves its pins only."""
        return self.state == "Draining"


@dataclass(frozen=True)
class PoolPolicy:
    """Which accounts serve together, and how. Times in milliseconds."""

    id: str
    version: str
    ready: bool
    reason: str
    accounts: tuple[str, ...]
    strategy: str
    pin_ttl_ms: int
    refuses: bool
    max_attempts: int
    timeouts: Timeouts
    max_wait_ms: int = 0
    max_depth: int = 0
    """How long a request waits for an account of the pool, and how many do so at once; 0: none does."""

    @cached_property
    def members(self) -> frozenset[str]:
        """The accounts as a set."""
        return frozenset(self.accounts)


def compile_key(object_id: str, version: str, spec_json: bytes, uid: str, created_at_ms: int) -> KeyPolicy:
    """Read a key's compiled spec. Raises pydantic.ValidationError for what no reconciler wrote."""
    spec = CompiledKey.read(spec_json)
    return KeyPolicy(
        id=object_id,
        version=version,
        owner=spec.owner,
        ready=spec.ready,
        reason=spec.reason,
        paused=spec.state == "Paused",
        hashes=tuple((bytes.fromhex(h.hash.removeprefix("sha256:")), _ms(h.until)) for h in spec.key_hashes),
        pools=_unique((*spec.pools, *spec.fallback_pools)),
        expires_at_ms=_ms(spec.expires_at),
        lifetime_ms=int(spec.lifetime.duration * 1000) if spec.lifetime else 0,
        allow=spec.models.allow,
        deny=spec.models.deny,
        clients=frozenset(str(c) for c in spec.clients),
        networks=tuple(ipaddress.ip_network(n, strict=False) for n in spec.source_cidrs),
        concurrency=spec.concurrency or 0,
        limits=tuple(_limit(x) for x in spec.limits),
        rank=(created_at_ms, uid, object_id),
    )


def _limit(spec: CompiledLimit) -> KeyLimit:
    return KeyLimit(
        spec.name, str(spec.per), spec.models, spec.requests, spec.tokens, spec.cost_usd,
        spec.admission == "Strict", _ms(spec.since),
    )


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def compile_account(object_id: str, version: str, spec_json: bytes) -> AccountPolicy:
    """Read an account's compiled spec. Raises pydantic.ValidationError for what no reconciler wrote."""
    spec = CompiledAccount.read(spec_json)
    return AccountPolicy(
        id=object_id,
        version=version,
        provider=str(spec.provider),
        base_url=spec.base_url,
        ready=spec.ready,
        reason=spec.reason,
        state=str(spec.state),
        state_reason=spec.state_reason,
        priority=spec.priority,
        weight=spec.weight,
        max_concurrency=spec.max_concurrency or 0,
        caps=tuple(
            Cap(str(c.per), _or_none(c.requests), _or_none(c.input_tokens), _or_none(c.output_tokens))
            for c in spec.limits
        ),
        group=spec.limit_group,
        allow=spec.models.allow,
        deny=spec.models.deny,
        renames=dict(spec.models.map),
        proxied=spec.proxied,
        expires_at_ms=_ms(spec.expires_at),
    )


def compile_pool(object_id: str, version: str, spec_json: bytes) -> PoolPolicy:
    """Read a pool's compiled spec. Raises pydantic.ValidationError for what no reconciler wrote."""
    spec = CompiledPool.read(spec_json)
    t = spec.timeouts
    pinned = spec.affinity.mode is AffinityMode.SESSION
    return PoolPolicy(
        id=object_id,
        version=version,
        ready=spec.ready,
        reason=spec.reason,
        accounts=spec.accounts,
        strategy=str(spec.strategy),
        pin_ttl_ms=int(spec.affinity.ttl * 1000) if pinned else 0,
        refuses=spec.affinity.on_unavailable is OnUnavailable.REFUSE,
        max_attempts=spec.failover.max_attempts,
        timeouts=Timeouts(
            connect=int(t.connect * 1000), headers=int(t.headers * 1000),
            headers_unstreamed=int(t.headers_unstreamed * 1000), first_content=int(t.first_content * 1000),
            idle=int(t.idle * 1000), total=int(t.total * 1000),
        ),
        max_wait_ms=int(spec.queue.max_wait * 1000) if spec.queue.max_depth else 0,
        max_depth=spec.queue.max_depth,
    )
