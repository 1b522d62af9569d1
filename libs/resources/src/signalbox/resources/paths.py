"""Paths of fields inside a document, and how they are printed."""

import re

FieldPath = tuple[str | int, ...]


def format_path(path: FieldPath) -> str:
    """Return a path as the API server prints it: `spec.limits[0].per`, `metadata.labels[a/b]`."""
    out = ""
    for part in path:
        if isinstance(part, int) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", part):
            out += f"[{part}]"
        else:
            out += f".{part}" if out else part
    return out
