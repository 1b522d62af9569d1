"""Who of several operators acts: the one that started last, for as long as it renews its Lease.

An operator that a newer one has superseded waits, and takes over once that one has been silent for SILENT_AFTER_S. Two
that live can therefore not take the place from each other in turn: only a new start, or silence, changes who acts.
"""

RENEW_EVERY_S = 3.0
SILENT_AFTER_S = 15.0


class Superseded(Exception):
    """A newer operator has taken over: this one has to stop writing."""


class Silence:
    """How long a Lease has gone without a renewal, by the clock of whoever looks at it; others' clocks may be wrong."""

    def __init__(self) -> None:
        self._seen: str | None = None
        self._since_s = 0.0

    def look(self, version: str, now_s: float) -> bool:
        """Note the Lease's version, "" where there is none; return whether nobody has acted for long enough."""
        if version != self._seen:
            self._seen, self._since_s = version, now_s
        return version == "" or now_s - self._since_s >= SILENT_AFTER_S

    def lost(self) -> None:
        """Note that the Lease could not be read: meanwhile it could not be renewed either."""
        self._seen = None
