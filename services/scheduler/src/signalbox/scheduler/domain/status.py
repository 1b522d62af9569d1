"""What people see of accounts, pools and keys right now: the status of each, and what a key's owner may ask."""

from collections.abc import Sequence
from typing import Any

from signalbox.scheduler.domain import denials
from signalbox.scheduler.domain.limits import exhausted, limit_states
from signalbox.scheduler.domain.policies import ACCOUNT, KEY, POOL, AccountPolicy, KeyPolicy
from signalbox.scheduler.domain.state import Health
from signalbox.scheduler.domain.view import View
from signalbox.v1.common_pb2 import Condition
from signalbox.v1.scheduler_pb2 import (
    AccountModels,
    AccountStatus,
    Denial,
    InspectRequest,
    InspectResponse,
    KeyStatus,
    ModelRules,
    Object,
    ObjectWithStatus,
    PoolStatus,
)

_REASON_OF = {"limited": "Limited", "cooling": "CoolingDown"}
Peek = Sequence[Any]
"""In flight, first use (0: none), reports of all limits."""
NOTHING: Peek = (0, 0, ())


def availability(view: View, account: AccountPolicy, now_ms: int) -> tuple[str, Health | None]:
    """Return why an account cannot serve now ("" where it can), and what keeps it out by time."""
    fault = account.fault(now_ms)
    if fault:
        return fault, None
    out = view.live.kept_out(account.id, account.group, "", now_ms)
    if out is None and (capped := view.live.caps.get(account.id)) and now_ms < capped.until_ms:
        out = capped
    if out is None:
        return "", None
    return out.reason or _REASON_OF.get(out.kind, "Benched"), out


def account_status(view: View, account: AccountPolicy, conditions: Sequence[Condition], now_ms: int) -> AccountStatus:
    """Return an account's status."""
    state = view.live.account(account.id)
    group = view.live.groups.get(account.group)
    reason, out = availability(view, account, now_ms)
    return AccountStatus(
        state=account.state, state_reason=account.state_reason, available=not reason, reason=reason,
        limited_until_ms=out.until_ms if out and out.kind != "benched" else 0,
        in_flight=max(0, state.in_flight), windows=group.by_name().values() if group else (),
        last_used_at_ms=state.last_used_ms,
        conditions=[*conditions, Condition(type="Available", status=not reason, reason=reason or "Serves")],
    )


def pool_status(view: View, pool_id: str, conditions: Sequence[Condition], now_ms: int) -> PoolStatus:
    """Return a pool's status."""
    index = view.snapshot.index(pool_id)
    members = index.members if index else ()
    by_state: dict[str, int] = {}
    for account in members:
        reason, out = availability(view, account, now_ms)
        if account.state != "Active":
            name = account.state
        elif reason:
            name = "Limited" if out is not None and out.kind != "benched" else "NotReady"
        else:
            name = "Ready"
        by_state[name] = by_state.get(name, 0) + 1
    return PoolStatus(
        strategy=index.pool.strategy if index else "", total=len(members), ready=by_state.get("Ready", 0),
        by_state=by_state, conditions=conditions,
    )


def expiry_ms(key: KeyPolicy, first_used_ms: int) -> int:
    """Return when a key expires, 0 for never or not yet known."""
    if key.expires_at_ms or not key.lifetime_ms or not first_used_ms:
        return key.expires_at_ms
    return first_used_ms + key.lifetime_ms


def key_status(key: KeyPolicy, peek: Peek, conditions: Sequence[Condition], now_ms: int) -> KeyStatus:
    """Return a key's status; `peek` as the shared state has it."""
    in_flight, first_used_ms, reports = peek
    limits = limit_states(key.limits, reports)
    expires_at_ms = expiry_ms(key, first_used_ms)
    state, reason = _key_state(key, exhausted(limits), expires_at_ms, now_ms)
    return KeyStatus(
        state=state, reason=reason, first_used_at_ms=first_used_ms, expires_at_ms=expires_at_ms,
        concurrency_limit=key.concurrency, in_flight=in_flight, limits=limits, conditions=conditions,
    )


def _key_state(key: KeyPolicy, full_limit: str, expires_at_ms: int, now_ms: int) -> tuple[str, str]:
    if key.reason == "DuplicateKey":
        return "DuplicateKey", "DuplicateKey"
    if key.paused:
        return "Paused", "Paused"
    if key.reason == "Expired" or (expires_at_ms and now_ms >= expires_at_ms):
        return "Expired", "Expired"
    if full_limit:
        return "Limited", full_limit
    return "Active", "" if key.ready else key.reason


def object_with_status(view: View, obj: Object, peek: Peek, now_ms: int) -> ObjectWithStatus:
    """Return an object beside its live status."""
    whole = ObjectWithStatus(object=obj)
    if obj.kind == ACCOUNT and (account := view.snapshot.accounts.get(obj.id)):
        whole.account.CopyFrom(account_status(view, account, obj.conditions, now_ms))
    elif obj.kind == POOL:
        whole.pool.CopyFrom(pool_status(view, obj.id, obj.conditions, now_ms))
    elif obj.kind == KEY and (key := view.snapshot.keys.get(obj.id)):
        whole.key.CopyFrom(key_status(key, peek, obj.conditions, now_ms))
    return whole


def inspection(
    view: View, request: InspectRequest, key: KeyPolicy | None, denial: Denial | None, *, peek: Peek, now_ms: int,
) -> InspectResponse:
    """Answer an Inspect: the denial if there is one, and all that is known of the key."""
    if key is None:
        return InspectResponse(seq=request.seq, denial=denial)
    status = key_status(key, peek, (), now_ms)
    if denial is None and status.state == "Expired":
        denial = denials.key_expired(key)
    response = InspectResponse(
        seq=request.seq, denial=denial, key_id=key.id, owner=key.owner, state=status.state,
        expires_at_ms=status.expires_at_ms, first_used_at_ms=status.first_used_at_ms,
        concurrency_limit=key.concurrency, in_flight=status.in_flight,
        limits=status.limits if request.with_limits else (),
        key_models=ModelRules(allow=key.allow, deny=key.deny),
    )
    if request.with_accounts:
        response.accounts.extend(_models_of(a) for a in _accounts_of(view, key, now_ms))
    return response


def _accounts_of(view: View, key: KeyPolicy, now_ms: int) -> list[AccountPolicy]:
    found: dict[str, AccountPolicy] = {}
    for pool in key.pools:
        index = view.snapshot.index(pool)
        for account in index.members if index else ():
            if not account.fault(now_ms):
                found.setdefault(account.id, account)
    return list(found.values())


def _models_of(account: AccountPolicy) -> AccountModels:
    return AccountModels(
        account_id=account.id, base_url=account.base_url, provider=account.provider,
        models=ModelRules(allow=account.allow, deny=account.deny), map=account.renames,
    )
