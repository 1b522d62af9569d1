"""One child process: how it is started, watched, restarted with back-off, and stopped.

Which processes there are, and in what order they start and stop, is the supervisor's business.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from signalbox.cli.supervisor import launch
from signalbox.cli.supervisor.logs import LogSink

Probe = Callable[[], Awaitable[dict[str, str]]]
"""Answers what a process still misses and why; empty when it serves. Raises OSError while it does not answer."""

NOT_RUNNING, SILENT = "not running", "does not answer"
"""What a process misses that is still to be started, or still to speak."""

_PROBE_EVERY_S = 0.03
_KEPT_LINES = 40
_LAST_OUTPUT_S = 0.5
_VERDICT = "cannot start: "
_LONGEST_LINE = 64 << 10


@dataclass(frozen=True)
class Spec:
    """What to run. `name` is unique (`gateway-0`), `room` is not (`gateway`); `quiet` keeps its output back."""

    name: str
    room: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(repr=False)
    probe: Probe
    sockets: tuple[str, ...] = ()
    pass_fds: tuple[int, ...] = ()
    worker: int | None = None
    telemetry: str | None = None
    quiet: bool = False


class Backoff:
    """How long to wait before a process that died is started again."""

    FIRST_S = 0.05
    LONGEST_S = 4.0

    def __init__(self) -> None:
        self._next_s = self.FIRST_S

    def after(self, *, served: bool) -> float:
        """Return seconds to wait: one that served is started at once, one that keeps dying before waits longer."""
        if served:
            self._next_s = self.FIRST_S
        wait_s, self._next_s = self._next_s, min(self.LONGEST_S, self._next_s * 4)
        return wait_s


class Kept:
    """A process that is kept running until it is stopped."""

    def __init__(self, spec: Spec, logs: LogSink, on_ready: Callable[[], None]) -> None:
        self.spec = spec
        self.restarts = 0
        self.ready = False
        self.answers = False
        """Whether the process has ever answered; a room does once it has found its stores fit."""
        self.died: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Set to the last words of a process that died before it was ever ready."""
        self._logs = logs
        self._on_ready = on_ready
        self._ever_ready = False
        self._served = False
        self._stopping = False
        self._child: asyncio.subprocess.Process | None = None
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process id, None while there is no process."""
        return self._child.pid if self._child is not None and self._child.returncode is None else None

    @property
    def ever_ready(self) -> bool:
        """Whether the process has served since the supervisor started."""
        return self._ever_ready

    def start(self) -> None:
        """Begin to keep the process running."""
        self._task = asyncio.create_task(self._keep(), name=f"keep {self.spec.name}")

    async def missing(self) -> dict[str, str]:
        """Return what the process misses now, by name, with the reason; empty when it serves."""
        if self.pid is None:
            return {self.spec.name: NOT_RUNNING}
        try:
            missing = await asyncio.wait_for(self.spec.probe(), 1.0)
        except (OSError, TimeoutError, EOFError):
            missing = {self.spec.name: SILENT}
        else:
            self.answers = True
        self.ready = not missing
        return missing

    async def stop(self, grace_s: float) -> None:
        """Ask the process to stop; kill it by pid when it has not after `grace_s` seconds."""
        self._stopping = True
        self.ready = False
        child = self._child
        if child is not None and child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(child.wait(), grace_s)
            except TimeoutError:
                self._logs.event("killed_after_grace", level="warning", process=self.spec.name, pid=child.pid)
                self.kill()
                await child.wait()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=_LAST_OUTPUT_S)
            self._task.cancel()

    def kill(self) -> None:
        """End the process at once."""
        if self._child is not None and self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._child.kill()

    async def _keep(self) -> None:
        backoff = Backoff()
        while not self._stopping:
            self._served = False
            status = await self._run_once()
            if self._stopping:
                return
            if not self._ever_ready:
                self._give_up(last_words(self._lines) or f"exited with status {status}")
                return
            wait_s = backoff.after(served=self._served)
            self.restarts += 1
            self._logs.event(
                "restarting", level="warning", process=self.spec.name, status=status, wait_s=wait_s,
            )
            await asyncio.sleep(wait_s)

    async def _run_once(self) -> int:
        try:
            self._child = await spawn(self.spec)
        except OSError as e:
            self._lines.append(f"{self.spec.argv[0]}: {e.strerror}")
            return 127
        pump = asyncio.create_task(self._pump(self._child))
        ready = asyncio.create_task(self._await_ready())
        try:
            status = await self._child.wait()
            # A grandchild may hold the pipe open; what the process itself said is there by then.
            await asyncio.wait([pump], timeout=_LAST_OUTPUT_S)
            return status
        finally:
            self.ready = False
            pump.cancel()
            ready.cancel()

    async def _await_ready(self) -> None:
        while await self.missing():  # noqa: ASYNC110 - what is waited for is another process
            await asyncio.sleep(_PROBE_EVERY_S)
        self._ever_ready = self._served = True
        self._on_ready()

    async def _pump(self, child: asyncio.subprocess.Process) -> None:
        """Pass the child's output on, line by line."""
        assert child.stdout is not None
        rest = b""
        while chunk := await child.stdout.read(_LONGEST_LINE):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._take_line(line)
        if rest:
            self._take_line(rest)

    def _take_line(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if text:
            self._lines.append(text)
            if not self.spec.quiet:
                self._logs.child_line(self.spec.name, text)
            if _VERDICT in text and not self._ever_ready:
                # Its exit may hang on a call that never returns; its word is enough.
                self._give_up(last_words([text]))

    def _give_up(self, why: str) -> None:
        if not self.died.done():
            self.died.set_result(why)


def last_words(lines: Sequence[str]) -> str:
    """Return the line that says best why a process could not start: its own verdict, else its last line."""
    for line in reversed(lines):
        _, found, why = line.partition(_VERDICT)
        if found:
            return why
    return lines[-1] if lines else ""


async def spawn(spec: Spec) -> asyncio.subprocess.Process:
    """Start a process that dies with this one, in a process group of its own so that Ctrl-C reaches only us."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *spec.argv,
        env=dict(spec.env),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        pass_fds=spec.pass_fds,
        process_group=0,
    )
