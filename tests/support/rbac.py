"""The rights that the operator needs, and those of two tenants' people. Imports nothing of the product."""

from collections.abc import Sequence
from typing import Any

from tests.support.kube import Api

OPERATOR = "signalbox-operator"
_OURS = ["claudeaccounts", "accountpools", "relaykeys"]

OPERATOR_RULES: list[dict[str, Any]] = [
    {"apiGroups": ["signalbox.dev"], "resources": _OURS, "verbs": ["get", "list", "watch", "patch"]},
    {"apiGroups": ["signalbox.dev"], "resources": [f"{name}/status" for name in _OURS], "verbs": ["patch"]},
    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
]
# What a tenant's people may do in their own namespace; Secrets can be written but not read.
TENANT_RULES: list[dict[str, Any]] = [
    {"apiGroups": ["signalbox.dev"], "resources": _OURS, "verbs": ["*"]},
    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create", "patch"]},
]


def grant_operator(api: Api, user: str = OPERATOR, *, namespaces: Sequence[str] = ("get", "list", "watch")) -> None:
    """Give a user the operator's rights in the whole cluster; `namespaces` is what it may do with namespaces."""
    rules = [{**r, "verbs": [*namespaces]} if r["resources"] == ["namespaces"] else r for r in OPERATOR_RULES]
    api.apply(_role("ClusterRole", user, rules), force=True)
    api.apply(_binding("ClusterRoleBinding", user, "ClusterRole", user), force=True)


def grant_tenant(api: Api, user: str, namespace: str) -> None:
    """Give a user a tenant's rights in one namespace."""
    role, binding = _role("Role", user, TENANT_RULES), _binding("RoleBinding", user, "Role", user)
    for document in (role, binding):
        document["metadata"]["namespace"] = namespace
        api.apply(document, force=True)


def _role(kind: str, name: str, rules: list[dict[str, Any]]) -> dict[str, Any]:
    return {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "rules": rules}


def _binding(kind: str, user: str, role_kind: str, role: str) -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": user},
        "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": role_kind, "name": role, "apiGroup": "rbac.authorization.k8s.io"},
    }
