"""The documents' structural OpenAPI schema, generated from the models: types, bounds, and rules as CEL.

One source of truth: what `signalbox check` refuses through the models, the API server refuses through this, at the
same paths. Whole manifests (names, printer columns, status) are crds.py's business.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from signalbox.resources.models import KINDS, SIGNALBOX_KINDS
from signalbox.resources.paths import FieldPath

_DROPPED = ("title", "default", "propertyNames", "$defs")


@cache
def crd_schema(kind: str) -> dict[str, Any]:
    """Return the `openAPIV3Schema` of one of Signalbox's kinds, without status. No defaults are in it.

    Treat the result as read-only: it is shared. Raises KeyError for other kinds.
    """
    if kind not in SIGNALBOX_KINDS:
        raise KeyError(kind)
    model = KINDS[kind][1]
    generated = model.model_json_schema(by_alias=True, mode="validation")
    spec = structural(generated["properties"]["spec"], generated["$defs"])
    return {
        "type": "object",
        "description": (model.__doc__ or "").strip(),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
        },
    }


def field_names(kind: str, path: FieldPath) -> tuple[str, ...]:
    """Return the names of the fields that may stand in the object at `path`; none where names are free."""
    if kind not in SIGNALBOX_KINDS:
        return ()
    node: Mapping[str, Any] = crd_schema(kind)
    for part in path:
        node = node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, {})
    return tuple(node.get("properties", {}))


def structural(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Turn what pydantic generates into what a CRD accepts: no references, no unions with null, no defaults.

    `definitions` is what references in `node` lead to.
    """
    if "$ref" in node:
        target = definitions[str(node["$ref"]).rsplit("/", 1)[1]]
        return structural({**target, **{k: v for k, v in node.items() if k != "$ref"}}, definitions)
    if "anyOf" in node:
        (only,) = (choice for choice in node["anyOf"] if choice.get("type") != "null")
        return structural({**only, **{k: v for k, v in node.items() if k != "anyOf"}}, definitions)
    out = {k: v for k, v in node.items() if k not in _DROPPED}
    if "properties" in node:
        out["properties"] = {k: structural(v, definitions) for k, v in node["properties"].items()}
        out.pop("additionalProperties", None)  # unknown fields are the API server's strict validation
    if "patternProperties" in node:
        ((pattern, values),) = out.pop("patternProperties").items()
        out["additionalProperties"] = structural(values, definitions)
        out["x-kubernetes-validations"] = [_key_rule(pattern, node["propertyNames"]["maxLength"])]
    if "items" in node:
        out["items"] = structural(node["items"], definitions)
        out.setdefault("x-kubernetes-list-type", "atomic")
    if out.get("type") == "integer":
        out["format"] = "int64"
    return out


def _key_rule(pattern: str, max_length: int) -> dict[str, str]:
    """Say in CEL what the schema language cannot: how the keys of a map look."""
    quoted = pattern.replace("\\", "\\\\").replace("'", "\\'")
    return {
        "rule": f"self.all(key, size(key) <= {max_length} && key.matches('{quoted}'))",
        "message": f"has a key that is longer than {max_length} characters or has characters that are not allowed",
    }
