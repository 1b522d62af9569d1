"""Which record of an attempt is believed, when several say something about it.

Settled replaces orphaned and nothing replaces settled. Two orphans become one that holds the most of what either
knows, whatever order they come in. Pure; the ledger applies it inside a transaction.
"""

from google.protobuf.message import Message

from signalbox.usage.domain.rows import MAX_ATTEMPT, MAX_MS, MAX_TEXT, MAX_TOKENS
from signalbox.v1.common_pb2 import OUTCOME_DENIED, OUTCOME_ORPHANED, OUTCOME_UNSPECIFIED, Outcome, TokenUsage
from signalbox.v1.usage_pb2 import AttemptEvent

_EARLIEST = ("admitted_at_ms", "started_at_ms")
_TIMES = ("admitted_at_ms", "started_at_ms", "duration_ms", "ttft_ms", "retry_after_ms")
_COUNTS = (
    "input_tokens", "output_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "cache_read_tokens",
    "web_search_requests",
)
MAX_OTHER_MODELS = 64

# Protobuf enums are open: an outcome that only a newer sender knows is none of these and counts as an orphan.
_ENDED = frozenset(Outcome.values()) - {OUTCOME_UNSPECIFIED, OUTCOME_ORPHANED}


def normalise(event: AttemptEvent, now_ms: int) -> bool:
    """Complete and bound `event` in place; return False where it can't be a record because it names no request.

    An intent without an outcome is an orphan: its gateway died, else the outcome would have come with it. What was
    sent and never settled is an estimate.
    """
    if "\0" in event.request_id or len(event.request_id) > MAX_TEXT:
        event.request_id = event.request_id.replace("\0", "")[:MAX_TEXT]
    if not event.request_id:
        return False
    if event.attempt == 0:
        event.outcome = OUTCOME_DENIED
        event.had_content = False
    elif event.attempt > MAX_ATTEMPT:
        event.attempt = MAX_ATTEMPT
    has_usage = event.HasField("usage")
    if event.outcome not in _ENDED:
        event.outcome = OUTCOME_ORPHANED
        event.estimated |= event.sent or has_usage
    _normalise_times(event, now_ms)
    if has_usage:
        _bound_usage(event.usage)
    return True


def believed(kept: AttemptEvent | None, new: AttemptEvent) -> AttemptEvent:
    """Return what is to be kept of an attempt: `kept` itself where `new` adds nothing. Both are normalised."""
    if kept is None:
        return new
    if kept.outcome != OUTCOME_ORPHANED:
        return kept
    if new.outcome != OUTCOME_ORPHANED:
        return new
    merged = AttemptEvent()
    merged.CopyFrom(kept)
    _take_more(merged, new)
    return kept if merged == kept else merged


def _normalise_times(event: AttemptEvent, now_ms: int) -> None:
    """A denial was never admitted, a scheduler's orphan may not know when its gateway began: use what is known."""
    for name in _TIMES:
        if not 0 <= getattr(event, name) <= MAX_MS:
            setattr(event, name, 0)
    if not event.admitted_at_ms:
        event.admitted_at_ms = event.started_at_ms or now_ms
    if not event.started_at_ms:
        event.started_at_ms = event.admitted_at_ms


def _bound_usage(usage: TokenUsage) -> None:
    for name in _COUNTS:
        value = getattr(usage, name)
        if not 0 <= value <= MAX_TOKENS:
            setattr(usage, name, min(max(value, 0), MAX_TOKENS))
    if not usage.other_models:
        return
    del usage.other_models[MAX_OTHER_MODELS:]
    for other in usage.other_models:
        # Iterations do not nest; a sender that nests them anyway must not recurse through the ledger.
        other.usage.ClearField("other_models")
        _bound_usage(other.usage)


def _take_more(into: Message, other: Message) -> None:
    """Raise each field of `into` to the larger of both: what is set beats what is not, more usage beats less."""
    for field, value in other.ListFields():
        name = field.name
        if name == "other_models":
            _take_heavier(into, other)
        elif field.message_type is not None:
            _take_more(getattr(into, name), value)
            getattr(into, name).SetInParent()
        elif name in _EARLIEST:
            setattr(into, name, min(getattr(into, name) or value, value))
        else:
            setattr(into, name, max(getattr(into, name), value))


def _take_heavier(into: Message, other: Message) -> None:
    assert isinstance(into, TokenUsage)
    assert isinstance(other, TokenUsage)
    if _weight(other) > _weight(into):
        del into.other_models[:]
        into.other_models.extend(other.other_models)


def _weight(usage: TokenUsage) -> tuple[int, bytes]:
    """Order lists of iterations: the one with more tokens, then any fixed order, so that merging has no order."""
    tokens = sum(getattr(other.usage, name) for other in usage.other_models for name in _COUNTS)
    return tokens, b"".join(other.SerializeToString(deterministic=True) for other in usage.other_models)
