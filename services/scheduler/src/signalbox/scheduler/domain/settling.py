"""What the end of an attempt means in numbers and for its account: from the gateway's words to Redis's operands."""

import random
from typing import Final

import msgspec

from signalbox.scheduler.domain.headroom import is_unified
from signalbox.scheduler.domain.operations import (
    COUNT_TOKENS,
    NEVER_MS,
    NO_EFFECT,
    Head,
    Reap,
    Settle,
    measures_amounts,
    read_token,
)
from signalbox.scheduler.domain.policies import model_class
from signalbox.scheduler.domain.view import View
from signalbox.v1.common_pb2 import OUTCOME_CLIENT_GONE, OUTCOME_OK, TokenUsage, Window
from signalbox.v1.scheduler_pb2 import AccountEffect, AdmitRequest, LeaseBeat, SettleRequest
from signalbox.v1.usage_pb2 import AttemptEvent, LedgerRow
from signalbox.wire.usage import Usage, told_usage

_KINDS: Final = {
    AccountEffect.NONE: "", AccountEffect.REST: "rest", AccountEffect.BENCH: "bench", AccountEffect.COOL: "cool",
}
# Trying the account again cannot heal these; a changed document or credential can.
_NOT_PROBED: Final = ("OrganizationOnHold",)


def billed_tokens(usage: Usage) -> tuple[int, int]:
    """Return (input with cache writes, output) of an attempt, the other models' iterations included."""
    taken = usage.input_tokens + usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    given = usage.output_tokens
    for _, other in usage.other_models:
        more = billed_tokens(other)
        taken, given = taken + more[0], given + more[1]
    return taken, given


def settlement(view: View, request: SettleRequest) -> Settle:
    """Return the operation that settles a lease. Raises ValueError for a token that is none.

    A lease that was not used may be given back by its id alone, by a gateway that never heard of the grant.
    """
    token = request.lease_token
    if not token and request.unused:
        return Settle(id=request.lease_id, unused=1)
    head, blob = read_token(token)
    asked = AdmitRequest.FromString(blob)
    outcome, windows, content = request.outcome, request.windows[:], request.had_content
    shows_size, measured = outcome == OUTCOME_OK and bool(windows), measures_amounts(head)
    usage = told_usage(request.usage) if shows_size or measured else Usage()
    taken, given, cost = 0, 0, 0
    if shows_size:
        view.live.learn_size(head.model_class, sum(billed_tokens(usage)))
    if measured:
        taken, given, cost = _facts(view, head, asked, usage, request.served_model, content=content)
        if outcome == OUTCOME_OK and asked.route != COUNT_TOKENS:
            view.estimates.learn(head.key_id, asked.model, (taken + given, cost))
    well = outcome == OUTCOME_OK or (outcome == OUTCOME_CLIENT_GONE and content)
    return Settle(
        id=request.lease_id, tokens=taken + given, cost=cost, input=taken, output=given,
        effect=_effect(request.effect), ok=int(well), gateway=asked.gateway_id,
        ended=head.admitted_ms + request.duration_ms, unused=int(request.unused),
        windows=tuple([text for w in windows for text in (_window_field(w, head), write_window(w))]),
    )


def _facts(
    view: View, head: Head, asked: AdmitRequest, usage: Usage, served_model: str, *, content: bool,
) -> tuple[int, int, int]:
    """Return what an attempt used: input tokens, output tokens, nano-dollars. Without content it costs nothing."""
    if not content or asked.route == COUNT_TOKENS:
        return 0, 0, 0
    taken, given = billed_tokens(usage)
    return taken, given, view.prices.cost(usage, served_model or head.model, head.admitted_ms)


def _effect(effect: AccountEffect) -> tuple[str, str, int, str, float]:
    kind = _KINDS.get(effect.kind, "")
    if not kind:
        return NO_EFFECT
    if kind == "cool" and effect.account_only:
        kind = "cool_account"
    until_ms = NEVER_MS if kind == "bench" and effect.reason in _NOT_PROBED else effect.until_ms
    scope = model_class(effect.model_class) if effect.model_class else ""
    return kind, effect.reason, until_ms, scope, random.random()


def orphan(view: View, lease: str, token: bytes, last_beat: bytes, now_ms: int) -> tuple[Reap, AttemptEvent]:
    """Settle a lease that nobody renewed with what its last heartbeat said, and tell the ledger."""
    head, blob = read_token(token)
    asked = AdmitRequest.FromString(blob)
    beat = LeaseBeat.FromString(last_beat)
    usage = TokenUsage()
    usage.CopyFrom(beat.usage)
    usage.output_tokens = max(usage.output_tokens, beat.output_tokens)
    content = beat.HasField("usage") or beat.output_tokens > 0
    taken, given, cost = _facts(view, head, asked, told_usage(usage), beat.served_model, content=content)
    event = AttemptEvent(
        request_id=asked.request_id, attempt=head.attempt, lease_id=lease, route=asked.route, key_id=head.key_id,
        owner=head.owner, account_id=head.account_id, pool_id=head.pool_id, model=asked.model, client=asked.client,
        streamed=asked.stream, admitted_at_ms=head.admitted_ms, started_at_ms=head.admitted_ms,
        gateway_id=asked.gateway_id, sent_model=head.model, usage=usage, served_model=beat.served_model,
        had_content=content, outcome="OUTCOME_ORPHANED", estimated=True, reason="lease_expired",
        duration_ms=max(0, now_ms - head.admitted_ms),
    )
    return Reap(id=lease, tokens=taken + given, cost=cost, input=taken, output=given), event


def as_billed(operation: Reap, event: AttemptEvent, row: LedgerRow) -> Reap:
    """Charge what the ledger bills: a dead gateway's journal may have told it more than its heartbeats told here.

    A row that was admitted at another time is another lease's of the same name: this one was granted again, by a
    scheduler that had stood still, when its request had been served already. Nothing was done under it.
    """
    if row.admitted_at_ms and row.admitted_at_ms != event.admitted_at_ms:
        return msgspec.structs.replace(operation, tokens=0, cost=0, input=0, output=0, unused=1)
    taken, given = billed_tokens(told_usage(row.usage))
    return msgspec.structs.replace(
        operation, tokens=taken + given, cost=row.cost_nano_usd, input=taken, output=given,
        ended=row.admitted_at_ms + row.duration_ms if row.admitted_at_ms else 0, gateway=event.gateway_id,
    )


def as_settlement(operation: Reap) -> Settle:
    """Return what settles a lease of an earlier epoch as `operation` would reap one of this."""
    return Settle(**msgspec.structs.asdict(operation))


def write_window(window: Window) -> str:
    """Return a provider's limit window as text, for the shared state."""
    return f"{window.utilization!r}|{window.limit}|{window.remaining}|{window.resets_at_ms}|{window.status}"


def _window_field(window: Window, head: Head) -> str:
    """Return under which name a window is kept: unified ones hold for the account, others for a class of models."""
    return window.name if is_unified(window.name) else f"{window.name}|{head.model_class}"


def read_window(field: str, text: str) -> Window:
    """Return what `write_window` wrote under the name `field`."""
    name, _, of_class = field.partition("|")
    utilization, limit, remaining, resets_at_ms, status = text.split("|", 4)
    return Window(
        name=name, utilization=float(utilization), limit=int(limit), remaining=int(remaining),
        resets_at_ms=int(resets_at_ms), status=status, model_class=of_class,
    )
