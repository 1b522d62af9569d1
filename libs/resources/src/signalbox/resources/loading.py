"""A directory of documents, read with the position of everything in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from signalbox.resources.reading import Document, Identity, Problem


@dataclass(frozen=True)
class LoadResult:
    """What a directory holds.

    `incomplete` names files of which some document could not be told apart (unparseable, unreadable, no name):
    what they held before and do not hold now is kept by the plan. `problems` are all of them, documents' included.
    """

    documents: tuple[Document, ...] = ()
    incomplete: frozenset[str] = frozenset()
    problems: tuple[Problem, ...] = ()


def load_directory(
    path: Path, env: Mapping[str, str], owners: Mapping[Identity, str] | None = None
) -> LoadResult:
    """Read `*.yaml`, `*.yml` and `*.json` of a directory (not of its subdirectories), as `kubectl apply -f` does.

    `env` fills `${NAME}` in Secrets' stringData. `owners` (State.owners) says which file a document already came
    from: of two with one identity that one is kept, else the first by file name. Raises UnreadableDirectory.
    """
    raise NotImplementedError
