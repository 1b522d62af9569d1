"""A directory of documents, read with the position of everything in it. Rules are the models' business."""

import hashlib
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from signalbox.resources import yamltext
from signalbox.resources.errors import UnreadableDirectory
from signalbox.resources.models import KINDS
from signalbox.resources.reading import Document, Identity, Origin, Problem, documents_in, read_document

SUFFIXES = (".yaml", ".yml", ".json")

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True)
class LoadResult:
    """What a directory holds.

    `incomplete` names files of which some document could not be told apart (unparseable, unreadable, no name):
    what they held before and do not hold now is kept by the plan. `problems` are all of them, documents' included.
    """

    documents: tuple[Document, ...] = ()
    incomplete: frozenset[str] = frozenset()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class _FileContent:
    documents: tuple[Document, ...] = ()
    loose: tuple[Problem, ...] = ()  # problems that no document can be named for
    incomplete: bool = False


class FileCache:
    """What files held when they were last read, so that those whose bytes are the same are not parsed again.

    For one directory and one environment. Secrets are among what it remembers; it is never printed.
    """

    def __init__(self) -> None:
        self._read: dict[str, tuple[bytes, _FileContent]] = {}

    def content(self, file: str, text: str, env: Mapping[str, str]) -> _FileContent:
        """Return what `text`, the text of `file`, holds."""
        digest = hashlib.sha256(text.encode()).digest()
        known = self._read.get(file)
        if known is None or known[0] != digest:
            known = self._read[file] = (digest, _read_text(text, file, env))
        return known[1]

    def keep_only(self, files: Collection[str]) -> None:
        """Forget files that are gone."""
        self._read = {file: read for file, read in self._read.items() if file in files}


def load_directory(
    path: Path,
    env: Mapping[str, str],
    owners: Mapping[Identity, str] | None = None,
    *,
    cache: FileCache | None = None,
) -> LoadResult:
    """Read `*.yaml`, `*.yml` and `*.json` of a directory (not of its subdirectories), as `kubectl apply -f` does.

    `env` fills `${NAME}` in Secrets' stringData. `owners` (State.owners) says which file a document already came
    from: of two with one identity that one is kept, else the first by file name. Whoever reads a directory again and
    again passes the same `cache`. Raises UnreadableDirectory.
    """
    cache = cache or FileCache()
    contents = {str(file): _read_file(file, env, cache) for file in manifest_files(path)}
    cache.keep_only(contents)
    return _collect(contents, owners or {})


def manifest_files(path: Path) -> list[Path]:
    """Return the files that a directory's documents are read from, by name. Raises UnreadableDirectory."""
    try:
        return sorted(f for f in path.iterdir() if f.suffix in SUFFIXES and not f.name.startswith("."))
    except OSError as e:
        raise UnreadableDirectory(f"{path}: {e.strerror or e}: name a directory of documents") from e


def load_text(text: str, env: Mapping[str, str], file: str = "") -> LoadResult:
    """Read the documents of one text, as if it were a directory's only file."""
    return _collect({file: _read_text(text, file, env)}, {})


def _collect(contents: Mapping[str, _FileContent], owners: Mapping[Identity, str]) -> LoadResult:
    documents, problems = _without_copies([d for c in contents.values() for d in c.documents], owners)
    problems += [problem for content in contents.values() for problem in content.loose]
    problems += [problem for document in documents for problem in document.problems]
    return LoadResult(
        documents=tuple(documents),
        incomplete=frozenset(file for file, content in contents.items() if content.incomplete),
        problems=tuple(sorted(problems)),
    )


