"""Answers that callers are slow to read: what waits for them in this process is bounded.

A provider is held back as soon as its caller does not keep up, but what had been read by then, some 64 to 300 KiB,
stays until the caller reads on or is given up. Where all of that is too much, who has been behind for longest is cut
off. Counted is what was not sent; pieces that were sent in part lie there whole, so that it takes up to twice as much.
"""

from typing import Protocol

from prometheus_client import Counter, Gauge

CLOSED = Counter("signalbox_gateway_stalled_closed", "Callers behind with their answers, cut off to make room.")
UNREAD = Gauge("signalbox_gateway_unread_bytes", "Bytes of answers that wait for callers who do not keep up.")


class Behind(Protocol):
    """A connection, as far as it matters here."""

    def cut_off(self) -> None:
        """Close at once; nothing more reaches the caller."""
        ...


class Unread:
    """Belongs to one event loop. Remembers callers in the order in which they fell behind."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._behind: dict[Behind, int] = {}
        self.held = 0
        UNREAD.set_function(lambda: self.held)

    def fell_behind(self, caller: Behind, count: int) -> None:
        """Count what waits for a caller; those who have been behind for longest go where it is too much."""
        self.caught_up(caller)
        self._behind[caller] = count
        self.held += count
        while self.held > self._most:
            longest = next(iter(self._behind))
            self.caught_up(longest)
            CLOSED.inc()
            longest.cut_off()

    def caught_up(self, caller: Behind) -> None:
        """Count it no more: it has read on, or it is gone."""
        self.held -= self._behind.pop(caller, 0)
