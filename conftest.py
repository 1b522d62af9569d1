"""What holds for every test: how properties are tried, in which order files are begun, what the collector walks."""

import gc

import pytest
from hypothesis import settings

# An example that takes long on a busy machine is no failure; pytest's own timeout ends what hangs.
settings.register_profile("signalbox", deadline=None)
settings.register_profile("steady", deadline=None, derandomize=True)
settings.register_profile("fast", deadline=None, max_examples=20)
settings.load_profile("signalbox")

# Files that take more than half a minute, the longest first. Workers take one file after the other: a long one that is
# begun last leaves the others idle. Nothing but time depends on this list.
LONG_FILES = (
    "test_invariant_1_accounting.py", "test_faults_outages.py", "test_cli_up.py", "test_chaos.py",
    "test_refresher_kills.py", "test_faults_healing.py", "test_invariant_1_stores.py", "test_replicas.py",
    "test_credentials.py", "test_usage_process.py", "test_bounds.py", "test_faults_table.py",
    "test_contract_documents.py", "test_explain.py", "test_usage_ledger_model.py", "test_stopping.py", "test_chart.py",
    "test_operator_faults.py", "test_operator_peers.py",
)
# Folders whose tests start processes, the slowest first.
LONG_FOLDERS = ("e2e", "scheduler", "deploy")

# What is imported to be tested stays until the end. To look through it again and again costs a tenth of the CPU.
gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first, each one's tests in their own order; then whole folders whose tests start processes."""
    files = {name: rank for rank, name in enumerate(LONG_FILES)}
    folders = {name: rank for rank, name in enumerate(LONG_FOLDERS)}

    def rank(item: pytest.Item) -> tuple[int, int]:
        folder = min((folders[part] for part in item.path.parts if part in folders), default=len(folders))
        return files.get(item.path.name, len(files)), folder

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """From here on the collector walks only what comes new."""
    gc.collect()
    gc.freeze()
    gc.enable()
