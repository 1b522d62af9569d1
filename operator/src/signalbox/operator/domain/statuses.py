"""What stands in an object's status: documents, registry and token-refresher put together. Pure.

Ready is about the documents (and a key's expiry), CredentialValid about the credential, Available about this moment;
a deliberate pause is no fault, so Ready stays True then and its reason says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol

from signalbox.core.clock import from_ms
from signalbox.core.money import format_usd
from signalbox.resources import conditions as c
from signalbox.resources.conditions import Condition
from signalbox.resources.models.base import Model
from signalbox.resources.models.status import (
    MAX_MESSAGE,
    AccountStatus,
    AmountStatus,
    ConditionStatus,
    CostStatus,
    KeyStatus,
    LimitStatus,
    PoolAccounts,
    PoolStatus,
    Truth,
    WindowStatus,
)
from signalbox.v1 import common_pb2, scheduler_pb2, token_refresher_pb2

_MOST_PERMILLE: Final = 1_000_000
_AT_REST: Final = ("Paused", "Draining")


@dataclass(frozen=True)
class Facts:
    """All that is known of one object."""

    generation: int
    judged: Sequence[Condition]
    """Ready and Accepted, as the plan says."""
    old: Mapping[str, Any]
    """The status as the API server has it."""
    now: datetime
    account: scheduler_pb2.AccountStatus | None = None
    pool: scheduler_pb2.PoolStatus | None = None
    key: scheduler_pb2.KeyStatus | None = None
    grant: token_refresher_pb2.GrantStatus | None = field(default=None, repr=False)
    refused: str = ""
    """Why the token-refresher would not take the newest grant."""

    def condition(self, kind: str) -> Condition:
        """Return one of the judged conditions."""
        return next((one for one in self.judged if one.type == kind), Condition(kind, False, c.PENDING))


class Builder(Protocol):
    """From facts to a status."""

    def __call__(self, facts: Facts) -> Model:
        """Return the status."""
        ...


def status_of(kind: str, facts: Facts) -> dict[str, Any]:
    """Return the status as the API server should have it, in the documents' notation."""
    return _BUILDERS[kind](facts).to_document()


def _account(facts: Facts) -> AccountStatus:
    live = facts.account
    ready = facts.condition(c.READY)
    if ready.status and live is not None and live.state in _AT_REST:
        ready = Condition(c.READY, True, live.state, live.state_reason)
    valid = _credential(ready, facts)
    stated = [ready, valid, _available(ready, valid, live), facts.condition(c.ACCEPTED)]
    return AccountStatus.model_construct(
        observed_generation=facts.generation,
        conditions=_conditions(stated, facts),
        limited_until=_time(live.limited_until_ms) if live else None,
        limits=tuple(_window(w) for w in live.windows) if live else (),
        in_flight=live.in_flight if live else 0,
        last_used_at=_time(live.last_used_at_ms) if live else None,
    )


def _credential(ready: Condition, facts: Facts) -> "Condition | _Unknown":
    grant = facts.grant
    if facts.refused:
        return Condition(c.CREDENTIAL_VALID, False, c.CREDENTIAL_INVALID, facts.refused)
    if grant is not None:
        return Condition(c.CREDENTIAL_VALID, grant.valid, grant.reason or c.PENDING, grant.message)
    if not ready.status:
        return Condition(c.CREDENTIAL_VALID, False, ready.reason, ready.message)
    return _Unknown(c.CREDENTIAL_VALID)


def _available(
    ready: Condition, valid: "Condition | _Unknown", live: scheduler_pb2.AccountStatus | None,
) -> "Condition | _Unknown":
    """Name the first thing that keeps a request from being sent."""
    if not ready.status:
        return Condition(c.AVAILABLE, False, ready.reason, ready.message)
    if isinstance(valid, Condition) and not valid.status:
        return Condition(c.AVAILABLE, False, valid.reason, valid.message)
    if live is None:
        return _Unknown(c.AVAILABLE)
    return Condition(c.AVAILABLE, live.available, live.reason or c.SERVES)


