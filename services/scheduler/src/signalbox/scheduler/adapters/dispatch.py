"""Carries out a gateway's batch: all that is ready goes to Redis at once, what needs another round goes again.

Decisions are made in domain/; this is the one place that pairs them with Redis's answers. Requests that wait for an
account leave their batch for the queue and are answered later.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from signalbox.core import logs
from signalbox.core.errors import Unavailable
from signalbox.scheduler.adapters.gate import Gate
from signalbox.scheduler.adapters.queue import Ended, Queue
from signalbox.scheduler.adapters.registry import Registry, peek_operation
from signalbox.scheduler.adapters.store import LostState, Operation, Store
from signalbox.scheduler.adapters.usage import UsageClient
from signalbox.scheduler.domain import denials
from signalbox.scheduler.domain.admission import Admission
from signalbox.scheduler.domain.keycheck import check_key
from signalbox.scheduler.domain.policies import KeyPolicy
from signalbox.scheduler.domain.settling import settlement
from signalbox.scheduler.domain.status import NOTHING, inspection
from signalbox.scheduler.domain.view import View
from signalbox.v1.scheduler_pb2 import (
    AdmitResponse,
    Denial,
    GatewayBatch,
    HeartbeatResponse,
    InspectRequest,
    LeaseBeat,
    Queued,
    RetryRequest,
    SchedulerBatch,
    SettleRequest,
)
from signalbox.v1.usage_pb2 import Fact

log = logs.logger(__name__)

Observe = Callable[[Sequence[AdmitResponse], float], None]
"""Told of decisions and how long each of them took, in seconds."""
Later = Callable[[SchedulerBatch], None]
"""Takes what is said after the batch's own answer."""
_Handler = Callable[[list[Any], int], None]


class Trace(Protocol):
    """One admission as it is traced. Never raises, never blocks."""

    def waits(self, pool_id: str, wait_ms: int) -> None:
        """Note that it begins to wait in a pool's queue, for `wait_ms` at most."""
        ...

    def decided(self, response: AdmitResponse | None) -> None:
        """Note the decision; None: there will be none, its caller is gone."""
        ...


class Traces(Protocol):
    """Where traces go, if an operator wants them."""

    def begin(self, batch: GatewayBatch) -> Mapping[int, Trace]:
        """Begin what is traced of a batch; return it by seq."""
        ...


_UNTRACED: Mapping[int, Trace] = {}


