"""Reads one JSON object's members without building what is in them, and proves that each stands once.

Two readers of one body must never see different values: so a repeated or escaped field name is an error here, where
most parsers would quietly take the last one.
"""

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

# What comes before a value: the brace or comma, the name, the colon.
_MEMBER = re.compile(rb'[ \t\r\n]*+[{,][ \t\r\n]*+"((?:[^"\\]++|\\.)*+)"[ \t\r\n]*+:[ \t\r\n]*+', re.DOTALL)
_END = re.compile(rb"[ \t\r\n]*+\{?[ \t\r\n]*+\}")
_KEY = re.compile(rb'"((?:[^"\\]++|\\.)*+)"[ \t\r\n]*+(:)?', re.DOTALL)
_ESCAPE = b"\\u00"
# Looking through names one by one takes a microsecond a byte, and whoever reads has others waiting. No client that
# means well comes near either bound.
_MAX_SEARCHED_BYTES = 1 << 20
_MAX_MEMBERS = 10_000
# Building a tree takes some 10 us a name, and nothing else is served meanwhile: a body may cost a second at most.
_MAX_TREE_NODES = 100_000
# Writing a text down again is quicker than stepping through it, but takes its size in memory once more.
_MAX_REWRITTEN_BYTES = 16 << 10
_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
# Strings, and whatever tells where a value begins or ends.
_STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[{]|[\]}]|[:,]', re.DOTALL)
_MAX_OUTLINED_BYTES = 4 << 20


class NotAnObject(ValueError):
    """The text is no JSON object; the message says why."""


class Ambiguous(ValueError):
    """A field of interest repeats, or is spelt with escapes; `name` is the field."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name}: {why}")
        self.name = name


def members(text: bytes, interest: Iterable[str]) -> tuple[dict[str, bytes], dict[str, int]]:
    """Return an object's members as raw bytes, and where each value begins in `text`.

    Raises NotAnObject; Ambiguous where a name of `interest` repeats or is escaped.
    """
    try:
        parsed = _decoder.decode(text)
    except msgspec.DecodeError as e:
        raise NotAnObject(str(e)) from None
    except (RecursionError, UnicodeDecodeError):
        raise NotAnObject("nested too deeply, or not UTF-8") from None
    if len(parsed) > _MAX_MEMBERS:
        raise NotAnObject(f"it has more than {_MAX_MEMBERS} members")
    raw = {name: bytes(value) for name, value in parsed.items()}
    places = (_places_as_usual(text, raw) if len(text) <= _MAX_REWRITTEN_BYTES else None) or _walk(text, raw)
    if places is None:
        _find_ambiguity(text, frozenset(interest))
        return raw, {}
    return raw, places


def _places_as_usual(text: bytes, raw: dict[str, bytes]) -> dict[str, int] | None:
    """Write the members down as nearly every client does, without white space or with Python's, and compare.

    None where that is not the text: it is then spelt in another way, or holds more than was parsed.
    """
    names = [b'"' + name.encode() + b'":' for name in raw]
    if not names:
        return None
    space = b" " if text.startswith(b" ", len(names[0]) + 1) else b""
    written = [name + space + value for name, value in zip(names, raw.values(), strict=True)]
    if b"{" + (b"," + space).join(written) + b"}" != text:
        return None
    places: dict[str, int] = {}
    position = 1
    for name, quoted, member in zip(raw, names, written, strict=True):
        places[name] = position + len(quoted) + len(space)
        position += len(member) + 1 + len(space)
    return places


def _walk(text: bytes, raw: dict[str, bytes]) -> dict[str, int] | None:
    """Step through the members as parsed; None where the text holds others, or names spelt with escapes."""
    places: dict[str, int] = {}
    position = 0
    for name, value in raw.items():
        member = _MEMBER.match(text, position)
        if member is None or member[1] != name.encode() or not text.startswith(value, member.end()):
            return None
        places[name] = member.end()
        position = member.end() + len(value)
    return places if _END.match(text, position) else None


def _find_ambiguity(text: bytes, interest: frozenset[str]) -> None:
    """Look at the top-level object's names one by one."""
    if len(text) > _MAX_SEARCHED_BYTES:
        raise NotAnObject("it is large, and repeats its members or spells their names with escapes")
    depth = 0

    def note(pairs: list[tuple[str, Any]]) -> list[str]:
        return [name for name, _ in pairs]

    try:
        names = _loads(text, note)
    except (ValueError, RecursionError) as e:
        raise NotAnObject("nested too deeply, or not JSON") from e
    seen: set[str] = set()
    for name in names:
        if name in seen and name in interest:
            raise Ambiguous(name, "stands twice in one object")
        seen.add(name)
    for match in re.finditer(rb'"(?:[^"\\]++|\\.)*+"(?:[ \t\r\n]*+:)?|[{}\[\]]', text, re.DOTALL):
        token = match.group()
        if token in (b"{", b"["):
            depth += 1
        elif token in (b"}", b"]"):
            depth -= 1
        elif depth == 1 and token.endswith(b":") and b"\\" in token:
            name = msgspec.json.decode(token[:-1].rstrip(), type=str)
            if name in interest:
                raise Ambiguous(name, "is spelt with escapes")


