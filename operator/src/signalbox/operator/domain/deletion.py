"""How an account leaves: it is held until its requests have ended, or until that has been waited for enough. Pure."""

from datetime import datetime, timedelta
from enum import Enum

from signalbox.operator.domain.world import Seen


class Step(Enum):
    """What to do with an account's finalizer."""

    NOTHING = "nothing"
    HOLD = "hold"
    """Put the finalizer on it."""
    WAIT = "wait"
    RELEASE = "release"
    """Take the finalizer off: it is idle."""
    GIVE_UP = "give up"
    """Take the finalizer off although it is not known to be idle."""


def step(seen: Seen, in_flight: int | None, *, now: datetime, limit: timedelta) -> Step:
    """Decide the next step of an account's life.

    `in_flight` is the number of its requests that ran after it was told to drain, None where that is not known.
    """
    if seen.deleting_since is None:
        return Step.NOTHING if seen.held else Step.HOLD
    if not seen.held:
        return Step.NOTHING  # somebody else holds it
    if in_flight == 0:
        return Step.RELEASE
    if now - seen.deleting_since >= limit:
        return Step.GIVE_UP
    return Step.WAIT
