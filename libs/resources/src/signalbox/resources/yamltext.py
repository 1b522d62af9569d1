"""YAML text to plain JSON-like values, with the line of every field, as kubectl understands YAML; and back.

Bounded: size, nesting and alias expansion are limited before anything is built. What the values mean is not known
here; see reading.py.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from signalbox.resources.paths import FieldPath

MAX_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 64
MAX_NODES = 500_000

_TAG = "tag:yaml.org,2002:"
_TRUE = frozenset({"yes", "true", "on"})


class YamlError(ValueError):
    """The text cannot be read as YAML within the bounds. `line` counts from 1; 0 where no line is to blame."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line
        self.reason = reason


class _Loader(yaml.CSafeLoader):
    """Resolves plain scalars as kubectl does: no timestamps and no base-60 numbers, which stay text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own shape


class _Dumper(yaml.SafeDumper):
    """Quotes text that PyYAML or kubectl would take for something else (`1:30`, `0E0`)."""


for _tag, _pattern, _first in (
    ("bool", r"^(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$", "yYnNtTfFoO"),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"^[-+]?(?:0b[0-1_]+|0o?[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$", "-+0123456789"),
    (
        "float",
        r"^(?:[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+0123456789.",
    ),
):
    _Loader.add_implicit_resolver(_TAG + _tag, re.compile(_pattern), list(_first))
    _Dumper.add_implicit_resolver(_TAG + _tag, re.compile(_pattern), list(_first))


@dataclass
class Parsed:
    """One YAML document: its value, where each field stands (lines from 1), what is wrong with its text."""

    value: Any = None
    line: int = 1
    lines: dict[FieldPath, int] = field(default_factory=dict)
    flaws: list[tuple[FieldPath, int, str]] = field(default_factory=list)

    def line_of(self, path: FieldPath) -> int:
        """Return the line of a field, or of the nearest thing around it that exists."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, self.line)


def write(value: Any, *, width: float = 100, flow: bool = False) -> str:
    """Return a JSON-like value as YAML that is read back as what it was; `flow` sets it in braces."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=flow, width=width, allow_unicode=True, sort_keys=False,
    )
    return text


def compose(text: str) -> list[yaml.Node]:
    """Return the node trees of all documents in `text`, empty ones left out. Raises YamlError."""
    if len(text) > MAX_BYTES:
        raise YamlError(0, "is larger than 4 MiB")
    try:
        _refuse_depth(text)
        nodes = yaml.compose_all(text, Loader=_Loader)
        return [node for node in nodes if node is not None]
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        raise YamlError(mark.line + 1 if mark else 0, f"is not YAML: {e.problem or e.context}") from e
    except yaml.YAMLError as e:
        raise YamlError(0, "is not YAML: holds a character that YAML does not allow") from e


def _refuse_depth(text: str) -> None:
    """Refuse deep nesting from the event stream, before the recursive composer meets it."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                line = event.start_mark.line + 1 if event.start_mark else 0
                raise YamlError(line, f"nests deeper than {MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def parse(text: str) -> list[Parsed]:
    """Return every document of `text` with its positions. Raises YamlError where the text as a whole is unusable."""
    budget = iter(range(MAX_NODES))
    out = []
    for node in compose(text):
        parsed = Parsed(line=node.start_mark.line + 1)
        parsed.value = _value(node, (), parsed, budget)
        if parsed.value is not None:
            out.append(parsed)
    return out


def _value(node: yaml.Node, path: FieldPath, parsed: Parsed, budget: Iterator[int]) -> Any:
    if next(budget, None) is None or len(path) > MAX_DEPTH:
        raise YamlError(node.start_mark.line + 1, "expands to too much: write repeated parts out instead of aliases")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, parsed, budget)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            parsed.lines.setdefault((*path, index), item.start_mark.line + 1)
            items.append(_value(item, (*path, index), parsed, budget))
        return items
    assert isinstance(node, yaml.ScalarNode), "YAML has three kinds of nodes"
    try:
        return scalar(node)
    except ValueError as e:
        parsed.flaws.append((path, node.start_mark.line + 1, str(e)))
        return None


def _mapping(node: yaml.MappingNode, path: FieldPath, parsed: Parsed, budget: Iterator[int]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = key_text(key_node)
        if key is None or key == "<<":
            reason = "has a merge key (<<): write the fields out" if key else "has a key that is not text"
            parsed.flaws.append((path, line, reason))
            continue
        inner = (*path, key)
        if key in out:
            first = parsed.lines[inner]
            parsed.flaws.append((inner, line, f"is written twice (first in line {first}): keep one of them"))
            continue
        parsed.lines[inner] = line
        out[key] = _value(value_node, inner, parsed, budget)
    return out


def key_text(node: yaml.Node) -> str | None:
    """Return a mapping's key as text (`1: x` and `on: x` have the keys "1" and "true", as in JSON), or None."""
    if not isinstance(node, yaml.ScalarNode) or node.tag == _TAG + "null":
        return None
    if node.tag == _TAG + "bool":
        return "true" if node.value.lower() in _TRUE else "false"
    return str(node.value)


def scalar(node: yaml.ScalarNode) -> str | int | float | bool | None:
    """Return a scalar's JSON value. Raises ValueError where JSON has none."""
    text: str = node.value
    match node.tag.removeprefix(_TAG):
        case "str" | "!":
            return text
        case "null":
            return None
        case "bool":
            return text.lower() in _TRUE
        case "int":
            return _integer(text.replace("_", ""))
        case "float":
            return _number(text.replace("_", ""))
        case tag:
            raise ValueError(f"has the tag {tag}, which is not understood: leave it out")


def _integer(text: str) -> int:
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.lstrip("+"))
    if len(digits) > 64:
        raise ValueError("is too large a number")
    if len(digits) > 1 and digits[0] == "0" and digits[1] in "01234567":
        return sign * int(digits, 8)
    return sign * int(digits, 0)


def _number(text: str) -> int | float:
    number = float(text.replace(".inf", "inf").replace(".Inf", "inf").replace(".INF", "inf").replace(".nan", "nan"))
    if not math.isfinite(number):
        raise ValueError("is not a finite number")
    return int(number) if number.is_integer() and abs(number) < 2**53 else number
