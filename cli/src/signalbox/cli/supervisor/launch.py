"""Runs a program that the kernel kills when its parent is gone, however that happens: `launch.py PARENT PROGRAM ARGS`.

A script of its own, started with `-I -S`: doing this between fork and exec would run Python, and gRPC's fork
handlers, in a copy of the supervisor and its threads. SIGKILL, because the next `up` must find port and sockets
free; the gateways' journals survive it.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become the program, keeping the process id."""
    parent, *argv = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit("the parent is gone")
    try:
        os.execv(argv[0], argv)  # noqa: S606 - there is no shell and must not be one
    except OSError as e:
        sys.exit(f"cannot start: {argv[0]}: {e.strerror}")


if __name__ == "__main__":
    main()