def read_manifest(file: Path) -> str:
    """Return the text of a manifest. Raises YamlError for what is no regular file, too large, or not UTF-8."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise yamltext.YamlError(0, "is not a regular file")
        if status.st_size > yamltext.MAX_BYTES:
            raise yamltext.YamlError(0, "is larger than 4 MiB")
        return file.read_bytes().decode("utf-8-sig")
    except OSError as e:
        raise yamltext.YamlError(0, f"cannot be read: {e.strerror or e}") from e
    except UnicodeDecodeError as e:
        raise yamltext.YamlError(0, "is not UTF-8 text") from e


def _read_file(file: Path, env: Mapping[str, str], cache: FileCache) -> _FileContent:
    try:
        return cache.content(str(file), read_manifest(file), env)
    except yamltext.YamlError as e:
        return _FileContent(loose=(Problem(str(file), e.line, "", e.reason),), incomplete=True)


def _read_text(text: str, file: str, env: Mapping[str, str]) -> _FileContent:
    try:
        parsed = yamltext.parse(text)
    except yamltext.YamlError as e:
        return _FileContent(loose=(Problem(file, e.line, "", e.reason),), incomplete=True)
    documents: list[Document] = []
    loose: list[Problem] = []
    incomplete = False
    for raw, where in (item for document in parsed for item in _items(document, file)):
        if foreign := _foreign(raw):
            loose.append(where.problem(("apiVersion",), f"{foreign} is not read by Signalbox: keep it elsewhere"))
            continue
        read = read_document(*_fill_in(raw, where, env))
        if isinstance(read, Document):
            documents.append(read)
        else:
            loose += read
            incomplete = True
    return _FileContent(tuple(documents), tuple(loose), incomplete)


def _items(parsed: yamltext.Parsed, file: str) -> Iterator[tuple[Any, Origin]]:
    """Yield each document of a parsed one with where it stands and the flaws of its own text."""
    for prefix, raw in documents_in(parsed.value):
        depth = len(prefix)
        flaws = [(p[depth:], line, why) for p, line, why in parsed.flaws if p[:depth] == prefix]
        yield raw, Origin(file, parsed.line_of(prefix), parsed.line_of, flaws, prefix)


def _foreign(raw: Any) -> str:
    """Name a document that is plainly another program's: `apps/v1 Deployment`. Anything else gives ""."""
    if not isinstance(raw, dict) or not isinstance(raw.get("apiVersion"), str):
        return ""
    api_version, kind = raw["apiVersion"], raw.get("kind")
    ours = api_version.startswith("signalbox.dev/") or kind in ("Secret", "Namespace", "List")
    return "" if ours or not isinstance(kind, str) or kind in KINDS else f"{api_version} {kind}"


def _fill_in(raw: Any, where: Origin, env: Mapping[str, str]) -> tuple[Any, Origin]:
    """Replace `${NAME}` in a Secret's stringData; a missing variable is a flaw of its value."""
    values = raw.get("stringData") if isinstance(raw, dict) and raw.get("kind") == "Secret" else None
    if not isinstance(values, dict):
        return raw, where
    filled: dict[str, Any] = {}
    flaws = list(where.flaws)
    for key, value in values.items():
        filled[key] = value
        if not isinstance(value, str):
            continue
        missing = [name for name in _VARIABLE.findall(value) if name not in env]
        if missing:
            path = ("stringData", key)
            line = where.line_of((*where.prefix, *path))
            flaws.append((path, line, f"needs the environment variable {missing[0]}, which is not set"))
        else:
            filled[key] = _VARIABLE.sub(lambda match: env[match[1]], value)
    return {**raw, "stringData": filled}, replace(where, flaws=flaws)


def _without_copies(documents: list[Document], owners: Mapping[Identity, str]) -> tuple[list[Document], list[Problem]]:
    """Keep one document per identity, that of the file it already came from if there is one; blame the others."""
    kept: dict[Identity, Document] = {}
    for document in documents:
        rival = kept.get(document.identity)
        if rival is None or owners.get(document.identity) == document.file != rival.file:
            kept[document.identity] = document
    problems = [
        Problem(d.file, d.line, "metadata.name", f"{d.identity.kind} {d.identity.id} is already in {keeper.source}")
        for d in documents
        if (keeper := kept[d.identity]) is not d
    ]
    return list(kept.values()), problems
