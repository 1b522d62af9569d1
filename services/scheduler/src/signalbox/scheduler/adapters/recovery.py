"""Opens the gate: takes over an epoch that is intact, or begins one and rebuilds the counters from the ledger.

One scheduler recovers at a time, under a lock; the others ask their gateways for journals meanwhile and wait.
"""

import asyncio
import contextlib
import secrets
from typing import Any

from signalbox.core import logs
from signalbox.core.errors import Unavailable
from signalbox.scheduler.adapters.gate import Gate
from signalbox.scheduler.adapters.owed import Owed
from signalbox.scheduler.adapters.reaper import Reaper
from signalbox.scheduler.adapters.registry import Registry
from signalbox.scheduler.adapters.sessions import Sessions
from signalbox.scheduler.adapters.store import LostState, Store
from signalbox.scheduler.adapters.usage import UsageClient
from signalbox.scheduler.domain.policies import KEY
from signalbox.scheduler.domain.rebuilding import by_object, rebuild_operations, told_operations
from signalbox.scheduler.domain.view import View
from signalbox.v1.scheduler_pb2 import ObjectEvent
from signalbox.v1.usage_pb2 import Fact, QueryResponse

log = logs.logger(__name__)

_LOCK = "sb:recovering"
_LOCK_MS = 20_000
_POLL_S = 0.1
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 1.0
_SETTLE_DOWN_S = 1.0
_DOCUMENTS_WAIT_S = 20.0
_PAGE = 200


