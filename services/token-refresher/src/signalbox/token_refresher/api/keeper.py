"""Holds all grants: stores each change before anybody sees it, and tells those who watch.

One change at a time; what it means is decided in domain/grants.py.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from signalbox.core import logs
from signalbox.core.clock import Clock
from signalbox.core.errors import Unavailable
from signalbox.token_refresher.adapters.store import FileStore
from signalbox.token_refresher.domain.grants import (
    Credential,
    Grant,
    Reason,
    Seed,
    Standing,
    check,
    credential,
    proven,
    rejected,
    seeded,
    standing,
)
from signalbox.token_refresher.metrics import Metrics

log = logs.logger(__name__)


class Changes:
    """The accounts that changed since one watcher last looked. Bounded by the number of accounts."""

    def __init__(self) -> None:
        self._accounts: dict[str, None] = {}
        self._some = asyncio.Event()

    def add(self, account_id: str) -> None:
        """Note a change."""
        self._accounts[account_id] = None
        self._some.set()

    async def take(self) -> list[str]:
        """Wait for changes and return them."""
        await self._some.wait()
        taken = list(self._accounts)
        self._accounts.clear()
        self._some.clear()
        return taken


class Keeper:
    """All grants of this installation, in memory and in the store."""

    def __init__(self, store: FileStore, clock: Clock, metrics: Metrics) -> None:
        """Read the store (blocking)."""
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._changing = asyncio.Lock()
        self._watching: set[Changes] = set()
        self._tasks: set[asyncio.Task[bool]] = set()
        grants, unreadable = store.load()
        self._grants = {grant.account_id: grant for grant in grants}
        self._unreadable = {broken.account_id: broken.why for broken in unreadable}
        for broken in unreadable:
            log.error("grant_unreadable", account=broken.account_id, why=broken.why)
        for grant in grants:
            self._observe(grant.account_id)

    def accounts(self) -> list[str]:
        """Return all accounts of which there is anything, in order."""
        return sorted({*self._grants, *self._unreadable})

    def grant(self, account_id: str) -> Grant | None:
        """Return the account's grant, None where there is none or it can't be read."""
        return self._grants.get(account_id)

    def credential(self, account_id: str) -> Credential | None:
        """Return what requests need, None where the account can't serve."""
        grant = self._grants.get(account_id)
        return credential(grant) if grant is not None else None

    def standing(self, account_id: str) -> Standing | None:
        """Return whether the account can serve, None where nothing is known of it."""
        grant = self._grants.get(account_id)
        if grant is not None:
            return standing(grant)
        if account_id in self._unreadable:
            return Standing(
                Reason.NEEDS_AUTHORIZATION, f"its stored grant can't be read: {self._unreadable[account_id]}",
            )
        return None

    async def put(self, seed: Seed) -> None:
        """Make `seed` the account's grant. The same one again changes nothing. Raises GrantRejected, Unavailable."""
        check(seed)
        await self._whole(self._replace(seed.account_id, lambda kept: seeded(kept, seed, self._clock.now_ms())))

    async def reject(self, account_id: str, version: str) -> None:
        """The provider answered 401 to `version`. Raises Unavailable."""
        if await self._whole(self._change(account_id, lambda grant: rejected(grant, version))):
            self._metrics.refreshes.labels(account_id, "rejected").inc()
            log.warning("credential_rejected", account=account_id, version=version)

    async def prove(self, account_id: str, version: str) -> None:
        """The provider accepted `version`. Raises Unavailable."""
        if await self._whole(self._change(account_id, lambda grant: proven(grant, version))):
            log.info("credential_proven", account=account_id, version=version)

    async def delete(self, account_id: str) -> None:
        """Forget the account's grant; of an unreadable one the file is kept aside. Raises Unavailable."""
        await self._whole(self._delete(account_id))

    @contextlib.contextmanager
    def watch(self) -> Iterator[Changes]:
        """Collect changes from now on."""
        changes = Changes()
        self._watching.add(changes)
        try:
            yield changes
        finally:
            self._watching.discard(changes)

    async def _whole(self, change: Coroutine[Any, Any, bool]) -> bool:
        """Make one change to its end, even if its caller leaves: store and memory must not come apart."""

        async def alone() -> bool:
            async with self._changing:
                return await change

        task = asyncio.create_task(alone())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _delete(self, account_id: str) -> bool:
        if account_id not in self._unreadable and account_id not in self._grants:
            return False
        await self._make_room(account_id)
        await self._in_thread(lambda: self._store.delete(account_id))
        if self._grants.pop(account_id, None) is not None:
            self._announce(account_id)
        return True

    async def _change(self, account_id: str, step: Callable[[Grant], Grant]) -> bool:
        """Take one step with a grant that exists; return whether it moved."""
        if account_id not in self._grants:
            return False
        return await self._replace(account_id, lambda kept: step(kept) if kept is not None else kept)

    async def _replace(self, account_id: str, step: Callable[[Grant | None], Grant | None]) -> bool:
        kept = self._grants.get(account_id)
        grant = step(kept)
        if grant is None or grant is kept or grant == kept:
            return False
        await self._make_room(account_id)
        await self._in_thread(lambda: self._store.save(grant))
        self._grants[account_id] = grant
        self._announce(account_id)
        return True

    async def _make_room(self, account_id: str) -> None:
        """Keep a file that can't be read before its name is used for something else."""
        if account_id in self._unreadable:
            await self._in_thread(lambda: self._store.set_aside(account_id))
            del self._unreadable[account_id]

    async def _in_thread(self, work: Callable[[], None]) -> None:
        try:
            await asyncio.to_thread(work)
        except OSError as e:
            log.warning("grant_store_failed", why=e.strerror or type(e).__name__)
            raise Unavailable("grant store", e.strerror or type(e).__name__) from e

    def _announce(self, account_id: str) -> None:
        self._observe(account_id)
        for changes in self._watching:
            changes.add(account_id)

    def _observe(self, account_id: str) -> None:
        now = self.credential(account_id)
        self._metrics.observe_expiry(account_id, now.expires_at_ms if now else 0)
