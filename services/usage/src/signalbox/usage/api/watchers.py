"""Committed rows to those who watch, without ever holding up the ledger.

A watcher that reads too slowly is cut off rather than buffered without end; it asks Query for what it missed.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

from signalbox.core.errors import Unavailable
from signalbox.usage.adapters.ledger import Change
from signalbox.usage.adapters.queries import ledger_row
from signalbox.v1.usage_pb2 import LedgerRow

MAX_BEHIND = 10_000


class Watchers:
    """Hands every commit of this replica to every open watch."""

    def __init__(self) -> None:
        self._open: set[Watch] = set()

    def publish(self, changed: Sequence[Change]) -> None:
        """Offer the rows of one commit to all watchers."""
        for watch in self._open:
            watch.offer(changed)

    @contextlib.contextmanager
    def watch(self, key_id: str) -> Iterator["Watch"]:
        """Follow the rows of one key ("" for all) from now on."""
        watch = Watch(key_id)
        self._open.add(watch)
        try:
            yield watch
        finally:
            self._open.discard(watch)

    def close(self) -> None:
        """End all watches."""
        for watch in self._open:
            watch.end()


class Watch:
    """One watcher's rows that it has not read yet."""

    def __init__(self, key_id: str) -> None:
        self._key_id = key_id
        self._rows: asyncio.Queue[LedgerRow | None] = asyncio.Queue()
        self._behind = False

    def offer(self, changed: Sequence[Change]) -> None:
        """Add what concerns this watcher, until it is too far behind."""
        for change in changed:
            if self._key_id in ("", change.now.key_id) and not self._behind:
                self._rows.put_nowait(ledger_row(change.now))
                self._behind = self._rows.qsize() > MAX_BEHIND

    def end(self) -> None:
        """Let `next` return None once all rows are read."""
        self._rows.put_nowait(None)

    async def next(self) -> LedgerRow | None:
        """Return the next row, None at the end. Raises Unavailable for one who fell behind."""
        if self._behind:
            raise Unavailable("watch", f"more than {MAX_BEHIND} rows behind; query what was missed and watch again")
        return await self._rows.get()
