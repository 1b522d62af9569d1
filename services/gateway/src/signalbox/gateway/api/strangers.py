"""Connections on which no valid key has been presented yet: at most so many a process.

Any caller begins as a stranger, so a newcomer is never turned away: the one that has been a stranger for longest makes
room. Who presents a valid key at once is safe, and whoever only holds connections open loses them first.
"""

from typing import Protocol

from prometheus_client import Counter

CLOSED = Counter("signalbox_gateway_strangers_closed", "Connections without a valid key that were closed to make room.")


class Stranger(Protocol):
    """A connection, as far as it matters here."""

    def make_room(self) -> None:
        """Close, after the answer that is owed if there is one."""
        ...


class Strangers:
    """Belongs to one event loop. Remembers strangers in the order in which they came."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._here: dict[Stranger, None] = {}

    def enter(self, newcomer: Stranger) -> None:
        """Count a new connection; the longest-standing stranger goes where there are too many."""
        if len(self._here) >= self._most:
            oldest = next(iter(self._here))
            del self._here[oldest]
            CLOSED.inc()
            oldest.make_room()
        self._here[newcomer] = None

    def leave(self, connection: Stranger) -> None:
        """Count one fewer: it is gone, or its key is known."""
        self._here.pop(connection, None)
