"""What there is time for in `make test`, and that a step is over when it has to be."""

import math
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.clock import AGAIN, BUILD, NODE, TESTS, Clock, Step, TooLate, allowed_s
from tests.cluster.own import started
from tests.support.machine import left_running_with

MOST_S = 40 * 60
CLEARING_UP_S = 90


@pytest.mark.parametrize(("minute", "begun"), [
    (20, {BUILD, NODE, TESTS, AGAIN}),
    (31, {BUILD, NODE, TESTS, AGAIN}),  # the last minute at which a node is brought up
    (32, {BUILD, TESTS, AGAIN}),  # now only the caches are filled, and what is under way goes on
    (34, {BUILD, AGAIN}),
    (36, set()),
    (50, set()),
])
def test_what_is_begun_depends_on_how_old_the_run_is(minute: int, begun: set[Step]) -> None:
    assert {step for step in (BUILD, NODE, TESTS, AGAIN) if allowed_s(step, minute * 60)} == begun


@pytest.mark.parametrize("step", [BUILD, NODE, TESTS, AGAIN])
def test_no_step_makes_a_run_longer_than_forty_minutes(step: Step) -> None:
    for elapsed_s in range(0, 2 * MOST_S, 10):
        limit_s = allowed_s(step, elapsed_s)
        assert limit_s == 0 or elapsed_s + limit_s + CLEARING_UP_S <= MOST_S
        assert limit_s == 0 or limit_s >= step.least_s


def test_by_hand_there_is_no_limit_and_a_clock_that_was_put_back_is_no_negative_age() -> None:
    assert Clock().allowed_s(NODE) == math.inf
    with Clock().limit(NODE, "a node"):
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert Clock(began=1000, now=lambda: 400).elapsed_s == 0


def test_what_is_too_late_is_not_begun() -> None:
    clock = Clock(began=0, now=lambda: 39 * 60)
    with pytest.raises(TooLate, match="after 39 minutes no time is left for a node"):
        with clock.limit(NODE, "a node"):
            pytest.fail("begun")


def test_a_step_that_takes_too_long_is_ended_with_all_its_processes(tmp_path: Path) -> None:
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)', {str(tmp_path)!r}])"
    began_s = time.monotonic()
    with pytest.raises(TooLate, match="sleep had to be over by minute 0"):
        with Clock(began=time.time()).limit(Step(least_s=0.1, by_s=1.5), "sleep"), started(
            [sys.executable, "-c", program, str(tmp_path)],
        ) as sleeping:
            sleeping.wait()
    assert time.monotonic() - began_s < 30
    assert left_running_with(str(tmp_path)) == []
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
