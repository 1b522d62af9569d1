"""One relayed request from its first byte to its settlement: check, admit, attempt, decide, answer.

What an attempt means is decided in domain/; how one is carried out is the sender's.
"""

import asyncio
from collections.abc import Awaitable

from signalbox.core import logs
from signalbox.core.clock import Clock
from signalbox.gateway.api.answers import send_defect, send_refusal, send_verbatim
from signalbox.gateway.api.exchange import ClientGone, Exchange
from signalbox.gateway.api.keycheck import KeyCheck
from signalbox.gateway.api.sender import Sender
from signalbox.gateway.domain import records
from signalbox.gateway.domain.account_limits import LimitNews
from signalbox.gateway.domain.caller import session_secret
from signalbox.gateway.domain.events import Ending
from signalbox.gateway.domain.key_limits import ratelimit_lines
from signalbox.gateway.domain.order import Order
from signalbox.gateway.domain.ports import (
    Credentials,
    CredentialUnusable,
    Journal,
    JournalUnwritable,
    Scheduler,
    SchedulerUnavailable,
    Traces,
)
from signalbox.gateway.domain.refusal import Refusal, from_answer, scheduler_unavailable
from signalbox.gateway.domain.request import Course, Next, Verbatim
from signalbox.gateway.metrics import OUTCOME_NAMES, Metrics
from signalbox.v1.common_pb2 import OUTCOME_CLIENT_GONE, OUTCOME_OK
from signalbox.v1.scheduler_pb2 import AdmitResponse, Grant, RetryRequest, SettleRequest
from signalbox.wire.request import RequestInvalid, read_request

log = logs.logger(__name__)


