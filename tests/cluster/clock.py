"""Which of the steps towards the cluster's tests there is still time for, and ends what takes longer.

All of `make test` must be over after forty minutes, on a new machine and on a busy one too: there the tests are left out and
the caches filled, so that the next run gets further. By hand (`make test-cluster`) there is no limit.
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NamedTuple


class Step(NamedTuple):
    """What is begun only if enough time is left, and has to be over by a certain time; both in seconds of the whole run."""

    least_s: float
    by_s: float


BUILD = Step(least_s=60, by_s=36 * 60)
"""The node's programs, and images. Half done is worth something: the rest is for the next run."""
NODE = Step(least_s=7 * 60, by_s=38 * 60)
"""A node that comes up, with everything that is done on it."""
TESTS = Step(least_s=5 * 60, by_s=38 * 60)
AGAIN = Step(least_s=4 * 60, by_s=38 * 60)
"""What failed, once more."""


def allowed_s(step: Step, elapsed_s: float) -> float:
    """Return how long a step may take in a run that is so old; 0 where it is not to be begun."""
    left_s = step.by_s - elapsed_s
    return left_s if left_s >= step.least_s else 0.0


class TooLate(Exception):
    """There is no time, or none any more; the text says for what, for people."""


class Clock:
    """The time of one run, which began at `began` (seconds since 1970); None: without limits."""

    def __init__(self, began: float | None = None, now: Callable[[], float] = time.time) -> None:
        self._began, self._now = began, now

    @property
    def limited(self) -> bool:
        """Whether there are limits."""
        return self._began is not None

    @property
    def elapsed_s(self) -> float:
        """How old the run is."""
        return 0.0 if self._began is None else max(0.0, self._now() - self._began)

    def allowed_s(self, step: Step) -> float:
        """Return how long a step may take from now on; 0 where it is not to be begun."""
        return allowed_s(step, self.elapsed_s) if self.limited else math.inf

    @contextlib.contextmanager
    def limit(self, step: Step, what: str) -> Iterator[None]:
        """End what is done inside when the step has to be over. Raises TooLate, at once where it is not to be begun."""
        limit_s = self.allowed_s(step)
        if not limit_s:
            raise TooLate(f"after {self.elapsed_s / 60:.0f} minutes no time is left for {what}")

        def late(_: int, __: FrameType | None) -> None:
            raise TooLate(f"{what} had to be over by minute {step.by_s / 60:.0f}")

        before = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, limit_s if self.limited else 0)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Whoever asks this program to end gets everything cleared away first; asking again changes nothing."""
    asked = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(number: int, _: FrameType | None) -> None:
        for one in asked:
            signal.signal(one, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = [signal.signal(one, end) for one in asked]
    try:
        yield
    finally:
        for one, handler in zip(asked, before, strict=True):
            signal.signal(one, handler)
