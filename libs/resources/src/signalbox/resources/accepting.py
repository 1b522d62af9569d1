"""Which version of each document is in force: the newest good one, but for what takes effect whatever else is wrong."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from signalbox.resources.conditions import ACCEPTED, IN_FORCE, INVALID, Condition
from signalbox.resources.loading import LoadResult
from signalbox.resources.models import AccountState, KeyState
from signalbox.resources.models.base import Model, document_name
from signalbox.resources.reading import Document, Identity, Problem
from signalbox.resources.state import Good, State
from signalbox.resources.values import ShortText, Time

_IN_LIST = re.compile(r"^items\[\d+\]\.")
_IN_FORCE = Condition(ACCEPTED, True, IN_FORCE)


class _UrgentAccount(Model):
    """The fields of an account that apply even from a document that is otherwise refused."""

    state: AccountState = AccountState.ACTIVE
    state_reason: ShortText | None = None
    expires_at: Time | None = None


class _UrgentKey(Model):
    """The same of a key."""

    state: KeyState = KeyState.ACTIVE
    expires_at: Time | None = None


_URGENT: Mapping[str, type[Model]] = {"ClaudeAccount": _UrgentAccount, "RelayKey": _UrgentKey}


@dataclass(frozen=True)
class Accepted:
    """The versions in force; the Accepted condition of those whose newest document is refused; further problems."""

    good: Mapping[Identity, Good]
    refused: Mapping[Identity, Condition] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    def condition(self, identity: Identity) -> Condition:
        """Return the Accepted condition of an object."""
        return self.refused.get(identity, _IN_FORCE)


def accept(loaded: LoadResult, previous: State) -> Accepted:
    """Choose for each document between its newest version and the one that was in force before."""
    good: dict[Identity, Good] = {}
    conditions: dict[Identity, Condition] = {}
    problems: list[Problem] = []
    for document in loaded.documents:
        identity, before = document.identity, previous.good.get(document.identity)
        changes = _forbidden_changes(document, before)
        problems += changes
        if document.resource is not None and not changes:
            newest = Good(document.resource, document.file, document.line)
            unchanged = before is not None and before.resource is document.resource and before.source == newest.source
            good[identity] = before if before is not None and unchanged else newest
        elif before is not None:
            good[identity] = _with_urgent(before, document)
            conditions[identity] = refused(document, (document.problems + changes)[0])
    for identity, before in previous.good.items():
        if identity not in good and before.file in loaded.incomplete and not _is_named(identity, loaded):
            good[identity] = before
            conditions[identity] = Condition(ACCEPTED, False, INVALID, f"{before.file} cannot be read")
    return Accepted(good, conditions, tuple(problems))


def _is_named(identity: Identity, loaded: LoadResult) -> bool:
    return any(document.identity == identity for document in loaded.documents)


def _forbidden_changes(document: Document, before: Good | None) -> tuple[Problem, ...]:
    """Check the rules about changes, which only hold between two good versions."""
    if document.resource is None or before is None or document.resource is before.resource:
        return ()
    if document.resource.metadata.uid != before.resource.metadata.uid:
        return ()  # deleted and created anew in between
    new, old = getattr(document.resource, "spec", None), getattr(before.resource, "spec", None)
    if not isinstance(new, Model) or not isinstance(old, Model):
        return ()
    return tuple(
        Problem(document.file, document.line, f"spec.{rule.field}", rule.message)
        for rule in new.transitions
        if not rule.holds(new, old)
    )


def refused(document: Document, why: Problem) -> Condition:
    """Return the Accepted condition of an object whose newest document is refused."""
    return Condition(ACCEPTED, False, INVALID, f"{why.path}: {why.reason}")


def urgent_fields(document: Document) -> dict[str, Any]:
    """Return what applies of a refused document all the same, by attribute: state and expiry, where well-formed."""
    model = _URGENT.get(document.identity.kind)
    raw = document.raw.get("spec")
    if model is None or not isinstance(raw, dict):
        return {}
    blamed = {_IN_LIST.sub("", problem.path) for problem in document.problems}
    aliases = {name: document_name(name) for name in model.model_fields}
    sound = {name: alias for name, alias in aliases.items() if f"spec.{alias}" not in blamed}
    given = {alias: raw[alias] for alias in sound.values() if alias in raw}
    urgent = model.model_validate_json(json.dumps(given))
    return {name: getattr(urgent, name) for name in sound}


def _with_urgent(before: Good, document: Document) -> Good:
    """Return the old version with what applies of the new document."""
    update = urgent_fields(document)
    if not update:
        return before
    spec: Model = getattr(before.resource, "spec")  # noqa: B009 - not every Resource has one; these do
    resource = before.resource.model_copy(update={"spec": spec.model_copy(update=update)})
    return Good(resource, before.file, before.line)
