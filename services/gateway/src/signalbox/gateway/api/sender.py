"""One attempt carried out: credential, connection, journal, bytes. The order is the one that the invariants want.

The intent is on disk before the first byte leaves, the outcome before the caller has the last one: who has seen a whole
answer finds it in the ledger with what it used, whatever becomes of this process.
"""

import asyncio
from functools import partial

from signalbox.core.clock import Clock
from signalbox.gateway.adapters.origins import Route, origin_of
from signalbox.gateway.adapters.upstream import Connection
from signalbox.gateway.adapters.upstream_pool import Unreachable, UpstreamPool
from signalbox.gateway.api.driver import Driver
from signalbox.gateway.api.exchange import ClientGone, Exchange
from signalbox.gateway.api.routes import UPSTREAM_PATHS, forwarded_query
from signalbox.gateway.domain import records
from signalbox.gateway.domain.attempt import Attempt
from signalbox.gateway.domain.buffers import Buffers
from signalbox.gateway.domain.events import Ending
from signalbox.gateway.domain.order import Order
from signalbox.gateway.domain.ports import (
    Credential,
    Credentials,
    CredentialUnusable,
    Journal,
    OpenLease,
    Scheduler,
)
from signalbox.gateway.domain.request import Course
from signalbox.gateway.domain.sending import request_head
from signalbox.v1.common_pb2 import OUTCOME_UNSPECIFIED
from signalbox.v1.scheduler_pb2 import AdmitResponse, Grant
from signalbox.v1.usage_pb2 import AttemptEvent
from signalbox.wire.request import rewrite_model

TICK_S = 0.25    # how late an attempt's time limit may be noticed
STOOD_STILL_S = 1.0    # a tick that comes so late says that this process stood still, not that a provider was silent


