"""Counts relay keys by how much of their limits is used, now and then, so that somebody hears before one is used up."""

import asyncio
from collections import Counter

from signalbox.core import logs
from signalbox.core.errors import Unavailable
from signalbox.scheduler.adapters.gate import Gate
from signalbox.scheduler.adapters.registry import Registry
from signalbox.scheduler.adapters.store import LostState
from signalbox.scheduler.domain.limits import census, limit_states
from signalbox.scheduler.domain.view import View

log = logs.logger(__name__)


class Census:
    """`counts` as of the last look, by (what a limit counts, its period, how much is used). Every scheduler has all."""

    def __init__(self, view: View, registry: Registry, *, gate: Gate, every_s: float) -> None:
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self._view = view
        self._registry = registry
        self._gate = gate
        self._every_s = every_s

    async def keep_counting(self) -> None:
        """Count for ever, while the gate is open."""
        while True:
            await self._gate.wait_open()
            try:
                await self.count()
            except (Unavailable, LostState) as e:
                log.debug("census_failed", why=str(e))  # whoever needs Redis to decide closes the gate
            await asyncio.sleep(self._every_s)

    async def count(self) -> None:
        """Count all keys that have limits. Raises Unavailable, LostState."""
        limited = {key.id: key.limits for key in self._view.snapshot.keys.values() if key.limits}
        peeks = await self._registry.peek(list(limited))
        self.counts = census(limit_states(limited[key_id], reports) for key_id, (_, _, reports) in peeks.items())
