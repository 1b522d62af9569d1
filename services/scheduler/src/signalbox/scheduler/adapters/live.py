"""Keeps the live numbers of accounts up to date: what changed since the last look, on notice or twice a second."""

import asyncio
import contextlib
from collections.abc import Collection
from typing import Any

import msgspec
from redis.exceptions import RedisError

from signalbox.core import logs
from signalbox.core.errors import Unavailable
from signalbox.scheduler.adapters.gate import Gate
from signalbox.scheduler.adapters.queue import Queue
from signalbox.scheduler.adapters.registry import Registry
from signalbox.scheduler.adapters.samples import Samples
from signalbox.scheduler.adapters.store import EVENTS_CHANNEL, LostState, Store, pairs
from signalbox.scheduler.domain.operations import decode_health
from signalbox.scheduler.domain.policies import ACCOUNT
from signalbox.scheduler.domain.settling import read_window
from signalbox.scheduler.domain.state import Health
from signalbox.scheduler.domain.view import View
from signalbox.v1.scheduler_pb2 import ObjectEvent

log = logs.logger(__name__)

_OVERLAP_MS = 2_000
_RECONNECT_S = 0.5
_HAS_ROOM = b">"
_CAPPED = "Capped"
_PAGE = 200


class LiveRefresher:
    """Reads what other schedulers, and this one's own calls, left in Redis."""

    def __init__(
        self, store: Store, view: View, registry: Registry, *, samples: Samples, gate: Gate, queue: Queue,
        refresh_s: float,
    ) -> None:
        self._store = store
        self._view = view
        self._registry = registry
        self._samples = samples
        self._gate = gate
        self._queue = queue
        self._refresh_s = refresh_s
        self._noticed = asyncio.Event()
        self._seen_ms = 0
        self._opening = 0
        self._health_version: bytes | None = b"none is known"
        self._caps_version = -1
        self._told_over: set[str] = set()

    async def keep_fresh(self) -> None:
        """Refresh for ever, while the gate is open."""
        while True:
            await self._gate.wait_open()
            if self._opening != self._gate.openings:
                self._opening = self._gate.openings
                self._forget()
            try:
                version = self._view.snapshot.version
                await self._registry.refresh()
                await self.refresh()
                await self._samples.exchange()
                await self._registry.note_transitions()
                if self._view.snapshot.version != version:
                    self._queue.stir()
            except (Unavailable, LostState) as e:
                self._gate.close(str(e) or "Redis lost its state")
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._refresh_s):
                    await self._noticed.wait()
            self._noticed.clear()

    async def listen(self) -> None:
        """Listen for notices for ever; what is missed is found by looking."""
        while True:
            try:
                async with self._store.redis.pubsub() as pubsub:
                    await pubsub.subscribe(EVENTS_CHANNEL)
                    self._noticed.set()
                    while True:
                        message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=5.0)
                        if message is not None and message["data"].startswith(_HAS_ROOM):
                            account, *line = message["data"].removeprefix(_HAS_ROOM).decode().split(" ")
                            self._queue.freed(account, line)
                        else:
                            self._noticed.set()
            except (RedisError, OSError) as e:
                log.debug("notices_lost", why=str(e))
                await asyncio.sleep(_RECONNECT_S)

    async def refresh(self) -> None:
        """Read the numbers that changed. Raises Unavailable."""
        changed = await self._store.command(
            "ZRANGEBYSCORE", "sb:dirty", self._seen_ms - _OVERLAP_MS, "+inf", "WITHSCORES",
        )
        used = {account.decode(): int(float(at)) for account, at in pairs(changed)}
        groups: set[str] = set()
        if used:
            groups = await self._read_numbers(used)
            self._seen_ms = max(used.values())
        await self._read_caps(groups)
        await self._read_health()

    def _forget(self) -> None:
        """Believe no number from before a trouble: leases may be gone, and what was being admitted was not."""
        self._seen_ms, self._health_version, self._caps_version = 0, b"none is known", -1
        for account_id in self._view.live.accounts:
            self._view.set_running(account_id, 0)

    async def _read_numbers(self, used: dict[str, int]) -> set[str]:
        """Read what accounts have in flight and what is known of their limit groups; return these."""
        live = self._view.live
        accounts = list(used)
        running = await self._store.command("HMGET", f"sb:{self._store.epoch}:n", *(f"a:{a}" for a in accounts))
        groups = {p.group for a in accounts if (p := self._view.snapshot.accounts.get(a)) is not None}
        for account, number in zip(accounts, running, strict=True):
            if self._view.set_running(account, int(number or 0)):
                self._queue.seen_free(account)
            live.account(account).last_used_ms = used[account]
        await self._read_windows(sorted(groups))
        return groups

    async def _read_caps(self, used: Collection[str]) -> None:
        """Read which accounts have used up limits of their own, `used` limit groups', and whatever may have changed."""
        snapshot, caps = self._view.snapshot, self._view.live.caps
        anew, self._caps_version = self._caps_version != snapshot.version, snapshot.version
        for account_id in caps.keys() - snapshot.accounts.keys():
            del caps[account_id]
        asked = [
            a for a in snapshot.accounts.values()
            if a.id in caps or (a.caps and (anew or a.group in used))
        ]
        for start in range(0, len(asked), _PAGE):
            page = asked[start : start + _PAGE]
            answer = await self._store.one({"op": "capped", "accounts": [(a.group, a.caps) for a in page]})
            for account, until_ms in zip(page, answer, strict=True):
                self._note_caps(account.id, until_ms)

    def _note_caps(self, account_id: str, until_ms: int) -> None:
        caps = self._view.live.caps
        before = caps.pop(account_id, None)
        if until_ms:
            caps[account_id] = Health("limited", _CAPPED, until_ms, 0)
        if caps.get(account_id) != before:
            self._tell(account_id)

    async def _read_windows(self, groups: list[str]) -> None:
        live = self._view.live
        for start in range(0, len(groups), _PAGE):
            page = groups[start : start + _PAGE]
            answer = await self._store.one({"op": "windows", "groups": page})
            for group, flat in zip(page, answer, strict=True):
                live.group(group).surpluses.clear()
                windows = live.group(group).windows
                for name, text in pairs(flat):
                    with contextlib.suppress(ValueError):
                        windows[name.decode()] = read_window(name.decode(), text.decode())

    async def _read_health(self) -> None:
        live = self._view.live
        version = await self._store.command("GET", "sb:health")
        if version == self._health_version:
            self._tell_recovered()
            return
        rests = _records(await self._store.command("HGETALL", "sb:rests"))
        benches = _records(await self._store.command("HGETALL", "sb:benches"))
        self._health_version = version
        if rests == live.rests and benches == live.benches:
            self._tell_recovered()
            return
        touched = {k.partition("|")[0] for k in {*rests} ^ {*live.rests}}
        touched |= {k.partition("|")[0] for k in rests if rests[k] != live.rests.get(k)}
        benched = {k for k in {*benches, *live.benches} if benches.get(k) != live.benches.get(k)}
        live.rests, live.benches = rests, benches
        self._queue.stir()
        for account_id in benched.union(*(self._view.snapshot.in_group(g) for g in touched)):
            self._view.snapshot.release(account_id)
            self._tell(account_id)

    def _tell_recovered(self) -> None:
        """Tell of accounts whose rest ended by itself since the last look."""
        now_ms = self._store.now_ms()
        over = {k for k, h in self._view.live.rests.items() if h.until_ms <= now_ms} - self._told_over
        if over:
            for group in {k.partition("|")[0] for k in over}:
                for account_id in self._view.snapshot.in_group(group):
                    self._tell(account_id)
        self._told_over = {k for k, h in self._view.live.rests.items() if h.until_ms <= now_ms}

    def _tell(self, account_id: str) -> None:
        obj = self._view.snapshot.objects.get((ACCOUNT, account_id))
        if obj is not None:
            self._registry.tell(ObjectEvent.STATUS, obj)


def _records(flat: Any) -> dict[str, Health]:
    records = {}
    for name, packed in pairs(flat):
        with contextlib.suppress(msgspec.MsgspecError):
            r = decode_health(packed)
            records[name.decode()] = Health(r.kind, r.reason, int(r.until_ms), int(r.failures))
    return records
