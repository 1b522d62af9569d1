"""What the API server holds, as last seen: every watched object, newest version first come or last, never an older one.

Events and whole listings arrive in any order; the object's version decides. Holds Secrets and is never printed.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

from signalbox.resources.loading import LoadResult
from signalbox.resources.models import (
    DEFAULT_NAMESPACE,
    SIGNALBOX_KINDS,
    AccountState,
    ClaudeAccount,
    KeyState,
    RelayKey,
)
from signalbox.resources.reading import Document, Identity, read_document
from signalbox.resources.values import parse_time

FINALIZER: Final = "signalbox.dev/drain"
SOURCE: Final = "cluster"
# Values of Secrets that are too long for any credential are not kept.
MAX_SECRET_VALUE: Final = 64 << 10
_IGNORED_SECRETS: Final = frozenset({"helm.sh/release.v1", "kubernetes.io/service-account-token"})
_METADATA: Final = ("name", "namespace", "labels", "uid", "creationTimestamp", "generation", "deletionTimestamp")
_MOST_GONE: Final = 20_000


class Edition(NamedTuple):
    """Which document an object has: two objects that had a name one after the other differ in uid."""

    uid: str
    generation: int


@dataclass(frozen=True, slots=True)
class Seen:
    """One object: its document as signalbox.resources judges it, and what else of it matters here."""

    document: Document = field(repr=False)
    version: int
    uid: str = ""
    generation: int = 0
    deleting_since: datetime | None = None
    held: bool = False
    """Whether our finalizer is on it."""
    status_json: bytes = field(default=b"", repr=False)
    """Its status, packed: ten thousand of them as dictionaries are a third of all memory."""

    @property
    def identity(self) -> Identity:
        """What names it."""
        return self.document.identity

    @property
    def edition(self) -> Edition:
        """Which document it has."""
        return Edition(self.uid, self.generation)

    @property
    def is_paused(self) -> bool:
        """Whether its newest good version takes an account or a key out of service until somebody resumes it."""
        resource = self.document.resource
        match resource:
            case RelayKey():
                return resource.spec.state is KeyState.PAUSED
            case ClaudeAccount():
                return resource.spec.state is AccountState.PAUSED
        return False

    @property
    def status(self) -> dict[str, Any]:
        """Its status as the API server has it; a new copy each time."""
        return dict(json.loads(self.status_json)) if self.status_json else {}


def read(raw: Mapping[str, Any], known: Seen | None = None) -> Seen | None:
    """Return what the API server sent as `Seen`; None for what Signalbox has no use for.

    Only the metadata that matters is kept: managed fields and annotations can hold a second copy of a Secret. `known`
    is the same object as it was read before: what has not changed since is not judged anew.
    """
    metadata = raw.get("metadata") or {}
    if raw.get("type") in _IGNORED_SECRETS:
        return None
    document = _unchanged(metadata, known) or _judge(raw, metadata)
    if document is None:
        return None
    since, status = metadata.get("deletionTimestamp"), raw.get("status")
    return Seen(
        document=document,
        version=version_of(raw),
        uid=str(metadata.get("uid") or ""),
        generation=int(metadata.get("generation") or 0),
        deleting_since=parse_time(since) if since else None,
        held=FINALIZER in (metadata.get("finalizers") or ()),
        status_json=json.dumps(status, separators=(",", ":")).encode() if status else b"",
    )


def _unchanged(metadata: Mapping[str, Any], known: Seen | None) -> Document | None:
    """Return the known document where only what is no part of it has changed: status, annotations, finalizers."""
    if known is None or known.document.resource is None or not known.generation:
        return None  # what has no generation, such as a Secret, does not tell whether it has changed
    before = known.document.resource.metadata
    same = (
        metadata.get("uid") == known.uid and metadata.get("generation") == known.generation
        and (metadata.get("labels") or {}) == (before.labels or {})
        and bool(metadata.get("deletionTimestamp")) == (before.deletion_timestamp is not None)
    )
    return known.document if same else None


def _judge(raw: Mapping[str, Any], metadata: Mapping[str, Any]) -> Document | None:
    kept = {name: metadata[name] for name in _METADATA if metadata.get(name) is not None}
    plain: dict[str, Any] = {"apiVersion": raw.get("apiVersion"), "kind": raw.get("kind"), "metadata": kept}
    if raw.get("kind") == "Secret":
        values = raw.get("data") or {}
        plain["data"] = {key: text for key, text in values.items() if len(text or "") <= MAX_SECRET_VALUE}
    elif raw.get("kind") in SIGNALBOX_KINDS:
        plain["spec"] = raw.get("spec")
    judged = read_document(plain)
    if not isinstance(judged, Document):
        return None
    good = judged.resource is not None
    return Document(judged.identity, {} if good else judged.raw, judged.resource, judged.problems, SOURCE)


def identity_of(raw: Mapping[str, Any]) -> Identity:
    """Return what names an object, without looking at anything else."""
    metadata = raw["metadata"]
    return Identity(str(raw.get("kind")), metadata.get("namespace", DEFAULT_NAMESPACE), metadata["name"])


def version_of(raw: Mapping[str, Any]) -> int:
    """Return an object's version."""
    return int(raw["metadata"].get("resourceVersion") or 0)


