"""The watched relay (tests/support/relay.py), one for each module that asks for it, as it was before every test."""

from collections.abc import Iterator

import pytest

from tests.support.relay import Relay, running


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    with running(tmp_path_factory.mktemp("relay")) as relay:
        yield relay


@pytest.fixture
def relay(watched: Relay) -> Relay:
    """A relay of which nothing was asked yet; its accounts may rest from an earlier test."""
    watched.reset()
    return watched


@pytest.fixture
def rested(relay: Relay) -> None:
    """All accounts of the relay can serve."""
    relay.wait_well()
