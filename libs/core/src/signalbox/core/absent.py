"""Imports without what a library would load besides, merely because it is installed: time and memory of a start."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def absent(*names: str) -> Iterator[None]:
    """Let imports of these packages fail within the body, unless they are loaded already."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))    # type: ignore[arg-type]  # None: Python's own sign for not importable
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