class Dispatcher:
    """Turns batches of requests into batches of answers."""

    def __init__(
        self, store: Store, view: View, registry: Registry, *, usage: UsageClient, gate: Gate, observe: Observe,
        waited: Ended, traces: Traces | None = None,
    ) -> None:
        self._store = store
        self._view = view
        self._registry = registry
        self._usage = usage
        self._gate = gate
        self._observe = observe
        self._traces = traces
        self.queue = Queue(store, gate, self._carry_out_waiting, waited, view.snapshot.may_use)

    async def run(
        self, batch: GatewayBatch, later: Later, owner: object,
    ) -> tuple[SchedulerBatch, list[SettleRequest]]:
        """Answer a batch. Also return the settles that could not be applied yet and are therefore not answered.

        Admissions that have to wait are only told of as such; their answers go to `later`, unless `owner` drops them.
        """
        for cancel in batch.cancels[:]:
            self.queue.cancel(cancel.request_id)
        began_s = time.monotonic()
        traced = self._traces.begin(batch) if self._traces is not None else _UNTRACED
        work = _Work(self._view, self._store.now_ms(), batch)
        try:
            await self._carry_out(work)
        except Unavailable as e:
            self._gate.close(str(e))
        except LostState:
            self._gate.close("Redis lost its state; counters are being rebuilt")
        work.give_up()
        took_s = time.monotonic() - began_s
        for admission in work.admissions:
            if admission.wait is not None:
                self._let_wait(admission, work.answer, later, owner, traced.get(admission.seq))
        if decided := [a.response for a in work.admissions if a.response is not None]:
            self._observe(decided, took_s)
        if traced:
            for response in work.answer.admits:
                if (trace := traced.get(response.seq)) is not None:
                    trace.decided(response)
        self._remember_first_uses(work.admissions)
        return work.answer, work.unsettled

    def _let_wait(
        self, admission: Admission, told: SchedulerBatch, later: Later, owner: object, trace: Trace | None,
    ) -> None:
        def reply(response: AdmitResponse | None, took_s: float) -> None:
            if trace is not None:
                trace.decided(response)
            if response is None:
                return
            self._observe([response], took_s)
            self._remember_first_uses([admission])
            later(SchedulerBatch(admits=[response]))

        assert admission.wait is not None
        admission.respond = AdmitResponse    # this answer is given without it
        wait_ms = max(1, admission.wait.until_ms - self._store.now_ms())
        if trace is not None:
            trace.waits(admission.wait.pool.id, wait_ms)
        told.queued.append(Queued(seq=admission.seq, wait_ms=wait_ms))
        self.queue.add(admission, reply, owner)

    async def _carry_out_waiting(self, admissions: Sequence[Admission]) -> None:
        """Try requests that wait. Raises Unavailable, LostState."""
        work = _Work(self._view, self._store.now_ms(), GatewayBatch(), admissions)
        work.plan_again()
        await self._repeat(work)

    async def _carry_out(self, work: "_Work") -> None:
        work.plan(open_=self._gate.is_open)
        await self._repeat(work)

    async def _repeat(self, work: "_Work") -> None:
        while work.operations:
            answers = await self._store.run(work.operations)
            work.take(answers)
            if any(a.stale for a in work.admissions):
                await self._registry.refresh()
                now_ms = self._store.now_ms()
                for admission in work.admissions:
                    if admission.stale:
                        admission.replan(now_ms)
            work.plan_again()

    def _remember_first_uses(self, admissions: Sequence[Admission]) -> None:
        facts = [
            Fact(kind=Fact.FIRST_USE, key_id=a.response.grant.key_id, at_ms=a.remember_first_use_ms)
            for a in admissions if a.remember_first_use_ms and a.response is not None
        ]
        if facts:
            self._usage.remember(facts)


