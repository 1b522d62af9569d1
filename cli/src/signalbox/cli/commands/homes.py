"""Documents in a directory: files are edited, a running instance notices, and its registry says what is in force."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from signalbox.cli.commands.common import IN_FORCE_LIMIT_S, becomes_true, split_id
from signalbox.cli.commands.documents import secret_name
from signalbox.cli.errors import BadUsage, CommandFailed
from signalbox.cli.locate import Target
from signalbox.cli.output import note, progress
from signalbox.resources.compiled import CompiledAccount, CompiledKey
from signalbox.resources.documents import edit_file, find_document, render, write_file
from signalbox.resources.errors import DocumentNotFound
from signalbox.resources.reading import Document, Identity
from signalbox.v1 import scheduler_pb2

Holds = Callable[[scheduler_pb2.ObjectWithStatus], bool]


@dataclass(frozen=True)
class Files:
    """Where documents are edited, and the running instance that reads them, if there is one."""

    manifests: Path
    target: Target | None

    @classmethod
    def of(cls, target: Target | None, manifests: Path | None) -> "Files":
        """Choose the directory: the one that was named, else the running instance's. Raises BadUsage."""
        own = target.manifests if target else None
        if manifests is None and own is None:
            raise BadUsage(
                "say which documents to edit: --manifests DIR, --data DIR of a running instance, or --cluster",
            )
        if manifests is not None and own is not None and manifests.resolve() != own.resolve():
            target = None  # another directory than the instance's: nothing will come into force there
        return cls(manifests or own or Path(), target)

    def identity(self, kind: str, name: str) -> Identity:
        """Return what a name stands for."""
        namespace, own = split_id(name)
        return Identity(kind, namespace, own)

    def spec(self, identity: Identity) -> Mapping[str, Any]:
        """Return a document's spec as it is written. Raises DocumentNotFound."""
        return self._document(identity).raw.get("spec") or {}

    def change(self, identity: Identity, changes: Mapping[str, Any]) -> None:
        """Edit the document's file."""
        edit_file(Path(self._document(identity).file), identity, changes)
        self._await_in_force(identity, lambda item: _has(item, changes))

    def create(self, identity: Identity, spec: Mapping[str, Any], secret: Mapping[str, str] | None) -> None:
        """Write a file of its own. Raises CommandFailed where the document or the file exists."""
        self._refuse_existing(identity)
        file = self._file(identity)
        if file.exists():
            raise CommandFailed(f"{file} exists already: choose another name or move the file away")
        texts = [render(identity.kind, identity.name, {"spec": spec}, namespace=identity.namespace)]
        if secret is not None:
            name = secret_name(identity)
            texts.insert(0, render("Secret", name, {"stringData": dict(secret)}, namespace=identity.namespace))
        write_file(file, "---\n".join(texts))
        self._await_in_force(identity, lambda item: True)

    def where(self, identity: Identity) -> str:
        """Return the document's file."""
        try:
            return self._document(identity).file
        except DocumentNotFound:
            return str(self._file(identity))

    def present_hash(self, identity: Identity, spec: Mapping[str, Any]) -> str:
        """Return the hash of the key that works now. Raises CommandFailed where only a running instance knows it."""
        if written := spec.get("keyHash"):
            return str(written)
        if self.target is None:
            raise CommandFailed(f"{identity.id} takes its key from a Secret: rotate it while the instance runs")
        items = asyncio.run(_read(self.target, identity))
        hashes = CompiledKey.read(items[0].object.spec_json).key_hashes if items else ()
        current = next((h.hash for h in hashes if h.until is None), None)
        if current is None:
            raise CommandFailed(f"{identity.id} is not in force, so its present key is not known: repair it first")
        return current

    # ------------------------------------------------------------------ inside

    def _document(self, identity: Identity) -> Document:
        return find_document(self.manifests, identity)

    def _file(self, identity: Identity) -> Path:
        return self.manifests / f"key-{identity.id.removeprefix('default/').replace('/', '.')}.yaml"

    def _refuse_existing(self, identity: Identity) -> None:
        try:
            found = self._document(identity)
        except DocumentNotFound:
            return
        raise CommandFailed(f"{identity.id} exists already in {found.source}: `keys rotate` gives it a new key")

    def _await_in_force(self, identity: Identity, holds: Holds) -> None:
        """Wait until the instance shows the change; say so where it does not, or where there is no instance."""
        if self.target is None:
            note(f"Written to {self.manifests}; no instance that reads it runs, so it is in force at the next start.")
            return
        target = self.target

        async def wait() -> bool:
            async with target.rooms() as rooms:

                async def ask() -> bool:
                    return any(map(holds, await rooms.list_objects(identity.kind, [identity.id])))

                return await becomes_true(ask)

        with progress("Waiting until it is in force"):
            in_force = asyncio.run(wait())
        if not in_force:
            raise CommandFailed(
                f"{identity.id} was written but is not in force after {IN_FORCE_LIMIT_S:g} s: "
                "`signalbox status` says why",
            )


def _has(item: scheduler_pb2.ObjectWithStatus, changes: Mapping[str, Any]) -> bool:
    """Whether what the instance has in force shows a change of state or of the key."""
    if "keyHash" in changes:
        return str(changes["keyHash"]).encode() in item.object.spec_json
    kind = CompiledKey if item.object.kind == "RelayKey" else CompiledAccount
    return bool(kind.read(item.object.spec_json).state == changes["state"])


async def _read(target: Target, identity: Identity) -> list[scheduler_pb2.ObjectWithStatus]:
    async with target.rooms() as rooms:
        return await rooms.list_objects(identity.kind, [identity.id], with_status=False)
