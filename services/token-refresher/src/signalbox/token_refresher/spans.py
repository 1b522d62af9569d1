"""Renewals as OpenTelemetry spans: whose, how they ended, how long they took. Only imported where traces are wanted."""

import time

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer

from signalbox.token_refresher.domain.renewal import Outcome


class Spans:
    """Implements ports.Traces. Each renewal is a trace of its own: many requests may wait for one, or none."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def renewed(self, account_id: str, outcome: str, took_s: float) -> None:
        """Add a renewal that has ended now."""
        now_ns = time.time_ns()
        attributes = {"signalbox.account": account_id, "signalbox.outcome": outcome}
        if outcome != Outcome.RENEWED:
            attributes["error.type"] = outcome
        span = self._tracer.start_span(
            "renew", Context(), SpanKind.INTERNAL, attributes, start_time=now_ns - int(took_s * 1e9),
        )
        if outcome != Outcome.RENEWED:
            span.set_status(Status(StatusCode.ERROR))
        span.end(now_ns)
