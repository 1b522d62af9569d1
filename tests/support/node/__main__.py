"""A node for whoever wants to look at a cluster: up | down | load ARCHIVE | exec COMMAND...

`python -m tests.support.node up` prints the kubeconfig. --directory DIR (build/node) tells nodes apart.
"""

import argparse
import sys
import time
from pathlib import Path

from tests.support.control_plane import CannotRun, assets
from tests.support.node.node import Cannot, Node, prepare


def main() -> int:
    """Return the exit status: 3 where there can be no node here."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.node", description=__doc__)
    parser.add_argument("verb", choices=["up", "down", "load", "exec"])
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    parser.add_argument("--directory", type=Path, default=Path("build/node"))
    wanted = parser.parse_args()
    try:
        if wanted.verb == "up":
            prepare()
        node = Node(wanted.directory, assets("node"))
        if wanted.verb == "up":
            began_s = time.monotonic()
            node.up()
            print(f"node: up after {time.monotonic() - began_s:.0f} s", file=sys.stderr)
            print(node.kubeconfig)
        elif wanted.verb == "down":
            node.down()
        elif wanted.verb == "load":
            node.load(Path(wanted.rest[0]))
        else:
            ran = node.run(*wanted.rest, check=False)
            print(ran.stdout, end="")
            print(ran.stderr, end="", file=sys.stderr)
            return ran.returncode
    except (Cannot, CannotRun) as e:
        print(f"node: {e}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
