"""Committed rows to those who watch, without ever holding up the ledger.

A watcher that reads too slowly is cut off rather than buffered without end; it asks Query for what it missed.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

from signalbox.core.errors import Unavailable
from signalbox.usage.adapters.ledger import Change
from signalbox.usage.adapters.queries import ledger_row
from signalbox.v1.usage_pb2 import LedgerRow

MAX_BEHIND = 10_000


class Watchers:
    """Hands every commit of this replica to every open watch."""

    def __init__(self) -> None:
        self._open: set[_Watch] = set()

    def publish(self, changed: Sequence[Change]) -> None:
        """Offer the rows of one commit to all watchers."""
        for watch in self._open:
            watch.offer(changed)

    async def follow(self, key_id: str) -> AsyncIterator[LedgerRow]:
        """Yield rows of one key ("" for all) as they are committed. Raises Unavailable for one who fell behind."""
        watch = _Watch(key_id)
        self._open.add(watch)
        try:
            while (row := await watch.next()) is not None:
                yield row
        finally:
            self._open.discard(watch)

    def close(self) -> None:
        """End all watches."""
        for watch in self._open:
            watch.end()


class _Watch:
    def __init__(self, key_id: str) -> None:
        self._key_id = key_id
        self._rows: asyncio.Queue[LedgerRow | None] = asyncio.Queue()
        self._behind = False

    def offer(self, changed: Sequence[Change]) -> None:
        for change in changed:
            if self._key_id in ("", change.now.key_id) and not self._behind:
                self._rows.put_nowait(ledger_row(change.now))
                self._behind = self._rows.qsize() > MAX_BEHIND

    def end(self) -> None:
        self._rows.put_nowait(None)

    async def next(self) -> LedgerRow | None:
        if self._behind:
            raise Unavailable("watch", f"more than {MAX_BEHIND} rows behind; query what was missed and watch again")
        return await self._rows.get()
