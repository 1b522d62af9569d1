"""Writing documents: new ones as text, and the changes that the command line makes to existing ones.

How a change gets into a file's text is editing.py's business.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from signalbox.resources import yamltext
from signalbox.resources.editing import Changes, edit_spec
from signalbox.resources.errors import DocumentNotFound, EditRefused
from signalbox.resources.loading import load_directory, read_manifest
from signalbox.resources.models import DEFAULT_NAMESPACE, KINDS
from signalbox.resources.reading import Document, Identity, read_document
from signalbox.resources.values import format_time, parse_time


def render(
    kind: str, name: str, body: Mapping[str, Any], *, namespace: str = DEFAULT_NAMESPACE, comment: str = ""
) -> str:
    """Return a new document as YAML text that ends in a newline.

    `body` holds what stands beside the metadata, in the documents' notation: `{"spec": {...}}`, or a Secret's
    `{"stringData": {...}}`. Raises EditRefused, with every problem, for what breaks the rules.
    """
    metadata = {"name": name} | ({"namespace": namespace} if namespace != DEFAULT_NAMESPACE else {})
    raw = {"apiVersion": KINDS[kind][0], "kind": kind, "metadata": metadata, **body}
    read = read_document(raw)
    problems = read.problems if isinstance(read, Document) else read
    if problems:
        raise EditRefused("; ".join(str(problem) for problem in problems))
    text = yamltext.write(raw)
    return "".join(f"# {line}\n" for line in comment.splitlines()) + text


def state_changes(state: str, reason: str | None = None, *, kind: str) -> dict[str, Any]:
    """Return the changes of a pause or a resume. Only accounts have a `stateReason`; without one it goes away."""
    return {"state": state} | ({"stateReason": reason} if kind == "ClaudeAccount" else {})


def rotation_changes(
    spec: Mapping[str, Any], *, old_hash: str, new_hash: str, until: datetime, now: datetime
) -> dict[str, Any]:
    """Return the changes that give a key a new hash while the old one works until `until`.

    `spec` is the document's spec as it is written; former hashes that no longer work are dropped. A key that came
    from a Secret has its hash in the document afterwards.
    """
    former: Sequence[Mapping[str, Any]] = spec.get("alsoAccept") or ()
    kept = [dict(h) for h in former if parse_time(h["until"]) > now and h["keyHash"] not in (old_hash, new_hash)]
    kept.append({"keyHash": old_hash, "until": format_time(until)})
    return {"secretRef": None, "keyHash": new_hash, "alsoAccept": kept}


def find_document(directory: Path, identity: Identity) -> Document:
    """Return a document of a directory, with the file it is in. Raises DocumentNotFound, UnreadableDirectory."""
    for document in load_directory(directory, {}).documents:
        if document.identity == identity:
            return document
    raise DocumentNotFound(f"{identity.kind} {identity.id} is in no file of {directory}")


def edit_file(file: Path, identity: Identity, changes: Changes) -> None:
    """Change fields of a document's spec in its file, all at once or not at all. Raises as edit_spec does."""
    try:
        text = read_manifest(file)
    except yamltext.YamlError as e:
        raise EditRefused(f"{file}: {e.reason}") from e
    write_file(file, edit_spec(text, identity, changes))


def write_file(file: Path, text: str, *, mode: int = 0o600) -> None:
    """Write a file so that a reader sees the old text or the new, never a part.

    An existing file keeps its mode, and a link stays a link; a new one gets `mode`.
    """
    target = file.resolve()
    mode = target.stat().st_mode & 0o777 if target.exists() else mode
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
