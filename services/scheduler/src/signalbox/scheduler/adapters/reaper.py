"""Reaps leases that no gateway renews: gives the ledger an orphan row and charges what the ledger makes of it.

The ledger knows more than the last heartbeat where the dead gateway's journal was found. While it does not answer,
leases wait, then are settled with their last heartbeat; the row stays in Redis until the ledger has committed it.
A gateway that comes back later is believed instead.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from signalbox.core import logs
from signalbox.core.errors import Unavailable
from signalbox.scheduler.adapters.gate import Gate
from signalbox.scheduler.adapters.store import LostState, Operation, Store, pairs
from signalbox.scheduler.adapters.usage import UsageClient
from signalbox.scheduler.domain.operations import Reap
from signalbox.scheduler.domain.settling import as_billed, as_settlement, orphan
from signalbox.scheduler.domain.view import View
from signalbox.v1.usage_pb2 import AttemptEvent

log = logs.logger(__name__)

ORPHANS = "sb:orphans"
FORMER = "sb:former"
_PAGE = 200
_FORMER_WAIT_MS = 45_000
_LEDGER_WAIT_S = 15.0


class Reaper:
    """Looks for expired leases and undelivered orphans."""

    def __init__(
        self, store: Store, view: View, *, usage: UsageClient, gate: Gate, reap_s: float, reaped: Callable[[int], None],
    ) -> None:
        self._store = store
        self._view = view
        self._usage = usage
        self._gate = gate
        self._reap_s = reap_s
        self._reaped = reaped
        self._unheard_s: float | None = None    # since when the ledger has not answered

    async def keep_reaping(self) -> None:
        """Reap for ever, while the gate is open."""
        while True:
            await self._gate.wait_open()
            try:
                await self.reap()
                await self.reap_former()
            except LostState:
                self._gate.close("Redis lost its state; counters are being rebuilt")
            except Unavailable as e:
                log.warning("reaping_failed", why=str(e))
            try:
                await self.deliver()
            except Unavailable as e:
                log.warning("orphans_not_delivered", why=str(e))
            await asyncio.sleep(self._reap_s)

    async def reap(self) -> int:
        """Settle the leases that expired; return how many. Raises Unavailable, LostState."""
        reaped = 0
        while True:
            expired = await self._store.one({"op": "expired", "most": _PAGE})
            if expired and expired[0] == b"closed":
                return reaped
            now_ms = self._store.now_ms()
            operations = await self._reapings(
                [orphan(self._view, lease.decode(), token, beat, now_ms) for lease, token, beat in expired],
            )
            if operations:
                answers = await self._store.run(operations)
                done = sum(a[0] == b"reaped" for a in answers[1:])
                reaped += done
                self._reaped(done)
                log.info("leases_reaped", count=done)
            if len(operations) < _PAGE:
                return reaped

    async def _reapings(self, orphans: list[tuple[Reap, AttemptEvent]]) -> list[tuple[Reap, bytes, bytes]]:
        """Put orphans into the ledger; return their reaping at what it bills, nothing while it may soon answer."""
        if not orphans:
            return []
        try:
            await self._usage.ingest([event for _, event in orphans])
            operations: list[tuple[Reap, bytes, bytes]] = []
            for reap, event in orphans:
                row = (await self._usage.attempts(event.request_id)).get(event.attempt)
                operations.append((as_billed(reap, event, row) if row is not None else reap, b"", b""))
        except Unavailable as e:
            self._unheard_s = self._unheard_s or time.monotonic()
            if time.monotonic() - self._unheard_s < _LEDGER_WAIT_S:
                return []
            log.warning("orphans_not_billed", count=len(orphans), why=str(e))
            return [(reap, event.SerializeToString(), b"") for reap, event in orphans]
        self._unheard_s = None
        return operations

    async def deliver(self) -> None:
        """Give the ledger what it does not have yet. Raises Unavailable."""
        found = pairs(await self._store.command("HGETALL", ORPHANS))
        for start in range(0, len(found), _PAGE):
            page = found[start : start + _PAGE]
            await self._usage.ingest([AttemptEvent.FromString(event) for _, event in page])
            await self._store.command("HDEL", ORPHANS, *(lease for lease, _ in page))

    async def leave_former(self, epoch: str) -> None:
        """Have the leases of an earlier epoch looked at once their gateways had time to renew them."""
        await self._store.command("HSET", FORMER, epoch, self._store.now_ms() + _FORMER_WAIT_MS)

    async def reap_former(self) -> None:
        """Turn leases of earlier epochs that nobody renewed or settled into orphans. Raises Unavailable, LostState."""
        for name, due in pairs(await self._store.command("HGETALL", FORMER)):
            epoch = name.decode()
            if int(due) > self._store.now_ms() or epoch == self._store.epoch:
                continue
            if await self._orphan_former(epoch):
                await self._drop(epoch)
                await self._store.command("HDEL", FORMER, epoch)

    async def _orphan_former(self, epoch: str) -> bool:
        """Settle the leases of an epoch with what is known; return whether that could be done."""
        kept = dict(pairs(await self._store.command("HGETALL", f"sb:{epoch}:leases")))
        leases = [(lease, token) for lease, token in kept.items() if not lease.startswith(b"beat:")]
        for start in range(0, len(leases), _PAGE):
            page = leases[start : start + _PAGE]
            now_ms = self._store.now_ms()
            operations = await self._reapings([
                orphan(self._view, lease.decode(), token, kept.get(b"beat:" + lease, b""), now_ms)
                for lease, token in page
            ])
            settlements: list[Operation] = []
            for (reap, event, _), (lease, token) in zip(operations, page, strict=False):
                if event:
                    await self._store.command("HSET", ORPHANS, lease, event)
                settlements.append((as_settlement(reap), token, b""))
            if not settlements or [b"closed"] in (await self._store.run(settlements))[1:]:
                return False
        return True

    async def _drop(self, epoch: str) -> None:
        cursor: Any = 0
        while True:
            cursor, names = await self._store.command("SCAN", cursor, "MATCH", f"sb:{epoch}:*", "COUNT", 500)
            if names:
                await self._store.command("UNLINK", *names)
            if int(cursor) == 0:
                return
