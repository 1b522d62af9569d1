"""What the operator's loops share: the objects, the plan, what the rooms say, and which statuses may have changed."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from signalbox.operator.domain.world import Edition, Seen, World
from signalbox.resources.models import SIGNALBOX_KINDS
from signalbox.resources.reading import Identity
from signalbox.resources.state import Desired, DesiredObject
from signalbox.v1 import scheduler_pb2, token_refresher_pb2


class Told(NamedTuple):
    """What the registry said of an object last: of which revision of it, and its status message, packed."""

    revision: str
    packed: bytes


class Board:
    """Shared by the loops of one event loop; nothing here waits."""

    def __init__(self) -> None:
        self.world = World()
        self.complete = False
        """Whether everything was listed once, so that what is not in `world` does not exist."""
        self.desired: dict[Identity, DesiredObject] = {}
        self.judged: dict[Identity, Edition] = {}
        """Of which edition of each object `desired` was made; a newer one may have come since."""
        self.live: dict[Identity, Told] = {}
        """What the registry says of each object: ten thousand lie here."""
        self.doubtful: set[Identity] = set()
        """Whose statuses wait until the registry has spoken of them; whatever was to tell may have been lost."""
        self.grants: dict[str, token_refresher_pb2.GrantStatus] = {}
        self.refused: dict[str, str] = {}
        """Why the token-refresher would not take a grant, by account."""
        self.withdrawn: list[Identity] = []
        """What was deleted (keys) or paused, and may still be used as the registry has it."""
        self.unheard = {"registry", "grants"}
        """Of what no room has told anything yet: an object that serves would seem to be of unknown state."""
        self.changed = asyncio.Event()
        self.dirty: dict[Identity, None] = {}
        self.some_dirty = asyncio.Event()

    @property
    def healings(self) -> dict[str, int]:
        """How often the credential of each account became good again: reasons to have the account tried."""
        return {account: grant.healings for account, grant in self.grants.items() if grant.healings}

    # ------------------------------------------------------------------ documents

    def notice(self, seen: Seen) -> None:
        """Take in an object."""
        before = self.world.get(seen.identity)
        if not self.world.notice(seen):
            return
        if seen.is_paused or (seen.identity.kind == "RelayKey" and seen.deleting_since is not None):
            self.withdrawn.append(seen.identity)
        if before is None or _is_another(before, seen):
            self.changed.set()
        self.mark([seen.identity])

    def forget(self, identity: Identity, version: int) -> None:
        """Take in a deletion."""
        if not self.world.forget(identity, version):
            return
        if identity.kind == "RelayKey":
            self.withdrawn.append(identity)
        self.changed.set()

    def plan(self, desired: Desired, judged: dict[Identity, Edition]) -> None:
        """Take in a new plan, and of which editions of the objects it was made."""
        fresh = {Identity(o.kind, *o.id.split("/", 1)): o for o in desired.objects}
        self.mark(i for i, o in fresh.items() if (old := self.desired.get(i)) is None or (old is not o and old != o))
        self.mark(i for i in self.desired if i not in fresh)
        self.mark(i for i, edition in judged.items() if self.judged.get(i) != edition)
        self.desired, self.judged = fresh, judged

    def amend(self, item: DesiredObject, edition: Edition) -> None:
        """Take in that an object is in force in another form than planned, made of a newer document."""
        identity = Identity(item.kind, *item.id.split("/", 1))
        self.desired[identity], self.judged[identity] = item, edition
        self.mark([identity])

    # ------------------------------------------------------------------ statuses

    def learn(self, item: scheduler_pb2.ObjectWithStatus) -> None:
        """Take in what the registry says of an object."""
        identity = Identity(item.object.kind, *item.object.id.split("/", 1))
        told = Told(item.object.revision, message_of(item).SerializeToString(deterministic=True))
        if self.live.get(identity) != told:
            self.live[identity] = told
            self.mark([identity])

    def awaits_registry(self, identity: Identity) -> bool:
        """Whether the registry has not spoken of an object yet in the form that is in force; it is doubtful then.

        A grant that was refused keeps its account in an earlier form, or out.
        """
        told, desired = self.live.get(identity), self.desired.get(identity)
        told_of = told.revision if told is not None else ""
        awaits = (
            desired is not None and told_of != desired.revision and "registry" not in self.unheard
            and not (identity.kind == "ClaudeAccount" and identity.id in self.refused)
        )
        (self.doubtful.add if awaits else self.doubtful.discard)(identity)
        return awaits

    def refuse(self, refused: Mapping[str, str], tried: Iterable[str]) -> None:
        """Take in which of the grants that were put just now were refused, and why."""
        before = dict(self.refused)
        for account in tried:
            self.refused.pop(account, None)
        self.refused.update(refused)
        self.mark(Identity("ClaudeAccount", *a.split("/", 1)) for a in {*before, *self.refused})

    def mark(self, identities: Iterable[Identity]) -> None:
        """Note that statuses may have to be written."""
        for identity in identities:
            if identity.kind in SIGNALBOX_KINDS and self.world.get(identity) is not None:
                self.dirty[identity] = None
        if self.dirty:
            self.some_dirty.set()


def message_of(
    item: scheduler_pb2.ObjectWithStatus,
) -> scheduler_pb2.AccountStatus | scheduler_pb2.PoolStatus | scheduler_pb2.KeyStatus:
    """Return the status inside the registry's answer."""
    match item.object.kind:
        case "ClaudeAccount":
            return item.account
        case "AccountPool":
            return item.pool
    return item.key


def _is_another(before: Seen, after: Seen) -> bool:
    """Whether two versions differ in what is planned with, rather than only in status and the like."""
    return before.document != after.document or before.deleting_since != after.deleting_since or before.uid != after.uid
