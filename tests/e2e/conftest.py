"""The watched relay (tests/support/relay.py), shared by all modules that ask for it; each test finds it as new."""

from collections.abc import Iterator

import pytest

from tests.support.relay import Relay, running


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    with running(tmp_path_factory.mktemp("relay")) as relay:
        yield relay


@pytest.fixture
def relay(watched: Relay) -> Relay:
    """A relay of which nothing was asked yet."""
    watched.reset()
    return watched


@pytest.fixture
def healed_afterwards(relay: Relay) -> Iterator[None]:
    """For tests after which accounts rest: the next one finds them well again."""
    yield
    relay.sim.clear_script()
    relay.wait_well()
