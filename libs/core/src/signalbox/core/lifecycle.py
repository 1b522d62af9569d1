"""How a room's process begins and ends: one event loop, SIGTERM and SIGINT as one wish to stop, exit statuses.

0: stopped as asked. 2: could not start (one line on stderr says what and why). 1: a defect.
"""

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import uvloop

from signalbox.core import logs
from signalbox.core.errors import StartupError

log = logs.logger(__name__)

EXIT_CANNOT_START = 2
# Below the ten seconds within which a bad start must have ended: imports and the supervisor come on top.
START_LIMIT_S = 7.0
_PAUSE_S = 1.0

# Messages and their events die young and hold no cycles: looking for cycles every 700 objects costs a request
# several per cent, and looking again and again at what was loaded at the start is wasted altogether.
GC_THRESHOLDS = (20_000, 20, 20)
STARTED_AFTER_S = 5.0

# gRPC reads this when it is first imported, which a room does after this module. Its event engine hands each read
# from a thread that polls to one that completes; without it one thread does both: a small message costs a third less.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")

T = TypeVar("T")


def run(room: str, main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run `main(stop)` to its end and exit the process; `stop` is set by SIGTERM and SIGINT."""

    async def supervised() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, stop.set)
        loop.call_later(STARTED_AFTER_S, _freeze_what_stays)
        await main(stop)

    gc.set_threshold(*GC_THRESHOLDS)
    try:
        uvloop.run(supervised())
    except StartupError as e:
        print(f"{room}: cannot start: {e}", file=sys.stderr, flush=True)
        sys.exit(EXIT_CANNOT_START)


def _freeze_what_stays() -> None:
    gc.collect()
    gc.freeze()


async def patiently(patience_s: float, step: Callable[[], Awaitable[T]]) -> T:
    """Repeat a step of the start-up that raises StartupError until it works or `patience_s` seconds are over."""
    until_s = time.monotonic() + patience_s
    while True:
        try:
            return await step()
        except StartupError as e:
            if time.monotonic() + _PAUSE_S > until_s:
                raise
            log.warning("waiting_to_start", why=str(e))
        await asyncio.sleep(_PAUSE_S)


async def within_start_limit(what: str, work: Awaitable[T]) -> T:
    """Await a step of the start-up; raise StartupError naming `what` when it takes longer than the limit."""
    try:
        return await asyncio.wait_for(work, START_LIMIT_S)
    except TimeoutError as e:
        raise StartupError(what, f"did not answer within {START_LIMIT_S:g} s") from e
