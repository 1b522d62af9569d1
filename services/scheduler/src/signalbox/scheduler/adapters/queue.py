"""The requests that wait for an account: kept here, not in a batch, and tried again when there is news for them.

News are accounts with room (from settles here and elsewhere, over Redis), changed health or documents, and the
time at which a rest ends. Whose turn it is says domain/waiting.py, what a request waits for domain/patience.py.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from signalbox.core.errors import Unavailable
from signalbox.scheduler.adapters.gate import Gate
from signalbox.scheduler.adapters.store import LostState, Operation, Store
from signalbox.scheduler.domain.admission import Admission
from signalbox.scheduler.domain.operations import Enqueue, Leave, Settle
from signalbox.scheduler.domain.patience import BEHIND_MS, Wait
from signalbox.scheduler.domain.vacancies import GRACE_MS, MayUse, Vacancies
from signalbox.scheduler.domain.waiting import WaitingRoom
from signalbox.v1.scheduler_pb2 import AdmitResponse

CarryOut = Callable[[Sequence[Admission]], Awaitable[None]]
Reply = Callable[[AdmitResponse | None, float], None]
"""Takes the decision and how long it took, in seconds; None: there is none, nobody waits any more."""
Ended = Callable[[str, float], None]
"""Told how a wait ended (granted, denied, cancelled) and how long it was, in seconds."""

_PAGE = 64
_PAUSE_MS = 1000
_PAUSE_MS_EACH = 10     # where very many wait each is looked at less often, so that looking stays cheap
_CLOSED_PAUSE_S = 0.05


@dataclass(slots=True, eq=False)
class _Waiter:
    id: str
    key_id: str
    lanes: tuple[str, ...]
    admission: Admission
    wait: Wait
    reply: Reply
    owner: object
    since_ms: int
    until_ms: int
    is_cancelled: bool = False

    def could_use(self, account_id: str) -> bool:
        return self.admission.could_use(account_id)


class Queue:
    """All that wait in this scheduler. `carry_out` runs the operations of admissions until each answers or waits."""

    def __init__(
        self, store: Store, gate: Gate, carry_out: CarryOut, ended: Ended, may_use: MayUse,
    ) -> None:
        self._store = store
        self._gate = gate
        self._carry_out = carry_out
        self._ended = ended
        self._room: WaitingRoom[_Waiter] = WaitingRoom()
        self._to_tell: list[Operation] = []
        self._newcomers: list[_Waiter] = []
        self._vacancies: Vacancies[_Waiter] = Vacancies(may_use)
        self._news = asyncio.Event()
        self._epoch = ""
        self.depths: Counter[str] = Counter()
        """How many wait, by pool."""

    # ------------------------------------------------------------------ who waits

    def add(self, admission: Admission, reply: Reply, owner: object) -> None:
        """Keep a request that waits; whoever asked last under one id is answered. `owner` may `drop` it."""
        wait = admission.wait
        assert wait is not None
        if (known := self._room.get(admission.id)) is not None:
            self._remove(known)
        now_ms = self._store.now_ms()
        waiter = _Waiter(
            admission.id, admission.key_id, wait.lanes, admission, wait, reply, owner, now_ms, wait.until_ms,
        )
        self.depths[wait.pool.id] += 1
        # Room that was made before anybody was told of the waiting is found by looking once more. Where others wait
        # already it is theirs first.
        if self._room.enter(waiter, now_ms):
            self._room.look_again(waiter, min(now_ms + BEHIND_MS, waiter.until_ms))
        self._newcomers.append(waiter)
        self._news.set()

    def cancel(self, request_id: str) -> None:
        """Forget a request whose caller is gone; the slot that its failed attempt kept is free."""
        for waiter in [w for w in self._room.in_turn() if w.admission.request.request_id == request_id]:
            waiter.is_cancelled = True
            self._end(waiter, "cancelled", held=waiter.admission.held)
            waiter.reply(None, self._waited_s(waiter))

    def drop(self, owner: object) -> None:
        """Forget all that nobody can be told about any more; a gateway asks again elsewhere."""
        for waiter in [w for w in self._room.in_turn() if w.owner is owner]:
            self._end(waiter, "cancelled")
            waiter.reply(None, self._waited_s(waiter))

    def _end(self, waiter: _Waiter, outcome: str, held: str = "") -> None:
        self._remove(waiter, held)
        self._ended(outcome, self._waited_s(waiter))

    def _waited_s(self, waiter: _Waiter) -> float:
        return (self._store.now_ms() - waiter.since_ms) / 1000

    def _remove(self, waiter: _Waiter, held: str = "") -> None:
        self._room.leave(waiter.id)
        self.depths[waiter.wait.pool.id] -= 1
        self._to_tell.append((Leave(waiter.id, waiter.key_id, waiter.wait.pool.id, waiter.lanes, held), b"", b""))
        self._news.set()

    def _answer(self, waiter: _Waiter) -> None:
        response = waiter.admission.response
        assert response is not None
        self._room.served(waiter)
        self._end(waiter, "granted" if response.HasField("grant") else "denied")
        waiter.reply(response, self._waited_s(waiter))

    # ------------------------------------------------------------------ news

    def freed(self, account_id: str, line: Sequence[str]) -> None:
        """An account has room for a request; `line`: the keys whose turn it is, in order."""
        if len(self._room):
            self._vacancies.add(account_id, line)
            self._news.set()

    def seen_free(self, account_id: str) -> None:
        """An account has fewer requests than before: whoever was told of its room, and is alive, goes first."""
        if len(self._room):
            self._vacancies.add(account_id, not_before_ms=self._store.now_ms() + GRACE_MS)
            self._news.set()

    def stir(self) -> None:
        """Anything may have changed."""
        if len(self._room):
            self._room.all_due(self._store.now_ms())
            self._news.set()

    # ------------------------------------------------------------------ moving

    async def keep_moving(self) -> None:
        """Serve those that wait, for ever."""
        while True:
            await self._sleep()
            if not self._gate.is_open:
                self._refuse_late()
                await asyncio.sleep(_CLOSED_PAUSE_S)
                continue
            try:
                await self._move()
            except Unavailable as e:
                self._gate.close(str(e))
            except LostState:
                self._gate.close("Redis lost its state; counters are being rebuilt")

    async def _sleep(self) -> None:
        due_ms = min(filter(None, (self._room.next_due_ms(), self._vacancies.next_due_ms())), default=0)
        if not due_ms:
            await self._news.wait()
        elif (pause_ms := due_ms - self._store.now_ms()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_ms / 1000):
                    await self._news.wait()
        self._news.clear()

    def _refuse_late(self) -> None:
        """While nothing can be decided, refuse those whose time is over."""
        now_ms = self._store.now_ms()
        for waiter in [w for w in self._room.in_turn() if w.until_ms <= now_ms]:
            waiter.admission.give_up()
            self._answer(waiter)

    async def _move(self) -> None:
        if self._epoch != self._store.epoch:  # the shared queues began anew
            self._epoch = self._store.epoch
            self._newcomers = list(self._room.in_turn())
            self.stir()
        await self._tell_redis()
        while (woken := self._pick()):
            await self._try(woken)
        await self._tell_redis()

    async def _tell_redis(self) -> None:
        """Enter newcomers into the shared queues and take out those that left."""
        left, self._to_tell = self._to_tell, []
        newcomers = [w for w in self._newcomers if self._room.get(w.id) is w]
        self._newcomers = []
        operations = left + [(_enqueue(w), b"", b"") for w in newcomers]
        if not operations:
            return
        answers = await self._store.run(operations)
        for waiter, answer in zip(newcomers, answers[1 + len(left) :], strict=True):
            if answer[0] == b"crowded":
                waiter.until_ms = self._store.now_ms()
                self._room.look_again(waiter, waiter.until_ms)

    def _pick(self) -> list[tuple[_Waiter, str]]:
        """Return who is tried now, in turn, and which account each is to take ("" for no particular one)."""
        now_ms = self._store.now_ms()
        picked = self._vacancies.assign(self._room, now_ms, _PAGE)
        due = self._room.take_due(now_ms).difference([w.id for w, _ in picked])
        for waiter in self._room.in_turn() if due else ():
            if len(picked) == _PAGE:
                break
            if waiter.id in due:
                due.discard(waiter.id)
                picked.append((waiter, ""))
        for request in due:
            if (waiting := self._room.get(request)) is not None:
                self._room.look_again(waiting, 0)
        return picked

    async def _try(self, woken: list[tuple[_Waiter, str]]) -> None:
        now_ms = self._store.now_ms()
        for waiter, account in woken:
            if waiter.until_ms <= now_ms:
                waiter.admission.lose_patience(now_ms)
            else:
                waiter.admission.try_again(now_ms, account)
        try:
            await self._carry_out([w.admission for w, _ in woken])
        except (Unavailable, LostState):
            for waiter, _ in woken:
                if self._room.get(waiter.id) is waiter:
                    self._room.look_again(waiter, self._store.now_ms())
            raise
        for waiter, account in woken:
            response = waiter.admission.response
            if self._room.get(waiter.id) is not waiter:
                self._give_back(waiter)
            elif response is None:
                self._wait_on(waiter)
            else:
                if account and response.grant.account_id != account:
                    self._vacancies.add(account)  # the room that it was woken for is still there
                self._answer(waiter)

    def _wait_on(self, waiter: _Waiter) -> None:
        wait = waiter.admission.wait
        assert wait is not None
        if (wait.pool.id, wait.lanes) != (waiter.wait.pool.id, waiter.lanes):  # it waits for something else now
            self.add(waiter.admission, waiter.reply, waiter.owner)
            return
        now_ms = self._store.now_ms()
        pause_ms = max(_PAUSE_MS, _PAUSE_MS_EACH * len(self._room))
        self._room.look_again(waiter, max(now_ms + 1, min(wait.wake_ms, now_ms + pause_ms, waiter.until_ms)))

    def _give_back(self, waiter: _Waiter) -> None:
        """Undo what was granted while the caller hung up. One whose gateway left will be asked for elsewhere."""
        response = waiter.admission.response
        if waiter.is_cancelled and response is not None and response.HasField("grant"):
            settle = Settle(id=response.grant.lease_id, unused=1)
            self._to_tell.append((settle, response.grant.lease_token, b""))
            self._news.set()


def _enqueue(waiter: _Waiter) -> Enqueue:
    pool = waiter.wait.pool
    return Enqueue(waiter.id, waiter.key_id, pool.id, waiter.lanes, pool.max_depth, waiter.until_ms)
