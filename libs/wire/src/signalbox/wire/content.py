"""Looks into a request's messages and tools: what binds it to an account, what bytes do not show, who else may serve.

One typed pass each, which decodes names however they are spelt and skips all text; where a model is named, the place
is read again in full, so that a repeated or escaped name is refused. Source: Anthropic's SDK types of 17 Nov 2026.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from signalbox.wire.json_object import NotAnObject, tree

RAW_LIST = msgspec.json.Decoder(list[Raw])

# These describe or hold the caller's own data, not a model that can serve.
_NO_MODELS_BELOW = frozenset(("input_schema", "input_examples", "input"))
MAX_TYPED_TOOLS = 1_000
_INTEREST = ("model", "type", "tool")
# Typed tools that the caller runs itself; all other typed ones are run by the provider, and their results are input.
_CALLER_RUN = ("custom", "bash_", "text_editor_", "computer_", "memory_", "browser_")


Plain = str | float | bool | None


class MessageNode(msgspec.Struct):
    """A message, a content block or a block's source, as far as it matters here. Every JSON value fits the types."""

    type: Any = None
    file_id: Raw | UnsetType = UNSET
    tool: Raw | UnsetType = UNSET        # of a tool_addition block: may define a tool, which may name a model
    source: "MessageNode | list[MessageNode | list[Raw] | Plain] | Plain" = None
    content: "MessageNode | list[MessageNode | list[Raw] | Plain] | Plain" = None


class ToolHead(msgspec.Struct):
    """What a tool's definition says of who runs it."""

    type: Any = None
    model: Raw | UnsetType = UNSET


_messages_decoder = msgspec.json.Decoder(list[MessageNode])
_tools_decoder = msgspec.json.Decoder(list[ToolHead])


@dataclass(slots=True)
class Seen:
    """What messages hold: files that the provider keeps, URLs that it fetches, models of tools defined inline."""

    files: bool = False
    urls: bool = False
    models: tuple[str, ...] | None = ()    # None: not looked for yet


def read_messages(messages: bytes) -> Seen:
    """Return what raw `messages` hold. Raises Ambiguous. What does not look like messages counts as holding all."""
    if not messages:
        return Seen()
    try:
        nodes = _messages_decoder.decode(messages)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Seen(files=True, urls=True, models=tuple(_inline_models(messages)))
    seen = look_through(nodes)
    return seen if seen.models is not None else replace(seen, models=tuple(_inline_models(messages)))


def look_through(messages: list[MessageNode]) -> Seen:
    """Return what decoded messages hold; `models` is None where they define tools, which must be read in full."""
    nodes: list[Any] = [messages]
    files = urls = defines = False
    while nodes:
        node = nodes.pop()
        if type(node) is list:
            nodes += node
        if type(node) is not MessageNode:
            continue
        if node.tool is not UNSET:
            defines = True
        if node.file_id is not UNSET:
            files = True
        if node.type == "url":
            urls = True
        if node.source is not None:
            nodes.append(node.source)
        if node.content is not None:
            nodes.append(node.content)
    return Seen(files, urls, None if defines else ())


def read_tools(tools: bytes) -> tuple[bool, tuple[str, ...]]:
    """Return whether the provider may run tools of its own, and the models that they name. Raises Ambiguous."""
    if not tools:
        return False, ()
    try:
        heads = _tools_decoder.decode(tools)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return True, tuple(serving_models(tools))
    typed = [i for i, head in enumerate(heads) if head.type is not None or head.model is not UNSET]
    if not typed:
        return False, ()
    if len(typed) > MAX_TYPED_TOOLS:
        raise NotAnObject(f"tools: more than {MAX_TYPED_TOOLS} have a type of their own")
    raw = RAW_LIST.decode(tools)
    models = tuple(model for i in typed for model in serving_models(bytes(raw[i])))
    return any(not _caller_runs(heads[i].type) for i in typed), models


def serving_models(text: bytes) -> Iterator[str]:
    """Yield the models that a raw value names where they can serve: not in schemas or inputs. Raises Ambiguous."""
    yield from _models_in(tree(text, _INTEREST))


def _caller_runs(kind: object) -> bool:
    return kind is None or (isinstance(kind, str) and kind.startswith(_CALLER_RUN))


def _models_in(value: object) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _models_in(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name == "model" and isinstance(item, str):
                yield item
            elif name not in _NO_MODELS_BELOW:
                yield from _models_in(item)


def _inline_models(messages: bytes) -> Iterator[str]:
    """Yield the models of tools that messages define. A block that only echoes who served names none that can."""
    stack = [tree(messages, _INTEREST)]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack += value
        elif isinstance(value, dict):
            yield from _models_in(value.get("tool"))
            stack += (item for name, item in value.items() if name not in _NO_MODELS_BELOW and name != "tool")
