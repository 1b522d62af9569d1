"""One parsed document judged by its model: what it is, whether it is good, and what is wrong with it.

Pure: the directory loader and, in a cluster, the operator both read through here. Files are loading.py's business.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from signalbox.resources.models import DEFAULT_NAMESPACE, KINDS, Resource
from signalbox.resources.values import Name, NamespaceName

Path = tuple[str | int, ...]


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
