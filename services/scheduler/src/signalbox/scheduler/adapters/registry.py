"""The registry in Redis: puts and deletes, this scheduler's snapshot kept up to date, and those who watch it.

Who may write and what an object means is decided elsewhere; Redis orders the changes.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from signalbox.core import logs
from signalbox.core.errors import Refused
from signalbox.scheduler.adapters.owed import Owed
from signalbox.scheduler.adapters.store import Operation, Store
from signalbox.scheduler.adapters.transitions import Transitions
from signalbox.scheduler.adapters.usage import UsageClient
from signalbox.scheduler.domain.policies import KEY
from signalbox.scheduler.domain.status import NOTHING, Peek, object_with_status
from signalbox.scheduler.domain.view import View
from signalbox.v1.scheduler_pb2 import Object, ObjectEvent, ObjectRef, ObjectWithStatus
from signalbox.v1.usage_pb2 import Fact

log = logs.logger(__name__)

_PAGE = 500
_MOST_UNREAD = 20_000
OWN_WRITER = "scheduler"


class Watcher:
    """One open WatchObjects call. `overrun` once it reads too slowly; it is then told to begin anew."""

    def __init__(self, kinds: Sequence[str]) -> None:
        self.kinds = frozenset(kinds)
        self.events: asyncio.Queue[ObjectEvent] = asyncio.Queue(_MOST_UNREAD)
        self.overrun = False

    def tell(self, event: ObjectEvent) -> None:
        """Queue an event if its kind is watched."""
        kind = event.object.object.kind
        if kind and self.kinds and kind not in self.kinds:
            return
        try:
            self.events.put_nowait(event)
        except asyncio.QueueFull:
            self.overrun = True


class Registry:
    """This scheduler's access to the shared registry."""

    def __init__(self, store: Store, view: View, usage: UsageClient, owed: Owed) -> None:
        self._store = store
        self._owed = owed
        self._view = view
        self._usage = usage
        self._lock = asyncio.Lock()
        self._unseen: set[tuple[str, str]] = set()
        self.loaded = asyncio.Event()
        """Set once it was read: it can be written from then on, though admission may still wait for what is written."""
        self._transitions = Transitions(store)
        self._moved: dict[tuple[str, str], Object] = {}
        self.watchers: set[Watcher] = set()

    # ------------------------------------------------------------------ writing

    async def put(self, writer: str, fence: int, objects: Sequence[Object]) -> int:
        """Create or replace objects; return how many changed. Raises Refused for an outdated fence, Unavailable."""
        operations: list[Operation] = [
            (
                {"op": "put", "writer": writer, "fence": fence, "kind": o.kind, "id": o.id},
                o.SerializeToString(deterministic=True), b"",
            )
            for o in objects
        ]
        changed = await self._write(operations)
        await self._note_beginnings([o.id for o in objects if o.kind == KEY])
        return changed

    async def delete(self, writer: str, fence: int, refs: Sequence[ObjectRef]) -> int:
        """Delete objects; return how many there were. Raises Refused for an outdated fence, Unavailable."""
        operations: list[Operation] = [
            ({"op": "delete", "writer": writer, "fence": fence, "kind": r.kind, "id": r.id}, b"", b"") for r in refs
        ]
        return await self._write(operations)

    async def _write(self, operations: Sequence[Operation]) -> int:
        changed = 0
        for start in range(0, len(operations), _PAGE):
            changed += await self._write_page(operations[start : start + _PAGE])
        await self.refresh()
        if changed:
            await self._store.publish(b"registry")
        return changed

    async def _write_page(self, operations: Sequence[Operation]) -> int:
        answers = [a[0] for a in (await self._store.run(operations))[1:]]
        if b"fenced" in answers:
            raise Refused("fenced", "a newer writer has taken over; start again to take over from it")
        owed = [o for o, answer in zip(operations, answers, strict=True) if answer == b"owed"]
        if owed:
            await self._owed.repay([Object.FromString(data) for _, data, _ in owed])
            answers += [a[0] for a in (await self._store.run([(_paid(o), data, rest) for o, data, rest in owed]))[1:]]
        return sum(answer not in (b"same", b"owed") for answer in answers)

    async def republish(self) -> None:
        """Put everything that this scheduler knows, after Redis lost it."""
        objects = list(self._view.snapshot.objects.values())
        if objects:
            log.info("registry_put_again", objects=len(objects))
            await self._write([
                (
                    {"op": "put", "writer": OWN_WRITER, "fence": 0, "kind": o.kind, "id": o.id},
                    o.SerializeToString(deterministic=True), b"",
                )
                for o in objects
            ])

    async def _note_beginnings(self, key_ids: Iterable[str]) -> None:
        """Keep when the keys' limits over Total without a `since` were first seen."""
        keys = self._view.snapshot.keys
        names = [
            f"{key.id}|{limit.name}"
            for key_id in key_ids if (key := keys.get(key_id)) is not None
            for limit in key.limits
            if limit.per == "Total" and not limit.since_ms and f"{key.id}|{limit.name}" not in self._view.since_ms
        ]
        if not names:
            return
        times = await self._store.one({"op": "since", "names": names})
        self._view.since_ms.update(zip(names, times, strict=True))
        facts = [_beginning(name, at) for name, at in zip(names, times, strict=True)]
        self._usage.remember(facts)

    # ------------------------------------------------------------------ reading

    async def refresh(self) -> None:
        """Bring the snapshot up to date and tell the watchers. Raises Unavailable, LostState."""
        async with self._lock:
            while await self._read_page():
                pass

    async def reload(self) -> None:
        """Read everything anew, as after an epoch began: versions may have started again."""
        async with self._lock:
            self._view.snapshot.version = -1
            while await self._read_page():
                pass
        self.loaded.set()

    async def _read_page(self) -> bool:
        """Apply one page of changes; return whether there may be more."""
        snapshot = self._view.snapshot
        after = snapshot.version
        head, anew, *rows = await self._store.one({"op": "changes", "after": after, "most": _PAGE})
        if anew or after < 0:
            self._begin_anew()
        for member, version, data in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
            self._apply(member.decode(), version.decode(), data)
            snapshot.version = int(version)
        full = len(rows) // 3 == _PAGE
        if not full:
            snapshot.version = head
            self._drop_unseen()
        return full

    def _begin_anew(self) -> None:
        self._view.snapshot.version = 0
        self._unseen = set(self._view.snapshot.objects)

    def _drop_unseen(self) -> None:
        for kind, object_id in self._unseen:
            self._delete(kind, object_id)
        self._unseen = set()

    def _apply(self, member: str, version: str, data: bytes) -> None:
        kind, _, object_id = member.partition("/")
        self._unseen.discard((kind, object_id))
        if not data:
            self._delete(kind, object_id)
            return
        obj = Object.FromString(data)
        known = self._view.snapshot.objects.get((kind, object_id)) == obj
        try:
            self._view.snapshot.put(obj, version)
        except ValueError as e:
            log.warning("object_unreadable", kind=kind, id=object_id, why=str(e))
            return
        if not known:
            self.tell(ObjectEvent.PUT, obj)

    def _delete(self, kind: str, object_id: str) -> None:
        obj = self._view.snapshot.objects.get((kind, object_id))
        self._view.snapshot.delete(kind, object_id)
        if obj is not None:
            self.tell(ObjectEvent.DELETED, obj)

    # ------------------------------------------------------------------ status and watching

    def tell(self, kind: "ObjectEvent.Type", obj: Object | None = None) -> None:
        """Tell the watchers of a change."""
        if obj is not None:
            self._moved[obj.kind, obj.id] = obj
        if not self.watchers:
            return
        whole = object_with_status(self._view, obj, NOTHING, self._store.now_ms()) if obj is not None else None
        event = ObjectEvent(type=kind, object=whole, epoch=self._store.epoch)
        for watcher in self.watchers:
            watcher.tell(event)

    async def note_transitions(self) -> None:
        """Note the conditions that flipped since the last call. Raises Unavailable."""
        moved, self._moved = self._moved, {}
        objects = self._view.snapshot.objects
        now_ms = self._store.now_ms()
        await self._transitions.forget(obj for key, obj in moved.items() if key not in objects)
        await self._transitions.stamp(
            [object_with_status(self._view, objects[key], NOTHING, now_ms) for key in moved if key in objects],
        )

    async def listing(
        self, kinds: Iterable[str], ids: Iterable[str], *, with_status: bool,
    ) -> list[ObjectWithStatus]:
        """Return objects by kind and id, with their live status if asked. Raises Unavailable, LostState."""
        await self.refresh()
        wanted_kinds, wanted_ids = frozenset(kinds), frozenset(ids)
        found = [
            obj for (kind, object_id), obj in sorted(self._view.snapshot.objects.items())
            if (not wanted_kinds or kind in wanted_kinds) and (not wanted_ids or object_id in wanted_ids)
        ]
        if not with_status:
            return [ObjectWithStatus(object=obj) for obj in found]
        peeks = await self.peek([obj.id for obj in found if obj.kind == KEY])
        now_ms = self._store.now_ms()
        wholes = [
            object_with_status(self._view, o, peeks.get(o.id, NOTHING) if o.kind == KEY else NOTHING, now_ms)
            for o in found
        ]
        await self._transitions.stamp(wholes)
        return wholes

    async def peek(self, key_ids: Sequence[str]) -> dict[str, Peek]:
        """Return what the shared state says of keys, by id. Raises Unavailable, LostState."""
        keys = [k for key_id in key_ids if (k := self._view.snapshot.keys.get(key_id)) is not None]
        peeks: dict[str, Peek] = {}
        for start in range(0, len(keys), _PAGE):
            page = keys[start : start + _PAGE]
            answers = await self._store.run([(peek_operation(k.id, k.limits), b"", b"") for k in page])
            peeks.update((k.id, a) for k, a in zip(page, answers[1:], strict=True))
        return peeks


def peek_operation(key_id: str, limits: Sequence[Any]) -> dict[str, Any]:
    """Return the operation that reads a key's counters."""
    return {"op": "peek", "key": key_id, "limits": [x.operand for x in limits]}


def _paid(operation: Any) -> dict[str, Any]:
    return {**operation, "paid": 1}


def _beginning(name: str, at_ms: int) -> Fact:
    key_id, _, limit = name.partition("|")
    return Fact(kind=Fact.LIMIT_SINCE, key_id=key_id, name=limit, at_ms=at_ms)
