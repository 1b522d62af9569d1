"""One parsed document judged by its model: what it is, whether it is good, and what is wrong with it.

Pure: the directory loader and, in a cluster, the operator both read through here. Files are loading.py's business.
"""

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from signalbox.resources.models import DEFAULT_NAMESPACE, KINDS, SIGNALBOX_KINDS, Resource
from signalbox.resources.paths import FieldPath, format_path
from signalbox.resources.schema import field_names
from signalbox.resources.values import Name, NamespaceName


class Identity(NamedTuple):
    """What names a document: kind, namespace, name."""

    kind: str
    namespace: str
    name: str

    @property
    def id(self) -> str:
        """`namespace/name`, as the registry and the ledger know it."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong: where, and what to do about it. Never holds a Secret's value."""

    file: str
    line: int
    path: str
    reason: str

    def __str__(self) -> str:
        """`file:line: path: reason`; the parts that are unknown are left out."""
        where = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (where, self.path, self.reason) if part)


@dataclass(frozen=True)
class Document:
    """One document. `resource` is None where it was refused; then `problems` says why."""

    identity: Identity
    raw: Mapping[str, Any] = field(repr=False)
    resource: Resource | None
    problems: tuple[Problem, ...] = ()
    file: str = ""
    line: int = 0

    @property
    def source(self) -> str:
        """`file:line`, to be shown to people."""
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True)
class Origin:
    """Where a value came from: its file, its first line, the line of each path, flaws already found in the text."""

    file: str = ""
    line: int = 0
    line_of: Callable[[FieldPath], int] = lambda _: 0
    flaws: Sequence[tuple[FieldPath, int, str]] = ()
    prefix: FieldPath = ()

    def problem(self, path: FieldPath, reason: str) -> Problem:
        """Return the problem at `path` of the value."""
        full = (*self.prefix, *path)
        return Problem(self.file, self.line_of(full), format_path(full), reason)


def documents_in(value: object) -> list[tuple[FieldPath, Any]]:
    """Return the documents of one parsed YAML document with their paths: itself, or what a `List` holds."""
    if isinstance(value, dict) and value.get("kind") == "List" and isinstance(value.get("items"), list):
        return [(("items", index), item) for index, item in enumerate(value["items"])]
    return [((), value)]


def read_document(raw: object, origin: Origin | None = None) -> Document | tuple[Problem, ...]:
    """Judge one parsed document. Returns its problems alone where they leave open which document it is."""
    origin = origin or Origin()
    if not isinstance(raw, dict):
        return (origin.problem((), "must be a document with apiVersion, kind and metadata"),)
    identity = _identity(raw, origin)
    if not isinstance(identity, Identity):
        return identity
    api_version, model = KINDS[identity.kind]
    problems = [Problem(origin.file, line, format_path((*origin.prefix, *p)), why) for p, line, why in origin.flaws]
    if raw.get("apiVersion") != api_version:
        problems.append(origin.problem(("apiVersion",), f"must be {api_version}"))
    body = {k: v for k, v in raw.items() if k not in ("apiVersion", "kind", "status")}
    flawed = {path for path, _, _ in origin.flaws}
    empty = [path for path in _nulls(raw, identity) if path not in flawed]
    problems += [origin.problem(path, "is empty: write a value or leave the field out") for path in empty]
    known = {problem.path for problem in problems}
    resource = None
    try:
        resource = model.model_validate_json(json.dumps(body, allow_nan=False))
    except ValidationError as e:
        found = [origin.problem(path, why) for path, why in violations(e, identity.kind)]
        problems += [problem for problem in found if problem.path not in known]
    return Document(identity, raw, None if problems else resource, tuple(sorted(problems)), origin.file, origin.line)


def _nulls(raw: dict[str, Any], identity: Identity) -> Iterator[FieldPath]:
    """Yield where a spec holds null. The API server drops it in silence; here somebody is told of what they forgot."""
    if identity.kind in SIGNALBOX_KINDS and "spec" in raw:
        yield from _nulls_in(raw.get("spec"), ("spec",))


def _nulls_in(value: object, path: FieldPath) -> Iterator[FieldPath]:
    if value is None:
        yield path
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _nulls_in(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _nulls_in(inner, (*path, index))


def _identity(raw: dict[str, Any], origin: Origin) -> Identity | tuple[Problem, ...]:
    """Tell which document this is, or why that cannot be told."""
    naming = {("kind",), ("metadata",), ("metadata", "name"), ("metadata", "namespace")}
    unclear = [origin.problem(path, why) for path, _, why in origin.flaws if path in naming]
    kind, metadata = raw.get("kind"), raw.get("metadata")
    if not isinstance(kind, str) or kind not in KINDS:
        unclear.append(origin.problem(("kind",), f"must be one of {', '.join(KINDS)}"))
    if not isinstance(metadata, dict):
        unclear.append(origin.problem(("metadata",), "is required: name the document"))
        return tuple(unclear)
    names = {}
    for key, check, default in (("namespace", _NAMESPACE, DEFAULT_NAMESPACE), ("name", _NAME, None)):
        value = metadata.get(key, default)
        try:
            names[key] = check.validate_python(value)
        except ValidationError as e:
            reason = "is required" if value is None else _reason(e.errors(include_url=False)[0])
            unclear.append(origin.problem(("metadata", key), reason))
    return tuple(unclear) if unclear else Identity(str(kind), names["namespace"], names["name"])


_NAME: TypeAdapter[str] = TypeAdapter(Name)
_NAMESPACE: TypeAdapter[str] = TypeAdapter(NamespaceName)

# pydantic's error types in the words of someone who writes YAML.
_REASONS = {
    "missing": "is required",
    "enum": "must be one of {expected}",
    "int_type": "must be an integer",
    "int_parsing": "must be an integer",
    "int_from_float": "must be an integer",
    "bool_type": "must be true or false",
    "string_type": "must be a string; put it in quotes",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "too_long": "has more than {max_length} entries",
    "too_short": "needs at least {min_length} entry",
}


def violations(error: ValidationError, kind: str = "") -> list[tuple[FieldPath, str]]:
    """Return what a validation error says as (path, reason) pairs, in the order of the document's fields."""
    out: list[tuple[FieldPath, str]] = []
    all_found = error.errors(include_url=False, include_input=False)
    with_bad_entries = {found["loc"][:-1] for found in all_found}
    for found in all_found:
        path = found["loc"]
        if found["type"] == "too_short" and path in with_bad_entries:
            continue  # pydantic counts the good entries only
        if path[-1:] == ("[key]",):
            out.append((path[:-2], f"has the key {path[-2]!r}, which {_reason(found)}"))
        elif found["type"] == "rules":
            broken = found["ctx"]["violations"]
            out += [((*path, *(f for f in field.split(".") if f)), reason) for field, reason in broken]
        elif found["type"] == "extra_forbidden":
            out.append((path, _unknown_field(kind, path)))
        else:
            out.append((path, _reason(found)))
    return out


def _unknown_field(kind: str, path: FieldPath) -> str:
    close = difflib.get_close_matches(str(path[-1]), field_names(kind, path[:-1]), n=1)
    return "is not a known field" + (f": did you mean {close[0]}?" if close else "")


def _reason(found: ErrorDetails) -> str:
    template = _REASONS.get(found["type"])
    if template is None:
        return found["msg"]
    context = dict(found.get("ctx", {}))
    if "expected" in context:
        context["expected"] = str(context["expected"]).replace("'", "").replace(" or ", ", ")
    return template.format(**context)
