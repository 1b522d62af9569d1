"""Brings the documents into force: plans with all of them, compares with the rooms, carries out the difference.

Level-triggered: every pass compares everything with everything. What was deleted or paused is withdrawn at once, beside
the pass; a pass that has much to carry out makes way for a newer one as soon as something changes, and that one begins
with what withdraws access.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from signalbox.core import logs
from signalbox.core.errors import Refused, SignalboxError
from signalbox.operator.controllers.board import Board
from signalbox.operator.domain.kept import identity_in_registry, read_back
from signalbox.operator.domain.succession import Superseded
from signalbox.operator.metrics import Metrics
from signalbox.resources.actions import diff
from signalbox.resources.amending import paused
from signalbox.resources.conditions import SECRET_NOT_FOUND
from signalbox.resources.reading import Identity
from signalbox.resources.reconcile import plan
from signalbox.resources.state import (
    Action,
    DeleteGrant,
    DeleteObject,
    Desired,
    DesiredObject,
    Policy,
    PutGrant,
    PutObject,
    State,
)
from signalbox.rooms.carryout import Carrier, lacks_grant
from signalbox.rooms.client import Rooms

log = logs.logger(__name__)

_DEBOUNCE_S = 0.05
# So many actions are carried out before it is seen whether something has changed: some tenths of a second.
_SLICE = 250
_FIRST_RETRY_S = 0.2
_LONGEST_RETRY_S = 3.0
_IDLE_S = 30.0


class Documents:
    """Reconciles registry and grants with the documents until cancelled. Its loops raise Superseded."""

    def __init__(
        self, board: Board, rooms: Rooms, carrier: Carrier, policy: Policy, *, metrics: Metrics,
        ready: Callable[[str], None],
    ) -> None:
        self._board = board
        self._rooms = rooms
        self._carrier = carrier
        self._policy = policy
        self._metrics = metrics
        self._ready = ready
        self._state = State()
        self._kept: dict[Identity, DesiredObject] = {}
        """What an earlier start brought into force of documents that have been refused ever since this one."""
        self._registry: dict[tuple[str, str], str] | None = None
        self._seeds: dict[str, str] | None = None
        self._failure = ""

    def relist(self) -> None:
        """Compare with what the rooms really have, soon: they may have lost something."""
        self._registry = self._seeds = None
        self._board.changed.set()

    async def keep_in_force(self) -> None:
        """Pass after pass."""
        retry_s = _FIRST_RETRY_S
        while True:
            self._metrics.beat("documents")
            self._board.changed.clear()
            wait_s = _IDLE_S
            try:
                if self._board.complete:
                    wait_s = await self._one_pass()
                    retry_s = _FIRST_RETRY_S
            except SignalboxError as e:
                self._note_failure(e)
                wait_s, retry_s = retry_s, min(_LONGEST_RETRY_S, retry_s * 2)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._board.changed.wait(), wait_s)
                await asyncio.sleep(_DEBOUNCE_S)

    async def keep_withdrawing(self) -> None:
        """Withdraw what was deleted or paused at once; a pass over ten thousand keys takes a second or two."""
        while True:
            await asyncio.sleep(_DEBOUNCE_S)
            if not self._board.withdrawn:
                continue
            withdrawn, self._board.withdrawn = self._board.withdrawn, []
            editions = {i: seen.edition for i in withdrawn if (seen := self._board.world.get(i)) is not None}
            actions = {i: action for i in withdrawn if (action := self._withdrawal(i)) is not None}
            if not actions:
                continue
            try:
                await self._act(list(actions.values()))
            except SignalboxError as e:
                self._note_failure(e)
                continue
            for identity, action in actions.items():
                if isinstance(action, PutObject):
                    self._board.amend(action.object, editions[identity])
                    self._board.changed.set()  # a pass that went on beside this may have been overtaken

    def _withdrawal(self, identity: Identity) -> Action | None:
        """Return what makes an object useless to whoever still has it; None where nothing need be done."""
        there = self._registry  # None: not known, and to delete what is not there is no error
        if there is not None and (identity.kind, identity.id) not in there:
            return None
        if identity.kind == "RelayKey" and self._is_gone(identity):
            return DeleteObject(identity.kind, identity.id)
        made = self._state.made.get(identity)
        if made is not None and made.item.serves and self._is_paused(identity):
            return PutObject(paused(made.item))
        return None

    # ------------------------------------------------------------------ one pass

    async def _one_pass(self) -> float:
        """Bring everything into force, or begin to; return seconds until the next pass is due anyway."""
        began_s = time.monotonic()
        registry, seeds = await self._present()
        loaded, editions = self._board.world.documents(), self._board.world.editions()
        desired = await asyncio.to_thread(
            plan, loaded, self._state, now=datetime.now(UTC), policy=self._policy, healings=self._board.healings,
            kept=self._kept,
        )
        self._state = desired.state
        actions = [action for action in diff(desired, registry, seeds) if self._still_holds(action, desired)]
        if not await self._act_until_changed(actions):
            return 0.0
        self._board.plan(desired, editions)  # after it is in force, for a status must not run ahead of the truth
        self._forget_refusals(desired.seed_versions())
        if actions:
            log.info("documents_in_force", actions=len(actions))
        self._failure = ""
        self._ready("")
        self._metrics.pass_s.set(time.monotonic() - began_s)
        if desired.next_change_at is None:
            return _IDLE_S
        return min(_IDLE_S, max(0.05, (desired.next_change_at - datetime.now(UTC)).total_seconds()))

    async def _present(self) -> tuple[dict[tuple[str, str], str], dict[str, str]]:
        """Return what the rooms have: as we left it, or as they say after they may have lost something.

        `relist` can come while they are asked; then the next pass asks again.
        """
        registry, seeds = self._registry, self._seeds
        if registry is None:
            listed = await self._rooms.list_objects(with_status=False)
            self._registry = registry = {(i.object.kind, i.object.id): i.object.revision for i in listed}
            for item in listed:
                identity = identity_in_registry(item.object.kind, item.object.id)
                if identity not in self._kept and self._is_refused(identity):
                    self._kept[identity] = read_back(item.object)
        if seeds is None:
            grants = await self._rooms.grants()
            self._seeds = seeds = {account: grant.seed_version for account, grant in grants.items()}
        return registry, seeds

    async def _act_until_changed(self, actions: list[Action]) -> bool:
        """Carry out actions, a slice at least; return whether all of them were."""
        refused: dict[str, str] = {}
        for start in range(0, len(actions), _SLICE):
            if start and self._board.changed.is_set():
                log.info("documents_changed_meanwhile", left=len(actions) - start)
                return False
            part = [a for a in actions[start : start + _SLICE] if not lacks_grant(a, refused)]
            refused |= await self._act(part)
        return True

    async def _act(self, actions: list[Action]) -> dict[str, str]:
        """Carry out actions and keep the books; return why grants were refused, by account.

        After a failure the rooms are asked what they have.
        """
        try:
            refused = await self._carrier.carry_out(actions, lambda: self._metrics.beat("documents"))
        except SignalboxError:
            self._registry = self._seeds = None
            raise
        for account, why in refused.items():
            log.warning("grant_refused", account=account, why=why)
        self._board.refuse(refused, [a.grant.account for a in actions if isinstance(a, PutGrant)])
        for action in actions:
            match action:
                case PutObject(item) if self._registry is not None and not lacks_grant(action, refused):
                    self._registry[item.kind, item.id] = item.revision
                case DeleteObject(kind, object_id) if self._registry is not None:
                    self._registry.pop((kind, object_id), None)
                case PutGrant(grant) if self._seeds is not None and grant.account not in refused:
                    self._seeds[grant.account] = grant.seed_version
                case DeleteGrant(account) if self._seeds is not None:
                    self._seeds.pop(account, None)
        return refused

    def _forget_refusals(self, wanted: Mapping[str, str]) -> None:
        """What is no longer to be put, or is what the token-refresher has, is not refused."""
        seeds = self._seeds or {}
        if settled := [a for a in self._board.refused if a not in wanted or seeds.get(a) == wanted[a]]:
            self._board.refuse({}, settled)

    def _still_holds(self, action: Action, desired: Desired) -> bool:
        """Whether an action is right by what has become known since the plan was begun.

        A deleted key must not come back, nor what is paused into service. The credential of an account that was refused
        before this operator started is known to the token-refresher alone.
        """
        match action:
            case PutObject(item) if item.kind in ("RelayKey", "ClaudeAccount"):
                identity = identity_in_registry(item.kind, item.id)
                if item.serves and self._is_paused(identity):
                    return False
                return item.kind != "RelayKey" or not self._is_gone(identity)
            case DeleteGrant(account):
                identity = identity_in_registry("ClaudeAccount", account)
                if identity not in self._kept or not self._is_refused(identity):
                    return True
                reasons = {o.ready.reason for o in desired.objects if (o.kind, o.id) == ("ClaudeAccount", account)}
                return not reasons or SECRET_NOT_FOUND in reasons
        return True

    def _is_gone(self, identity: Identity) -> bool:
        seen = self._board.world.get(identity)
        return seen is None or seen.deleting_since is not None

    def _is_paused(self, identity: Identity) -> bool:
        seen = self._board.world.get(identity)
        return seen is not None and seen.is_paused

    def _is_refused(self, identity: Identity) -> bool:
        seen = self._board.world.get(identity)
        return seen is not None and seen.document.resource is None and identity not in self._state.good

    def _note_failure(self, error: SignalboxError) -> None:
        if isinstance(error, Refused) and "newer writer" in error.message:
            raise Superseded from error
        if str(error) != self._failure:
            log.warning("documents_not_in_force", why=str(error))
        self._failure = str(error)
        self._ready(self._failure)
