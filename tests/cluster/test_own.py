"""A run on a node of its own that is interrupted leaves nothing but its caches, images and logs."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import LEAVE
from tests.cluster.own import ROOT
from tests.support.control_plane import assets
from tests.support.machine import left_running_with, running_with
from tests.support.node.node import Node

pytestmark = [
    pytest.mark.slow, pytest.mark.timeout(300),
    pytest.mark.skipif(not LEAVE, reason="needs a machine that can have a node: `make test-cluster`"),
]


def has_begun(state: dict[str, Any], _: Path) -> bool:
    return "groups" in state


def has_processes(state: dict[str, Any], _: Path) -> bool:
    return "pid" in state


def loads_images(_: dict[str, Any], directory: Path) -> bool:
    return any(" load " in line for line in running_with(str(directory)))


@pytest.mark.parametrize(("asked", "when"), [
    (signal.SIGTERM, has_begun), (signal.SIGINT, has_processes), (signal.SIGTERM, loads_images), (signal.SIGKILL, has_processes),
])
def test_nothing_is_left(tmp_path: Path, asked: signal.Signals, when: Callable[[dict[str, Any], Path], bool]) -> None:
    directory = tmp_path / "node"
    command = [
        sys.executable, "-m", "tests.cluster", "--ci-began", str(time.time()), "--node", str(directory), "--images", str(tmp_path / "images"),
    ]
    state: dict[str, Any] = {}
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as run:
        try:
            until_s = time.monotonic() + 200
            while not when(state, directory):
                assert run.poll() is None
                assert time.monotonic() < until_s
                time.sleep(0.01)
                written = directory / "node.json"
                state = json.loads((written.exists() and written.read_text()) or "{}") or state
            run.send_signal(asked)
            run.communicate(timeout=200)  # after SIGKILL the images are built to their end
        finally:
            run.kill()
    if asked == signal.SIGKILL:
        node = Node(directory, assets("node"))
        until_s = time.monotonic() + 20
        while node.is_up():
            assert time.monotonic() < until_s, "the node has to end with who brought it up"
            time.sleep(0.1)
        node.down()
    else:
        assert run.returncode == 128 + asked
    assert not Path(f"/sys/class/net/{state['link']}").exists()
    assert [group for group in state["groups"] if Path(group).exists()] == []
    assert left_running_with(str(tmp_path)) == []
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    left = {path.name for path in directory.iterdir()}
    assert left <= {"logs", "var", "node.json"}, left