class Recovery:
    """Keeps the gate open as long as Redis is there and complete."""

    def __init__(
        self, store: Store, view: View, *, registry: Registry, usage: UsageClient, sessions: Sessions, gate: Gate,
        reaper: Reaper, owed: Owed, journal_wait_s: float,
    ) -> None:
        self._store = store
        self._view = view
        self._registry = registry
        self._usage = usage
        self._sessions = sessions
        self._gate = gate
        self._reaper = reaper
        self._owed = owed
        self._journal_wait_s = journal_wait_s
        self._epoch = ""

    async def keep_open(self) -> None:
        """Open the gate, and again whenever it is closed, for ever."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                opened = await self._try_open()
            except Unavailable as e:
                self._gate.close(str(e))
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            except LostState:
                opened = False
            if not opened:
                await asyncio.sleep(_POLL_S)
                continue
            pause_s = _FIRST_PAUSE_S
            await self._gate.trouble.wait()

    async def _try_open(self) -> bool:
        state = await self._store.confirm()
        if state != "open":
            lost = self._store.epoch
            if state == "recovering":
                await self._help()
            if not await self._lock():
                return False
            try:
                await self._recover(lost if state == "recovering" else await self._former())
            finally:
                with contextlib.suppress(Unavailable):
                    await self._store.command("DEL", _LOCK)
            if await self._store.confirm() != "open":  # lost again meanwhile
                return False
        await self._take_over()
        return True

    async def _take_over(self) -> None:
        if self._store.epoch != self._epoch:
            await self._registry.reload()
            if self._epoch:
                self._registry.tell(ObjectEvent.RESYNC)
            self._epoch = self._store.epoch
        self._sessions.stop_asking()
        self._gate.open()
        log.info("admission_open", epoch=self._epoch)

    async def _former(self) -> str:
        epoch = await self._store.command("HGET", "sb:epoch", "id")
        return epoch.decode() if epoch else ""

    async def _lock(self) -> bool:
        token = secrets.token_hex(4)
        return await self._store.command("SET", _LOCK, token, "NX", "PX", _LOCK_MS) is not None

    # ------------------------------------------------------------------ beside the scheduler that recovers

    async def _help(self) -> None:
        """Make this scheduler's gateways known to the one that recovers, and pass on who delivered."""
        epoch = self._store.epoch
        if not self._registry.loaded.is_set():
            await self._registry.reload()
        self._sessions.ask(epoch)
        await self._note_gateways(epoch)

    async def _note_gateways(self, epoch: str) -> None:
        for name, gateways in (("gateways", self._sessions.gateways), ("delivered", self._sessions.delivered)):
            if gateways:
                await self._store.command("SADD", f"sb:{epoch}:{name}", *gateways)

    # ------------------------------------------------------------------ recovering

    async def _recover(self, former: str) -> None:
        known = await self._usage.counters(self._store.now_ms())  # without a ledger there is nothing to begin
        epoch = secrets.token_hex(8)
        log.warning("recovering", epoch=epoch, former=former)
        await self._store.begin(epoch)
        if former:
            await self._reaper.leave_former(former)
        await self._restore_registry()
        await self._wait_for_documents(known)
        self._sessions.ask(epoch)
        if former or self._sessions.gateways or known.counters or known.accounts:
            await self._wait_for_journals(epoch)
            known = await self._ask_ledger(epoch)
        await self._rebuild(known)
        await self._store.one({"op": "finish", "id": epoch})

    async def _restore_registry(self) -> None:
        """Put again what this scheduler knows where Redis knows less."""
        version = int(await self._store.command("GET", "sb:version") or 0)
        if self._view.snapshot.version > version:
            await self._registry.republish()
        await self._registry.reload()

    async def _wait_for_documents(self, known: QueryResponse) -> None:
        """Wait until the keys that the ledger knows are in the registry, or until those who put them had time to.

        Nobody may know them any more: Redis was flushed and this scheduler has just started. To admit now would tell
        callers that their keys are invalid, and leave their counters out of what is rebuilt.
        """
        wanted = {bucket.key_id for bucket in known.counters} | {fact.key_id for fact in known.facts}
        loop = asyncio.get_running_loop()
        began_s = changed_s = loop.time()
        version = -1
        while not wanted <= self._view.snapshot.keys.keys():
            await self._registry.refresh()
            now_s = loop.time()
            if self._view.snapshot.version != version:
                version, changed_s = self._view.snapshot.version, now_s
            since_s, limit_s = (changed_s, _SETTLE_DOWN_S) if version > 0 else (began_s, _DOCUMENTS_WAIT_S)
            if now_s - since_s > limit_s:
                log.warning("keys_without_documents", count=len(wanted - self._view.snapshot.keys.keys()))
                return
            await self._store.command("PEXPIRE", _LOCK, _LOCK_MS)
            await asyncio.sleep(_POLL_S)

    async def _wait_for_journals(self, epoch: str) -> None:
        """Wait until every gateway that is known delivered its journal, or for the time that is set."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while (waited_s := loop.time() - began_s) < self._journal_wait_s:
            await self._note_gateways(epoch)
            await self._store.command("PEXPIRE", _LOCK, _LOCK_MS)
            missing = await self._store.command("SDIFF", f"sb:{epoch}:gateways", f"sb:{epoch}:delivered")
            known = await self._store.command("SCARD", f"sb:{epoch}:gateways")
            if known and not missing and waited_s >= min(_SETTLE_DOWN_S, self._journal_wait_s):
                return
            self._sessions.changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await self._sessions.changed.wait()
        log.warning("journals_not_awaited", waited_s=self._journal_wait_s)

    async def _ask_ledger(self, epoch: str) -> QueryResponse:
        """Return what the ledger knows, with the attempts in it that may be settled yet.

        Those are found by what they say of themselves, not by when the ledger was asked: nothing that ends meanwhile
        is counted twice, or not at all.
        """
        await self._store.command("SUNIONSTORE", f"sb:{epoch}:heard", f"sb:{epoch}:delivered")
        heard = await self._store.command("SMEMBERS", f"sb:{epoch}:heard")
        since_ms = int(await self._store.command("HGET", "sb:epoch", "asked"))
        return await self._usage.counters(
            self._store.now_ms(), ended_since_ms=since_ms, delivered=[name.decode() for name in heard],
        )

    async def _rebuild(self, known: QueryResponse) -> None:
        operations: list[dict[str, Any]] = []
        for fact in known.facts:
            name, kind = fact.key_id, "first"
            if fact.kind == Fact.LIMIT_SINCE:
                name, kind = f"{fact.key_id}|{fact.name}", "since"
                self._view.since_ms[name] = fact.at_ms
            operations.append({"op": "remember", "kind": kind, "name": name, "at": fact.at_ms})
        operations += told_operations(known.rows)
        snapshot = self._view.snapshot
        parts = by_object(known)
        for kind, object_id in [member for member in parts if member in snapshot.objects]:
            policy = snapshot.keys[object_id] if kind == KEY else snapshot.accounts[object_id]
            operations += rebuild_operations(policy, parts.pop((kind, object_id)), self._view.since_ms)
        for start in range(0, len(operations), _PAGE):
            await self._store.run([(o, b"", b"") for o in operations[start : start + _PAGE]])
        log.info("counters_rebuilt", operations=len(operations), without_documents=len(parts))
        await self._owed.keep(parts)
        await self._registry.refresh()  # a document that came meanwhile was put before anything was owed to it
        await self._owed.repay([snapshot.objects[member] for member in parts if member in snapshot.objects])
