"""What the rooms answer, as the plain rows that `-o json` prints: pure functions, names as the contract fixes them."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from signalbox.core.money import format_usd
from signalbox.core.rows import TOKEN_FIELDS, Row, limit_row, moment
from signalbox.v1 import common_pb2, scheduler_pb2, token_refresher_pb2, usage_pb2

READY = "Ready"
CREDENTIAL_VALID = "CredentialValid"


def account_row(item: scheduler_pb2.ObjectWithStatus, grant: token_refresher_pb2.GrantStatus | None) -> Row:
    """Return one account, the token-refresher's word on its credential merged in."""
    spec, status = _spec(item), item.account
    conditions = _conditions(item.object.conditions, status.conditions)
    invalid = grant is not None and not grant.valid
    if grant is not None:
        conditions[CREDENTIAL_VALID] = _condition(
            CREDENTIAL_VALID, grant.valid, grant.reason, grant.message, grant.last_transition_ms,
        )
    not_ready = conditions.get(READY, {}).get("status") == "False"
    if not_ready:
        reason = conditions[READY]["reason"]
    elif invalid and grant is not None:
        reason = grant.reason
    else:
        reason = status.reason
    return {
        **_identity(item),
        "provider": spec.get("provider", ""),
        "state": status.state or spec.get("state", ""),
        "state_reason": status.state_reason or spec.get("stateReason", ""),
        "available": status.available and not not_ready and not invalid,
        "reason": reason,
        "limited_until": moment(status.limited_until_ms),
        "in_flight": status.in_flight,
        "windows": [
            {"window": w.name, "utilization": w.utilization, "resets_at": moment(w.resets_at_ms)}
            for w in status.windows
        ],
        "conditions": list(conditions.values()),
        "credential": spec.get("credentialKind", ""),
        "base_url": spec.get("baseURL", ""),
        "priority": spec.get("priority"),
        "weight": spec.get("weight"),
        "last_used_at": moment(status.last_used_at_ms),
        "source": item.object.source,
    }


def pool_row(item: scheduler_pb2.ObjectWithStatus) -> Row:
    """Return one pool; `accounts` counts its members by state."""
    spec, status = _spec(item), item.pool
    return {
        **_identity(item),
        "strategy": status.strategy or spec.get("strategy", ""),
        "accounts": dict(sorted(status.by_state.items())),
        "ready": status.ready,
        "total": status.total,
        "members": list(spec.get("accounts", ())),
        "conditions": list(_conditions(item.object.conditions, status.conditions).values()),
        "source": item.object.source,
    }


def key_row(item: scheduler_pb2.ObjectWithStatus) -> Row:
    """Return one relay key with its limits, as /v1/key-info shows them."""
    spec, status = _spec(item), item.key
    return {
        **_identity(item),
        "owner": spec.get("owner", ""),
        "state": status.state or spec.get("state", ""),
        "reason": status.reason,
        "limits": [limit_row(limit) for limit in status.limits],
        "expires_at": moment(status.expires_at_ms),
        "first_used_at": moment(status.first_used_at_ms),
        "concurrency": {"limit": status.concurrency_limit or None, "in_flight": status.in_flight},
        "pools": list(spec.get("pools", ())),
        "conditions": list(_conditions(item.object.conditions, status.conditions).values()),
        "source": item.object.source,
    }


def request_row(row: usage_pb2.LedgerRow) -> Row:
    """Return one row of the ledger: an attempt, or a denial (attempt 0)."""
    return {
        "request_id": row.request_id,
        "attempt": row.attempt,
        "route": row.route,
        "key": row.key_id,
        "owner": row.owner,
        "account": row.account_id,
        "pool": row.pool_id,
        "model": row.model,
        "served_model": row.served_model,
        "outcome": outcome_name(row.outcome),
        "status": row.status,
        "streamed": row.streamed,
        **{field: getattr(row.usage, field) for field in TOKEN_FIELDS},
        "estimated": row.estimated,
        "cost_usd": format_usd(row.cost_nano_usd),
        "price_assumed": row.price_assumed,
        "admitted_at": moment(row.admitted_at_ms),
        "started_at": moment(row.started_at_ms or row.admitted_at_ms),
        "duration_ms": row.duration_ms,
        "ttft_ms": row.ttft_ms or None,
        "client": row.client,
        "reason": row.reason,
        "upstream_request_id": row.upstream_request_id,
    }


def explained_row(row: usage_pb2.LedgerRow) -> Row:
    """Return one row of the ledger with the scheduler's decision behind it."""
    return {**request_row(row), "retry_after_ms": row.retry_after_ms or None, "decision": decision_row(row.decision)}


def decision_row(packed: bytes) -> Row | None:
    """Return a packed Decision as plain values, None where none was kept."""
    if not packed:
        return None
    decision = scheduler_pb2.Decision.FromString(packed)
    return {
        "strategy": decision.strategy,
        "pin": decision.pin,
        "considered": decision.considered,
        "candidates": [
            {"account": c.account_id, "score": c.score, "note": c.note} for c in decision.candidates
        ],
        "chosen": decision.chosen,
        "reason": decision.reason,
        "excluded": dict(sorted(decision.excluded.items())),
        "pinned": decision.pinned,
        "pin_reason": decision.pin_reason,
        "waited_ms": decision.waited_ms,
        "waited_for": decision.waited_for,
    }


def outcome_name(outcome: common_pb2.Outcome) -> str:
    """Return an outcome as people and programs see it: `ok`, `client_gone`, ..."""
    return _outcome(common_pb2.Outcome.Name(outcome))


def _outcome(name: str) -> str:
    return name.removeprefix("OUTCOME_").lower()


OUTCOMES = tuple(_outcome(name) for name in common_pb2.Outcome.keys() if name != "OUTCOME_UNSPECIFIED")  # noqa: SIM118


def _identity(item: scheduler_pb2.ObjectWithStatus) -> Row:
    namespace, _, name = item.object.id.partition("/")
    return {"name": name, "namespace": namespace}


def _spec(item: scheduler_pb2.ObjectWithStatus) -> Mapping[str, Any]:
    spec: Mapping[str, Any] = json.loads(item.object.spec_json or b"{}")
    return spec


def _conditions(*sources: Iterable[common_pb2.Condition]) -> dict[str, Row]:
    """Return conditions by type; what a room observed wins over what the documents alone say."""
    return {
        c.type: _condition(c.type, c.status, c.reason, c.message, c.last_transition_ms)
        for conditions in sources
        for c in conditions
    }


def _condition(kind: str, status: bool, reason: str, message: str, changed_ms: int) -> Row:
    """Return a condition in Kubernetes' notation, where the status is a word."""
    return {
        "type": kind,
        "status": "True" if status else "False",
        "reason": reason,
        "message": message,
        "last_transition_at": moment(changed_ms),
    }
