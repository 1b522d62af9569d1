"""Compiled specs: what the reconciler hands to the scheduler's registry, as canonical JSON.

They are written in the documents' own notation, with defaults applied, references resolved and no secret in them.
Readers get typed values back with `CompiledAccount.read(spec_json)` and its siblings: durations as float seconds,
money as integer nano-dollars, times as aware datetimes.
"""

import hashlib
import json
from datetime import datetime
from typing import Any, ClassVar, Self

from pydantic import Field

from signalbox.resources.models.account import AccountLimit, AccountModels, AccountState, ModelRules, Provider
from signalbox.resources.models.base import Model
from signalbox.resources.models.key import Client, KeyLimit, KeyState, Lifetime
from signalbox.resources.models.pool import Affinity, Failover, Queue, Strategy, Timeouts
from signalbox.resources.rules import Rule
from signalbox.resources.values import Time


class Compiled(Model):
    """Base of the compiled specs. `ready` and `reason` are the Ready condition's, for readers that decide by it."""

    rules: ClassVar[tuple[Rule, ...]] = ()

    ready: bool
    reason: str

    def write(self) -> str:
        """Return the canonical JSON: keys sorted, no spaces, unset members left out."""
        return canonical_json(self.to_document())

    @classmethod
    def read(cls, spec_json: bytes | str) -> Self:
        """Return the typed spec. Raises pydantic.ValidationError for what no reconciler wrote."""
        return cls.model_validate_json(spec_json)


class CompiledAccount(Compiled):
    """An account as the scheduler and the gateway see it; its credential goes to the token-refresher alone."""

    provider: Provider
    base_url: str
    state: AccountState
    state_reason: str = ""
    credential_kind: str
    priority: int
    weight: int
    max_concurrency: int | None = None
    limits: tuple[AccountLimit, ...]
    limit_group: str = Field(description="`namespace/limitGroup`; the account's own id where it has none.")
    models: AccountModels
    proxied: bool = Field(description="Requests take a proxy, whose URL comes with the credential.")
    expires_at: Time | None = None


class CompiledPool(Compiled):
    """A pool with its members resolved."""

    accounts: tuple[str, ...] = Field(description="Account ids, sorted.")
    strategy: Strategy
    affinity: Affinity
    failover: Failover
    queue: Queue
    timeouts: Timeouts


class CompiledKeyHash(Model):
    """A hash that the key answers to; `until` (for former keys) says how long."""

    hash: str
    until: Time | None = None


class CompiledLimit(KeyLimit):
    """A limit whose name is always set."""

    rules: ClassVar[tuple[Rule, ...]] = ()

    name: str


class CompiledKey(Compiled):
    """A key with its hashes computed and its pools resolved."""

    owner: str = ""
    key_hashes: tuple[CompiledKeyHash, ...] = Field(description="Empty where the key must not be found by its text.")
    pools: tuple[str, ...] = Field(description="Pool ids to try in this order.")
    fallback_pools: tuple[str, ...] = Field(description="Pool ids to try after all of `pools`, before queueing.")
    state: KeyState
    expires_at: Time | None = None
    lifetime: Lifetime | None = None
    models: ModelRules
    clients: tuple[Client, ...] = Field(description="Allowed programs; all when empty.")
    source_cidrs: tuple[str, ...]
    concurrency: int | None = None
    limits: tuple[CompiledLimit, ...]

    def hashes_at(self, now: datetime) -> tuple[str, ...]:
        """Return the hashes that the key answers to at `now`."""
        return tuple(h.hash for h in self.key_hashes if h.until is None or now < h.until)


def canonical_json(value: Any) -> str:
    """Return JSON of which equal values have one text: keys sorted, no spaces, UTF-8 kept."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
