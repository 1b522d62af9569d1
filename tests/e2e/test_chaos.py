"""A minute of chaos: everything is broken under mixed load, and no invariant is violated. `make chaos` runs longer."""

from pathlib import Path

import pytest

from tests.chaos.__main__ import run
from tests.chaos.schedule import AILMENTS, KINDS, LONGEST_STOP_S, QUIET_S, ailments, blows

SEED, SECONDS = 1, 60.0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_minute_of_chaos_violates_nothing(tmp_path: Path) -> None:
    assert run(SEED, SECONDS, tmp_path).violations == {number: [] for number in range(1, 6)}


def test_a_schedule_depends_on_its_seed_alone() -> None:
    assert blows(7, 600) == blows(7, 600) != blows(8, 600)
    assert ailments(7, 600, "ef") == ailments(7, 600, "ef") != ailments(8, 600, "ef")


def test_blows_come_one_after_another_and_all_kinds_come() -> None:
    for seed in range(1, 11):
        schedule = blows(seed, 600)
        assert all(one.at_s + one.lasts_s < two.at_s for one, two in zip(schedule, schedule[1:], strict=False))
        assert schedule[-1].at_s + schedule[-1].lasts_s < 600 - QUIET_S + LONGEST_STOP_S
    assert {blow.kind for seed in range(1, 11) for blow in blows(seed, 600)} == set(KINDS)
    assert {one.name for seed in range(1, 11) for one in ailments(seed, 600, "ef")} == set(AILMENTS)
