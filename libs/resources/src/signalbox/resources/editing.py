"""Changes to fields of a document in its file's text: everything else stays byte for byte, comments included.

The edit is textual and small; whether it was right is checked by reading the result back: the document must hold
exactly the changes, and every other document must be what it was.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from signalbox.resources import yamltext
from signalbox.resources.errors import DocumentNotFound, EditRefused
from signalbox.resources.models import DEFAULT_NAMESPACE
from signalbox.resources.reading import Document, Identity, documents_in, read_document

# A change of one field of a spec: its new JSON value; None takes the field away.
Changes = Mapping[str, Any]


@dataclass(frozen=True)
class _Splice:
    """Replace text[start:end]."""

    start: int
    end: int
    text: str


def edit_spec(text: str, identity: Identity, changes: Changes) -> str:
    """Return `text` with fields of one document's spec changed.

    A document that is already broken may be edited as long as the change breaks nothing more. Raises
    DocumentNotFound, and EditRefused where the result would not be what was asked for.
    """
    try:
        before = yamltext.parse(text)
        nodes = [item for node in yamltext.compose(text) for item in _documents_in(node)]
    except yamltext.YamlError as e:
        raise EditRefused(f"line {e.line}: {e.reason}: repair the file first") from e
    node = next((node for node in nodes if _identity_of(node) == identity), None)
    if node is None:
        raise DocumentNotFound(f"{identity.kind} {identity.id} is not in this file")
    spec = _child(node, "spec")
    if not isinstance(spec, yaml.MappingNode) or not spec.value:
        raise EditRefused(f"{identity.kind} {identity.id} has no spec to change: write one first")
    edited = text
    for splice in sorted(_splices(text, spec, changes), key=lambda s: s.start, reverse=True):
        edited = edited[: splice.start] + splice.text + edited[splice.end :]
    _verify([p.value for p in before], edited, identity, changes)
    return edited


def _splices(text: str, spec: yaml.MappingNode, changes: Changes) -> list[_Splice]:
    entries = {yamltext.key_text(key): index for index, (key, _) in enumerate(spec.value)}
    splices, added = [], []
    for name, value in changes.items():
        if name not in entries:
            added += [(name, value)] if value is not None else []
        elif value is None:
            splices.append(_removal(text, spec, entries[name]))
        else:
            key, old = spec.value[entries[name]]
            written = _written(name, value, flow=bool(spec.flow_style))
            splices.append(_Splice(_start(key), _end(old), written))
    if added:
        splices.append(_addition(text, spec, added))
    return splices


def _addition(text: str, spec: yaml.MappingNode, added: Sequence[tuple[str, Any]]) -> _Splice:
    """Put new fields before the first one, where neither comments nor block scalars are in the way."""
    at = _start(spec.value[0][0])
    if spec.flow_style:
        return _Splice(at, at, "".join(_written(n, v, flow=True) + ", " for n, v in added))
    newline = ("\r\n" if "\r\n" in text else "\n") + " " * spec.value[0][0].start_mark.column
    return _Splice(at, at, "".join(_written(n, v, flow=False) + newline for n, v in added))


def _removal(text: str, spec: yaml.MappingNode, index: int) -> _Splice:
    key, value = spec.value[index]
    if spec.flow_style:
        if index + 1 < len(spec.value):
            return _Splice(_start(key), _start(spec.value[index + 1][0]), "")
        return _Splice(_end(spec.value[index - 1][1]) if index else _start(key), _end(value), "")
    line_end = text.find("\n", _end(value))
    start = text.rfind("\n", 0, _start(key)) + 1
    return _Splice(start, len(text) if line_end < 0 else line_end + 1, "")


def _written(name: str, value: Any, *, flow: bool) -> str:
    """Write one field in a line: JSON inside braces, which YAML reads too, else plain YAML."""
    if flow:
        return f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}"
    line = yamltext.write(value, width=float("inf"), flow=True)
    return f"{name}: " + line.removesuffix("...\n").rstrip("\n")


def _start(node: yaml.Node) -> int:
    return int(node.start_mark.index)


def _end(node: yaml.Node) -> int:
    """Return where a node's own text ends; a block collection's mark lies behind comments that follow it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _documents_in(node: yaml.Node) -> list[yaml.Node]:
    items = _child(node, "items")
    if _text_of(_child(node, "kind")) == "List" and isinstance(items, yaml.SequenceNode):
        return list(items.value)
    return [node]


def _identity_of(node: yaml.Node) -> Identity:
    metadata = _child(node, "metadata")
    namespace = _text_of(_child(metadata, "namespace")) or DEFAULT_NAMESPACE
    return Identity(_text_of(_child(node, "kind")), namespace, _text_of(_child(metadata, "name")))


def _child(node: yaml.Node | None, name: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for key, value in node.value if yamltext.key_text(key) == name), None)


def _text_of(node: yaml.Node | None) -> str:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ""


def _verify(before: list[Any], edited: str, identity: Identity, changes: Changes) -> None:
    """Refuse an edit whose result is anything but the old documents with the changes in one of them."""
    unclear = EditRefused(f"{identity.kind} {identity.id} is written in a way that cannot be changed: edit it by hand")
    try:
        after = [parsed.value for parsed in yamltext.parse(edited)]
    except yamltext.YamlError as e:
        raise unclear from e
    expected = copy.deepcopy(before)
    target = next(raw for value in expected for _, raw in documents_in(value) if _names(raw, identity))
    old = read_document(copy.deepcopy(target))
    for name, value in changes.items():
        target["spec"].pop(name, None)
        if value is not None:
            target["spec"][name] = value
    if after != expected:
        raise unclear
    new = read_document(target)
    if isinstance(new, Document) and isinstance(old, Document):
        worse = set(new.problems) - set(old.problems)
        if worse:
            raise EditRefused("; ".join(str(problem) for problem in sorted(worse)))


def _names(raw: Any, identity: Identity) -> bool:
    document = read_document(raw)
    return isinstance(document, Document) and document.identity == identity