class Sender:
    """Carries attempts out; knows those that run."""

    def __init__(
        self, *, clock: Clock, scheduler: Scheduler, credentials: Credentials, journal: Journal, pool: UpstreamPool,
        buffers: Buffers, client_stall_s: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._scheduler = scheduler
        self._credentials = credentials
        self._journal = journal
        self._pool = pool
        self._buffers = buffers
        self._client_stall_s = client_stall_s
        self._running: set[Driver] = set()
        self._ticker: asyncio.TimerHandle | None = None
        self._tick_due_s = 0.0
        self._stood_still = False
        self._stopping = False

    def stop(self) -> None:
        """End what runs, each stream with a typed error; what comes later ends before its first byte."""
        self._stopping = True
        for driver in list(self._running):
            driver.stop()

    async def attempt(self, exchange: Exchange, order: Order, course: Course, answer: AdmitResponse) -> Ending:
        """Make the attempt that `answer` grants and return how it ended.

        Raises JournalUnwritable when nothing could be sent for that reason, ClientGone when nobody waited any more
        before anything was written; then there is no record of it and the lease is the caller's to settle.
        """
        grant = answer.grant
        account_id = grant.account_id
        credential = self._credentials.cached(account_id) or await self._fetched(account_id)
        if exchange.gone:
            raise ClientGone
        started_s = self._clock.monotonic_s()
        event = records.intent(order, answer, self._clock.now_ms())
        if isinstance(credential, CredentialUnusable):
            self._journal.begin(event)
            return self._ended(event, started_s, records.without_credential(credential))
        course.credential_version = credential.version
        attempt = Attempt(
            streamed=order.streamed, counted=order.route == "messages", request_id=order.request_id,
            limits=records.limits_of(grant, self._client_stall_s), now_s=started_s,
        )
        route = Route(account_id, grant.base_url, credential.proxy_url)
        connection = self._begin_on_kept(route, grant, course, attempt, event)
        if connection is None:
            connection = await self._begin_on_new(route, exchange, attempt, event)
        if connection is not None:
            lease = OpenLease(grant.lease_id, grant.lease_token)
            driver = Driver(
                attempt, exchange=exchange, order=order, event=event, lease=lease, journal=self._journal,
                buffers=self._buffers, loop=self._loop, record=partial(self._ended, event, started_s),
            )
            self._scheduler.track(lease)
            driver.start(connection, *_message(exchange, order, grant, credential))
            self._let_time_pass(driver)
            try:
                await driver.done
            finally:
                self._running.discard(driver)
            assert attempt.ending is not None
            return attempt.ending
        assert attempt.ending is not None
        return self._ended(event, started_s, attempt.ending)

    async def _fetched(self, account_id: str) -> Credential | CredentialUnusable:
        try:
            return await self._credentials.get(account_id)
        except CredentialUnusable as e:
            return e

    def _begin_on_kept(
        self, route: Route, grant: Grant, course: Course, attempt: Attempt, event: AttemptEvent,
    ) -> Connection | None:
        """Write the intent and return a connection that is open already; None, and nothing written, without one."""
        kept = None if course.needs_new_connection else self._pool.take(route, course.max_idle_s(grant))
        if kept is None:
            return None
        event.sent = attempt.reused = True
        try:
            self._journal.begin(event)
        except BaseException:
            self._pool.put_back(kept)
            raise
        return kept

    async def _begin_on_new(
        self, route: Route, exchange: Exchange, attempt: Attempt, event: AttemptEvent,
    ) -> Connection | None:
        """Write the intent and return a new connection, or None when the attempt ended for want of one."""
        self._journal.begin(event)
        connection = await self._connect(exchange, attempt, route)
        if connection is None:
            return None
        if exchange.gone:
            self._pool.put_back(connection)
            attempt.client_gone()
            return None
        self._journal.note(event, records.sent(event))
        attempt.connected(self._clock.monotonic_s())
        return connection

    async def _connect(self, exchange: Exchange, attempt: Attempt, route: Route) -> Connection | None:
        dialling = asyncio.ensure_future(self._pool.connect(route, attempt.limits.connect_s))
        exchange.on_gone = dialling.cancel
        try:
            return await dialling
        except Unreachable as e:
            if e.own_fault:
                attempt.overflow()
            else:
                attempt.unreachable(timed_out=e.timed_out, proxy=e.proxy)
        except asyncio.CancelledError:
            if not exchange.gone:
                raise
            attempt.client_gone()
        finally:
            exchange.on_gone = None
        return None

    def _let_time_pass(self, driver: Driver) -> None:
        """Let it know the time until its attempt has ended."""
        self._running.add(driver)
        if self._ticker is None:
            self._tick_later()
        if self._stopping:
            driver.stop()

    def _tick_later(self) -> None:
        self._tick_due_s = self._loop.time() + TICK_S
        self._ticker = self._loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        """Let time pass for all attempts; one timer for all of them costs less than one each."""
        self._ticker = None
        if not self._running:
            return
        now_s = self._loop.time()
        late_s = now_s - self._tick_due_s
        self._tick_later()
        if late_s > STOOD_STILL_S and not self._stood_still:
            self._stood_still = True    # what has arrived meanwhile is read first
            return
        self._stood_still = False
        for driver in list(self._running):
            driver.tick(now_s)

    def _ended(self, event: AttemptEvent, started_s: float, ending: Ending) -> Ending:
        ending.took_s = self._clock.monotonic_s() - started_s
        ending.duration_ms = records.milliseconds(ending.took_s)
        if ending.first_content_s is not None:
            ending.ttft_ms = records.milliseconds(ending.first_content_s - started_s)
        if event.outcome == OUTCOME_UNSPECIFIED:    # else it was certain, and written, before the end
            records.complete(event, ending)
            self._journal.end(event)
        return ending


def _message(exchange: Exchange, order: Order, grant: Grant, credential: Credential) -> tuple[bytes, bytes]:
    """Return the head and the body that leave for the provider."""
    body = exchange.body
    if (model := grant.send_model) != order.model:
        body = rewrite_model(body, model)
    origin = origin_of(grant.base_url)
    target = origin.path + UPSTREAM_PATHS[order.route]
    if query := forwarded_query(exchange.query):
        target = target + b"?" + query
    return request_head(target, origin.authority, exchange.caller, credential.headers, len(body)), body
