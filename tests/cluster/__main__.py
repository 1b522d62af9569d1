"""`make test-cluster`: a node where no cluster is named, the images, a release, its tests, and what each of these took.

    python -m tests.cluster [--kubeconfig FILE [--load COMMAND]] [--images DIR] [PYTEST ARGUMENT...]

A named cluster gets the images by --load, a command that is given an archive's path; without one its nodes must have
them already. Where this machine can have no node of its own the tests are reported as skipped, with the reason.
SIGNALBOX_TEST_KEEP=1 leaves the release, and the node, as they are at the end, and goes on with what such a run left.
"""

import argparse
import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.control_plane import CannotRun, assets
from tests.support.node.node import Cannot, Node, prepare

ROOT = Path(__file__).resolve().parents[2]
NODE = ROOT / "build/node"
KEEP = bool(os.environ.get("SIGNALBOX_TEST_KEEP"))


class Times:
    """How long each part took, in seconds."""

    def __init__(self) -> None:
        self._parts: list[tuple[str, float]] = []

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure what is done inside."""
        began_s = time.monotonic()
        try:
            yield
        finally:
            self._parts.append((name, time.monotonic() - began_s))

    def show(self) -> None:
        for name, took_s in [*self._parts, ("all", sum(s for _, s in self._parts))]:
            print(f"test-cluster: {name:<28} {took_s:6.0f} s", flush=True)


def main() -> int:
    """Return pytest's exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("--kubeconfig", default="")
    parser.add_argument("--load", default="")
    parser.add_argument("--images", type=Path, default=ROOT / "build/images")
    wanted, rest = parser.parse_known_args()
    times = Times()
    try:
        if wanted.kubeconfig:
            return named(times, wanted.kubeconfig, wanted.load, wanted.images, rest)
        return own(times, wanted.images, rest)
    except (Cannot, CannotRun) as e:
        print(f"test-cluster: {e}", file=sys.stderr)
        return tests(times, rest, SIGNALBOX_TEST_WHY=str(e))
    finally:
        times.show()


def named(times: Times, kubeconfig: str, load: str, images: Path, rest: list[str]) -> int:
    """Test in a cluster of somebody's."""
    if load:
        build(times, images)
    return tests(
        times, rest, SIGNALBOX_TEST_KUBECONFIG=kubeconfig, SIGNALBOX_TEST_LOAD=load, SIGNALBOX_TEST_IMAGES=str(images),
    )


def own(times: Times, images: Path, rest: list[str]) -> int:
    """Test on a node that is brought up for it."""
    prepare()
    with times.part("programs found or built"):
        programs, tools = assets("node"), assets("tools")
    node = Node(NODE, programs)
    if not (KEEP and node.is_up()):
        build(times, images)
        with times.part("node up"):
            node.up()
    try:
        load = [sys.executable, "-m", "tests.support.node", "--directory", str(NODE), "load"]
        return tests(
            times, rest, SIGNALBOX_TEST_KUBECONFIG=str(node.kubeconfig), SIGNALBOX_TEST_LOAD=shlex.join(load),
            SIGNALBOX_TEST_IMAGES=str(images), PATH=f"{programs}:{tools}:{os.environ['PATH']}",
        )
    finally:
        if not KEEP:
            with times.part("node down"):
                node.down()


def build(times: Times, images: Path) -> None:
    """Build the images."""
    with times.part("images"):
        subprocess.run([str(ROOT / "deploy/images/build.sh"), str(images)], check=True)


def tests(times: Times, rest: list[str], **environment: str) -> int:
    """Run the tests here; the release is installed by the first of them that wants it."""
    with times.part("release and tests"):
        command = [sys.executable, "-m", "pytest", "-q", "-s", "--durations=12", "tests/cluster", *rest]
        return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