def _loads(text: bytes, hook: Callable[[list[tuple[str, Any]]], Any]) -> Any:
    """Parse without turning digits into numbers, which nobody needs here and Python refuses for very many of them."""
    return json.loads(text, object_pairs_hook=hook, parse_int=str, parse_float=str)


def outline(text: bytes, interest: Iterable[str]) -> dict[str, bytes] | None:
    """Return those members of an object that are of interest, as raw bytes, however deep the others are nested.

    For valid JSON that parsers refuse for its depth alone: brackets are counted, and nothing else is checked. None
    where they do not make one object, or the text is too large to be stepped through.
    """
    if len(text) > _MAX_OUTLINED_BYTES or not text.lstrip().startswith(b"{"):
        return None
    names = {b'"' + name.encode() + b'"': name for name in interest}
    found: dict[str, bytes] = {}
    depth, begin, last, name = 0, 0, b"", ""
    for mark in _STRUCTURE.finditer(text):
        token = mark.group()
        if token in b"[{":
            depth += 1
            continue
        if token in b"]}":
            depth -= 1
        if depth == 1 and token == b":":
            begin, name = mark.end(), names.get(last, "")
        elif name and ((depth == 1 and token == b",") or depth == 0):
            found[name], name = text[begin : mark.start()].strip(), ""
        elif depth == 1:
            last = token
        if depth == 0:
            return found if not text[mark.end() :].strip() else None
    return None


def tree(text: bytes, interest: Iterable[str]) -> Any:
    """Return a whole JSON value, numbers as text.

    Raises NotAnObject; Ambiguous where a name of `interest` repeats or is escaped at any depth.
    """
    names = frozenset(interest)
    if len(text) > _MAX_TREE_NODES and text.count(b'"') // 2 + text.count(b",") > _MAX_TREE_NODES:
        raise NotAnObject("it holds too many values where models may be named")

    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            for name, _ in pairs:
                if name in seen and name in names:
                    raise Ambiguous(name, "stands twice in one object")
                seen.add(name)
        return result

    try:
        value = _loads(text, check)
    except Ambiguous:
        raise
    except (ValueError, RecursionError) as e:
        raise NotAnObject("nested too deeply, or not JSON") from e
    if _ESCAPE in text:
        for match in _KEY.finditer(text):
            if match.group(2) and b"\\" in match.group(1):
                name = msgspec.json.decode(b'"' + match.group(1) + b'"', type=str)
                if name in names:
                    raise Ambiguous(name, "is spelt with escapes")
    return value
