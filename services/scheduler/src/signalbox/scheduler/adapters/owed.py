"""Counters of keys and accounts that had no document when all counters were rebuilt.

What the ledger knew of them then lies in Redis, by epoch. Their documents are put only after their counters: nobody is
admitted in between, and nothing is counted twice that the ledger learned later.
"""

import zlib
from collections.abc import Mapping, Sequence

from signalbox.core import logs
from signalbox.scheduler.adapters.store import Operation, Store
from signalbox.scheduler.domain.policies import ACCOUNT, KEY, AccountPolicy, KeyPolicy, compile_account, compile_key
from signalbox.scheduler.domain.rebuilding import rebuild_operations
from signalbox.v1.scheduler_pb2 import Object
from signalbox.v1.usage_pb2 import QueryResponse

log = logs.logger(__name__)

_PAGE = 200


class Owed:
    """What is still to be counted, by object."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def keep(self, parts: Mapping[tuple[str, str], QueryResponse]) -> None:
        """Keep what the ledger knows of objects without a document, by kind and id. Raises Unavailable."""
        fields = [
            (_member(kind, object_id), zlib.compress(part.SerializeToString(), 1))
            for (kind, object_id), part in parts.items()
        ]
        for start in range(0, len(fields), _PAGE):
            page = fields[start : start + _PAGE]
            await self._store.command("HSET", self._name, *(text for field in page for text in field))

    async def repay(self, objects: Sequence[Object]) -> None:
        """Rebuild the counters of those among `objects` that are owed them. Raises Unavailable, LostState."""
        for start in range(0, len(objects), _PAGE):
            page = objects[start : start + _PAGE]
            kept = await self._store.command("HMGET", self._name, *(_member(o.kind, o.id) for o in page))
            operations: list[Operation] = []
            for obj, packed in zip(page, kept, strict=True):
                if packed is not None and (policy := _policy(obj)) is not None:
                    part = QueryResponse.FromString(zlib.decompress(packed))
                    counters = rebuild_operations(policy, part, await self._beginnings(policy))
                    operation = {"op": "repay", "member": _member(obj.kind, obj.id), "counters": counters}
                    operations.append((operation, b"", b""))
            if operations:
                await self._store.run(operations)
                log.info("counters_rebuilt_later", objects=len(operations))

    async def _beginnings(self, policy: KeyPolicy | AccountPolicy) -> dict[str, int]:
        """Return since when limits over Total count; now, for those that nobody has seen before."""
        names = [
            f"{policy.id}|{x.name}" for x in policy.limits if x.per == "Total" and not x.since_ms
        ] if isinstance(policy, KeyPolicy) else []
        if not names:
            return {}
        return dict(zip(names, await self._store.one({"op": "since", "names": names}), strict=True))

    @property
    def _name(self) -> str:
        return f"sb:{self._store.epoch}:owed"


def _member(kind: str, object_id: str) -> str:
    return f"{kind}/{object_id}"


def _policy(obj: Object) -> KeyPolicy | AccountPolicy | None:
    try:
        if obj.kind == KEY:
            return compile_key(obj.id, "", obj.spec_json, obj.uid, obj.created_at_ms)
        return compile_account(obj.id, "", obj.spec_json) if obj.kind == ACCOUNT else None
    except ValueError:
        return None  # it will be owed them until its document can be read
