"""Knows all grants as the store has them, changes them on behalf of reconcilers and operators, tells those who watch.

The store is the truth and others write to it too: what is kept here is a view that follows it. What a change means is
decided in domain/grants.py; renewing is api/renewals.py's.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from signalbox.core import logs
from signalbox.core.clock import Clock
from signalbox.token_refresher.domain import grants
from signalbox.token_refresher.domain.credentials import (
    Credential,
    Standing,
    credential,
    since_ms,
    standing,
    turned,
)
from signalbox.token_refresher.domain.grants import API_KEY, Grant, Reason, Seed, check
from signalbox.token_refresher.domain.ports import Conflict, Found, GrantStore, Stored, StoreUnavailable, Unreadable
from signalbox.token_refresher.domain.renewal import Demand, Renewal
from signalbox.token_refresher.domain.schedule import is_urgent
from signalbox.token_refresher.metrics import Metrics

log = logs.logger(__name__)

RETIRED_KEPT_MS = 30 * 86_400_000
STORE_RETRY_S = 1.0
MOST_CONFLICTS = 20

Step = Callable[[Grant | None], Grant | None]
Renew = Callable[[str, Demand], Coroutine[Any, Any, Renewal]]
Arm = Callable[[str, Stored | None], None]


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
    """All grants of this installation. `load` it, then `follow` the store; `arm` and `renew` are the renewals'."""

    def __init__(self, store: GrantStore, clock: Clock, metrics: Metrics) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._known: dict[str, Stored | Unreadable] = {}
        self._announced: dict[str, Credential | None] = {}    # what watchers were told last: a token may have run out
        self._watching: set[Changes] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._arm: Arm = lambda _account_id, _stored: None
        self._renew: Renew | None = None

    async def load(self) -> None:
        """Read the store, and forget in it what retired long ago. Raises StoreUnavailable."""
        for found in await self._store.everything():
            if isinstance(found, Unreadable):
                log.error("grant_unreadable", account=found.account_id, why=found.why)
                self.learned(found.account_id, found)
            elif found.grant.retired_at_ms and found.grant.retired_at_ms + RETIRED_KEPT_MS < self._clock.now_ms():
                with contextlib.suppress(Conflict):
                    await self._store.delete(found.grant.account_id, found.revision)
            else:
                self.learned(found.grant.account_id, found)

    def begin(self, arm: Arm, renew: Renew) -> None:
        """Have grants renewed from now on."""
        self._arm, self._renew = arm, renew
        for account_id, found in self._known.items():
            arm(account_id, found if isinstance(found, Stored) else None)

    async def follow(self) -> None:
        """Learn what other processes change, until cancelled."""
        while True:
            with contextlib.suppress(StoreUnavailable):
                async for account_id in self._store.changes():
                    await self.look(account_id)
            await asyncio.sleep(STORE_RETRY_S)

    async def look(self, account_id: str) -> None:
        """Read one account's grant from the store."""
        self.learned(account_id, await self._store.read(account_id))

    def learned(self, account_id: str, found: Found) -> None:
        """Take over what the store holds; tell the watchers where that changes what is handed out."""
        known = self._known.get(account_id)
        if found == known or _is_older(found, known):
            return
        if found is None:
            self._known.pop(account_id, None)
        else:
            self._known[account_id] = found
        self._metrics.observe(account_id, self.grant(account_id))
        self._arm(account_id, found if isinstance(found, Stored) else None)
        now = self.credential(account_id)
        if now != self._announced.get(account_id):
            self._announced[account_id] = now
            for changes in self._watching:
                changes.add(account_id)
        if found is None:
            self._announced.pop(account_id, None)

    # ------------------------------------------------------------------ asked

    def accounts(self) -> list[str]:
        """Return all accounts of which there is anything, in order."""
        return sorted(a for a, found in self._known.items() if isinstance(found, Unreadable) or self.grant(a))

    def grant(self, account_id: str) -> Grant | None:
        """Return the account's grant, None where there is none or it can't be read."""
        found = self._known.get(account_id)
        return found.grant if isinstance(found, Stored) and not found.grant.retired_at_ms else None

    def credential(self, account_id: str) -> Credential | None:
        """Return what requests need, None where the account can't serve."""
        grant = self.grant(account_id)
        return credential(grant, self._clock.now_ms()) if grant is not None else None

    def standing(self, account_id: str) -> Standing | None:
        """Return whether the account can serve, None where nothing is known of it."""
        if (grant := self.grant(account_id)) is not None:
            return standing(grant, self._clock.now_ms())
        found = self._known.get(account_id)
        if isinstance(found, Unreadable):
            message = f"its stored grant can't be read: {found.why}"
            return Standing(Reason.NEEDS_AUTHORIZATION, message, valid=False)
        return None

    def since_ms(self, account_id: str) -> int:
        """Return since when the account's standing is what it is, Unix milliseconds; 0 where nobody knows."""
        grant = self.grant(account_id)
        return since_ms(grant, self._clock.now_ms()) if grant is not None else 0

    async def fresh_credential(self, account_id: str, rejected_version: str = "") -> Credential | None:
        """Return what requests need: another one than was rejected, renewed where that is due.

        A token that still lasts is handed out although renewing it fails. Raises StoreUnavailable.
        """
        grant = self.grant(account_id)
        if grant is None or (rejected_version and rejected_version != grant.version):
            await self.look(account_id)     # a peer may have put or renewed it just now
            grant = self.grant(account_id)
        if grant is None:
            return None
        if rejected_version == grant.version and grant.seed.kind == API_KEY:
            await self.reject(account_id, rejected_version)
        elif grant.renewable and self._renew is not None and (
            rejected_version == grant.version or is_urgent(grant, self._clock.now_ms())
        ):
            await self._renew(account_id, Demand(rejected_version))
        return self.credential(account_id)

    async def tested_credential(self, account_id: str) -> Credential | None:
        """Return what a test call is made with; a grant that a fault keeps out is renewed once more before."""
        if self.credential(account_id) is None and self._renew is not None:
            await self._renew(account_id, Demand(insist=True))
        return self.credential(account_id)

    # ------------------------------------------------------------------ changed

    async def put(self, seed: Seed) -> None:
        """Make `seed` the account's grant; the same one again changes nothing. Raises GrantRejected, Unavailable."""
        check(seed)
        await self._change(seed.account_id, lambda kept: grants.seeded(kept, seed, self._clock.now_ms()))

    async def reject(self, account_id: str, version: str) -> None:
        """The provider answered 401 to the API key of that version. Raises StoreUnavailable."""
        if await self._step(account_id, lambda grant: grants.rejected(grant, version)):
            self._metrics.refreshes.labels(account_id, "rejected").inc()
            log.warning("credential_rejected", account=account_id, version=version)

    async def prove(self, account_id: str, version: str) -> None:
        """The provider accepted `version`. Raises StoreUnavailable."""
        if await self._step(account_id, lambda grant: grants.proven(grant, version)):
            log.info("credential_proven", account=account_id, version=version)

    async def authorised(self, account_id: str, seed_version: str, tokens: grants.Tokens) -> bool:
        """Take over what an operator's authorisation brought, if the document is still the same.

        Raises StoreUnavailable.
        """
        taken = await self._step(
            account_id, lambda grant: grants.renewed(grant, tokens) if grant.seed.version == seed_version else grant,
        )
        if taken:
            log.info("account_authorised", account=account_id)
        return taken

    async def delete(self, account_id: str) -> None:
        """Retire the account's grant; of an unreadable one the file is kept aside. Raises StoreUnavailable."""
        await self._change(account_id, lambda kept: grants.retired(kept, self._clock.now_ms()) if kept else None)

    @contextlib.contextmanager
    def watch(self) -> Iterator[Changes]:
        """Collect changes from now on."""
        changes = Changes()
        self._watching.add(changes)
        try:
            yield changes
        finally:
            self._watching.discard(changes)

    # ------------------------------------------------------------------ inside

    async def _step(self, account_id: str, step: Callable[[Grant], Grant]) -> bool:
        """Take one step with a grant that exists; return whether it moved."""
        return await self._change(
            account_id, lambda kept: step(kept) if kept is not None and not kept.retired_at_ms else kept,
        )

    async def _change(self, account_id: str, step: Step) -> bool:
        """Make one change to its end, even if its caller leaves; return whether anything changed."""
        task = asyncio.create_task(self._compare_and_swap(account_id, step))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _compare_and_swap(self, account_id: str, step: Step) -> bool:
        for _ in range(MOST_CONFLICTS):
            found = await self._store.read(account_id)
            self.learned(account_id, found)
            kept = found.grant if isinstance(found, Stored) else None
            revision = found.revision if isinstance(found, Stored) else ""
            grant = step(kept)
            if grant == kept and not (grant is None and isinstance(found, Unreadable)):
                return False
            try:
                if grant is None:
                    await self._store.delete(account_id, revision)
                    self.learned(account_id, None)
                else:
                    grant = turned(kept, grant, self._clock.now_ms())
                    self.learned(account_id, await self._store.write(grant, revision))
            except Conflict:
                continue
            except StoreUnavailable as e:
                log.warning("grant_store_failed", why=e.why)
                raise
            return True
        raise StoreUnavailable("others kept changing the grant")


def _is_older(found: Found, known: Found) -> bool:
    """Whether a slow read overtook a later write. Revisions of another store's making are taken as they come."""
    if not isinstance(found, Stored) or not isinstance(known, Stored):
        return False
    return found.revision.isdigit() and known.revision.isdigit() and int(found.revision) < int(known.revision)
