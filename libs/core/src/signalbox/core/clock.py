"""Time as the pure code sees it: injected, so that tests decide what time it is."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What the domain may ask about time."""

    def now_ms(self) -> int:
        """Wall clock, Unix milliseconds."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that never go back, from an arbitrary start."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_ms(self) -> int:
        """Wall clock, Unix milliseconds."""
        return time.time_ns() // 1_000_000

    monotonic_s = staticmethod(time.monotonic)    # asked several times a request: without a call of its own


def from_ms(ms: int) -> datetime:
    """Return Unix milliseconds as an aware UTC datetime."""
    return datetime.fromtimestamp(ms / 1000, UTC)


def to_ms(when: datetime) -> int:
    """Return an aware datetime as Unix milliseconds."""
    return int(when.timestamp() * 1000)


def rfc3339(ms: int) -> str:
    """Return Unix milliseconds as RFC 3339 in UTC, to the second where the milliseconds are zero."""
    when = from_ms(ms)
    return when.isoformat(timespec="milliseconds" if ms % 1000 else "seconds").replace("+00:00", "Z")
