"""Commands that write documents: `pause`, `resume`, `keys create` and `keys rotate`.

They change files only; a running instance notices, and the command waits until the change is in force there.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from signalbox.cli.commands.common import IN_FORCE_LIMIT_S, becomes_true, split_id
from signalbox.cli.commands.registry import KEYS, Noun
from signalbox.cli.errors import BadUsage, CommandFailed
from signalbox.cli.locate import Target
from signalbox.cli.output import Format, note, print_json, progress
from signalbox.core.keys import hash_key, new_key
from signalbox.core.rows import Row
from signalbox.resources.documents import (
    edit_file,
    find_document,
    render,
    rotation_changes,
    state_changes,
    write_file,
)
from signalbox.resources.errors import DocumentNotFound
from signalbox.resources.reading import Document, Identity
from signalbox.v1 import scheduler_pb2

Holds = Callable[[scheduler_pb2.ObjectWithStatus], bool]


@dataclass(frozen=True)
class Home:
    """Where documents are edited, and the running instance that reads them, if there is one."""

    manifests: Path
    target: Target | None

    @classmethod
    def of(cls, target: Target | None, manifests: Path | None) -> "Home":
        """Choose the directory: the one that was named, else the running instance's. Raises BadUsage."""
        own = target.manifests if target else None
        if manifests is None and own is None:
            raise BadUsage("say which documents to edit: --manifests DIR, or --data DIR of a running instance")
        if manifests is not None and own is not None and manifests.resolve() != own.resolve():
            target = None  # another directory than the instance's: nothing will come into force there
        return cls(manifests or own or Path(), target)


@dataclass(frozen=True)
class NewKey:
    """What `keys create` was asked for: the document's spec without the key itself."""

    name: str
    spec: Mapping[str, Any]
    with_secret: bool


def set_state(home: Home, noun: Noun, name: str, state: str, reason: str | None) -> None:
    """Pause or resume an account or a key, and wait until that is in force."""
    identity = _identity(noun.kind, name)
    document = find_document(home.manifests, identity)
    edit_file(Path(document.file), identity, state_changes(state, reason, kind=noun.kind))

    def holds(item: scheduler_pb2.ObjectWithStatus) -> bool:
        shown = noun.row(item, {})["state"]
        # An active key may be shown as limited or expired; what counts is that it is paused no longer.
        return bool(shown == "Paused") == (state == "Paused")

    _await_in_force(home, identity, holds)
    print(f"{noun.kind} {identity.id} is {state}")


def create_key(home: Home, wanted: NewKey, output: Format) -> None:
    """Write a new RelayKey with a generated key and print the key, once. Raises CommandFailed, EditRefused."""
    identity = _identity(KEYS.kind, wanted.name)
    _refuse_existing(home, identity)
    key = new_key()
    file = home.manifests / f"key-{identity.id.removeprefix('default/').replace('/', '.')}.yaml"
    if file.exists():
        raise CommandFailed(f"{file} exists already: choose another name or move the file away")
    write_file(file, _key_documents(identity, wanted, key))
    _await_in_force(home, identity, lambda item: True)
    _print_key(identity, key, file, output)


def rotate_key(home: Home, name: str, overlap: timedelta, output: Format) -> None:
    """Give a key a new text, let the former one work for `overlap`, and print the new one, once."""
    identity = _identity(KEYS.kind, name)
    document = find_document(home.manifests, identity)
    spec = document.raw.get("spec") or {}
    now = datetime.now(UTC)
    key = new_key()
    changes = rotation_changes(
        spec, old_hash=_current_hash(home, document), new_hash=hash_key(key), until=now + overlap, now=now,
    )
    edit_file(Path(document.file), identity, changes)
    _await_in_force(home, identity, lambda item: hash_key(key).encode() in item.object.spec_json)
    note(f"The former key works until {now + overlap:%Y-%m-%d %H:%M} UTC.")
    _print_key(identity, key, Path(document.file), output)


def _key_documents(identity: Identity, wanted: NewKey, key: str) -> str:
    if not wanted.with_secret:
        spec = {**wanted.spec, "keyHash": hash_key(key)}
        return render(KEYS.kind, identity.name, {"spec": spec}, namespace=identity.namespace)
    secret = f"{identity.name}-relay-key"
    spec = {**wanted.spec, "secretRef": {"name": secret, "key": "relay-key"}}
    return "---\n".join((
        render("Secret", secret, {"stringData": {"relay-key": key}}, namespace=identity.namespace),
        render(KEYS.kind, identity.name, {"spec": spec}, namespace=identity.namespace),
    ))


def _current_hash(home: Home, document: Document) -> str:
    """Return the hash of the key that works now. Raises CommandFailed where only a running instance knows it."""
    written = (document.raw.get("spec") or {}).get("keyHash")
    if written:
        return str(written)
    if home.target is None:
        raise CommandFailed(f"{document.identity.id} takes its key from a Secret: rotate it while the instance runs")
    items = asyncio.run(_read(home.target, document.identity))
    from signalbox.resources.compiled import CompiledKey  # noqa: PLC0415

    hashes = CompiledKey.read(items[0].object.spec_json).key_hashes if items else ()
    current = next((h.hash for h in hashes if h.until is None), None)
    if current is None:
        raise CommandFailed(f"{document.identity.id} is not in force, so its present key is not known: repair it first")
    return current


def _await_in_force(home: Home, identity: Identity, holds: Holds) -> None:
    """Wait until the instance shows the change; say so where it does not, or where there is no instance."""
    if home.target is None:
        note(f"Written to {home.manifests}; no instance that reads it was found, so it is in force at the next start.")
        return
    target = home.target

    async def wait() -> bool:
        async with target.rooms() as rooms:

            async def ask() -> bool:
                return any(map(holds, await rooms.list_objects(identity.kind, [identity.id])))

            return await becomes_true(ask)

    with progress("Waiting until it is in force"):
        in_force = asyncio.run(wait())
    if not in_force:
        raise CommandFailed(
            f"{identity.id} was written but is not in force after {IN_FORCE_LIMIT_S:g} s: `signalbox status` says why",
        )


async def _read(target: Target, identity: Identity) -> list[scheduler_pb2.ObjectWithStatus]:
    async with target.rooms() as rooms:
        return await rooms.list_objects(identity.kind, [identity.id], with_status=False)


def _refuse_existing(home: Home, identity: Identity) -> None:
    try:
        found = find_document(home.manifests, identity)
    except DocumentNotFound:
        return
    raise CommandFailed(f"{identity.id} exists already in {found.source}: `keys rotate` gives it a new key")


def _print_key(identity: Identity, key: str, file: Path, output: Format) -> None:
    if output is Format.JSON:
        row: Row = {"name": identity.name, "namespace": identity.namespace, "key": key, "file": str(file)}
        print_json([row])
        return
    note(f"{identity.kind} {identity.id} is in {file}. Its key, shown this once:")
    print(key)


def _identity(kind: str, name: str) -> Identity:
    namespace, own = split_id(name)
    return Identity(kind, namespace, own)


