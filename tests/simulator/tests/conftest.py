"""One simulator for a module's tests, well again before each of them."""

from collections.abc import Iterator

import pytest

from tests.simulator.tests.rawhttp import KEY
from tests.support.sim import Simulator


@pytest.fixture(scope="module")
def process() -> Iterator[Simulator]:
    with Simulator() as running:
        yield running
        assert running.errors() == ""


@pytest.fixture
def sim(process: Simulator) -> Simulator:
    process.clear_script()
    process.default({})
    process.accounts({"name": "one", "key": KEY, "organization": "org-one"})
    process.wait_quiet()
    process.clear_truth()
    return process