def _pool(facts: Facts) -> PoolStatus:
    live = facts.pool or scheduler_pb2.PoolStatus()
    states = {_snake(name): count for name, count in live.by_state.items()}
    known: dict[str, Any] = {name: count for name, count in states.items() if name in PoolAccounts.model_fields}
    return PoolStatus.model_construct(
        observed_generation=facts.generation,
        conditions=_conditions([facts.condition(c.READY), facts.condition(c.ACCEPTED)], facts),
        strategy=live.strategy,
        accounts=PoolAccounts.model_construct(**{**known, "total": live.total, "ready": live.ready}),
        accounts_ready=f"{live.ready}/{live.total}",
    )


def _key(facts: Facts) -> KeyStatus:
    live = facts.key
    ready = facts.condition(c.READY)
    if ready.status and live is not None:
        ready = _key_now(ready, live)
    return KeyStatus.model_construct(
        observed_generation=facts.generation,
        conditions=_conditions([ready, facts.condition(c.ACCEPTED)], facts),
        expires_at=_time(live.expires_at_ms) if live else None,
        first_used_at=_time(live.first_used_at_ms) if live else None,
        limits=tuple(_limit(limit) for limit in live.limits) if live else (),
    )


def _key_now(ready: Condition, live: scheduler_pb2.KeyStatus) -> Condition:
    match live.state:
        case "Expired":
            return Condition(c.READY, False, c.EXPIRED, "its lifetime has passed")
        case "Paused":
            return Condition(c.READY, True, "Paused")
        case "Limited":
            return Condition(c.READY, True, c.LIMITED, f"limit {live.reason} is used up")
    return ready


@dataclass(frozen=True)
class _Unknown:
    """A condition that cannot be told yet."""

    type: str


def _conditions(stated: Sequence[Condition | _Unknown], facts: Facts) -> tuple[ConditionStatus, ...]:
    """Return conditions whose transition times move only with their status."""
    old = {one.get("type"): one for one in facts.old.get("conditions") or ()}
    return tuple(_condition(one, old.get(one.type), facts) for one in stated)


def _condition(one: Condition | _Unknown, old: Mapping[str, Any] | None, facts: Facts) -> ConditionStatus:
    if isinstance(one, _Unknown):
        truth, reason, message = Truth.UNKNOWN, c.PENDING, ""
    else:
        truth, reason, message = (Truth.TRUE if one.status else Truth.FALSE), one.reason, one.message
    since: Any = facts.now.replace(microsecond=0)
    if old is not None and old.get("status") == truth and old.get("lastTransitionTime"):
        since = datetime.fromisoformat(str(old["lastTransitionTime"]))
    return ConditionStatus.model_construct(
        type=one.type, status=truth, reason=reason, message=message[:MAX_MESSAGE], last_transition_time=since,
        observed_generation=facts.generation,
    )


def _window(window: common_pb2.Window) -> WindowStatus:
    return WindowStatus.model_construct(
        window=window.name,
        utilization_permille=min(_MOST_PERMILLE, max(0, round(window.utilization * 1000))),
        resets_at=_time(window.resets_at_ms),
    )


def _limit(limit: common_pb2.LimitState) -> LimitStatus:
    def amount(name: str) -> AmountStatus | None:
        if not limit.HasField(name):
            return None
        value: common_pb2.Amount = getattr(limit, name)
        return AmountStatus.model_construct(
            limit=value.limit, used=max(0, value.used), reserved=max(0, value.reserved),
        )

    cost = limit.cost_nano_usd if limit.HasField("cost_nano_usd") else None
    return LimitStatus.model_construct(
        name=limit.name, per=limit.per, models=tuple(limit.models), resets_at=_time(limit.resets_at_ms),
        requests=amount("requests"), tokens=amount("tokens"),
        cost_usd=CostStatus.model_construct(
            limit=format_usd(cost.limit), used=format_usd(cost.used), reserved=format_usd(cost.reserved),
        ) if cost else None,
    )


def _time(at_ms: int) -> datetime | None:
    """Return a moment to the second: finer, it would only make statuses differ."""
    return from_ms(at_ms).replace(microsecond=0) if at_ms else None


def _snake(name: str) -> str:
    return {"NotReady": "not_ready"}.get(name, name.lower())


_BUILDERS: Final[Mapping[str, Builder]] = {"ClaudeAccount": _account, "AccountPool": _pool, "RelayKey": _key}

