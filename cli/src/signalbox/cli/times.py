"""Times as people type them on the command line: `24h`, `7d`, `2026-11-01`, RFC 3339."""

import re
from datetime import UTC, datetime, timedelta

from signalbox.cli.errors import BadUsage

_PART = re.compile(r"(\d+(?:\.\d+)?)(w|d|h|m|s)")
_UNITS = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes", "s": "seconds"}


def parse_span(text: str, option: str) -> timedelta:
    """Return a duration such as `24h`, `7d` or `1h30m`. Raises BadUsage that names the option."""
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise BadUsage(f"{option} {text}: must be a duration such as 90m, 24h, 7d or 2w")
    try:
        return sum((timedelta(**{_UNITS[unit]: float(number)}) for number, unit in parts), timedelta())
    except OverflowError as e:
        raise BadUsage(f"{option} {text}: is too long") from e


def parse_when(text: str, option: str, now: datetime, *, forward: bool = False) -> datetime:
    """Return a moment: a duration counted back (or `forward`) from `now`, a date (UTC midnight), an RFC 3339 time.

    Raises BadUsage that names the option.
    """
    if text[-1:] in _UNITS and "-" not in text:
        span = parse_span(text, option)
        try:
            return now + span if forward else now - span
        except OverflowError as e:
            raise BadUsage(f"{option} {text}: is too long") from e
    try:
        when = datetime.fromisoformat(text)
    except ValueError as e:
        raise BadUsage(f"{option} {text}: must be a duration (24h, 7d), a date (2026-11-01) or an RFC 3339 time") from e
    return when if when.tzinfo else when.replace(tzinfo=UTC)
