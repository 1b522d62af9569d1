"""RelayKey: who may use the relay, with which key, for what, and how much."""

import hashlib
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from signalbox.resources.models.account import ModelRules
from signalbox.resources.models.base import Model, Resource, SecretKeyRef
from signalbox.resources.rules import Rule, exactly_one
from signalbox.resources.values import (
    MAX_LIMITS,
    MAX_LIST,
    Concurrency,
    Count,
    Duration,
    Glob,
    KeyHash,
    LimitName,
    NanoUSD,
    Network,
    PoolRef,
    ShortText,
    Time,
)

DEFAULT_POOL = "default"
_LONGEST_LISTED = 56


class KeyState(StrEnum):
    """What the operator wants of a key."""

    ACTIVE = "Active"
    PAUSED = "Paused"


class Client(StrEnum):
    """Programs that can be told apart by what they themselves send."""

    CLAUDE_CODE = "ClaudeCode"
    CODEX = "Codex"
    GEMINI_CLI = "GeminiCLI"
    ANTHROPIC_SDK = "AnthropicSDK"
    OPENAI_SDK = "OpenAISDK"


class Period(StrEnum):
    """Minute and Hour slide in 60 buckets; Day, Week (from Monday) and Month are UTC; Total counts from `since`."""

    MINUTE = "Minute"
    HOUR = "Hour"
    DAY = "Day"
    WEEK = "Week"
    MONTH = "Month"
    TOTAL = "Total"


class Admission(StrEnum):
    """What is reserved before a request runs: the estimate from lately used, or the worst case."""

    ESTIMATED = "Estimated"
    STRICT = "Strict"


class AcceptedHash(Model):
    """A former key that still works for a while."""

    key_hash: KeyHash = Field(description="`sha256:` and the hexadecimal SHA-256 of the key's text.")
    until: Time = Field(description="When it stops working.")


class Clients(Model):
    """Which programs may use the key."""

    allow: Annotated[tuple[Client, ...], Field(max_length=MAX_LIST)] = Field(
        default=(), description="Programs, told apart by what they send; all when empty."
    )


class Lifetime(Model):
    """An expiry counted from first use."""

    duration: Duration = Field(description="How long the key works after its first use.")


# How a limit without a name is called: its period, and its models where it has some.
_CEL_NAME = (
    "(has({0}.name) ? {0}.name : {0}.per.lowerAscii()"
    " + (has({0}.models) && size({0}.models) > 0 ? ':' + {0}.models.join(',') : ''))"
)
_CEL_MODELS = "(has({0}.models) ? {0}.models : [])"
# Compared first: what a rule may cost is bounded, and comparing sets costs the product of their sizes.
_CEL_LENGTH = "(has({0}.models) ? size({0}.models.join(',')) : 0)"


