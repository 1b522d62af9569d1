"""Since when each condition of each object has been as it is: shared by all schedulers, and kept over their restarts.

The time moves when a status flips, not when its reason does. A flushed Redis forgets; times then begin anew.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from signalbox.scheduler.adapters.store import Store
from signalbox.v1.common_pb2 import Condition
from signalbox.v1.scheduler_pb2 import Object, ObjectWithStatus

_HASH = "sb:transitions"
_PAGE = 500
_TRUE, _FALSE = "1", "0"


class Transitions:
    """The times, as Redis has them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def stamp(self, objects: Iterable[ObjectWithStatus]) -> None:
        """Note the conditions that flipped and set `last_transition_ms` in every status. Raises Unavailable."""
        fields = _fields(objects)
        while page := list(islice(fields, _PAGE)):
            await self._stamp([name for name, _ in page], [condition for _, condition in page])

    async def forget(self, objects: Iterable[Object]) -> None:
        """Forget objects that were deleted: who comes back under their name begins anew. Raises Unavailable."""
        names = [_name(obj, c.type) for obj in objects for c in (*obj.conditions, Condition(type="Available"))]
        if names:
            await self._store.command("HDEL", _HASH, *names)

    async def _stamp(self, names: Sequence[str], conditions: Sequence[Condition]) -> None:
        known = await self._store.command("HMGET", _HASH, *names)
        now_ms = self._store.now_ms()
        flipped: list[str] = []
        for name, condition, before in zip(names, conditions, known, strict=True):
            status = _TRUE if condition.status else _FALSE
            was, _, since_ms = before.decode().partition(":") if before else ("", "", "")
            condition.last_transition_ms = int(since_ms) if was == status else now_ms
            if was != status:
                flipped += [name, f"{status}:{now_ms}"]
        if flipped:
            await self._store.command("HSET", _HASH, *flipped)


def _fields(objects: Iterable[ObjectWithStatus]) -> Iterator[tuple[str, Condition]]:
    for whole in objects:
        for status in (whole.account, whole.pool, whole.key):
            for condition in status.conditions:
                yield _name(whole.object, condition.type), condition


def _name(obj: Object, condition: str) -> str:
    return f"{obj.kind}/{obj.id}|{condition}"
