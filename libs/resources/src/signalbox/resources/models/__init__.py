"""The documents' models, one module per kind. How they are read from files is loading.py's business."""

from signalbox.resources.models.account import (
    AccountLimit,
    AccountModels,
    AccountPeriod,
    AccountState,
    ClaudeAccount,
    ClaudeAccountSpec,
    Credential,
    ModelRules,
    Provider,
)
from signalbox.resources.models.base import API_VERSION, DEFAULT_NAMESPACE, Metadata, Model, Resource, SecretKeyRef
from signalbox.resources.models.key import (
    DEFAULT_POOL,
    Admission,
    Client,
    KeyLimit,
    KeyState,
    Period,
    RelayKey,
    RelayKeySpec,
)
from signalbox.resources.models.kubernetes import Namespace, Secret
from signalbox.resources.models.pool import (
    AccountPool,
    AccountPoolSpec,
    Affinity,
    AffinityMode,
    AllowedNamespaces,
    Failover,
    OnUnavailable,
    Queue,
    Strategy,
    Timeouts,
)

# Every kind that a directory may hold, with its apiVersion.
KINDS: dict[str, tuple[str, type[Resource]]] = {
    "ClaudeAccount": (API_VERSION, ClaudeAccount),
    "AccountPool": (API_VERSION, AccountPool),
    "RelayKey": (API_VERSION, RelayKey),
    "Secret": ("v1", Secret),
    "Namespace": ("v1", Namespace),
}
# The kinds that Signalbox defines, in the order in which one may refer to those before it.
SIGNALBOX_KINDS = ("ClaudeAccount", "AccountPool", "RelayKey")

__all__ = [
    "API_VERSION",
    "DEFAULT_NAMESPACE",
    "DEFAULT_POOL",
    "KINDS",
    "SIGNALBOX_KINDS",
    "AccountLimit",
    "AccountModels",
    "AccountPeriod",
    "AccountPool",
    "AccountPoolSpec",
    "AccountState",
    "Admission",
    "Affinity",
    "AffinityMode",
    "AllowedNamespaces",
    "ClaudeAccount",
    "ClaudeAccountSpec",
    "Client",
    "Credential",
    "Failover",
    "KeyLimit",
    "KeyState",
    "Metadata",
    "Model",
    "ModelRules",
    "Namespace",
    "OnUnavailable",
    "Period",
    "Provider",
    "Queue",
    "RelayKey",
    "RelayKeySpec",
    "Resource",
    "Secret",
    "SecretKeyRef",
    "Strategy",
    "Timeouts",
]
