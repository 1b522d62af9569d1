"""Rules that cross fields: each stands once, as CEL for the API server and as a predicate for `signalbox check`.

The schema generator emits the CEL; the models' base class runs the predicates. Both report at the same path.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class _Stated:
    """What every rule has.

    `cel` says to the API server what the predicate says here; `message` says what to do; `field` is the member that
    is blamed, relative to the object ("" blames the object itself).
    """

    cel: str
    message: str
    field: str = field(default="", kw_only=True)

    def to_schema(self) -> dict[str, str]:
        """Return the rule as an entry of `x-kubernetes-validations`."""
        where = {"fieldPath": f".{self.field}"} if self.field else {}
        return {"rule": self.cel, "message": self.message, **where}


@dataclass(frozen=True)
class Rule(_Stated):
    """A rule about one object: `holds(object)`."""

    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Transition(_Stated):
    """A rule about a change: `holds(new, old)` over two versions of the same object."""

    holds: Callable[[Any, Any], bool]


def exactly_one(*fields: str, attributes: tuple[str, ...], what: str) -> Rule:
    """Exactly one of the members may be set: `fields` as documents spell them, `attributes` as the model does."""
    listed = ", ".join(fields)
    return Rule(
        cel=f"[{', '.join(f'has(self.{f})' for f in fields)}].filter(x, x).size() == 1",
        message=f"name exactly one {what} of: {listed}",
        holds=lambda m: sum(getattr(m, a) is not None for a in attributes) == 1,
    )
