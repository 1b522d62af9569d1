"""The ledger's two databases, real ones, as fixtures: every test that takes `ledger_url` runs on both."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import postgres

_numbers = itertools.count()
DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.PostgresServer]:
    try:
        with postgres.running() as server:
            yield server
    except postgres.CannotRun as e:
        pytest.skip(str(e))


@pytest.fixture(scope="module", params=DATABASES)
def ledger_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of an empty database, one a module."""
    return _new_database(request, tmp_path_factory.mktemp("ledger"))


@pytest.fixture(params=DATABASES)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, one a test."""
    return _new_database(request, tmp_path)


def _new_database(request: pytest.FixtureRequest, directory: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{directory}/ledger.db"
    server: postgres.PostgresServer = request.getfixturevalue("postgres_server")
    return server.create_database(f"ledger{next(_numbers)}")
