"""What the operator writes under `status`: shapes only. Everything in it can be told anew from the world.

`signalbox up` has no statuses: the same facts are shown by the command line there.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from signalbox.resources.models.base import Model
from signalbox.resources.values import Glob, Time

MAX_MESSAGE = 1024
MAX_REASON = 128
_LONGEST_NAME = 512


class Truth(StrEnum):
    """What a condition can be."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class ConditionStatus(Model):
    """One statement about an object, as in all of Kubernetes."""

    type: Annotated[str, Field(max_length=MAX_REASON)] = Field(description="What is stated.")
    status: Truth = Field(description="True, False, or Unknown before the operator has looked.")
    reason: Annotated[str, Field(max_length=MAX_REASON)] = Field(description="Why, as one constant word.")
    message: Annotated[str, Field(max_length=MAX_MESSAGE)] = Field(default="", description="Why, for people.")
    last_transition_time: Time = Field(description="When `status` last changed.")
    observed_generation: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="metadata.generation of the document that this is about."
    )


class WindowStatus(Model):
    """One window of the provider's limits, as its answers teach it."""

    window: Annotated[str, Field(max_length=MAX_REASON)] = Field(description="The provider's own name of the window.")
    utilization_permille: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        description="How much of it is used, in thousandths; may exceed 1000."
    )
    resets_at: Time | None = Field(default=None, description="When it begins anew.")


class AmountStatus(Model):
    """Requests or tokens of one limit."""

    limit: Annotated[int, Field(ge=0)] = Field(description="How much is allowed.")
    used: Annotated[int, Field(ge=0)] = Field(description="How much is used.")
    reserved: Annotated[int, Field(ge=0)] = Field(default=0, description="How much running requests hold.")


class CostStatus(Model):
    """Money of one limit, in USD as decimal strings."""

    limit: Annotated[str, Field(max_length=32)] = Field(description="How much is allowed.")
    used: Annotated[str, Field(max_length=32)] = Field(description="How much is spent.")
    reserved: Annotated[str, Field(max_length=32)] = Field(description="How much running requests hold.")


class LimitStatus(Model):
    """How much of one limit of a key is used."""

    name: Annotated[str, Field(max_length=_LONGEST_NAME)] = Field(description="The limit's name.")
    per: Annotated[str, Field(max_length=16)] = Field(description="Its period.")
    models: Annotated[tuple[Glob, ...], Field(max_length=64)] = Field(default=(), description="Models that count.")
    resets_at: Time | None = Field(default=None, description="When more becomes free; never for Total.")
    requests: AmountStatus | None = Field(default=None, description="Requests, where limited.")
    tokens: AmountStatus | None = Field(default=None, description="Tokens, where limited.")
    cost_usd: CostStatus | None = Field(default=None, description="Cost, where limited.")


Conditions = Annotated[
    tuple[ConditionStatus, ...],
    Field(
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    ),
]
Generation = Annotated[int, Field(ge=0)]


class AccountStatus(Model):
    """Whether an account can serve now, and how much of its limits is used."""

    observed_generation: Generation = Field(description="metadata.generation of the newest document that was judged.")
    conditions: Conditions = Field(default=(), description="Ready, CredentialValid, Available, Accepted.")
    limited_until: Time | None = Field(default=None, description="Until when the account rests; absent: it does not.")
    limits: Annotated[
        tuple[WindowStatus, ...],
        Field(
            max_length=64,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["window"]},
        ),
    ] = Field(default=(), description="The provider's limits, as its answers teach them.")
    in_flight: Annotated[int, Field(ge=0)] = Field(default=0, description="Requests that run now.")
    last_used_at: Time | None = Field(default=None, description="When it last served.")


class PoolAccounts(Model):
    """A pool's accounts by what they can do now."""

    total: Annotated[int, Field(ge=0)] = Field(default=0, description="All.")
    ready: Annotated[int, Field(ge=0)] = Field(default=0, description="Can serve.")
    limited: Annotated[int, Field(ge=0)] = Field(default=0, description="Rest until a limit resets.")
    paused: Annotated[int, Field(ge=0)] = Field(default=0, description="Are paused.")
    draining: Annotated[int, Field(ge=0)] = Field(default=0, description="Take no new conversation.")
    not_ready: Annotated[int, Field(ge=0)] = Field(default=0, description="Cannot serve.")


class PoolStatus(Model):
    """How many of a pool's accounts can serve now."""

    observed_generation: Generation = Field(description="metadata.generation of the newest document that was judged.")
    conditions: Conditions = Field(default=(), description="Ready, Accepted.")
    strategy: Annotated[str, Field(max_length=MAX_REASON)] = Field(default="", description="The strategy in force.")
    accounts: PoolAccounts = Field(default=PoolAccounts(), description="Accounts by what they can do now.")
    accounts_ready: Annotated[str, Field(max_length=32)] = Field(
        default="0/0", description="`ready/total`, to be shown in one column."
    )


class KeyStatus(Model):
    """Whether a key works, and how much of its limits is used."""

    observed_generation: Generation = Field(description="metadata.generation of the newest document that was judged.")
    conditions: Conditions = Field(default=(), description="Ready, Accepted.")
    expires_at: Time | None = Field(default=None, description="When the key stops working, a lifetime's end included.")
    first_used_at: Time | None = Field(default=None, description="When it was first used.")
    limits: Annotated[
        tuple[LimitStatus, ...],
        Field(
            max_length=16, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
        ),
    ] = Field(default=(), description="Limits with what is used and reserved.")


STATUSES: dict[str, type[Model]] = {
    "ClaudeAccount": AccountStatus,
    "AccountPool": PoolStatus,
    "RelayKey": KeyStatus,
}
