"""Objects of a cluster as the rows that `-o json` prints: pure, from document and status."""

from collections.abc import Callable, Mapping
from typing import Any

from signalbox.core.rows import Row

_COUNTS = {"Ready": "ready", "Limited": "limited", "Paused": "paused", "Draining": "draining", "NotReady": "notReady"}


def _account(raw: Mapping[str, Any]) -> Row:
    spec, status = raw.get("spec") or {}, raw.get("status") or {}
    conditions = _conditions(status)
    available = conditions.get("Available", {})
    return {
        **_identity(raw),
        "provider": spec.get("provider", ""),
        "state": spec.get("state", "Active"),
        "state_reason": spec.get("stateReason", ""),
        "available": available.get("status") == "True",
        "reason": "" if available.get("status") == "True" else available.get("reason", ""),
        "limited_until": status.get("limitedUntil"),
        "in_flight": status.get("inFlight", 0),
        "windows": [
            {
                "window": w["window"], "utilization": w["utilizationPermille"] / 1000, "resets_at": w.get("resetsAt"),
            }
            for w in status.get("limits") or ()
        ],
        "conditions": list(conditions.values()),
        "last_used_at": status.get("lastUsedAt"),
    }


def _pool(raw: Mapping[str, Any]) -> Row:
    spec, status = raw.get("spec") or {}, raw.get("status") or {}
    counts = status.get("accounts") or {}
    return {
        **_identity(raw),
        "strategy": status.get("strategy") or spec.get("strategy", "Headroom"),
        "accounts": {state: counts[field] for state, field in _COUNTS.items() if counts.get(field)},
        "ready": counts.get("ready", 0),
        "total": counts.get("total", 0),
        "conditions": list(_conditions(status).values()),
    }


def _key(raw: Mapping[str, Any]) -> Row:
    spec, status = raw.get("spec") or {}, raw.get("status") or {}
    ready = _conditions(status).get("Ready", {})
    reason = "" if ready.get("reason") == "Serves" else ready.get("reason", "")
    state = reason if reason in ("Paused", "Expired", "Limited", "DuplicateKey") else "Active"
    return {
        **_identity(raw),
        "owner": spec.get("owner", ""),
        "state": state,
        "reason": reason,
        "limits": [_limit(limit) for limit in status.get("limits") or ()],
        "expires_at": status.get("expiresAt"),
        "first_used_at": status.get("firstUsedAt"),
        "concurrency": {"limit": spec.get("concurrency"), "in_flight": 0},
        "conditions": list(_conditions(status).values()),
    }


def _limit(limit: Mapping[str, Any]) -> Row:
    units = {"requests": "requests", "tokens": "tokens", "cost_usd": "costUSD"}
    amounts = {unit: dict(limit[field]) for unit, field in units.items() if limit.get(field)}
    return {
        "name": limit["name"], "per": limit["per"], "models": list(limit.get("models") or ()),
        "resets_at": limit.get("resetsAt"), **amounts,
    }


def _identity(raw: Mapping[str, Any]) -> Row:
    return {"name": raw["metadata"]["name"], "namespace": raw["metadata"]["namespace"]}


def _conditions(status: Mapping[str, Any]) -> dict[str, Row]:
    """Return conditions by type, with the names that the rooms' rows have."""
    return {
        c["type"]: {
            "type": c["type"], "status": c["status"], "reason": c["reason"], "message": c.get("message", ""),
            "last_transition_at": c.get("lastTransitionTime"),
        }
        for c in status.get("conditions") or ()
    }


ROWS: Mapping[str, Callable[[Mapping[str, Any]], Row]] = {
    "ClaudeAccount": _account, "AccountPool": _pool, "RelayKey": _key,
}
