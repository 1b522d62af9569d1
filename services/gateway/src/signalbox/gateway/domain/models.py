"""Which models a caller sees: the union over the key's accounts, mapped names included, filtered by every rule."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from signalbox.core.globs import allowed
from signalbox.gateway.domain.refusal import Refusal
from signalbox.v1.scheduler_pb2 import AccountModels, ModelRules

DEFAULT_PAGE = 20
MAX_PAGE = 1000

Model = dict[str, Any]


def visible(accounts: Iterable[tuple[AccountModels, Sequence[Model]]], key_rules: ModelRules) -> list[Model]:
    """Return each model once, under the name that callers ask for, in the order of accounts and providers.

    A key's rules match the name asked for, an account's the name sent.
    """
    found: dict[str, Model] = {}
    for account, listed in accounts:
        offered = [m for m in listed if allowed(m["id"], account.models.allow, account.models.deny)]
        by_name = {model["id"]: model for model in offered}
        mapped = [{**by_name[sent], "id": asked} for asked, sent in sorted(account.map.items()) if sent in by_name]
        hidden = set(account.map)   # a mapped name means what the map says, also where the provider has one like it
        for model in (*(m for m in offered if m["id"] not in hidden), *mapped):
            if allowed(model["id"], key_rules.allow, key_rules.deny):
                found.setdefault(model["id"], model)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Page:
    """What part of a list is asked for."""

    limit: int = DEFAULT_PAGE
    after_id: str = ""
    before_id: str = ""

    def of(self, models: Sequence[Model]) -> dict[str, Any]:
        """Return the page in Anthropic's shape. Raises Refusal where a cursor names no model of the list."""
        rest: Sequence[Model] = models
        backwards = bool(self.before_id)
        if self.after_id:
            rest = rest[_position(models, self.after_id, "after_id") + 1:]
        if backwards:
            rest = rest[: _position(rest, self.before_id, "before_id")]
        data = rest[-self.limit:] if backwards else rest[: self.limit]
        return {
            "data": list(data), "has_more": len(data) < len(rest),
            "first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None,
        }


def page(limit: str, after_id: str, before_id: str) -> Page:
    """Read the query's parameters. Raises Refusal."""
    if not limit:
        return Page(DEFAULT_PAGE, after_id, before_id)
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= MAX_PAGE:
        raise Refusal("request_invalid", f"limit: must lie between 1 and {MAX_PAGE}")
    return Page(int(limit), after_id, before_id)


def _position(models: Sequence[Model], name: str, parameter: str) -> int:
    for position, model in enumerate(models):
        if model["id"] == name:
            return position
    raise Refusal("request_invalid", f"{parameter}: no such model in the list")
