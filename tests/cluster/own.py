"""The cluster's tests on a node of this machine's own: programs, images, node, tests, and everything cleared away again.

Nothing stays but the caches (~/.cache/signalbox, ~/.cache/signalbox-images, Go's), the images' archives and the node's logs,
whether it ends by itself, by a limit or by a signal.
"""

import contextlib
import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.cluster.clock import AGAIN, BUILD, NODE, TESTS, Clock, TooLate
from tests.support.control_plane import ASSETS
from tests.support.node.node import Cannot, Node, prepare

ROOT = Path(__file__).resolve().parents[2]
KEEP = bool(os.environ.get("SIGNALBOX_TEST_KEEP"))
CLONE_NEWNET = 0x40000000
SLOW_S = 120
"""Where a node takes longer than that to come up, tests would tell how busy the machine is, and nothing else."""


class Times:
    """How long each part took, in seconds."""

    def __init__(self) -> None:
        self._parts: list[tuple[str, float]] = []
        self._began_s = time.monotonic()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure what is done inside."""
        began_s = time.monotonic()
        try:
            yield
        finally:
            self._parts.append((name, time.monotonic() - began_s))

    def show(self) -> None:
        for name, took_s in [*self._parts, ("all", time.monotonic() - self._began_s)]:
            print(f"test-cluster: {name:<28} {took_s:6.0f} s", flush=True)


def own(times: Times, clock: Clock, directory: Path, images: Path, selection: list[str]) -> int:
    """Return pytest's exit status. Raises Cannot, or TooLate, where it does not come to that."""
    with times.part("machine made ready"):
        prepare()
    with times.part("programs found or built"):
        tools, programs = _programs("tools", clock), _programs("node", clock)
    node = Node(directory, programs)
    tests = Tests(node, tools, images, selection)
    if KEEP and node.is_up():
        return tests.run(times, clock)
    builder = {"BUILDER": "debian"} if clock.limited else {}  # what a container engine builds, it keeps
    with started([str(ROOT / "deploy/images/build.sh"), str(images)], **builder) as building:
        if not clock.allowed_s(NODE):
            with times.part("images"), clock.limit(BUILD, "images"):
                _end_of(building)
            raise TooLate(f"everything is built; after {clock.elapsed_s / 60:.0f} minutes no time is left to test with it")
        with times.part("node up"), clock.limit(NODE, "a node"):
            if not KEEP:
                _leave_the_network()  # what is being built stays in it
            _up(node, clock)
        try:
            with times.part("images, begun with it"), clock.limit(TESTS, "images and tests"):
                _end_of(building)
            return tests.run(times, clock)
        finally:
            if not KEEP:
                with times.part("node down"):
                    node.down()


def _programs(group: str, clock: Clock) -> Path:
    """The folder with a group of programs, which are built where they are missing."""
    find = [sys.executable, str(ASSETS), group]
    found = subprocess.run([*find, "--only-find"], capture_output=True, text=True, check=False)
    if found.returncode:
        by = {"SIGNALBOX_BUILD_BY": str(time.time() + clock.allowed_s(BUILD))} if clock.limited else {}
        said = ""
        with started(find, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **by) as building:
            assert building.stderr is not None
            for line in building.stderr:
                said = line.decode().strip()
                print(said, file=sys.stderr, flush=True)
            if building.wait():
                raise Cannot(f"no {group} programs can be had here: {said.partition(': ')[2]}")
        found = subprocess.run([*find, "--only-find"], capture_output=True, text=True, check=True)
    return Path(found.stdout.strip())


def _leave_the_network() -> None:
    """From now on this process and what it starts have a network of their own, in which the node's link ends."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise Cannot(f"a network of its own is not allowed: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def _up(node: Node, clock: Clock) -> None:
    began_s = time.monotonic()
    try:
        node.up(outlive=KEEP)
    except AssertionError as e:
        if clock.limited:
            raise Cannot(f"no node came up: {e}") from e
        raise
    if clock.limited and (took_s := time.monotonic() - began_s) > SLOW_S:
        node.down()
        raise Cannot(f"the machine is too busy: a node came up after {took_s:.0f} s only")


def _end_of(building: subprocess.Popen[bytes]) -> None:
    """Wait for the images."""
    if status := building.wait():
        raise Cannot(f"images cannot be built; build.sh ended with {status}, and the reason stands above")


class Tests:
    """pytest on the tests of this folder, in the cluster that a node is."""

    def __init__(self, node: Node, tools: Path, images: Path, selection: list[str]) -> None:
        load = [sys.executable, "-m", "tests.support.node", "--directory", str(node.directory), "load"]
        programs = node.programs
        self._selection = selection
        self._environment = {
            "SIGNALBOX_TEST_KUBECONFIG": str(node.kubeconfig), "SIGNALBOX_TEST_LOAD": shlex.join(load),
            "SIGNALBOX_TEST_IMAGES": str(images), "SIGNALBOX_TEST_LEAVE": "1",
            "PATH": f"{programs}:{tools}:{os.environ['PATH']}",
        }

    def run(self, times: Times, clock: Clock) -> int:
        """Return pytest's exit status. With limits, what fails runs once more, alone, as in scripts/tests.sh."""
        with tempfile.TemporaryDirectory() as cache, times.part("release and tests"):
            remembers = ["-o", f"cache_dir={cache}"]
            try:
                with clock.limit(TESTS, "the tests"):
                    status = pytest([*remembers, *self._selection], **self._environment)
            except TooLate:
                if failed := _failed(Path(cache)):
                    print(f"test-cluster: failed before the time was over: {failed}", flush=True)
                    return 1
                raise
            failed = _failed(Path(cache))
            if status != 1 or not clock.limited or not clock.allowed_s(AGAIN):
                return status
            print(f"test-cluster: once more, alone: {failed}", flush=True)
            again = [*remembers, "--last-failed", "--last-failed-no-failures=none"]
            try:
                with clock.limit(AGAIN, "what failed"):
                    status = pytest([*again, *self._selection], **self._environment)
            except TooLate:
                return 1
            if not status:
                print(f"test-cluster: UNSTEADY, passed when run alone: {failed}", flush=True)
            return status


def pytest(selection: list[str], **environment: str) -> int:
    """Run tests of this folder; the release is installed by the first of them that wants it."""
    command = [sys.executable, "-m", "pytest", "-q", "-s", "--durations=12", "tests/cluster", *selection]
    with started(command, ask=signal.SIGINT, **environment) as running:  # then it writes down what has failed
        return running.wait()


def _failed(cache: Path) -> str:
    found = cache / "v/cache/lastfailed"
    return ", ".join(json.loads(found.read_text())) if found.exists() else ""


@contextlib.contextmanager
def started(
    command: list[str], stdout: int | None = None, stderr: int | None = None, ask: signal.Signals = signal.SIGTERM,
    **environment: str,
) -> Iterator[subprocess.Popen[bytes]]:
    """A program with processes of its own, none of which is left afterwards: it is asked to end, then killed."""
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            if process.poll() is None:
                os.killpg(process.pid, ask)
                process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
