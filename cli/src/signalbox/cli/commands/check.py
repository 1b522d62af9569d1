"""`signalbox check`: documents against schema and rules, without an instance."""

import os
from datetime import UTC, datetime
from pathlib import Path

from signalbox.cli.errors import CommandFailed
from signalbox.cli.output import Format, note, print_json, print_lines
from signalbox.resources.loading import load_directory
from signalbox.resources.reconcile import plan
from signalbox.resources.state import State


def check(directory: Path, output: Format) -> None:
    """Print every problem as `file:line: path: reason`. Raises CommandFailed when there is one.

    Good documents that would not serve as they are (a Secret that is missing here, say) are mentioned on stderr:
    what they need may live elsewhere.
    """
    loaded = load_directory(directory, os.environ)
    if output is Format.JSON:
        print_json([
            {"file": p.file, "line": p.line, "path": p.path, "reason": p.reason} for p in loaded.problems
        ])
    else:
        print_lines(map(str, loaded.problems))
    if loaded.problems:
        raise CommandFailed(f"{len(loaded.problems)} problem(s) in {directory}")
    sources = {document.source for document in loaded.documents}
    for item in plan(loaded, State(), now=datetime.now(UTC)).objects:
        if not item.ready.status and item.source in sources:
            why = f"{item.ready.reason} {item.ready.message}".rstrip()
            note(f"{item.source}: warning: {item.kind} {item.id} would not be ready: {why}")
    if output is Format.TABLE:
        print(f"{len(loaded.documents)} documents are good")