class RequestRelay:
    """Implements protocol.Relay. Belongs to one event loop."""

    def __init__(
        self, *, clock: Clock, scheduler: Scheduler, credentials: Credentials, journal: Journal, keys: KeyCheck,
        sender: Sender, metrics: Metrics, secret: bytes, traces: Traces | None = None,
    ) -> None:
        self._clock = clock
        self._scheduler = scheduler
        self._credentials = credentials
        self._journal = journal
        self._keys = keys
        self._sender = sender
        self._metrics = metrics
        self._traces = traces
        self._session_secret = session_secret(secret)
        self._limits = LimitNews()

    async def serve(self, exchange: Exchange) -> None:
        """Answer one request. Never raises, but for a cancellation that the caller's hanging up did not cause."""
        order = Order(exchange.request_id, exchange.route, exchange.caller)
        self._metrics.request_began()
        try:
            if self._traces is not None:
                order.trace = self._traces.begin(order.request_id, order.route, exchange.caller.fields)
            await self._serve(exchange, order)
        except Refusal as refusal:
            self._refuse(exchange, order, refusal)
        except (ClientGone, asyncio.CancelledError):
            order.outcome = "client_gone"
            if not exchange.gone:
                raise
        except Exception:
            log.exception("relay_defect", request_id=order.request_id)
            order.outcome = "defect"
            send_defect(exchange, order)
        finally:
            exchange.release_body()
            self._metrics.request_ended(order, self._clock.monotonic_s() - exchange.started_s)
            if order.trace is not None:
                order.trace.end(order.outcome, exchange.status, order.attempts)

    def _refuse(self, exchange: Exchange, order: Order, refusal: Refusal) -> None:
        order.outcome = refusal.code
        status = send_refusal(exchange, order, refusal)
        if order.attempts == 0:
            self._journal.deny(records.denial(order, refusal, status, self._clock.now_ms()))

    # ---------------------------------------------------------------- before the first attempt

    async def _serve(self, exchange: Exchange, order: Order) -> None:
        self._keys.identify(exchange.caller)
        if not exchange.complete:
            await self._keys.inspect(order)
            exchange.known()
        await exchange.read_body()
        try:
            order.read(read_request(exchange.body))
        except RequestInvalid as e:
            await self._keys.inspect(order)
            raise Refusal("request_invalid", e.message, key_id=order.key_id, owner=order.owner) from e
        admission = order.admission(exchange.body, self._session_secret)
        if order.trace is not None:
            admission.traceparent = order.trace.asking()
        try:
            answer = await self._ask(exchange, order, self._scheduler.admit(admission))
        except SchedulerUnavailable as e:
            raise scheduler_unavailable() from e
        if answer.HasField("denial"):
            self._keys.remember(order, answer.denial)
            if answer.denial.key_id:
                exchange.known()
            raise from_answer(answer)
        exchange.known()
        order.key_id, order.owner = answer.grant.key_id, answer.grant.owner
        await self._relay(exchange, order, answer)

    async def _ask(self, exchange: Exchange, order: Order, asking: Awaitable[AdmitResponse]) -> AdmitResponse:
        """Wait for the scheduler unless the caller hangs up; a grant that comes too late is given back."""
        pending = asking if isinstance(asking, asyncio.Future) else asyncio.ensure_future(asking)
        exchange.on_gone = pending.cancel
        if exchange.gone:
            pending.cancel()
        answer = None
        try:
            answer = await pending
        finally:
            exchange.on_gone = None
            if order.trace is not None:
                order.trace.asked(answer)
        return answer

    # ---------------------------------------------------------------- attempts

    async def _relay(self, exchange: Exchange, order: Order, answer: AdmitResponse) -> None:
        """Attempt until an answer is whole, the caller is gone, or nothing is left to try."""
        course = Course()
        while True:
            grant = answer.grant
            order.attempts = grant.attempt
            order.repinned = order.repinned or grant.repinned
            order.limit_lines = answer.limit_lines or ratelimit_lines(answer.limits)
            ending = await self._attempt(exchange, order, course, answer)
            following = course.after(ending, grant)
            if following.refresh:
                following = await self._refreshed(course, following, grant)
            news = self._limits.windows(grant.account_id, ending.head, self._clock.monotonic_s())
            settle = records.settlement(grant, ending, course.effect, news)
            if not following.again or exchange.gone:
                self._scheduler.settle(settle)
                self._tell(exchange, order, course, ending, None)
                return
            self._metrics.failover(ending)
            answer = await self._retry(exchange, order, settle, following, grant)
            if answer.HasField("denial"):
                self._journal.deny(records.no_further_attempt(order, answer, self._clock.now_ms()))
                self._tell(exchange, order, course, ending, answer)
                return

    async def _attempt(self, exchange: Exchange, order: Order, course: Course, answer: AdmitResponse) -> Ending:
        grant = answer.grant
        try:
            ending = await self._sender.attempt(exchange, order, course, answer)
        except JournalUnwritable as e:
            self._scheduler.settle(records.unsent(grant))
            raise Refusal(
                "ledger_unavailable", "The gateway can't write its journal, so nothing was sent; try again shortly.",
                retry_after_ms=1000, key_id=grant.key_id, owner=grant.owner,
            ) from e
        except ClientGone:
            self._scheduler.settle(records.unsent(grant))
            raise
        self._metrics.attempt_ended(grant.account_id, ending)
        if order.trace is not None:
            order.trace.attempted(grant, ending)
        order.provider_s += ending.took_s
        if ending.first_content_s is not None:
            order.first_content_s = ending.first_content_s - exchange.started_s
        return ending

    async def _refreshed(self, course: Course, following: Next, grant: Grant) -> Next:
        """Ask for a new credential in place of a rejected one and return what follows then."""
        try:
            await self._credentials.get(grant.account_id, rejected_version=course.credential_version)
        except CredentialUnusable as e:
            return course.not_refreshed(e.reason, grant, transient=e.transient)
        return following

    async def _retry(
        self, exchange: Exchange, order: Order, settle: SettleRequest, following: Next, grant: Grant,
    ) -> AdmitResponse:
        settle.more_attempts = True
        retry = RetryRequest(failed=settle, same_account=following.same_account, waited_ms=grant.waited_ms)
        if order.trace is not None:
            retry.traceparent = order.trace.asking()
        try:
            return await self._ask(exchange, order, self._scheduler.retry(retry))
        except (SchedulerUnavailable, asyncio.CancelledError) as e:
            final = SettleRequest()
            final.CopyFrom(settle)
            final.more_attempts = False
            self._scheduler.settle(final)  # idempotent: the retry may or may not have settled it
            if isinstance(e, SchedulerUnavailable):
                raise scheduler_unavailable() from e
            raise

    def _tell(
        self, exchange: Exchange, order: Order, course: Course, ending: Ending, denial: AdmitResponse | None,
    ) -> None:
        """Tell the caller how it ended, where the answer has not told already."""
        order.outcome = OUTCOME_NAMES[ending.outcome]
        if ending.committed or ending.outcome in (OUTCOME_OK, OUTCOME_CLIENT_GONE) or exchange.gone:
            return
        last_word = course.last_word(ending, denial)
        if isinstance(last_word, Verbatim):
            send_verbatim(exchange, order, last_word)
        else:
            self._refuse(exchange, order, last_word)
