"""Carrying out what a reconciler decided: actions of signalbox.resources as calls to the rooms, in their order."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from prometheus_client import Counter

from signalbox.core.clock import to_ms
from signalbox.core.errors import Refused, SignalboxError
from signalbox.resources.state import (
    Action,
    DeleteGrant,
    DeleteObject,
    DesiredObject,
    Grant,
    PutGrant,
    PutObject,
)
from signalbox.rooms.client import Rooms
from signalbox.v1 import common_pb2, scheduler_pb2, token_refresher_pb2

_BATCH = 500
_GRANTS_AT_ONCE = 8

RECONCILES = Counter("signalbox_reconcile_total", "Objects and grants brought into force, or not.", ["kind", "result"])


class Carrier:
    """Carries out actions for one writer. `fence` grows with each start of it; an outdated one is refused."""

    def __init__(self, rooms: Rooms, writer: str, fence: int) -> None:
        self._rooms = rooms
        self._writer = writer
        self._fence = fence

    async def carry_out(
        self, actions: Sequence[Action], progress: Callable[[], None] = lambda: None,
    ) -> dict[str, str]:
        """Carry out actions in their order; neighbours of one kind travel together, `progress` follows each batch.

        Returns why grants were refused, by account: a bad one keeps only its own account from coming into force. Safe
        to do again after any failure. Raises Unavailable where a room is away, Refused where another writer has taken
        over.
        """
        refused: dict[str, str] = {}
        for _, group in groupby(actions, key=type):
            together = [action for action in group if not lacks_grant(action, refused)]
            for start in range(0, len(together), _BATCH):
                batch = together[start : start + _BATCH]
                try:
                    refused |= await self._carry_out_batch(batch)
                except SignalboxError:
                    _count(batch, "failed")
                    raise
                _count(batch, "done")
                progress()
        return refused

    async def _carry_out_batch(self, batch: Sequence[Action]) -> dict[str, str]:
        puts = [_object(a.object) for a in batch if isinstance(a, PutObject)]
        deletions = [scheduler_pb2.ObjectRef(kind=a.kind, id=a.id) for a in batch if isinstance(a, DeleteObject)]
        if puts:
            await self._rooms.put_objects(puts, self._writer, self._fence)
        if deletions:
            await self._rooms.delete_objects(deletions, self._writer, self._fence)
        limit = asyncio.Semaphore(_GRANTS_AT_ONCE)
        refused: dict[str, str] = {}

        async def one(action: Action) -> None:
            async with limit:
                if isinstance(action, PutGrant):
                    try:
                        await self._rooms.put_grant(_put_grant(action.grant))
                    except Refused as e:
                        refused[action.grant.account] = e.message
                elif isinstance(action, DeleteGrant):
                    await self._rooms.delete_grant(action.account)

        await asyncio.gather(*(one(action) for action in batch))
        return refused


def lacks_grant(action: Action, refused: Mapping[str, str]) -> bool:
    """Whether an account's own grant was refused just now: it must not come before it."""
    return isinstance(action, PutObject) and action.object.kind == "ClaudeAccount" and action.object.id in refused


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
