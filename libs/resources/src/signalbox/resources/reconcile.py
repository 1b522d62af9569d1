"""From documents to what should be in force: one pure function, shared by the file watcher and the operator."""

from collections.abc import Mapping
from datetime import datetime

from signalbox.resources.loading import LoadResult
from signalbox.resources.state import Desired, Policy, State


def plan(
    loaded: LoadResult, previous: State, *, now: datetime, policy: Policy = Policy()  # noqa: B008
) -> Desired:
    """Return what should be in force, given all documents, what was in force before, and the time."""
    raise NotImplementedError
