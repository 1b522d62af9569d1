"""An attempt as the other rooms hear of it: the journal's intent and outcome, the scheduler's settlement."""

from collections.abc import Sequence
from functools import lru_cache

from signalbox.gateway.domain.events import Ending, Limits, ResponseHead, Trouble
from signalbox.gateway.domain.order import Order
from signalbox.gateway.domain.ports import CredentialUnusable
from signalbox.gateway.domain.refusal import Refusal, from_answer
from signalbox.v1.common_pb2 import OUTCOME_DENIED, OUTCOME_OK, OUTCOME_UPSTREAM_ERROR, TokenUsage, Window
from signalbox.v1.scheduler_pb2 import AccountEffect, AdmitResponse, Grant, SettleRequest, Timeouts
from signalbox.v1.usage_pb2 import AttemptEvent
from signalbox.wire.errors import OWN_ERRORS


def limits_of(grant: Grant, client_stall_s: float) -> Limits:
    """Return the pool's time limits in seconds."""
    return _limits(grant.timeouts.SerializeToString(), client_stall_s)


@lru_cache(maxsize=256)
def _limits(timeouts: bytes, client_stall_s: float) -> Limits:
    t = Timeouts.FromString(timeouts)
    connect_s, headers_s, unstreamed_s, first_content_s, idle_s, total_s = (
        ms / 1000 for ms in (t.connect, t.headers, t.headers_unstreamed, t.first_content, t.idle, t.total)
    )
    return Limits(connect_s, headers_s, unstreamed_s, first_content_s, idle_s, total_s, client_stall_s)


def intent(order: Order, answer: AdmitResponse, now_ms: int) -> AttemptEvent:
    """Return what is written before the first byte leaves."""
    grant = answer.grant
    return AttemptEvent(
        request_id=order.request_id, attempt=grant.attempt, lease_id=grant.lease_id, route=order.route,
        key_id=grant.key_id, owner=grant.owner, account_id=grant.account_id, pool_id=grant.pool_id,
        model=order.model, client=order.caller.client, streamed=order.streamed, admitted_at_ms=grant.admitted_at_ms,
        started_at_ms=now_ms, decision=answer.decision, sent_model=grant.send_model,
    )


def sent(event: AttemptEvent) -> AttemptEvent:
    """Return what is added when the request's bytes are handed to the socket."""
    return AttemptEvent(request_id=event.request_id, attempt=event.attempt, sent=True)


def started(event: AttemptEvent, usage: TokenUsage, served_model: str) -> AttemptEvent:
    """Return what is added when message_start has told its usage."""
    return AttemptEvent(
        request_id=event.request_id, attempt=event.attempt, usage=usage, served_model=served_model,
    )


def complete(event: AttemptEvent, ending: Ending) -> None:
    """Add what is known when the attempt has ended."""
    event.outcome, event.status, event.had_content = ending.outcome, ending.status, ending.had_content
    event.duration_ms, event.ttft_ms = ending.duration_ms, ending.ttft_ms
    if ending.usage is not None:
        event.usage.CopyFrom(ending.usage)
        event.estimated = ending.estimated
    if ending.served_model:
        event.served_model = ending.served_model
    if ending.head is not None:
        event.upstream_request_id = _request_id(ending.head)
    if ending.outcome != OUTCOME_OK:
        event.reason, event.retry_after_ms = ending.reason, ending.retry_after_ms


def settlement(
    grant: Grant, ending: Ending, effect: AccountEffect | None, windows: Sequence[Window] = (),
) -> SettleRequest:
    """Return how a lease ended; `windows` are what its answer told about the account's limits."""
    return SettleRequest(
        lease_id=grant.lease_id, lease_token=grant.lease_token, outcome=ending.outcome, status=ending.status,
        had_content=ending.had_content, usage=ending.usage, served_model=ending.served_model,
        estimated=ending.estimated, effect=effect, windows=windows,
        retry_after_ms=ending.retry_after_ms, ttft_ms=ending.ttft_ms, duration_ms=ending.duration_ms,
    )


def unsent(grant: Grant) -> SettleRequest:
    """Return the end of a lease under which nothing was journalled or sent."""
    return SettleRequest(
        lease_id=grant.lease_id, lease_token=grant.lease_token, outcome=OUTCOME_UPSTREAM_ERROR, unused=True,
    )


def denial(order: Order, refusal: Refusal, status: int, now_ms: int) -> AttemptEvent:
    """Return the record of a request that was refused before any attempt."""
    return AttemptEvent(
        request_id=order.request_id, attempt=0, route=order.route, key_id=refusal.key_id or order.key_id,
        owner=refusal.owner or order.owner, model=order.model, client=order.caller.client, streamed=order.streamed,
        started_at_ms=now_ms, decision=refusal.decision, outcome=OUTCOME_DENIED, status=status, reason=refusal.code,
        retry_after_ms=refusal.retry_after_ms,
    )


def no_further_attempt(order: Order, answer: AdmitResponse, now_ms: int) -> AttemptEvent:
    """Return the record of why a request that had been attempted was not attempted again."""
    refusal = from_answer(answer)
    return denial(order, refusal, OWN_ERRORS[refusal.code].status, now_ms)


def without_credential(why: CredentialUnusable) -> Ending:
    """Return the end of an attempt for which there was nothing to send."""
    return Ending(OUTCOME_UPSTREAM_ERROR, why.reason, trouble=Trouble.CREDENTIAL, transient=why.transient)


def milliseconds(seconds: float) -> int:
    """Return what was measured in milliseconds, at least 1: 0 says that nothing was."""
    return max(1, round(seconds * 1000))


def _request_id(head: ResponseHead) -> str:
    return head.fields.get(b"request-id", b"").decode("latin-1")
