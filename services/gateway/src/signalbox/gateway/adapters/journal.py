"""The gateway's journal: writes what happens to each attempt before and after its bytes, hands whole records on.

One directory a process. A segment goes when everything in it is in the ledger. When more outcomes wait than fit in
memory they stay on disk only (`spilled`) and are read back once the ledger takes them again.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import Counter, Gauge

from signalbox.core import logs
from signalbox.core.errors import StartupError
from signalbox.gateway.adapters.journal_file import (
    SUFFIX,
    DirectoryLock,
    Segment,
    begin_directory,
    read_attempts,
)
from signalbox.gateway.domain.denial_budget import DenialBudget
from signalbox.gateway.domain.ports import JournalUnwritable
from signalbox.v1.common_pb2 import OUTCOME_UNSPECIFIED
from signalbox.v1.usage_pb2 import AttemptEvent

log = logs.logger(__name__)

JOURNAL_PENDING = Gauge("signalbox_journal_pending", "Attempts and denials that are journalled but not in the ledger.")
WRITE_FAILURES = Counter("signalbox_journal_write_failures_total", "Journal writes that failed.", ["what"])
DENIALS_SKIPPED = Counter("signalbox_journal_denials_skipped_total", "Denials that were counted and not recorded.")

SEGMENT_BYTES = 8 << 20
REUSE_BYTES = 1 << 20
MAX_IN_MEMORY = 20_000

Deliverable = tuple[bytes, tuple[Segment, ...]]    # a whole AttemptEvent, as it was written, and where it lies


class FileJournal:
    """Implements ports.Journal on files; `ready` is called when there is something new to deliver."""

    def __init__(self, directory: Path, instance: str, ready: Callable[[], None]) -> None:
        self.directory = directory / instance
        try:
            self._lock = begin_directory(self.directory)
            self._number = 0
            self._current = self._new_segment()
        except OSError as e:
            raise StartupError(f"journal directory {directory}", e.strerror or str(e)) from e
        self._ready = ready
        self._begun: dict[int, tuple[AttemptEvent, Segment]] = {}    # by the event's identity: messages have no hash
        self._full: set[Segment] = set()
        self._queue: list[Deliverable] = []
        self._waiting = 0
        JOURNAL_PENDING.set_function(lambda: self._waiting)
        self._denials = DenialBudget()

    # ------------------------------------------------------------------ ports.Journal

    def begin(self, event: AttemptEvent) -> None:
        """Write the intent. Raises JournalUnwritable."""
        segment = self._writable()
        try:
            segment.append(event.SerializeToString())
        except OSError as e:
            WRITE_FAILURES.labels("intent").inc()
            raise JournalUnwritable(e.strerror or str(e)) from e
        segment.open += 1
        self._begun[id(event)] = event, segment

    def note(self, event: AttemptEvent, partial: AttemptEvent) -> None:
        """Write what `partial` adds to a begun attempt: before a byte goes to the provider or on to the caller."""
        event.MergeFrom(partial)
        _, begun = self._begun[id(event)]
        try:
            segment = self._writable()
            # Whole where the intent lies in an older segment, so that each segment can be read by itself.
            segment.append((partial if begun is segment else event).SerializeToString())
        except (OSError, JournalUnwritable):
            WRITE_FAILURES.labels("usage").inc()

    def end(self, event: AttemptEvent) -> None:
        """Write the whole record and queue it for delivery."""
        _, begun = self._begun.pop(id(event))
        written = begun
        record = event.SerializeToString()
        try:
            segment = self._writable()
            segment.append(record)
            written = segment
        except (OSError, JournalUnwritable):
            WRITE_FAILURES.labels("outcome").inc()
        begun.open -= 1
        self._enqueue(record, (begun,) if written is begun else (begun, written))

    def deny(self, event: AttemptEvent) -> None:
        """Write and queue a refusal, as long as there are not too many."""
        if not self._denials.take(event.key_id, time.monotonic()):
            DENIALS_SKIPPED.inc()
            return
        segment = self._writable()
        record = event.SerializeToString()
        try:
            segment.append(record)
        except OSError:
            WRITE_FAILURES.labels("denial").inc()
        self._enqueue(record, (segment,))

    # ------------------------------------------------------------------ for the delivery

    def take(self, most: int) -> list[Deliverable]:
        """Return up to `most` records that wait for delivery; each must come back through `delivered`."""
        if not self._queue:
            self._read_back()
        taken, self._queue = self._queue[:most], self._queue[most:]
        return taken

    def put_back(self, records: list[Deliverable]) -> None:
        """Queue records again whose delivery failed."""
        self._queue = records + self._queue

    def delivered(self, records: list[Deliverable]) -> None:
        """Note that the ledger has these records; segments that nothing needs any more go."""
        for _, segments in records:
            for segment in segments:
                segment.undelivered -= 1
                self._release(segment)
        self._waiting -= len(records)

    @property
    def pending(self) -> int:
        """How many records wait in memory."""
        return len(self._queue)

    @property
    def spilled(self) -> bool:
        """Whether records wait on disk only."""
        return self._current.spilled or any(s.spilled for s in self._full)

    def close(self) -> None:
        """Close the files; remove the directory when the ledger has everything."""
        segments = [*self._full, self._current]
        if any(s.needed for s in segments):
            for segment in segments:
                segment.close()
            self._lock.release()
            return
        for segment in segments:
            segment.remove()
        (self.directory / "lock").unlink(missing_ok=True)
        self._lock.release()
        with contextlib.suppress(OSError):    # who looks for journals of the dead has just opened it and clears it away
            self.directory.rmdir()

    # ------------------------------------------------------------------ inside

    def _new_segment(self) -> Segment:
        self._number += 1
        return Segment(self.directory / f"{self._number:08d}{SUFFIX}")

    def _writable(self) -> Segment:
        if self._current.size < SEGMENT_BYTES:
            return self._current
        try:
            fresh = self._new_segment()
        except OSError as e:
            raise JournalUnwritable(e.strerror or str(e)) from e
        self._full.add(self._current)
        self._current, old = fresh, self._current
        self._release(old)
        return fresh

    def _enqueue(self, record: bytes, segments: tuple[Segment, ...]) -> None:
        if len(self._queue) >= MAX_IN_MEMORY:
            segments[-1].spilled = True
            self._release(segments[0])
            return
        for segment in segments:
            segment.undelivered += 1
        self._queue.append((record, segments))
        self._waiting += 1
        self._ready()

    def _read_back(self) -> None:
        """Queue what one spilled segment holds. Records that were delivered before are harmless: the ledger upserts."""
        if self._current.spilled:
            self._full.add(self._current)
            self._current = self._new_segment()
        segment = next((s for s in self._full if s.spilled), None)
        if segment is None:
            return
        segment.spilled = False
        for event in read_attempts(segment.path):
            if event.outcome != OUTCOME_UNSPECIFIED:
                segment.undelivered += 1
                self._queue.append((event.SerializeToString(), (segment,)))
                self._waiting += 1
        self._release(segment)

    def _release(self, segment: Segment) -> None:
        if segment.needed:
            return
        if segment is not self._current:
            self._full.discard(segment)
            segment.remove()
        elif segment.size >= REUSE_BYTES:
            segment.empty()


def adopt(directory: Path, own: Path) -> tuple[DirectoryLock, Path] | None:
    """Take over the journal of a gateway process that is gone, if there is one beside `own`."""
    for candidate in sorted(directory.iterdir()):
        if candidate == own or not candidate.is_dir():
            continue
        lock = DirectoryLock(candidate)
        if lock.take():
            log.info("journal_adopted", journal=candidate.name)
            return lock, candidate
        lock.release()
    return None
