"""What tests have to know of the machine they run on: which ports are free to be named, how busy it is, what runs."""

import contextlib
import os
import random
import socket
import time
from pathlib import Path

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST, _LAST = 10_000, 32_000
_given: set[int] = set()


def free_port() -> int:
    """Return a loopback port for a server that has to be told one, now or when it starts again; each time another.

    Below those that the system gives to outgoing connections: one of these may be taken by the next of them.
    """
    last = min(_LAST, int(_EPHEMERAL.read_text().split()[0])) if _EPHEMERAL.exists() else _LAST
    chance = random.SystemRandom()
    while True:
        port = chance.randrange(_FIRST, max(last, _FIRST + 1000))
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            _given.add(port)
            return port


def busy() -> float:
    """Return how many times longer than alone a process may take now, at least once: the load of each processor."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def running_with(text: str) -> list[str]:
    """Return the command lines of all processes that have this in theirs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if text in line:
                found.append(line)
    return found


def left_running_with(text: str, limit_s: float = 5.0) -> list[str]:
    """Return the same once there is none, or after a while: what was killed takes a moment to be gone."""
    until_s = time.monotonic() + limit_s
    while (found := running_with(text)) and time.monotonic() < until_s:
        time.sleep(0.02)
    return found
