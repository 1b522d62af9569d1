"""How a room's process begins and ends: settings first, one event loop, SIGTERM and SIGINT as one wish to stop.

Exit statuses: 0: stopped as asked. 2: could not start (one line on stderr says what and why). 1: a defect.
"""

import asyncio
import contextlib
import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import uvloop

from signalbox.core import logs
from signalbox.core.errors import StartupError
from signalbox.core.settings import RoomSettings, load

log = logs.logger(__name__)

EXIT_CANNOT_START = 2
# A process that is this old should know whether it can start: a bad start must have ended within ten seconds, and the
# supervisor comes on top. A step gets the least even when imports took longer, as they do on a busy machine: what is
# slow there is not unusable. What refuses or is silent is found out sooner, by the limits of connections.
START_LIMIT_S = 6.0
LEAST_S = 6.0
_PAUSE_S = 1.0

# Messages and their events die young and hold no cycles: looking for cycles every 700 objects costs a request
# several per cent, and looking again and again at what was loaded at the start is wasted altogether.
GC_THRESHOLDS = (20_000, 20, 20)
STARTED_AFTER_S = 5.0

# gRPC reads this when it is first imported, which a room does after this module. Its event engine hands each read
# from a thread that polls to one that completes; without it one thread does both: a small message costs a third less.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")

T = TypeVar("T")
_IMPORTED_S = time.monotonic()


def run(room: str, settings: type[RoomSettings]) -> None:
    """Read the settings, run `main(settings, stop)` of the room's `app` to its end, and exit the process.

    `app` is imported after the settings were read: that takes long, and a wrong setting need not wait for it. `stop`
    is set by SIGTERM and SIGINT.
    """

    async def supervised() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, stop.set)
        loop.call_later(STARTED_AFTER_S, _freeze_what_stays)
        await main(config, stop)

    gc.set_threshold(*GC_THRESHOLDS)
    _allow_many_files()
    try:
        config = load(settings)
        main = import_module(f"{room}.app").main
        uvloop.run(supervised())
    except StartupError as e:
        print(f"{room}: cannot start: {e}", file=sys.stderr, flush=True)
        sys.exit(EXIT_CANNOT_START)


def _allow_many_files() -> None:
    """Take as many file descriptors as we may: many systems give 1,024 unless asked, half as many relayed streams."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


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


def patience_left_s() -> float:
    """Return for how many seconds more a start may wait for something to appear, by the age of the process."""
    return max(0.0, START_LIMIT_S - process_age_s())


def process_age_s() -> float:
    """Return the seconds since the process began; where the system does not tell, since this module was imported."""
    try:
        began_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began_ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic() - _IMPORTED_S


async def within_start_limit(what: str, work: Awaitable[T]) -> T:
    """Await a step of the start-up; raise StartupError naming `what` when it takes longer than is left for it."""
    limit_s = max(LEAST_S, patience_left_s())
    try:
        return await asyncio.wait_for(work, limit_s)
    except TimeoutError as e:
        raise StartupError(what, f"did not answer within {limit_s:.1f} s") from e
