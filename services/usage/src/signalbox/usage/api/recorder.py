"""Brings batches from all streams into the ledger: together where they wait together, again until it works.

One thread writes. What has arrived and is not committed is bounded, because every stream hands in one batch and
reads no further before that one is committed.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from signalbox.core import logs
from signalbox.core.clock import Clock
from signalbox.core.errors import Unavailable
from signalbox.core.telemetry import Readiness
from signalbox.usage.adapters.ledger import Change, Ledger
from signalbox.usage.domain.settling import normalise
from signalbox.usage.metrics import Metrics
from signalbox.v1.usage_pb2 import AttemptEvent, Fact

log = logs.logger(__name__)

NEED = "ledger"
RETRY_FIRST_S = 0.05
RETRY_MOST_S = 2.0
TIDY_EVERY_S = 600.0
TIDY_STEP_ROWS = 1000    # deleted in one transaction: what waits to be written waits no longer than for that
_DAY_MS = 86_400_000

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Batch:
    events: list[AttemptEvent]
    refused: int
    arrived_s: float
    done: "asyncio.Future[None]"


@dataclass(frozen=True, slots=True)
class Kept:
    """For how many days rows are kept."""

    attempts_days: int
    denials_days: int


class Recorder:
    """Hands batches to the ledger and answers once they are committed."""

    def __init__(
        self, ledger: Ledger, clock: Clock, *, readiness: Readiness, metrics: Metrics, max_rows: int,
        published: Callable[[Sequence[Change]], None], kept: Kept, tidy_every_s: float = TIDY_EVERY_S,
    ) -> None:
        """`published` is called with what each commit changed."""
        self._ledger = ledger
        self._clock = clock
        self._readiness = readiness
        self._metrics = metrics
        self._max_rows = max_rows
        self._published = published
        self._kept = kept
        self._tidy_every_s = tidy_every_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger-writer")
        self._waiting: list[_Batch] = []
        self._writing: list[_Batch] = []
        self._wanted = asyncio.Event()
        self._stopping = False
        self._tidy_at_s = clock.monotonic_s() + tidy_every_s
        self._task: asyncio.Task[None] | None = None
        metrics.lag.set_function(self.lag_s)

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._write())

    async def record(self, events: Sequence[AttemptEvent]) -> None:
        """Return once `events` are committed; wait as long as the ledger is away. Raises Unavailable when stopping."""
        now_ms = self._clock.now_ms()
        kept = [event for event in events if normalise(event, now_ms)]
        refused = len(events) - len(kept)
        if refused:
            log.error("events_without_request_id", events=refused)
        if self._stopping:
            raise Unavailable("ledger", "the usage service is stopping")
        batch = _Batch(kept, refused, self._clock.monotonic_s(), asyncio.get_running_loop().create_future())
        self._waiting.append(batch)
        self._wanted.set()
        await batch.done

    async def remember(self, facts: Sequence[Fact]) -> list[Fact]:
        """Keep facts and return what is kept. Raises Unavailable: the caller asks again."""
        try:
            return await self._in_thread(lambda: self._ledger.remember(facts))
        except SQLAlchemyError as e:
            raise Unavailable("ledger", type(e).__name__) from e

    def lag_s(self) -> float:
        """Return the age of the oldest batch that is not committed, in seconds."""
        oldest = next(iter((*self._writing, *self._waiting)), None)
        return self._clock.monotonic_s() - oldest.arrived_s if oldest else 0.0

    def stop(self) -> None:
        """Take no more; commit what has arrived if the ledger takes it, else give it back unacknowledged."""
        self._stopping = True
        self._wanted.set()

    async def close(self) -> None:
        """Return once nothing waits any more. Call `stop` first."""
        if self._task is not None:
            await self._task
        self._thread.shutdown(wait=False)

    async def _write(self) -> None:
        while True:
            if self._waiting:
                self._writing = self._take()
                await self._commit_until_done(self._writing)
                self._writing = []
            elif self._stopping:
                return
            else:
                self._wanted.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wanted.wait(), max(0.0, self._tidy_at_s - self._clock.monotonic_s()))
            if self._clock.monotonic_s() >= self._tidy_at_s:
                await self._tidy()

    def _take(self) -> list[_Batch]:
        """Take the oldest batches that fit in one transaction, at least one."""
        rows = taken = 0
        for batch in self._waiting:
            rows += len(batch.events)
            if taken and rows > self._max_rows:
                break
            taken += 1
        batches, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return batches

    async def _commit_until_done(self, batches: list[_Batch]) -> None:
        events = [event for batch in batches for event in batch.events]
        pause_s = RETRY_FIRST_S
        while True:
            try:
                changed = await self._in_thread(lambda: self._ledger.record(events))
            except SQLAlchemyError as e:
                self._metrics.failures.inc()
                self._readiness.missing(NEED, "the ledger's database does not take writes")
                log.warning("ledger_write_failed", error=type(e).__name__, why=cause(e), events=len(events))
                if self._stopping:
                    _finish(batches, Unavailable("ledger", "the usage service is stopping"))
                    return
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, RETRY_MOST_S)
                continue
            break
        self._readiness.ok(NEED)
        self._metrics.transaction_rows.observe(len(events))
        refused = sum(batch.refused for batch in batches)
        self._metrics.count_events(len(events) + refused, refused, changed)
        _finish(batches, None)
        self._published(changed)

    async def _tidy(self) -> None:
        """Let the ledger forget a step of what nobody asks for; the next step is due at once while there is more."""
        try:
            forgotten = await self._in_thread(self._forget)
        except SQLAlchemyError as e:
            log.warning("ledger_not_tidied", error=type(e).__name__, why=cause(e))
            forgotten = 0
        if forgotten:
            self._metrics.forgotten.inc(forgotten)
        if forgotten < TIDY_STEP_ROWS:
            self._tidy_at_s = self._clock.monotonic_s() + self._tidy_every_s

    def _forget(self) -> int:
        now_ms = self._clock.now_ms()
        forgotten = self._ledger.forget_rows(
            now_ms - self._kept.attempts_days * _DAY_MS, now_ms - self._kept.denials_days * _DAY_MS, TIDY_STEP_ROWS,
        )
        if forgotten < TIDY_STEP_ROWS:
            self._ledger.forget_minutes(now_ms)
        return forgotten

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _finish(batches: list[_Batch], error: Exception | None) -> None:
    """Answer those who still wait; a stream that was cut meanwhile does not."""
    for batch in batches:
        if batch.done.done():
            continue
        if error is None:
            batch.done.set_result(None)
        else:
            batch.done.set_exception(error)


def cause(error: SQLAlchemyError) -> str:
    """Return the driver's own first line: no statement, no parameters, which may be long and hold names."""
    origin = getattr(error, "orig", None)
    lines = str(origin).strip().splitlines()
    return lines[0] if lines else type(error).__name__
