"""The CustomResourceDefinitions: the documents' schema with names, printer columns, status and selectable fields.

`python -m signalbox.resources.crds DIR` writes one YAML file a kind; `make check` fails while they are out of date.
Nothing is defaulted in spec: what the code defaults would be a permanent difference to whoever applied the document.
"""

import sys
from pathlib import Path
from typing import Any, Final

import yaml

from signalbox.resources.conditions import (
    ACCEPTED,
    AVAILABLE,
    CREDENTIAL_VALID,
    PENDING,
    READY,
)
from signalbox.resources.models import SIGNALBOX_KINDS
from signalbox.resources.models.base import API_VERSION
from signalbox.resources.models.status import STATUSES
from signalbox.resources.schema import crd_schema, structural

GROUP, VERSION = API_VERSION.split("/")
CATEGORY: Final = "signalbox"
PLURALS: Final = {"ClaudeAccount": "claudeaccounts", "AccountPool": "accountpools", "RelayKey": "relaykeys"}
SHORT_NAMES: Final = {"ClaudeAccount": "cla", "AccountPool": "clp", "RelayKey": "rk"}
# Conditions that an object has from its first moment, Unknown until the operator has looked.
CONDITIONS: Final = {
    "ClaudeAccount": (READY, CREDENTIAL_VALID, AVAILABLE, ACCEPTED),
    "AccountPool": (READY, ACCEPTED),
    "RelayKey": (READY, ACCEPTED),
}
SELECTABLE: Final = {
    "ClaudeAccount": (".spec.provider", ".spec.state", ".spec.limitGroup"),
    "AccountPool": (".spec.strategy",),
    "RelayKey": (".spec.owner", ".spec.state"),
}
_EPOCH = "1970-01-01T00:00:00Z"


def _column(name: str, path: str, kind: str = "string", **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "jsonPath": path, **more}


def _condition(kind: str, member: str) -> str:
    return f'.status.conditions[?(@.type=="{kind}")].{member}'


_AGE = _column("Age", ".metadata.creationTimestamp", "date")
# Times in the future are strings: kubectl shows a date as the time since.
_COLUMNS = {
    "ClaudeAccount": [
        _column("Provider", ".spec.provider"),
        _column("Ready", _condition(READY, "status")),
        _column("Reason", _condition(AVAILABLE, "reason")),
        _column("Limited Until", ".status.limitedUntil"),
        _column("In Flight", ".status.inFlight", "integer"),
        _AGE,
        _column("State", ".spec.state", priority=1),
        _column("Message", _condition(READY, "message"), priority=1),
    ],
    "AccountPool": [
        _column("Strategy", ".status.strategy"),
        _column("Accounts", ".status.accountsReady", description="ready/total"),
        _AGE,
        _column("Message", _condition(READY, "message"), priority=1),
    ],
    "RelayKey": [
        _column("Owner", ".spec.owner"),
        _column("Ready", _condition(READY, "status")),
        _column("Reason", _condition(READY, "reason")),
        _column("Expires", ".status.expiresAt"),
        _AGE,
        _column("First Used", ".status.firstUsedAt", "date", priority=1),
        _column("Message", _condition(READY, "message"), priority=1),
    ],
}


def crd(kind: str) -> dict[str, Any]:
    """Return the CustomResourceDefinition of one of Signalbox's kinds. Raises KeyError for other kinds."""
    plural = PLURALS[kind]
    schema = crd_schema(kind)
    properties = {**schema["properties"], "status": status_schema(kind)}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [SHORT_NAMES[kind]],
                "categories": [CATEGORY],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": _COLUMNS[kind],
                    "selectableFields": [{"jsonPath": path} for path in SELECTABLE[kind]],
                    "schema": {"openAPIV3Schema": {**schema, "properties": properties}},
                }
            ],
        },
    }


def status_schema(kind: str) -> dict[str, Any]:
    """Return the schema of a kind's status. Its conditions are there, Unknown, before the operator has looked."""
    generated = STATUSES[kind].model_json_schema(by_alias=True, mode="validation")
    pending = [
        {"type": name, "status": "Unknown", "reason": PENDING, "message": "", "lastTransitionTime": _EPOCH}
        for name in CONDITIONS[kind]
    ]
    schema = structural(generated, generated.get("$defs", {}))
    schema.pop("required", None)  # so that the default below is a status
    return {**schema, "default": {"conditions": pending}}


def render(kind: str) -> str:
    """Return a kind's CustomResourceDefinition as YAML text."""
    head = "# Generated by `make crds` from libs/resources; change the models, not this file.\n"
    return head + yaml.dump(crd(kind), Dumper=_NoAliases, sort_keys=False, width=110, allow_unicode=True)


class _NoAliases(yaml.SafeDumper):
    """Writes shared parts each time in full."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def files() -> dict[str, str]:
    """Return the text of each file by its name."""
    return {f"{PLURALS[kind]}.yaml": render(kind) for kind in SIGNALBOX_KINDS}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m signalbox.resources.crds DIR")
    for name, text in files().items():
        (Path(sys.argv[1]) / name).write_text(text, encoding="utf-8")
