"""What processes cost, read from /proc: CPU seconds and memory of a whole tree, told apart by what each process is for.

Linux only. Starting and stopping processes is `targets.py`'s business.
"""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")

# The first pattern that matches a command line names the process. The rooms' names are part of the public contract.
ROLES = (
    ("gateway", r"signalbox\.gateway"),
    ("scheduler", r"signalbox\.scheduler"),
    ("token-refresher", r"signalbox\.token_refresher"),
    ("usage", r"signalbox\.usage"),
    ("redis", r"redis-server|valkey-server"),
    ("supervisor", r"signalbox(\.cli)? up\b"),
    ("portkey", r"portkey"),
)


@dataclass(frozen=True)
class Process:
    """One line of /proc/PID/stat. `cpu_s` includes children that have ended and been waited for."""

    pid: int
    parent: int
    session: int
    cpu_s: float


def _read_stat(pid: int) -> Process | None:
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:  # ended meanwhile
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return Process(pid, int(fields[1]), int(fields[3]), sum(map(int, fields[11:15])) / TICKS_PER_S)


def _all_processes() -> Iterator[Process]:
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (process := _read_stat(int(entry.name))):
            yield process


def tree(root: int) -> list[Process]:
    """`root`, all its descendants, and orphans of its session (a daemon is still part of what it costs)."""
    processes = {process.pid: process for process in _all_processes()}
    members = {pid for pid, process in processes.items() if pid == root or process.session == root}
    grown = True
    while grown:
        children = {pid for pid, process in processes.items() if process.parent in members} - members
        members |= children
        grown = bool(children)
    return [processes[pid] for pid in sorted(members)]


def role(pid: int) -> str:
    """What the process is for, by its command line; `other` if that is not known."""
    try:
        command = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "other"
    return next((name for name, pattern in ROLES if re.search(pattern, command)), "other")


def cpu_by_role(root: int) -> dict[str, float]:
    """CPU seconds, user and system, that the tree has used since it was started."""
    seconds: dict[str, float] = {}
    for process in tree(root):
        name = role(process.pid)
        seconds[name] = seconds.get(name, 0.0) + process.cpu_s
    return seconds


def cpu_s(root: int) -> float:
    """CPU seconds of the whole tree."""
    return sum(process.cpu_s for process in tree(root))


def pss_by_role(root: int) -> dict[str, int]:
    """Proportional set size in bytes: a page shared by n processes counts 1/n in each, so that the sum is true."""
    size: dict[str, int] = {}
    for process in tree(root):
        try:
            rollup = (PROC / str(process.pid) / "smaps_rollup").read_text()
        except OSError:
            continue
        if found := re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE):
            name = role(process.pid)
            size[name] = size.get(name, 0) + int(found[1]) * 1024
    return size


def machine_busy_s() -> float:
    """CPU seconds that all processors together have been busy since boot."""
    fields = [int(field) for field in (PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle, waiting = fields[3], fields[4]
    return (sum(fields) - idle - waiting) / TICKS_PER_S


def idle_cores(root: int, over_s: float = 1.0) -> float:
    """How many cores the tree keeps busy now, when nothing is asked of it."""
    before = cpu_s(root)
    time.sleep(over_s)
    return (cpu_s(root) - before) / over_s


def wait_until_quiet(root: int, idle: float, at_most_s: float = 15.0) -> bool:
    """Waits until the tree is back at `idle` cores: what it had put off for later is then done, and counted."""
    step_s, slack_s = 0.5, 2 / TICKS_PER_S
    deadline = time.monotonic() + at_most_s
    last = cpu_s(root)
    while time.monotonic() < deadline:
        time.sleep(step_s)
        now = cpu_s(root)
        if now - last <= idle * step_s + slack_s:
            return True
        last = now
    return False
