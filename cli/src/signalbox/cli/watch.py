"""The file watcher: keeps registry and grants equal to a directory of documents.

What should be in force is decided by signalbox.resources (load, plan, diff); here it is only noticed and carried out.
Level-triggered: each pass compares everything with everything, so that a missed event costs time, never correctness.
"""

import asyncio
import contextlib
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import watchfiles

from signalbox.cli.supervisor.logs import LogSink
from signalbox.core.errors import Refused, SignalboxError
from signalbox.resources.actions import diff
from signalbox.resources.errors import UnreadableDirectory
from signalbox.resources.loading import SUFFIXES, FileCache, load_directory, manifest_files
from signalbox.resources.reconcile import plan
from signalbox.resources.state import Desired, State
from signalbox.rooms.carryout import Carrier
from signalbox.rooms.client import Rooms
from signalbox.v1 import scheduler_pb2
from signalbox.v1.token_refresher_pb2 import CredentialEvent

WRITER = "files"
RESYNC_EVERY_S = 60.0
_DEBOUNCE_MS = 100
_STEP_MS = 50
_FIRST_RETRY_S = 0.2
_LONGEST_RETRY_S = 3.0
_REWATCH_S = 0.5
_LOOK_EVERY_S = 1.0
_SETTLED_S = 0.05
_SETTLE_ROUNDS = 10


class Watcher:
    """Reconciles one directory until stopped. Files that changed in the last `settled_s` seconds are waited for."""

    def __init__(
        self, directory: Path, rooms: Rooms, fence: int, logs: LogSink, *, settled_s: float = _SETTLED_S,
    ) -> None:
        self.in_force = False
        """Whether a pass has come to its end, so that every good document was in force."""
        self.problems: tuple[str, ...] = ()
        """What is wrong with documents now, as `file:line: path: reason`."""
        self.failure = ""
        """Why the last pass did not come to its end; empty when it did."""
        self._directory = directory
        self._rooms = rooms
        self._carrier = Carrier(rooms, WRITER, fence)
        self._logs = logs
        self._settled_s = settled_s
        self._read = FileCache()
        self._state = State()
        self._healings: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to reconcile."""
        work = (
            self._look_at_files(), self._reconcile_forever(), self._watch_files(), self._watch_registry(),
            self._watch_credentials(),
        )
        self._tasks = [asyncio.create_task(w) for w in work]

    def trigger(self) -> None:
        """Ask for a pass soon."""
        self._wake.set()

    async def stop(self) -> None:
        """Stop reconciling; what was begun is finished by the next start."""
        # Cancelling alone may leave the thread that watches files behind, and the process waits for it.
        self._stopping.set()
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
        healings = {account: grant.healings for account, grant in grants.items() if grant.healings}
        if healings != self._healings:
            self._healings = healings
            desired = await asyncio.to_thread(self._plan)
            self._state = desired.state
        current = {(o.object.kind, o.object.id): o.object.revision for o in listed}
        seeds = {account: grant.seed_version for account, grant in grants.items()}
        actions = diff(desired, current, seeds)
        refused = await self._carrier.carry_out(actions)
        if refused:
            raise Refused("grant_refused", "; ".join(f"{account}: {why}" for account, why in sorted(refused.items())))
        if actions:
            self._logs.event("documents_in_force", actions=len(actions))
        self.failure = ""
        self.in_force = True
        if desired.next_change_at is None:
            return RESYNC_EVERY_S
        return min(RESYNC_EVERY_S, max(0.05, (desired.next_change_at - datetime.now(UTC)).total_seconds()))

    def _plan(self) -> Desired:
        self._let_settle()
        loaded = load_directory(self._directory, os.environ, self._state.owners(), cache=self._read)
        return plan(loaded, self._state, now=datetime.now(UTC), healings=self._healings)

    def _let_settle(self) -> None:
        """Wait, not for long, for whoever is writing: half a file can be a good document with others deleted."""
        for _ in range(_SETTLE_ROUNDS):
            young_s = time.time() - max(map(_changed_at, manifest_files(self._directory)), default=0.0)
            if not 0 <= young_s < self._settled_s:
                return
            time.sleep(self._settled_s - young_s)

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
            rust_timeout=int(span_s * 1000), yield_on_timeout=True, stop_event=self._stopping,
        )
        # Runs as soon as the watch is set up: what changed between the last pass and now is not missed.
        asyncio.get_running_loop().call_soon(self.trigger)
        async for changed in changes:
            if changed:
                self.trigger()
            if time.monotonic() >= until_s:
                return

    async def _look_at_files(self) -> None:
        """Ask for a pass where the names stand for other files than before, of which no watch tells.

        Links are swapped as a whole where a ConfigMap is mounted or a repository synced; network drives say nothing.
        """
        seen = _standing(self._directory)    # before the first pass reads them
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            standing = await asyncio.to_thread(_standing, self._directory)
            if standing != seen:
                seen = standing
                self.trigger()

    async def _watch_credentials(self) -> None:
        """Ask for a pass when an account has a credential that it had not before, or when we may have missed that."""
        while True:
            there: set[str] = set()
            async for event in self._rooms.watch_credentials():
                account = event.account_id
                if event.type == CredentialEvent.REMOVED:
                    there.discard(account)
                elif event.type == CredentialEvent.SYNCED or account not in there or await self._healed(account):
                    there.add(account)
                    self.trigger()
            await asyncio.sleep(_REWATCH_S)

    async def _healed(self, account: str) -> bool:
        """Whether a new credential ends a fault: one that ran out meanwhile was not told of as removed."""
        try:
            grants = await self._rooms.grants([account])
        except SignalboxError:
            return True  # a pass finds out
        return any(grant.healings != self._healings.get(account, 0) for grant in grants.values())

    async def _watch_registry(self) -> None:
        """Ask for a pass when the registry lost its content, or when we may have missed that."""
        while True:
            async for event in self._rooms.watch_objects():
                if event.type in (scheduler_pb2.ObjectEvent.RESYNC, scheduler_pb2.ObjectEvent.SYNCED):
                    self.trigger()
            await asyncio.sleep(_REWATCH_S)


def _standing(directory: Path) -> list[tuple[str, int, int, int, int]]:
    """Return which files stand behind a directory's names, links followed, and as of when."""
    try:
        files = manifest_files(directory)
    except UnreadableDirectory:
        return []
    standing = []
    for file in files:
        with contextlib.suppress(OSError):
            found = file.stat()
            standing.append((file.name, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size))
    return standing


def _changed_at(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _is_document(_change: watchfiles.Change, path: str) -> bool:
    return path.endswith(SUFFIXES)
