"""The gateway's session with a scheduler: what is ready in one loop tick travels as one batch, both ways.

All calls are idempotent under their ids, so what was asked on a session that broke is asked again on the next one,
until its time is up. With several schedulers a session moves to another when one drains or dies. Where a request waits
for an account the scheduler says so; it is asked again elsewhere with what is left of its time.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from signalbox.core import logs
from signalbox.core.embedding import embedded
from signalbox.core.grpc_stream import Endpoint, Stream
from signalbox.gateway.domain.ports import OpenLease, SchedulerUnavailable
from signalbox.gateway.domain.records import unsent
from signalbox.v1 import scheduler_pb2 as pb
from signalbox.v1.common_pb2 import OUTCOME_UPSTREAM_ERROR

log = logs.logger(__name__)

HEARTBEAT_EVERY_S = 8.0
CONNECT_WAIT_S = 5.0
ANSWER_WAIT_S = 5.0
RECONNECT_FIRST_S = 0.05
RECONNECT_MOST_S = 1.0
SWEEP_EVERY_S = 0.25
STOOD_STILL_S = 0.5    # a sweep that comes so late says that this process was busy, not that a scheduler was silent
# A scheduler that has been asked and says nothing is asked for a sign of life, then left for another.
PROBE_AFTER_S = 1.0
# While a batch is unanswered the next one gathers, but no longer than this.
GATHER_S = 0.01
SILENT_LIMIT_S = 3.0
SETTLE_LINGER_S = 0.025    # nobody waits for a settle: it goes with, and before, the next question, or after this time

Request = TypeVar("Request", pb.InspectRequest, pb.AdmitRequest, pb.RetryRequest)
Response = TypeVar("Response", pb.InspectResponse, pb.AdmitResponse)

# What waits to be written together, by the fields of a GatewayBatch.
_Batch = defaultdict[int, list[Message]]
_INSPECTS = pb.GatewayBatch.INSPECTS_FIELD_NUMBER
_ADMITS = pb.GatewayBatch.ADMITS_FIELD_NUMBER
_RETRIES = pb.GatewayBatch.RETRIES_FIELD_NUMBER
_SETTLES = pb.GatewayBatch.SETTLES_FIELD_NUMBER
_HEARTBEATS = pb.GatewayBatch.HEARTBEATS_FIELD_NUMBER
_JOURNAL_DELIVERED = pb.GatewayBatch.JOURNAL_DELIVERED_FIELD_NUMBER
_CANCELS = pb.GatewayBatch.CANCELS_FIELD_NUMBER

_METHOD: Final = f"/{pb.DESCRIPTOR.services_by_name['Scheduler'].full_name}/Session"


@dataclass(slots=True)
class _Asked(Generic[Request, Response]):
    request: Request
    answer: asyncio.Future[Response]
    give_up_s: float
    may_be_taken: bool                  # a scheduler may have heard of it
    waits_until_s: float | None = None  # for an account, as the scheduler said


class SchedulerSession:
    """Implements ports.Scheduler over Session streams. `deliver_journal` empties the journal when a scheduler asks."""

    def __init__(
        self, schedulers: Sequence[Endpoint], gateway_id: str, deliver_journal: Callable[[], Awaitable[bool]],
    ) -> None:
        self._schedulers = random.sample(schedulers, len(schedulers))
        self._gateway_id = gateway_id
        self._deliver_journal = deliver_journal
        self._seqs = count(1)
        self._batch = _Batch(list)
        self._flushing = False
        self._lingering = False
        self._inspects: dict[int, _Asked[pb.InspectRequest, pb.InspectResponse]] = {}
        self._admits: dict[int, _Asked[pb.AdmitRequest, pb.AdmitResponse]] = {}
        self._retries: dict[int, _Asked[pb.RetryRequest, pb.AdmitResponse]] = {}
        self._settles: dict[str, pb.SettleRequest] = {}
        self._settling: dict[int, str] = {}
        self._leases: dict[str, OpenLease] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._stream: Stream | None = None
        self._hurry: asyncio.TimerHandle | None = None
        self._unanswered = False           # a batch was written and nothing was heard since
        self._spoke_s: float | None = None  # when something was first said since the scheduler was last heard
        self.connected = False

    def start(self) -> None:
        """Begin to keep a session open."""
        for work in (self._keep_connected(), self._heartbeat(), self._sweep()):
            self._spawn(work)

    async def close(self, limit_s: float) -> None:
        """Wait until every settle is acknowledged, at most `limit_s` seconds, then end the session."""
        end_s = self._loop.time() + limit_s
        while self._settles and self._loop.time() < end_s:  # noqa: ASYNC110 - a poll at shutdown only
            await asyncio.sleep(0.02)
        if self._settles:
            log.warning("settles_not_acknowledged", count=len(self._settles))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------------ ports.Scheduler

    def inspect(self, request: pb.InspectRequest) -> Awaitable[pb.InspectResponse]:
        """Ask for a key's state. Raises SchedulerUnavailable."""
        return self._ask(self._inspects, _INSPECTS, request)

    def admit(self, request: pb.AdmitRequest) -> Awaitable[pb.AdmitResponse]:
        """Ask for an account. Raises SchedulerUnavailable."""
        request.gateway_id = self._gateway_id
        return self._ask(self._admits, _ADMITS, request)

    def retry(self, request: pb.RetryRequest) -> Awaitable[pb.AdmitResponse]:
        """End a failed attempt and ask for another account. Raises SchedulerUnavailable."""
        self._leases.pop(request.failed.lease_id, None)
        return self._ask(self._retries, _RETRIES, request)

    def settle(self, request: pb.SettleRequest) -> None:
        """Hand in the end of a lease; kept until acknowledged."""
        lease_id = request.lease_id
        self._leases.pop(lease_id, None)
        self._settles[lease_id] = request
        self._send_settle(lease_id, request)

    def track(self, lease: OpenLease) -> None:
        """Renew the lease until it is settled or retried."""
        self._leases[lease.lease_id] = lease

    # ------------------------------------------------------------------ asking

    def _give_up_s(self) -> float:
        return self._loop.time() + (ANSWER_WAIT_S if self.connected else CONNECT_WAIT_S)

    def _ask(
        self, pending: dict[int, _Asked[Request, Response]], field: int, request: Request,
    ) -> Awaitable[Response]:
        request.seq = seq = next(self._seqs)
        answer: asyncio.Future[Response] = self._loop.create_future()
        pending[seq] = _Asked(request, answer, self._give_up_s(), may_be_taken=self.connected)
        self._batch[field].append(request)
        self._want()
        return answer

    def _send_settle(self, lease_id: str, request: pb.SettleRequest) -> None:
        request.seq = seq = next(self._seqs)
        self._settling[seq] = lease_id
        self._batch[_SETTLES].append(request)
        if not self._lingering:
            self._lingering = True
            self._loop.call_later(SETTLE_LINGER_S, self._end_linger)

    def _end_linger(self) -> None:
        self._lingering = False
        if _SETTLES in self._batch:
            self._want()

    def _send_heartbeats(self) -> None:
        if not self._leases:
            return
        beats = [
            pb.LeaseBeat(
                lease_id=lease.lease_id, lease_token=lease.lease_token, usage=lease.usage,
                output_tokens=lease.output_tokens, served_model=lease.served_model,
            )
            for lease in self._leases.values()
        ]
        self._batch[_HEARTBEATS].append(
            pb.HeartbeatRequest(seq=next(self._seqs), gateway_id=self._gateway_id, leases=beats),
        )
        self._want()

    # ------------------------------------------------------------------ the stream

    async def _keep_connected(self) -> None:
        pause_s = RECONNECT_FIRST_S
        while True:
            scheduler = self._schedulers[0]
            self._schedulers.append(self._schedulers.pop(0))
            try:
                async with asyncio.timeout(CONNECT_WAIT_S):
                    stream = await scheduler.open(_METHOD, self._hear)
            except (OSError, TimeoutError) as e:
                log.info("scheduler_session_lost", why=str(e) or type(e).__name__)
            else:
                if await self._serve_session(stream):
                    pause_s = RECONNECT_FIRST_S
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RECONNECT_MOST_S)

    async def _serve_session(self, stream: Stream) -> bool:
        """Run one session until it ends; return whether the scheduler had answered at all."""
        self._stream, self._spoke_s = stream, self._loop.time()
        stream.send(pb.GatewayBatch(hello=pb.Hello(gateway_id=self._gateway_id, protocol="v1")).SerializeToString())
        try:
            log.info("scheduler_session_lost", why=await stream.ended)
            return self.connected
        finally:
            self.connected = False
            self._hurry_waiting()
            self._stream = self._spoke_s = None
            stream.close()

    def _begin_session(self) -> None:
        """Ask again what the last session left unanswered."""
        self.connected = True
        self._unanswered = False
        self._hurry_waiting()
        self._batch = _Batch(list, {
            _INSPECTS: [asked.request for asked in self._inspects.values()],
            _ADMITS: [asked.request for asked in self._admits.values()],
            _RETRIES: [asked.request for asked in self._retries.values()],
        })
        self._settling.clear()
        asked_again: list[_Asked[Any, Any]] = [*self._admits.values(), *self._retries.values()]
        for asked in asked_again:
            asked.may_be_taken = True
        if self._inspects or asked_again:
            self._want()
        for lease_id, settle in self._settles.items():
            self._send_settle(lease_id, settle)
        self._send_heartbeats()

    def _want(self) -> None:
        """Write what waits once this turn of the event loop has added all that it will."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if not self.connected:
            return  # the next session begins with all that is unanswered
        if not self._unanswered:
            self._write()
        elif self._hurry is None:
            self._hurry = self._loop.call_later(GATHER_S, self._write)

    def _write(self) -> None:
        if self._hurry is not None:
            self._hurry.cancel()
            self._hurry = None
        if self._stream is None or not self.connected:
            return
        batch, self._batch = self._batch, _Batch(list)
        self._unanswered = True
        if self._spoke_s is None:
            self._spoke_s = self._loop.time()
        self._stream.send(_serialized(batch))

    def _hear(self, message: bytes) -> None:
        """Take one batch of answers."""
        assert self._stream is not None
        try:
            batch = pb.SchedulerBatch.FromString(message)
        except DecodeError:
            self._stream.close("the scheduler's batch is unreadable")
            return
        self._spoke_s = None
        self._unanswered = False
        if not self.connected:
            self._begin_session()
        self._receive(batch)
        if batch.draining:
            self._stream.close("the scheduler is draining")
        elif self._hurry is not None:
            self._hurry.cancel()
            self._hurry = None
            self._want()

    def _receive(self, batch: pb.SchedulerBatch) -> None:
        # Copies, as a loop over a field itself ends in an IndexError that the library writes a text for.
        for admitted in batch.admits[:]:
            asked = self._admits.pop(admitted.seq, None) or self._retries.pop(admitted.seq, None)
            if asked is not None and not asked.answer.done():
                asked.answer.set_result(admitted)
            elif admitted.HasField("grant"):
                self._give_back(admitted.grant)
        for queued in batch.queued[:]:
            self._told_waiting(queued)
        for settled in batch.settles[:]:
            lease_id = self._settling.pop(settled.seq, None)
            if lease_id is not None:
                self._settles.pop(lease_id, None)
        for inspected in batch.inspects[:]:
            looked = self._inspects.pop(inspected.seq, None)
            if looked is not None and not looked.answer.done():
                looked.answer.set_result(inspected)
        for beat in batch.heartbeats[:]:
            for lease_id in beat.lost:
                log.warning("lease_lost", lease_id=lease_id)
        if batch.HasField("deliver_journal"):
            self._spawn(self._answer_deliver_journal(batch.deliver_journal.epoch))

    def _told_waiting(self, queued: pb.Queued) -> None:
        """Be patient with a request that waits for an account, and tell of its caller's hanging up."""
        asked: _Asked[Any, Any] | None = self._admits.get(queued.seq) or self._retries.get(queued.seq)
        if asked is None:
            return
        asked.waits_until_s = self._loop.time() + queued.wait_ms / 1000
        asked.give_up_s = asked.waits_until_s + ANSWER_WAIT_S
        asked.answer.add_done_callback(lambda _: self._waited(asked))

    def _waited(self, asked: "_Asked[Any, Any]") -> None:
        if not asked.answer.cancelled():
            return
        request = asked.request
        self._admits.pop(request.seq, None)
        self._retries.pop(request.seq, None)
        self._batch[_CANCELS].append(pb.Cancel(request_id=_request_id(request)))
        self._want()

    def _hurry_waiting(self) -> None:
        """A session ended or began: those that wait are asked for again, with what is left of their time."""
        now_s = self._loop.time()
        waiting: list[_Asked[Any, Any]] = [*self._admits.values(), *self._retries.values()]
        for asked in waiting:
            if asked.waits_until_s is not None:
                asked.request.deadline_ms = max(1, int((asked.waits_until_s - now_s) * 1000))
                asked.give_up_s = self._give_up_s()

    def _give_back(self, grant: pb.Grant) -> None:
        """Settle a lease that came too late for its request."""
        self.settle(unsent(grant))

    def _forgo(self, lease_id: str) -> None:
        """Give back what may have been granted without our hearing of it: the answer, or its scheduler, is lost."""
        self.settle(pb.SettleRequest(lease_id=lease_id, outcome=OUTCOME_UPSTREAM_ERROR, unused=True))

    async def _answer_deliver_journal(self, epoch: str) -> None:
        if not await self._deliver_journal():
            return
        self._send_heartbeats()
        self._batch[_JOURNAL_DELIVERED] = [pb.JournalDelivered(epoch=epoch)]
        self._want()

    # ------------------------------------------------------------------ in the background

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_EVERY_S)
            if self.connected:
                self._send_heartbeats()

    async def _sweep(self) -> None:
        """Give up what was not answered in time."""
        stood_still = False
        while True:
            due_s = self._loop.time() + SWEEP_EVERY_S
            await asyncio.sleep(SWEEP_EVERY_S)
            now_s = self._loop.time()
            stood_still = now_s - due_s > STOOD_STILL_S and not stood_still
            if stood_still:
                continue    # the answers may be here, unread: they come first
            _give_up(self._inspects, now_s)
            for admit in _give_up(self._admits, now_s):
                self._forgo(f"{admit.request_id}.1")
            for retry in _give_up(self._retries, now_s):
                request_id, _, attempt = retry.failed.lease_id.rpartition(".")
                self._forgo(f"{request_id}.{int(attempt) + 1}")
            self._watch_silence(now_s)

    def _watch_silence(self, now_s: float) -> None:
        """Notice a scheduler that hangs without dying; every batch but a late one is answered at once."""
        silent_s = now_s - self._spoke_s if self._spoke_s is not None else 0.0
        if silent_s > SILENT_LIMIT_S and self._stream is not None:
            self._stream.close("the scheduler was silent")
        elif silent_s > PROBE_AFTER_S and self.connected:
            self._batch[_HEARTBEATS].append(pb.HeartbeatRequest(seq=next(self._seqs), gateway_id=self._gateway_id))
            self._want()

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _serialized(batch: _Batch) -> bytes:
    """Return the GatewayBatch."""
    return b"".join([embedded(field, [m.SerializeToString() for m in messages]) for field, messages in batch.items()])


def _request_id(request: pb.AdmitRequest | pb.RetryRequest) -> str:
    if isinstance(request, pb.AdmitRequest):
        return request.request_id
    return request.failed.lease_id.rpartition(".")[0]


def _give_up(pending: dict[int, _Asked[Request, Response]], now_s: float) -> list[Request]:
    """Forget what nobody waits for any more; return what a scheduler may have taken all the same."""
    late = [seq for seq, asked in pending.items() if asked.answer.done() or asked.give_up_s < now_s]
    taken = []
    for seq in late:
        asked = pending.pop(seq)
        if not asked.answer.done():
            asked.answer.set_exception(SchedulerUnavailable("no scheduler answered in time"))
        if asked.may_be_taken:
            taken.append(asked.request)
    return taken
