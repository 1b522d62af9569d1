"""What is in force, amended by what withdraws access and cannot wait for, or does not get, a version of its own. Pure.

A pause counts before the plan that will make the whole object anew. A refused document still counts for state, expiry
and deleted Secrets: a reconciler that starts beside one has never seen its last good version, and what the registry
holds is all there is of it. Such an object serves on, but whoever takes access away is heard all the same.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from signalbox.resources import conditions as c
from signalbox.resources.accepting import refused, urgent_fields
from signalbox.resources.compiled import CompiledAccount, CompiledKey, digest
from signalbox.resources.conditions import Condition
from signalbox.resources.loading import LoadResult
from signalbox.resources.models import AccountState, KeyState
from signalbox.resources.reading import Document, Identity
from signalbox.resources.secrets import Secrets
from signalbox.resources.state import DesiredObject

_COMPILED: Final[Mapping[str, type[CompiledAccount] | type[CompiledKey]]] = {
    "ClaudeAccount": CompiledAccount, "RelayKey": CompiledKey,
}
_PAUSED: Final = (AccountState.PAUSED, KeyState.PAUSED)


def amended(
    kept: Mapping[Identity, DesiredObject], loaded: LoadResult, good: Collection[Identity], secrets: Secrets,
    now: datetime,
) -> list[DesiredObject]:
    """Return what of `kept` serves on, amended: what has no good version, but still a document, and the same one."""
    return [
        amend(before, document, secrets, now) for document in loaded.documents
        if document.resource is None and document.identity not in good
        and (before := kept.get(document.identity)) is not None
        and before.uid == str(document.raw.get("metadata", {}).get("uid") or "")
    ]


def amend(kept: DesiredObject, document: Document, secrets: Secrets, now: datetime) -> DesiredObject:
    """Return an object of the registry as it should be now that its newest document is refused.

    `kept` is the object as the registry had it when this process started, whatever was made of it since.
    """
    model = _COMPILED.get(kept.kind)
    judged = refused(document, document.problems[0])
    if model is None:
        return _told(replace(kept, conditions=(kept.ready, judged)))
    update = urgent_fields(document)
    if update.get("state_reason", "") is None:
        update["state_reason"] = ""
    if _is_leaving(document) and update.get("state") is AccountState.ACTIVE:
        update["state"] = AccountState.DRAINING
    compiled = model.read(kept.spec_json).model_copy(update=update)
    ready = _ready(kept.ready, compiled.expires_at, document, secrets, now)
    changes: dict[str, Any] = {"ready": ready.status, "reason": ready.reason}
    if ready.reason == c.SECRET_NOT_FOUND and isinstance(compiled, CompiledKey):
        changes["key_hashes"] = ()
    compiled = compiled.model_copy(update=changes)
    serves = ready.status and compiled.state not in _PAUSED
    return _told(replace(kept, spec_json=compiled.write(), conditions=(ready, judged), serves=serves))


def paused(item: DesiredObject) -> DesiredObject:
    """Return an account or a key as it is in force, but paused: until a plan has made it from its newest document."""
    compiled = _COMPILED[item.kind].read(item.spec_json)
    state = KeyState.PAUSED if isinstance(compiled, CompiledKey) else AccountState.PAUSED
    return _told(replace(item, spec_json=compiled.model_copy(update={"state": state}).write(), serves=False))


def _is_leaving(document: Document) -> bool:
    return document.raw.get("metadata", {}).get("deletionTimestamp") is not None


def _ready(
    before: Condition, expires_at: datetime | None, document: Document, secrets: Secrets, now: datetime,
) -> Condition:
    if not before.status and before.reason != c.EXPIRED:
        return before
    namespace = document.identity.namespace
    for name, key in _references(document.raw.get("spec")):
        if key not in (secrets.get((namespace, name)) or {}):
            return Condition(c.READY, False, c.SECRET_NOT_FOUND, f"Secret {namespace}/{name} has no key {key}")
    if expires_at is not None and expires_at <= now:
        return Condition(c.READY, False, c.EXPIRED, "expiresAt has passed")
    return before if before.status else Condition(c.READY, True, c.SERVES)


def _references(value: object) -> Iterator[tuple[str, str]]:
    """Yield the references to Secrets of a spec that need not be right in any way: {name, key} under any `...Ref`."""
    if isinstance(value, dict):
        for field, inner in value.items():
            name, key = (inner.get("name"), inner.get("key")) if isinstance(inner, dict) else (None, None)
            if str(field).endswith(("Ref", "ref")) and isinstance(name, str) and isinstance(key, str):
                yield name, key
            else:
                yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def _told(item: DesiredObject) -> DesiredObject:
    """Return the object with the revision of what it is now."""
    told = [[one.type, one.status, one.reason, one.message] for one in item.conditions]
    return replace(item, revision=digest([item.spec_json, told, dict(item.labels), item.uid, "amended"]))
