"""What holds for every test: how properties are tried, and in which order files are begun."""

import pytest
from hypothesis import settings

# An example that takes long on a busy machine is no failure; pytest's own timeout ends what hangs.
settings.register_profile("signalbox", deadline=None)
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("signalbox")

# Files that take more than half a minute, the longest first. Workers take one file after the other: a long one that is
# begun last leaves the others idle. Nothing but time depends on this list.
LONG_FILES = (
    "test_faults_outages.py", "test_invariant_1_accounting.py", "test_invariant_1_stores.py", "test_bounds.py",
    "test_cli_up.py", "test_chaos.py", "test_credentials.py", "test_faults_healing.py", "test_refresher_kills.py",
    "test_faults_table.py", "test_invariant_5_secrets.py", "test_replicas.py", "test_operator_faults.py",
    "test_operator_peers.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first, each one's tests in their own order; then whole folders whose tests start processes."""
    ranks = {name: rank for rank, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: (ranks.get(item.path.name, len(ranks)), "e2e" not in item.path.parts))
