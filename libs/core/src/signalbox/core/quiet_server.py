"""uvicorn as a part of a room: it handles no signals, and looks once a second, not ten times, whether to stop."""

import asyncio
import contextlib
from collections.abc import Iterator

import uvicorn

_TICK_S = 1.0    # how old the Date header may be


class QuietServer(uvicorn.Server):
    """Serves until `leave` is called; the room decides when."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        """Accept nothing more, and end once the connections have."""
        self.should_exit = True
        self._leaving.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the process's signals alone."""
        yield

    async def main_loop(self) -> None:
        """Wait for `leave`."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._leaving.wait()
