"""Whether decisions can be made now: open while Redis is there and known to be complete."""

import asyncio

from signalbox.core.telemetry import Readiness

NEED = "redis"


class Gate:
    """Open or closed, with the reason; closing it wakes whoever recovers."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness
        self._opened = asyncio.Event()
        self.trouble = asyncio.Event()
        self.openings = 0

    @property
    def is_open(self) -> bool:
        """Whether decisions can be made."""
        return self._opened.is_set()

    async def wait_open(self) -> None:
        """Return once decisions can be made."""
        await self._opened.wait()

    def open(self) -> None:
        """Decisions can be made."""
        self._readiness.ok(NEED)
        self.openings += 1
        self.trouble.clear()
        self._opened.set()

    def close(self, why: str) -> None:
        """Nothing can be decided until `open`; `why` is shown."""
        self._readiness.missing(NEED, why)
        self._opened.clear()
        self.trouble.set()