class KeyLimit(Model):
    """One limit of a key, over one period, for all models or some."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.requests) || has(self.tokens) || has(self.costUSD)",
            message="a limit holds at least one number: requests, tokens or costUSD",
            holds=lambda m: not m.requests is m.tokens is m.cost_usd is None,
        ),
    )

    name: LimitName | None = Field(
        default=None, description="Keys the limit's counters and names it to callers. Default: from per and models."
    )
    per: Period = Field(description="Period that the numbers count in.")
    models: Annotated[tuple[Glob, ...], Field(max_length=MAX_LIST)] = Field(
        default=(), description="Globs of the models that count; matched by the name asked for or sent. Default: all."
    )
    requests: Count | None = Field(default=None, description="Requests, each counted once however often it is retried.")
    tokens: Count | None = Field(
        default=None, description="Input + cache writes + output; cache reads are not counted."
    )
    cost_usd: NanoUSD | None = Field(
        default=None, description="USD as an integer or a decimal string with at most 9 places, at most 9000000."
    )
    admission: Admission = Field(
        default=Admission.ESTIMATED, description="Estimated (default), or Strict: reserves the worst case beforehand."
    )
    since: Time | None = Field(
        default=None, description="Where Total begins to count. Default: when the limit was first seen."
    )

    @property
    def effective_name(self) -> str:
        """The limit's name: as written, else `minute`, or `week:claude-opus-*` where it is for some models.

        The order of models does not matter. A list too long for a name is named by its digest.
        """
        if self.name is not None:
            return self.name
        if not self.models:
            return self.per.lower()
        listed = ",".join(sorted(set(self.models)))
        if len(listed) > _LONGEST_LISTED:
            listed = hashlib.sha256(listed.encode()).hexdigest()[:16]
        return f"{self.per.lower()}:{listed}"


class RelayKeySpec(Model):
    """Who may use the relay, for what, and how much."""

    rules: ClassVar[tuple[Rule, ...]] = (
        exactly_one("secretRef", "keyHash", attributes=("secret_ref", "key_hash"), what="source of the key"),
        Rule(
            cel="!(has(self.expiresAt) && has(self.lifetime))",
            message="expiresAt excludes lifetime: write one of them",
            holds=lambda m: m.expires_at is None or m.lifetime is None,
            field="lifetime",
        ),
        Rule(
            cel=(
                "!has(self.limits) || self.limits.all(a, self.limits.exists_one(b, a.per == b.per &&"
                f" {_CEL_LENGTH.format('a')} == {_CEL_LENGTH.format('b')} &&"
                f" sets.equivalent({_CEL_MODELS.format('a')}, {_CEL_MODELS.format('b')})))"
            ),
            message="has two limits for one period and the same models: write them as one",
            holds=lambda m: len({(x.per, frozenset(x.models)) for x in m.limits}) == len(m.limits),
            field="limits",
        ),
        Rule(
            cel=(
                "!has(self.limits) || self.limits.all(a, self.limits.exists_one(b,"
                f" {_CEL_NAME.format('a')} == {_CEL_NAME.format('b')}))"
            ),
            message="has two limits of one name (without a name, the period in lower case is it): rename one",
            holds=lambda m: len({x.effective_name for x in m.limits}) == len(m.limits),
            field="limits",
        ),
    )

    owner: ShortText | None = Field(default=None, description="Who uses the key; spend is reported by it.")
    secret_ref: SecretKeyRef | None = Field(
        default=None, description="The Secret that holds the key's text (16 or more printable characters)."
    )
    key_hash: KeyHash | None = Field(
        default=None,
        description="In place of secretRef, for generated keys only: `sha256:` and the SHA-256 of the key's text.",
    )
    also_accept: Annotated[tuple[AcceptedHash, ...], Field(max_length=MAX_LIST)] = Field(
        default=(), description="Former keys that still work for a while, during a rotation."
    )
    pools: Annotated[tuple[PoolRef, ...], Field(min_length=1, max_length=MAX_LIST)] = Field(
        default=(DEFAULT_POOL,),
        description="Pools, as name or namespace/name, tried in this order, then each one's fallback pools."
        " Default: [default].",
    )
    state: KeyState = Field(default=KeyState.ACTIVE, description="Active (default) or Paused.")
    expires_at: Time | None = Field(default=None, description="When the key stops working. Excludes lifetime.")
    lifetime: Lifetime | None = Field(default=None, description="Expiry counted from first use. Excludes expiresAt.")
    models: ModelRules = Field(
        default=ModelRules(), description="Models that may be asked for; every model in a request counts."
    )
    clients: Clients = Field(default=Clients(), description="Programs that may use the key.")
    source_cidrs: Annotated[tuple[Network, ...], Field(max_length=MAX_LIST)] = Field(
        default=(), description="Networks that callers may come from; all when empty."
    )
    concurrency: Concurrency | None = Field(default=None, description="Requests at once. Default: not limited.")
    limits: Annotated[tuple[KeyLimit, ...], Field(max_length=MAX_LIMITS)] = Field(
        default=(), description="Limits, unique in (per, models). All of them hold at once."
    )


class RelayKey(Resource):
    """A key that people and programs call the relay with."""

    spec: RelayKeySpec