class World:
    """All objects that are watched, by identity."""

    def __init__(self) -> None:
        self._seen: dict[Identity, Seen] = {}
        self._gone: dict[Identity, int] = {}

    def get(self, identity: Identity) -> Seen | None:
        """Return an object, None where there is none. May be asked from another thread."""
        return self._seen.get(identity)

    def of_kinds(self, kinds: Iterable[str]) -> list[Seen]:
        """Return all objects of some kinds."""
        wanted = frozenset(kinds)
        return [seen for seen in self._seen.values() if seen.identity.kind in wanted]

    def notice(self, seen: Seen) -> bool:
        """Take in an object; return whether that is news."""
        known = self._seen.get(seen.identity)
        if known is not None and known.version >= seen.version:
            return False
        if self._gone.get(seen.identity, -1) >= seen.version:
            return False
        self._seen[seen.identity] = seen
        return True

    def forget(self, identity: Identity, version: int) -> bool:
        """Take in that an object was deleted, at a version; return whether that is news."""
        self._remember_gone(identity, version)
        known = self._seen.get(identity)
        if known is None or known.version > version:
            return False
        del self._seen[identity]
        return True

    def replace(self, kind: str, namespace: str | None, listed: Iterable[Seen], version: int) -> set[Identity]:
        """Take in a whole listing of a kind (in one namespace or in all) at a version; return what is news.

        `listed` holds what was there, be it news or not.
        """
        news = {seen.identity for seen in listed if self.notice(seen)}
        present = {seen.identity for seen in listed}
        for identity, seen in list(self._seen.items()):
            inside = identity.kind == kind and namespace in (None, identity.namespace)
            if inside and identity not in present and seen.version <= version:
                del self._seen[identity]
                news.add(identity)
        return news

    def editions(self) -> dict[Identity, Edition]:
        """Return which document each of our objects has."""
        return {i: seen.edition for i, seen in self._seen.items() if i.kind in SIGNALBOX_KINDS}

    def documents(self) -> LoadResult:
        """Return what should be planned with: everything but what is being deleted.

        An account that is being deleted is still there, and drains.
        """
        documents = tuple(
            seen.document for seen in self._seen.values()
            if seen.deleting_since is None or seen.identity.kind == "ClaudeAccount"
        )
        return LoadResult(documents, problems=tuple(p for d in documents for p in d.problems))

    def _remember_gone(self, identity: Identity, version: int) -> None:
        self._gone[identity] = version
        while len(self._gone) > _MOST_GONE:
            self._gone.pop(next(iter(self._gone)))
