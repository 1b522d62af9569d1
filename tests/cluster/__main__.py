"""`make test-cluster`: a node where no cluster is named, the images, a release, its tests, and what each of these took.

    python -m tests.cluster [--kubeconfig FILE [--load COMMAND]] [--images DIR] [PYTEST ARGUMENT...]
    python -m tests.cluster --ci-began SECONDS [--images DIR] [--node DIR]

A named cluster gets the images by --load, a command that is given an archive's path; without one its nodes must have
them already. Where this machine can have no node of its own the tests are reported as skipped, with the reason.
SIGNALBOX_TEST_KEEP=1 leaves the release, and the node, as they are at the end, and goes on with what such a run left.

--ci-began is how `make test` ends: the short selection (the marker `ci`) on a node of its own, as far as the machine can and
time allows (clock.py) in a run that began then, in seconds since 1970. Only tests that fail make it fail.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from tests.cluster.clock import Clock, TooLate, interruptible
from tests.cluster.own import ROOT, Times, own, pytest
from tests.support.node.node import Cannot

ELSEWHERE = "`make test-cluster` runs all of these tests, on a machine that can have a node (root, Debian)"


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("--kubeconfig", default="")
    parser.add_argument("--load", default="")
    parser.add_argument("--images", type=Path, default=ROOT / "build/images")
    parser.add_argument("--node", type=Path, default=ROOT / "build/node")
    parser.add_argument("--ci-began", type=float)
    wanted, rest = parser.parse_known_args()
    times, clock = Times(), Clock(wanted.ci_began)
    with interruptible():
        try:
            if wanted.kubeconfig:
                return named(wanted.kubeconfig, wanted.load, wanted.images, rest)
            return own(times, clock, wanted.node, wanted.images, ["-m", "ci", *rest] if clock.limited else rest)
        except (Cannot, TooLate) as e:
            if clock.limited:
                print(f"test-cluster: left out: {' '.join(str(e).split())}. {ELSEWHERE}", flush=True)
                return 0
            print(f"test-cluster: {e}", file=sys.stderr)
            return pytest(rest, SIGNALBOX_TEST_WHY=" ".join(str(e).split()))
        finally:
            times.show()


def named(kubeconfig: str, load: str, images: Path, rest: list[str]) -> int:
    """Test in a cluster of somebody's."""
    if load:
        subprocess.run([str(ROOT / "deploy/images/build.sh"), str(images)], check=True)
    environment = {"SIGNALBOX_TEST_KUBECONFIG": kubeconfig, "SIGNALBOX_TEST_LOAD": load, "SIGNALBOX_TEST_IMAGES": str(images)}
    return pytest(rest, **environment)


if __name__ == "__main__":
    sys.exit(main())
