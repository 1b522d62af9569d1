"""How many bytes this process keeps in memory for its callers, and the bound on it."""

from signalbox.gateway.domain.refusal import overloaded


class Buffers:
    """Counts request bodies and withheld answers of the whole process."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.held = 0

    def take(self, count: int) -> None:
        """Count `count` more bytes. Raises Refusal `overloaded` where they do not fit."""
        if self.held + count > self._most:
            raise overloaded()
        self.held += count

    def give_back(self, count: int) -> None:
        """Count `count` fewer."""
        self.held -= count
