"""Carries one attempt out: moves bytes between a provider's connection and the caller's, as the machine says.

Callbacks only; nothing here awaits, so that a byte never waits for bookkeeping. Content that needs no decision takes
the short way from the connection to the caller (upstream.Connection.pass_on) and does not come by here.
"""

import asyncio
from collections.abc import Callable

from signalbox.gateway.adapters.upstream import Connection
from signalbox.gateway.api.answers import begin_providers
from signalbox.gateway.api.exchange import Exchange
from signalbox.gateway.domain import records
from signalbox.gateway.domain.attempt import Attempt
from signalbox.gateway.domain.buffers import Buffers
from signalbox.gateway.domain.events import Ending, Finish, Lost, ResponseHead, Step
from signalbox.gateway.domain.order import Order
from signalbox.gateway.domain.ports import Journal, OpenLease
from signalbox.gateway.domain.refusal import Refusal
from signalbox.gateway.domain.usage import token_usage
from signalbox.v1.usage_pb2 import AttemptEvent
from signalbox.wire.sse import StreamReader

_UNKNOWN_S = 0.0    # a time limit that has passed: the next tick asks the attempt. Most end before there is one

class Driver:
    """Implements upstream.Receiver for one attempt. `done` is resolved when the attempt has ended."""

    __slots__ = (
        "_attempt", "_buffers", "_connection", "_counted", "_due_s", "_event", "_exchange", "_journal", "_lease",
        "_order", "_record", "done", "loop",
    )

    def __init__(
        self, attempt: Attempt, *, exchange: Exchange, order: Order, event: AttemptEvent, lease: OpenLease,
        journal: Journal, buffers: Buffers, loop: asyncio.AbstractEventLoop, record: Callable[[Ending], object],
    ) -> None:
        """`record` is called with the outcome before the caller gets what makes the answer whole, and at its end."""
        self.loop = loop
        self.done: asyncio.Future[None] = self.loop.create_future()
        self._attempt = attempt
        self._exchange = exchange
        self._order = order
        self._event = event
        self._lease = lease
        self._journal = journal
        self._buffers = buffers
        self._record = record
        self._counted = 0
        self._connection: Connection | None = None
        self._due_s = _UNKNOWN_S

    def start(self, connection: Connection, head: bytes, body: bytes) -> None:
        """Write the request and follow its answer."""
        exchange = self._exchange
        exchange.on_gone = self._client_gone
        exchange.on_full = self._full
        exchange.on_drained = self._drained
        self._connection = connection
        connection.send(head, body, self)
        if exchange.full:
            self._full()  # an earlier answer on the same connection is not read yet

    def stop(self) -> None:
        """End the attempt because the gateway must stop."""
        self._carry_out(self._attempt.stop())

    def tick(self, now_s: float) -> None:
        """Let time pass; to be called every now and then."""
        if self._connection is not None and self._connection.moved:
            self._connection.moved = False
            self._attempt.moved(now_s)
        if now_s >= self._due_s:
            step = self._attempt.tick(now_s)
            self._due_s = self._attempt.deadline_s
            self._carry_out(step)

    # ---------------------------------------------------------------- upstream.Receiver

    def received(self, head: ResponseHead | None, data: bytes, whole: bool) -> None:
        if whole:
            self._connection = None  # it has gone back to its pool
        step = self._attempt.received(head, data, whole, self.loop.time())
        reader = self._attempt.reader
        if reader is not None and reader.message_start_seen and self._lease.reader is None:
            self._note_start(reader)
        if step.finish is None and (certain := self._attempt.certain_ending()) is not None:
            self._written_down(certain)
        self._carry_out(step)
        if head is not None:
            self._due_s = _UNKNOWN_S  # what is waited for now has a limit of its own

    def lost(self, how: Lost) -> None:
        self._connection = None
        self._carry_out(self._attempt.lost(how, self.loop.time()))

    def _note_start(self, reader: StreamReader) -> None:
        self._lease.reader = reader
        self._journal.note(self._event, records.started(self._event, token_usage(reader.usage), reader.model))

    # ---------------------------------------------------------------- caller and clock

    def _client_gone(self) -> None:
        self._carry_out(self._attempt.client_gone())

    def _full(self) -> None:
        if self._connection is not None:
            self._attempt.paused(self.loop.time())
            self._connection.pause()
            self._due_s = _UNKNOWN_S

    def _drained(self) -> None:
        if self._connection is not None:
            self._attempt.resumed(self.loop.time())
            self._connection.resume()
            self._due_s = _UNKNOWN_S

    # ---------------------------------------------------------------- carrying out

    def _carry_out(self, step: Step) -> None:
        if step.finish is not None:
            self._finish(step)
            return
        if step.head is not None:
            self._commit(step.head)
        if step.data:
            self._exchange.send(step.data, last=False)
        elif self._attempt.held_bytes != self._counted:
            self._count_held(self._attempt.held_bytes)

    def _commit(self, head: ResponseHead) -> None:
        """Begin the caller's answer: from here on a stream's content may go the short way."""
        begin_providers(self._exchange, self._order, head, None)
        self._exchange.release_body()
        self._count_held(0)
        self._due_s = _UNKNOWN_S
        if self._connection is not None and self._attempt.reader is not None and self._exchange.chunked:
            self._connection.pass_on(self._attempt.reader.skim, self._exchange.onward)

    def _finish(self, step: Step) -> None:
        exchange = self._exchange
        exchange.on_gone = exchange.on_full = exchange.on_drained = None
        if self._connection is not None:
            self._connection.abandon()
            self._connection = None
        if self._counted:
            self._count_held(0)
        if step.head is not None:
            streamed = self._attempt.reader is not None
            begin_providers(exchange, self._order, step.head, None if streamed else len(step.data))
        assert self._attempt.ending is not None
        self._written_down(self._attempt.ending)
        if step.finish is Finish.WHOLE:
            exchange.send(step.data, last=True)
        elif step.finish is Finish.BREAK:
            exchange.send(step.data, last=False)
            exchange.break_off()
        if not self.done.done():
            self.done.set_result(None)

    def _written_down(self, ending: Ending) -> None:
        ending.first_content_s = self._attempt.first_content_s
        self._record(ending)

    def _count_held(self, held: int) -> None:
        """Count what is withheld from the caller; an attempt whose answer does not fit in memory ends."""
        try:
            self._buffers.take(held - self._counted)
            self._counted = held
        except Refusal:
            self._carry_out(self._attempt.overflow())