class _Work:
    """One batch on its way: operations for the next round, and who takes which answer."""

    def __init__(
        self, view: View, now_ms: int, batch: GatewayBatch, waiting: Sequence[Admission] = (),
    ) -> None:
        self._view = view
        self._now_ms = now_ms
        self._batch = batch
        self._handlers: list[_Handler] = []
        self.operations: list[Operation] = []
        self.answer = SchedulerBatch()
        self.admissions = list(waiting)
        self.unsettled: list[SettleRequest] = []
        self._inspects: dict[int, tuple[InspectRequest, KeyPolicy | None, Denial | None]] = {}

    def plan(self, *, open_: bool) -> None:
        """Prepare the first round. While the gate is closed only heartbeats go to Redis."""
        # Fields are copied to be gone through: a loop over one itself ends with an exception, 2 us each time.
        for heartbeat in self._batch.heartbeats[:]:
            response = self.answer.heartbeats.add(seq=heartbeat.seq)
            for beat in heartbeat.leases[:]:
                self._plan_beat(beat, response)
        settles, retries, admits = self._batch.settles[:], self._batch.retries[:], self._batch.admits[:]
        self.unsettled = settles.copy()
        if not open_:
            self.unsettled += [r.failed for r in retries]
            for seq in [r.seq for r in admits] + [r.seq for r in retries]:
                self._refuse(seq)
            return
        for settle in settles:
            self._plan_settle(settle)
        for retry in retries:
            self._plan_retry(retry)
        respond = self.answer.admits.add
        for request in admits:
            self.admissions.append(Admission.first(self._view, request, self._now_ms, respond))
        self._plan_admissions(self.admissions)
        for inspect in self._batch.inspects[:]:
            self._plan_inspect(inspect)

    def plan_again(self) -> None:
        """Prepare the next round: admissions that are not decided yet."""
        self.operations, self._handlers = [], []
        self._plan_admissions([a for a in self.admissions if a.operation is not None])

    def take(self, answers: list[Any]) -> None:
        """Hand each answer to whoever asked."""
        now_ms = answers[0]
        for handler, answer in zip(self._handlers, answers[1:], strict=True):
            if answer and answer[0] == b"error":
                log.error("redis_function_failed", why=answer[1].decode())
            handler(answer, now_ms)

    def give_up(self) -> None:
        """Answer all that has no answer yet: the scheduler cannot decide now."""
        for admission in self.admissions:
            if admission.response is None and admission.wait is None:
                admission.give_up()
        if len(self.answer.inspects) == len(self._batch.inspects):
            return
        answered = {r.seq for r in self.answer.inspects}
        for inspect in self._batch.inspects:
            if inspect.seq not in answered:
                key, _ = check_key(self._view, inspect, self._now_ms)
                self.answer.inspects.append(
                    inspection(self._view, inspect, key, denials.unavailable(), peek=NOTHING, now_ms=self._now_ms),
                )

    def _refuse(self, seq: int) -> None:
        """Refuse what nothing was decided about."""
        self.answer.admits.add(seq=seq, denial=denials.unavailable())

    def _add(self, operation: Any, first: bytes, second: bytes, handler: _Handler) -> None:
        self.operations.append((operation, first, second))
        self._handlers.append(handler)

    def _plan_admissions(self, admissions: Sequence[Admission]) -> None:
        for admission in admissions:
            if admission.operation is None:
                continue
            if admission.token:
                self._add(admission.operation, admission.token, admission.blob, admission.receive)
            else:
                self._add(admission.operation, admission.blob, b"", admission.receive)

    def _plan_settle(self, request: SettleRequest) -> None:
        try:
            operation = settlement(self._view, request)
        except ValueError:
            log.warning("lease_token_unreadable", lease_id=request.lease_id)
            self.answer.settles.add(seq=request.seq)
            self.unsettled.remove(request)
            return

        def settled(answer: list[Any], _: int) -> None:
            if answer[0] == b"settled":
                self._view.set_running(answer[1].decode(), answer[2])
            if answer[0] != b"closed":
                self.answer.settles.add(seq=request.seq)
                self.unsettled.remove(request)

        self._add(operation, request.lease_token, b"", settled)

    def _plan_retry(self, request: RetryRequest) -> None:
        try:
            failed = settlement(self._view, request.failed)
            admission = Admission.following(self._view, request, failed, self._now_ms, self.answer.admits.add)
        except ValueError:
            log.warning("lease_token_unreadable", lease_id=request.failed.lease_id)
            self._refuse(request.seq)
            return
        self.admissions.append(admission)

    def _plan_beat(self, beat: LeaseBeat, response: HeartbeatResponse) -> None:
        token = beat.lease_token
        progress = b""
        if beat.HasField("usage") or beat.output_tokens:
            progress = LeaseBeat(
                usage=beat.usage if beat.HasField("usage") else None, output_tokens=beat.output_tokens,
                served_model=beat.served_model,
            ).SerializeToString()

        def renewed(answer: list[Any], _: int) -> None:
            if answer[0] == b"gone":
                response.lost.append(beat.lease_id)

        self._add({"op": "beat", "id": beat.lease_id}, token, progress, renewed)

    def _plan_inspect(self, request: InspectRequest) -> None:
        key, denial = check_key(self._view, request, self._now_ms)
        if key is None or not (request.with_limits or key.lifetime_ms):
            self.answer.inspects.append(inspection(self._view, request, key, denial, peek=NOTHING, now_ms=self._now_ms))
            return

        def peeked(answer: list[Any], now_ms: int) -> None:
            if answer[0] != b"error":
                self.answer.inspects.append(inspection(self._view, request, key, denial, peek=answer, now_ms=now_ms))

        self._add(peek_operation(key.id, key.limits), b"", b"", peeked)
