"""Model globs: `*` stands for any run of characters, `?` for one; everything else is literal."""

import re
from collections.abc import Sequence
from functools import lru_cache


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.compile("".join(parts), re.DOTALL)


def matches(pattern: str, name: str) -> bool:
    """Whether `name` as a whole matches the glob `pattern`. Case matters."""
    return _compiled(pattern).fullmatch(name) is not None


def matches_any(patterns: Sequence[str], name: str) -> bool:
    """Whether `name` matches at least one of the globs."""
    return any(matches(p, name) for p in patterns)


def allowed(name: str, allow: Sequence[str], deny: Sequence[str]) -> bool:
    """Apply a model rule: deny wins; an empty allow list allows everything."""
    return not matches_any(deny, name) and (not allow or matches_any(allow, name))
