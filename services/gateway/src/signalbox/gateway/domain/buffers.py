"""How many bytes this process keeps in memory for its callers, and the bound on it."""

import time
from collections.abc import Callable
from typing import Protocol

from signalbox.gateway.domain.refusal import overloaded

# A body that comes more slowly makes room when there is none: whoever trickles must not keep others out.
LEAST_BYTES_PER_S = 16 << 10
PACE_S = 5.0    # over at least so many seconds


class Arriving(Protocol):
    """A request whose body is being read and has been counted."""

    @property
    def received(self) -> int:
        """How many bytes of it are here."""
        ...

    def make_room(self) -> None:
        """End the request and give its bytes back."""
        ...


class Buffers:
    """Counts request bodies and withheld answers of the whole process."""

    def __init__(self, most: int, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._monotonic_s = monotonic_s
        self._arriving: dict[Arriving, tuple[float, int]] = {}    # since when its pace is watched, and from which byte
        self.held = 0

    def take(self, count: int) -> None:
        """Count `count` more bytes. Raises Refusal `overloaded` where they do not fit."""
        if self.held + count > self._most:
            self._make_room(count)
        if self.held + count > self._most:
            raise overloaded()
        self.held += count

    def give_back(self, count: int) -> None:
        """Count `count` fewer."""
        self.held -= count

    def arrives(self, request: Arriving) -> None:
        """Watch the pace at which a body comes, until `arrived`."""
        self._arriving[request] = (self._monotonic_s(), request.received)

    def arrived(self, request: Arriving) -> None:
        """Watch it no more."""
        self._arriving.pop(request, None)

    def _make_room(self, count: int) -> None:
        """End bodies that trickle until `count` bytes fit; where none does, judge the others anew from here."""
        now_s = self._monotonic_s()
        for request, (since_s, received) in list(self._arriving.items()):
            if now_s - since_s < PACE_S:
                continue
            if request.received - received >= LEAST_BYTES_PER_S * (now_s - since_s):
                self._arriving[request] = (now_s, request.received)
                continue
            self.arrived(request)
            request.make_room()
            if self.held + count <= self._most:
                return
