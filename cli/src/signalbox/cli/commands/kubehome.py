"""Documents in a cluster: read and changed at the API server, with the rights of whoever runs the command.

What a GitOps controller or Helm manages is not changed behind its back: the API server knows who owns which field.
"""

import asyncio
import base64
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from signalbox.cli.commands.common import IN_FORCE_LIMIT_S, becomes_true
from signalbox.cli.commands.documents import secret_name
from signalbox.cli.commands.kuberows import ROWS
from signalbox.cli.errors import CommandFailed
from signalbox.cli.output import progress
from signalbox.core.errors import Refused
from signalbox.core.keys import hash_key
from signalbox.core.rows import Row
from signalbox.kube import Cluster, connect
from signalbox.kube.cluster import Object
from signalbox.resources.models import API_VERSION
from signalbox.resources.reading import Identity

MANAGER = "signalbox-cli"
# Field managers that are people at a command line; what anybody else manages is left alone.
_PEOPLE = ("kubectl", "signalbox", "before-first-apply")

T = TypeVar("T")


@dataclass(frozen=True)
class KubeHome:
    """A cluster, as kubectl would find it."""

    context: str | None = None
    kubeconfig: Path | None = None

    # ------------------------------------------------------------------ documents

    def identity(self, kind: str, name: str) -> Identity:
        """Return what a name stands for: without a namespace, in the context's own."""
        namespace, slash, own = name.partition("/")
        return Identity(kind, namespace, own) if slash else Identity(kind, self._connect().namespace, name)

    def spec(self, identity: Identity) -> Mapping[str, Any]:
        """Return a document's spec."""
        return dict(self._read(identity).get("spec") or {})

    def change(self, identity: Identity, changes: Mapping[str, Any]) -> None:
        """Change fields at the API server, unless somebody else's program manages them."""
        found = self._read(identity)
        for name in changes:
            if owner := _foreign_owner(found, name):
                raise CommandFailed(f"spec.{name} of {identity.id} is managed by {owner}: change it there")
        after = self._run(lambda c: _change_spec(c, identity, found, changes))
        self._await_in_force(identity, int(after["metadata"]["generation"]))

    def create(self, identity: Identity, spec: Mapping[str, Any], secret: Mapping[str, str] | None) -> None:
        """Create the document, and its Secret before it."""
        metadata = {"name": identity.name, "namespace": identity.namespace}
        if self._run(lambda c: c.get(identity.kind, identity.name, identity.namespace)) is not None:
            raise CommandFailed(f"{identity.id} exists already: `keys rotate` gives it a new key")
        if secret is not None:
            values = {key: base64.b64encode(text.encode()).decode() for key, text in secret.items()}
            head = {"name": secret_name(identity), "namespace": identity.namespace}
            self._run(lambda c: c.create({"apiVersion": "v1", "kind": "Secret", "metadata": head, "data": values}))
        body = {"apiVersion": API_VERSION, "kind": identity.kind, "metadata": metadata, "spec": dict(spec)}
        after = self._run(lambda c: c.create(body))
        self._await_in_force(identity, int(after["metadata"]["generation"]))

    def where(self, identity: Identity) -> str:
        """Return how kubectl calls the document."""
        return f"{identity.kind.lower()}/{identity.name} -n {identity.namespace}"

    def present_hash(self, identity: Identity, spec: Mapping[str, Any]) -> str:
        """Return the hash of a key's present text; one in a Secret takes the right to read that Secret."""
        if written := spec.get("keyHash"):
            return str(written)
        ref = spec["secretRef"]
        secret = self._run(lambda c: c.get("Secret", ref["name"], identity.namespace))
        value = ((secret or {}).get("data") or {}).get(ref["key"])
        if value is None:
            raise CommandFailed(f"Secret {identity.namespace}/{ref['name']} has no key {ref['key']}: repair it first")
        return hash_key(base64.b64decode(value).decode().strip())

    # ------------------------------------------------------------------ reading

    def rows(self, kind: str, name: str | None) -> list[Row]:
        """Return one object as a row, or all that may be seen: of all namespaces, else of the context's own."""
        if name is not None:
            identity = self.identity(kind, name)
            return [ROWS[kind](self._read(identity))]
        found: list[Object] = []

        async def everything(cluster: Cluster) -> None:
            try:
                await cluster.list(kind, None, found.append)
            except Refused as e:
                if e.code != "Forbidden":
                    raise
                await cluster.list(kind, cluster.namespace, found.append)

        self._run(everything)
        return sorted((ROWS[kind](raw) for raw in found), key=lambda row: (row["namespace"], row["name"]))

    # ------------------------------------------------------------------ inside

    def _read(self, identity: Identity) -> Object:
        found = self._run(lambda c: c.get(identity.kind, identity.name, identity.namespace))
        if found is None:
            raise CommandFailed(f"there is no {identity.kind} {identity.id}")
        return found

    def _await_in_force(self, identity: Identity, generation: int) -> None:
        """Wait until the operator has taken a document, and say so where it refuses or does not look."""

        async def wait(cluster: Cluster) -> bool:
            async def taken() -> bool:
                raw = await cluster.get(identity.kind, identity.name, identity.namespace) or {}
                return bool((raw.get("status") or {}).get("observedGeneration", 0) >= generation)

            return await becomes_true(taken)

        with progress("Waiting until it is in force"):
            taken = self._run(wait)
        if not taken:
            raise CommandFailed(
                f"{identity.id} was written but the operator has not taken it within {IN_FORCE_LIMIT_S:g} s: does it "
                f"run, and does it watch the namespace {identity.namespace}?",
            )

    def _connect(self) -> Cluster:
        return connect(MANAGER, kubeconfig=self.kubeconfig, context=self.context)

    def _run(self, work: Callable[[Cluster], Awaitable[T]]) -> T:
        async def connected() -> T:
            async with self._connect() as cluster:
                return await work(cluster)

        try:
            return asyncio.run(connected())
        except Refused as e:
            raise CommandFailed(f"the API server said no: {e.message or e.code}") from e


async def _change_spec(cluster: Cluster, identity: Identity, found: Object, changes: Mapping[str, Any]) -> Object:
    """Change fields of the spec that was found. Statuses may be written meanwhile; the spec must be the same still."""
    where = (identity.kind, identity.name, identity.namespace)
    spec = found.get("spec") or {}
    generation = found["metadata"]["generation"]
    operations: list[Object] = [{"op": "test", "path": "/metadata/generation", "value": generation}]
    for name, value in changes.items():
        if value is not None:
            operations.append({"op": "add", "path": f"/spec/{name}", "value": value})
        elif name in spec:
            operations.append({"op": "remove", "path": f"/spec/{name}"})
    try:
        return await cluster.edit(*where, operations)
    except Refused as e:
        now = await cluster.get(*where)
        if now is None or now["metadata"]["generation"] != generation:
            raise CommandFailed(f"{identity.id} was changed by somebody else meanwhile: try again") from e
        raise


def _foreign_owner(raw: Object, name: str) -> str:
    """Name the program that manages a field of the spec, "" where none but people do."""
    for entry in raw["metadata"].get("managedFields") or ():
        owns = f"f:{name}" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
        if owns and not str(entry.get("manager", "")).startswith(_PEOPLE):
            return str(entry["manager"])
    return ""
