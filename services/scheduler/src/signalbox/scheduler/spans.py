"""Admissions as OpenTelemetry spans, each below the span of the gateway that asked; what a decision tells is in them.

Names, numbers and reasons only: never the text or the hash of a key, a session, an owner or a caller's address. Only
imported where traces are wanted.
"""

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, get_current_span

from signalbox.core.trace_context import parent_of
from signalbox.v1.scheduler_pb2 import AdmitResponse, Decision, GatewayBatch

Attributes = dict[str, str | int | float | bool | list[str]]


class Spans:
    """Implements dispatch.Traces."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begin(self, batch: GatewayBatch) -> "dict[int, AdmissionSpan]":
        """Begin a span for each admission and retry that is asked for below a sampled span; return them by seq."""
        spans: dict[int, AdmissionSpan] = {}
        for admit in batch.admits:
            if admit.traceparent:
                self._begin(spans, admit.seq, admit.traceparent, admit.request_id, 1)
        for retry in batch.retries:
            if retry.traceparent:
                request_id, _, failed = retry.failed.lease_id.rpartition(".")
                self._begin(spans, retry.seq, retry.traceparent, request_id, int(failed) + 1 if failed.isdigit() else 0)
        return spans

    def _begin(
        self, spans: "dict[int, AdmissionSpan]", seq: int, traceparent: str, request_id: str, attempt: int,
    ) -> None:
        parent = parent_of(traceparent)
        if not get_current_span(parent).get_span_context().is_valid:
            return    # a question below nothing: no trace of its own
        attributes: Attributes = {"signalbox.request_id": request_id, "signalbox.attempt": attempt}
        spans[seq] = AdmissionSpan(self._tracer.start_span("admit", parent, SpanKind.SERVER, attributes))


class AdmissionSpan:
    """Implements dispatch.Trace."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def waits(self, pool_id: str, wait_ms: int) -> None:
        """Note that the request begins to wait in a pool's queue, for `wait_ms` at most."""
        self._span.add_event("queued", {"signalbox.pool": pool_id, "signalbox.wait_limit_ms": wait_ms})

    def decided(self, response: AdmitResponse | None) -> None:
        """End the span with the decision; None: its caller is gone."""
        span = self._span
        if response is None:
            span.set_attribute("signalbox.outcome", "cancelled")
        elif span.is_recording():
            span.set_attributes(_told(response))
            if response.denial.error_code == "scheduler_unavailable":
                span.set_status(Status(StatusCode.ERROR))
        span.end()


def _told(response: AdmitResponse) -> Attributes:
    """Return what `explain` tells of a decision."""
    told: Attributes
    if response.HasField("grant"):
        grant = response.grant
        told = {
            "signalbox.outcome": "granted", "signalbox.account": grant.account_id, "signalbox.pool": grant.pool_id,
            "signalbox.key": grant.key_id, "gen_ai.request.model": grant.send_model,
        }
    else:
        told = {"signalbox.outcome": "denied", "error.type": response.denial.error_code}
        if response.denial.key_id:
            told["signalbox.key"] = response.denial.key_id
    decision = Decision.FromString(response.decision)
    passed = [f"{c.account_id} {c.note}" for c in decision.candidates if c.note]
    left_out = [f"{reason} {number}" for reason, number in sorted(decision.excluded.items())]
    more: Attributes = {
        "strategy": decision.strategy, "considered": decision.considered, "reason": decision.reason, "passed": passed,
        "left_out": left_out, "pin": decision.pin, "pinned": decision.pinned, "pin_reason": decision.pin_reason,
        "waited_ms": decision.waited_ms, "waited_for": decision.waited_for,
    }
    return told | {f"signalbox.{name}": value for name, value in more.items() if value}
