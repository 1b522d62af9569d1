"""What the tests' failures, and the end of their time, mean to `make test`."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import own
from tests.cluster.clock import Clock, TooLate, interruptible
from tests.support.node.node import Node

pytestmark = pytest.mark.slow

PASSES = "def test_selected_passes(): pass\n"
FAILS = "def test_selected_fails(): assert False\n"
FAILS_ONCE = """
from pathlib import Path
def test_selected_fails_once():
    been = Path(__file__).with_name("been")
    before = been.exists()
    been.touch()
    assert before
"""
LASTS = """
import time
from pathlib import Path
def test_selected_lasts():
    Path(__file__).with_name("lasts").touch()
    time.sleep(600)
"""


def run(tmp_path: Path, program: str) -> int:
    here = tmp_path / "test_given.py"
    here.write_text(program)
    node = Node(tmp_path / "node", tmp_path)
    selection = [str(here), "-k", "selected"]
    with interruptible():  # as in a run: who was started in the background would hand on that SIGINT is ignored
        return own.Tests(node, tmp_path, tmp_path, selection).run(own.Times(), Clock(time.time()))


@pytest.fixture
def time_is_up(tmp_path: Path) -> Iterator[None]:
    """As soon as the test that lasts is reached."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            if (tmp_path / "lasts").exists():
                os.kill(os.getpid(), signal.SIGALRM)
                return

    watching = threading.Thread(target=watch)
    watching.start()
    yield
    over.set()
    watching.join()


def test_what_passes_passes(tmp_path: Path) -> None:
    assert run(tmp_path, PASSES) == 0


def test_what_fails_twice_fails(tmp_path: Path) -> None:
    assert run(tmp_path, PASSES + FAILS) == 1


def test_what_fails_once_is_told_and_passes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, PASSES + FAILS_ONCE) == 0
    said = capfd.readouterr().out
    assert "once more, alone: " in said
    assert "UNSTEADY, passed when run alone: " in said
    assert "1 passed, " in said.split("once more, alone")[1], "only what had failed ran again"


@pytest.mark.usefixtures("time_is_up")
def test_tests_that_are_not_over_in_time_are_left_out(tmp_path: Path) -> None:
    with pytest.raises(TooLate, match="the tests had to be over by minute 38"):
        run(tmp_path, PASSES + LASTS)


@pytest.mark.usefixtures("time_is_up")
def test_what_failed_before_the_time_was_over_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, FAILS + LASTS) == 1
    assert "failed before the time was over: " in capfd.readouterr().out
