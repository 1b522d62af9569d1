"""Runs `signalbox` commands, each in a process of its own, forked from one that has imported the command line.

Its imports take five times the CPU of what a command does, and tests run many: "is it in the ledger by now?" What runs
is `signalbox.cli.main:main`, as the console script runs it, with the arguments, environment, directory and output that
it would have. Tests of the command line by itself (cli/tests/test_cli_commands.py) start the script.

Run as a program, this file is the process that forks: its standard input is a socket, each message there a command. It
ends when nobody holds the other end any more. The half that tests use imports nothing of the product.
"""

import contextlib
import functools
import importlib
import json
import os
import pkgutil
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

_LARGEST_MESSAGE = 1 << 17
_OUTPUT, _ERRORS, _STATUS = range(3)


def run(arguments: Sequence[str], environment: Mapping[str, str], limit_s: float) -> subprocess.CompletedProcess[str]:
    """Run `signalbox ARGUMENTS...`; return its exit status and what it wrote. Raises subprocess.TimeoutExpired."""
    command = ["signalbox", *arguments]
    pipes = [os.pipe() for _ in range(3)]
    try:
        message = json.dumps([command, dict(environment), os.getcwd()]).encode()
        socket.send_fds(_forker()[0], [message], [write for _, write in pipes])
    finally:
        for _, write in pipes:
            os.close(write)
    try:
        said = _read([read for read, _ in pipes], time.monotonic() + limit_s)
    finally:  # by this, too, the command's watcher learns that nobody waits any more
        for read, _ in pipes:
            os.close(read)
    if said is None:
        raise subprocess.TimeoutExpired(command, limit_s)
    return subprocess.CompletedProcess(command, int(said[_STATUS]), said[_OUTPUT].decode(), said[_ERRORS].decode())


@functools.cache
def _forker() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start the process that forks; return it behind the socket that leads to it."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        process = subprocess.Popen([sys.executable, "-P", __file__], stdin=its, stdout=subprocess.DEVNULL)
    return ours, process


def _read(pipes: list[int], end_s: float) -> list[bytes] | None:
    """Return all that comes from each pipe, None where that is not over in time."""
    said = [bytearray() for _ in pipes]
    with selectors.DefaultSelector() as selector:
        for number, pipe in enumerate(pipes):
            selector.register(pipe, selectors.EVENT_READ, number)
        while selector.get_map():
            ready = selector.select(max(0.0, end_s - time.monotonic()))
            if not ready:
                return None
            for key, _ in ready:
                if part := os.read(key.fd, 1 << 16):
                    said[key.data] += part
                else:
                    selector.unregister(key.fd)
    return [bytes(each) for each in said]


# ---------------------------------------------------------------------------------------------- the process that forks


def _serve(requests: socket.socket) -> None:
    """Import every command, then fork for each request until nobody can ask any more."""
    from signalbox.cli import commands
    from signalbox.cli.main import main

    for module in pkgutil.iter_modules(commands.__path__, f"{commands.__name__}."):
        importlib.import_module(module.name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # watchers end by themselves
    while True:
        message, pipes, _, _ = socket.recv_fds(requests, _LARGEST_MESSAGE, 3)
        if not message:
            return
        if os.fork() == 0:
            requests.close()
            _watch(main, message, pipes)
        for pipe in pipes:
            os.close(pipe)


def _watch(main: Callable[[], None], message: bytes, pipes: list[int]) -> NoReturn:
    """Fork once more, for the command. Tell its exit status, whoever ended it; end it where nobody waits for that."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    command = os.fork()
    if command == 0:
        os.close(pipes[_STATUS])
        _become(main, *json.loads(message), pipes)
    for pipe in pipes[:_STATUS]:
        os.close(pipe)
    ended, poll = os.pidfd_open(command), select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(pipes[_STATUS], 0)
    if ended not in dict(poll.poll()):
        os.kill(command, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        os.write(pipes[_STATUS], str(status).encode())
    os._exit(0)


def _become(
    main: Callable[[], None], command: list[str], environment: dict[str, str], directory: str, pipes: list[int],
) -> NoReturn:
    """Be the command, up to its exit."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, own in enumerate((nothing, pipes[_OUTPUT], pipes[_ERRORS])):
        os.dup2(own, number)
    for own in (nothing, *pipes[:_STATUS]):
        os.close(own)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    status = 1
    try:
        main()
        status = 0
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _serve(socket.socket(fileno=os.dup(0)))
