"""The provider's limit headers as windows. What a window means for an account is the scheduler's business.

Source: Anthropic's API documentation (rate limits, headers). Unknown windows are kept, malformed values are ignored.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

PREFIX = b"anthropic-"
_TIERS = {"ratelimit": "", "priority": "priority-", "fast": "fast-"}
_UNIFIED = "unified-"
_UNIFIED_PARTS = ("status", "reset", "utilization")
_STANDARD_PARTS = ("limit", "remaining", "reset")
MAX_COUNT = 10**15
MAX_UTILIZATION = 1000.0

Headers = Iterable[tuple[bytes, bytes]]


@dataclass(slots=True)
class Window:
    """One limit window as the provider last described it. `utilization` is a fraction that may exceed 1."""

    name: str
    limit: int | None = None
    remaining: int | None = None
    utilization: float | None = None
    resets_at: datetime | None = None
    status: str = ""                 # allowed, allowed_warning, rejected


def read_windows(headers: Headers) -> tuple[Window, ...]:
    """Return the windows that a reply's headers (lower-case names) describe."""
    windows: dict[str, Window] = {}
    for name, value in headers:
        if not name.startswith(PREFIX):
            continue
        place = _place(name)
        if place is None:
            continue
        try:
            _read(windows, *place, value.decode("ascii").strip())
        except (ValueError, OverflowError):
            continue
    return tuple(windows.values())


@lru_cache(maxsize=512)
def _place(header: bytes) -> tuple[str, str, bool] | None:
    """Return the window that a header is about, which part of it, and whether it is of the unified kind."""
    tier, _, field = header[len(PREFIX) :].decode("latin-1").partition("-")
    if tier not in _TIERS:
        return None
    field = _TIERS[tier] + field
    unified = field.startswith(_UNIFIED)
    name, _, part = field.removeprefix(_UNIFIED).rpartition("-")
    if part not in (_UNIFIED_PARTS if unified else _STANDARD_PARTS):
        return None
    window_name = (name or "unified") if unified else name
    return (window_name, part, unified) if window_name else None


def _read(windows: dict[str, Window], window_name: str, part: str, unified: bool, value: str) -> None:
    window = windows.get(window_name) or Window(window_name)
    if part == "status":
        window.status = value
    elif part == "utilization":
        window.utilization = _fraction(value)
    elif part == "reset":
        window.resets_at = _unix(value) if unified else _rfc3339(value)
    elif part == "limit":
        window.limit = _count(value)
    else:
        window.remaining = _count(value)
    if not unified and window.limit and window.remaining is not None:
        window.utilization = 1 - min(window.remaining, window.limit) / window.limit
    windows[window_name] = window


def _count(value: str) -> int:
    count = int(value)
    if not 0 <= count <= MAX_COUNT:
        raise ValueError(value)
    return count


def _fraction(value: str) -> float:
    fraction = float(value)
    if not 0 <= fraction <= MAX_UTILIZATION:
        raise ValueError(value)
    return fraction


def _unix(value: str) -> datetime:
    return datetime.fromtimestamp(int(value), UTC)


@lru_cache(maxsize=256)
def _rfc3339(value: str) -> datetime:
    when = datetime.fromisoformat(value)
    if when.tzinfo is None:
        raise ValueError(value)
    return when.astimezone(UTC)
