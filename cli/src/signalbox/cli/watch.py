"""The file watcher: keeps registry and grants equal to a directory of documents.

What should be in force is decided by signalbox.resources (load, plan, diff); here it is only noticed and carried out.
Level-triggered: each pass compares everything with everything, so that a missed event costs time, never correctness.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import watchfiles
from prometheus_client import Counter

from signalbox.cli.client import Rooms
from signalbox.cli.supervisor.logs import LogSink
from signalbox.core.clock import to_ms
from signalbox.core.errors import SignalboxError
from signalbox.resources.actions import diff
from signalbox.resources.loading import SUFFIXES, load_directory
from signalbox.resources.reconcile import plan
from signalbox.resources.state import (
    Action,
    DeleteGrant,
    DeleteObject,
    Desired,
    DesiredObject,
    Grant,
    PutGrant,
    PutObject,
    State,
)
from signalbox.v1 import common_pb2, scheduler_pb2, token_refresher_pb2

RESYNC_EVERY_S = 60.0
_DEBOUNCE_MS = 100
_STEP_MS = 50
_FIRST_RETRY_S = 0.2
_LONGEST_RETRY_S = 3.0
_REWATCH_S = 0.5
_BATCH = 500
_GRANTS_AT_ONCE = 8

RECONCILES = Counter("signalbox_reconcile_total", "Objects and grants brought into force, or not.", ["kind", "result"])


class Watcher:
    """Reconciles one directory until stopped."""

    def __init__(self, directory: Path, rooms: Rooms, fence: int, logs: LogSink) -> None:
        self.in_force = False
        """Whether a pass has come to its end, so that every good document was in force."""
        self.problems: tuple[str, ...] = ()
        """What is wrong with documents now, as `file:line: path: reason`."""
        self.failure = ""
        """Why the last pass did not come to its end; empty when it did."""
        self._directory = directory
        self._rooms = rooms
        self._fence = fence
        self._logs = logs
        self._state = State()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to reconcile."""
        work = (self._reconcile_forever(), self._watch_files(), self._watch_registry())
        self._tasks = [asyncio.create_task(w) for w in work]

    def trigger(self) -> None:
        """Ask for a pass soon."""
        self._wake.set()

    async def stop(self) -> None:
        """Stop reconciling; what was begun is finished by the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def all_problems(self) -> list[str]:
        """Return what keeps documents from being in force now, for people."""
        return [*self.problems, *([self.failure] if self.failure else [])]

    # ------------------------------------------------------------------ passes

    async def _reconcile_forever(self) -> None:
        retry_s = _FIRST_RETRY_S
        while True:
            self._wake.clear()
            try:
                wait_s = await self._one_pass()
                retry_s = _FIRST_RETRY_S
            except (SignalboxError, OSError) as e:
                self._note_failure(str(e))
                wait_s, retry_s = retry_s, min(_LONGEST_RETRY_S, retry_s * 2)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait_s)

    async def _one_pass(self) -> float:
        """Bring the directory into force; return seconds until the next pass is due anyway."""
        desired = await asyncio.to_thread(self._plan)
        self._state = desired.state
        self._report([str(p) for p in desired.problems])
        listed, grants = await asyncio.gather(self._rooms.list_objects(with_status=False), self._rooms.grants())
        current = {(o.object.kind, o.object.id): o.object.revision for o in listed}
        seeds = {account: grant.seed_version for account, grant in grants.items()}
        await self._carry_out(diff(desired, current, seeds))
        self.failure = ""
        self.in_force = True
        if desired.next_change_at is None:
            return RESYNC_EVERY_S
        return min(RESYNC_EVERY_S, max(0.05, (desired.next_change_at - datetime.now(UTC)).total_seconds()))

    def _plan(self) -> Desired:
        loaded = load_directory(self._directory, os.environ, self._state.owners())
        return plan(loaded, self._state, now=datetime.now(UTC))

    async def _carry_out(self, actions: Sequence[Action]) -> None:
        """Carry out actions in their order; neighbours of one kind travel together."""
        for _, group in groupby(actions, key=type):
            together = list(group)
            for start in range(0, len(together), _BATCH):
                batch = together[start : start + _BATCH]
                try:
                    await self._carry_out_batch(batch)
                except SignalboxError:
                    _count(batch, "failed")
                    raise
                _count(batch, "done")
        if actions:
            self._logs.event("documents_in_force", actions=len(actions))

    async def _carry_out_batch(self, batch: Sequence[Action]) -> None:
        puts = [_object(a.object) for a in batch if isinstance(a, PutObject)]
        deletions = [scheduler_pb2.ObjectRef(kind=a.kind, id=a.id) for a in batch if isinstance(a, DeleteObject)]
        if puts:
            await self._rooms.put_objects(puts, self._fence)
        if deletions:
            await self._rooms.delete_objects(deletions, self._fence)
        limit = asyncio.Semaphore(_GRANTS_AT_ONCE)

        async def one(action: Action) -> None:
            async with limit:
                if isinstance(action, PutGrant):
                    await self._rooms.put_grant(_put_grant(action.grant))
                elif isinstance(action, DeleteGrant):
                    await self._rooms.delete_grant(action.account)

        await asyncio.gather(*(one(action) for action in batch))

    def _report(self, problems: list[str]) -> None:
        """Tell of each problem once, when it appears."""
        for problem in problems:
            if problem not in self.problems:
                self._logs.plain(problem)
        self.problems = tuple(problems)

    def _note_failure(self, why: str) -> None:
        if why != self.failure:
            self._logs.event("documents_not_in_force", level="warning", why=why)
        self.failure = why

    # ------------------------------------------------------------------ what asks for a pass

    async def _watch_files(self) -> None:
        """Ask for a pass when a document changes, and at least once a minute."""
        while True:
            try:
                await self._watch_files_for(RESYNC_EVERY_S)
            except (OSError, RuntimeError):
                # The directory is away, or the kernel has no watch left to give: look again and again instead.
                await asyncio.sleep(_REWATCH_S)
            self.trigger()

    async def _watch_files_for(self, span_s: float) -> None:
        """Watch for a while only: afterwards another directory may stand under this name."""
        until_s = time.monotonic() + span_s
        changes = watchfiles.awatch(
            self._directory, recursive=False, watch_filter=_is_document, debounce=_DEBOUNCE_MS, step=_STEP_MS,
            rust_timeout=int(span_s * 1000), yield_on_timeout=True,
        )
        # Runs as soon as the watch is set up: what changed between the last pass and now is not missed.
        asyncio.get_running_loop().call_soon(self.trigger)
        async for changed in changes:
            if changed:
                self.trigger()
            if time.monotonic() >= until_s:
                return

    async def _watch_registry(self) -> None:
        """Ask for a pass when the registry lost its content, or when we may have missed that."""
        while True:
            async for event in self._rooms.watch_objects():
                if event.type in (scheduler_pb2.ObjectEvent.RESYNC, scheduler_pb2.ObjectEvent.SYNCED):
                    self.trigger()
            await asyncio.sleep(_REWATCH_S)


def _count(actions: Sequence[Action], result: str) -> None:
    for action in actions:
        match action:
            case PutObject(item):
                kind = item.kind
            case DeleteObject(kind, _):
                pass
            case _:
                kind = "Grant"
        RECONCILES.labels(kind, result).inc()


def _is_document(_change: watchfiles.Change, path: str) -> bool:
    return path.endswith(SUFFIXES)


def _object(desired: DesiredObject) -> scheduler_pb2.Object:
    return scheduler_pb2.Object(
        kind=desired.kind,
        id=desired.id,
        revision=desired.revision,
        spec_json=desired.spec_json.encode(),
        conditions=[
            common_pb2.Condition(type=c.type, status=c.status, reason=c.reason, message=c.message)
            for c in desired.conditions
        ],
        uid=desired.uid,
        created_at_ms=to_ms(desired.created_at) if desired.created_at else 0,
        labels=desired.labels,
        source=desired.source,
    )


def _put_grant(grant: Grant) -> token_refresher_pb2.PutGrantRequest:
    return token_refresher_pb2.PutGrantRequest(
        account_id=grant.account,
        kind=grant.kind,
        material=grant.material,
        config=grant.config,
        seed_version=grant.seed_version,
    )
