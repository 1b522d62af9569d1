"""One relayed request as OpenTelemetry spans: the request, what the scheduler was asked, each attempt.

Attempts follow the conventions for generative AI, as Anthropic's are described there. Spans hold names, numbers and
outcomes: never content, keys, sessions or callers' addresses. Only imported where traces are wanted.
"""

import time
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

from signalbox.core.trace_context import format_traceparent, parent_of
from signalbox.gateway.adapters.origins import origin_of
from signalbox.gateway.api.routes import UPSTREAM_PATHS
from signalbox.gateway.domain.events import Ending
from signalbox.gateway.metrics import OUTCOME_NAMES
from signalbox.v1.common_pb2 import OUTCOME_CLIENT_GONE, OUTCOME_OK, TokenUsage
from signalbox.v1.scheduler_pb2 import AdmitResponse, Grant

PROVIDER = "anthropic"    # whose wire format every account speaks
OPERATIONS = {"messages": "chat"}    # other routes have no name in the conventions and keep their own
_NO_FAILURE = frozenset(("ok", "client_gone"))
_CALLERS_FAULT = range(400, 500)

Attributes = dict[str, str | int | float | bool | list[str]]


class Spans:
    """Implements ports.Traces."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begin(self, request_id: str, route: str, fields: Mapping[bytes, bytes]) -> "RequestSpans":
        """Begin a request's span, below the caller's where its `traceparent` names one.

        Its tracestate is left alone: it may hold anything.
        """
        parent = parent_of(fields.get(b"traceparent", b"").decode("latin-1"))
        path = UPSTREAM_PATHS[route].decode()
        attributes: Attributes = {
            "http.request.method": "POST", "http.route": path, "url.path": path, "url.scheme": "http",
            "signalbox.request_id": request_id,
        }
        span = self._tracer.start_span(f"POST {path}", parent, SpanKind.SERVER, attributes)
        return RequestSpans(self._tracer, span, request_id, OPERATIONS.get(route, route))


class RequestSpans:
    """Implements ports.Trace."""

    def __init__(self, tracer: Tracer, span: Span, request_id: str, operation: str) -> None:
        self._tracer = tracer
        self._span = span
        self._context = set_span_in_context(span, Context())
        self._request_id = request_id
        self._operation = operation
        self._asking: Span | None = None

    def asking(self) -> str:
        """Begin the span of asking the scheduler for an account; return its `traceparent`, "" if it is not sampled."""
        attributes: Attributes = {"signalbox.request_id": self._request_id}
        self._asking = self._tracer.start_span("admit", self._context, SpanKind.CLIENT, attributes)
        if not self._asking.is_recording():
            return ""
        return format_traceparent(self._asking)

    def asked(self, answer: AdmitResponse | None) -> None:
        """End that span with what it came to; None: no answer came."""
        span, self._asking = self._asking, None
        if span is None:
            return
        error = "no_answer" if answer is None else answer.denial.error_code
        if error:
            span.set_attribute("error.type", error)
        if answer is None:
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def attempted(self, grant: Grant, ending: Ending) -> None:
        """Add an attempt that has ended."""
        origin = origin_of(grant.base_url)
        outcome = OUTCOME_NAMES[ending.outcome]
        attributes: Attributes = {
            "gen_ai.operation.name": self._operation,
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": grant.send_model,
            "server.address": origin.host,
            "server.port": origin.port,
            "signalbox.account": grant.account_id,
            "signalbox.pool": grant.pool_id,
            "signalbox.attempt": grant.attempt,
            "signalbox.outcome": outcome,
            "signalbox.request_id": self._request_id,
        }
        if ending.status:
            attributes["http.response.status_code"] = ending.status
        if ending.served_model:
            attributes["gen_ai.response.model"] = ending.served_model
        if ending.stop_reason:
            attributes["gen_ai.response.finish_reasons"] = [ending.stop_reason]
        if ending.ttft_ms:
            attributes["gen_ai.response.time_to_first_chunk"] = ending.ttft_ms / 1000
        if ending.usage is not None:
            attributes |= _tokens(ending.usage)
            attributes["signalbox.usage_estimated"] = ending.estimated
        failed = ending.outcome not in (OUTCOME_OK, OUTCOME_CLIENT_GONE)
        if failed:
            attributes["error.type"] = ending.reason or outcome
        self._add(f"{self._operation} {grant.send_model}", SpanKind.CLIENT, ending.took_s, attributes, failed=failed)

    def end(self, outcome: str, status: int, attempts: int) -> None:
        """End the request's span. `status` 0: the caller got none."""
        span = self._span
        span.set_attributes({"signalbox.outcome": outcome, "signalbox.attempts": attempts})
        if status:
            span.set_attribute("http.response.status_code", status)
        if outcome not in _NO_FAILURE:
            span.set_attribute("error.type", outcome)
            if status not in _CALLERS_FAULT:
                span.set_status(Status(StatusCode.ERROR))
        span.end()

    def _add(self, name: str, kind: SpanKind, took_s: float, attributes: Attributes, *, failed: bool) -> None:
        """Add a span that ends now."""
        now_ns = time.time_ns()
        span = self._tracer.start_span(name, self._context, kind, attributes, start_time=now_ns - int(took_s * 1e9))
        if failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end(now_ns)


def _tokens(usage: TokenUsage) -> Attributes:
    """Return usage as the conventions count it: all that was read is input, cached or not."""
    written = usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    return {
        "gen_ai.usage.input_tokens": usage.input_tokens + usage.cache_read_tokens + written,
        "gen_ai.usage.output_tokens": usage.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cache_read_tokens,
        "gen_ai.usage.cache_creation.input_tokens": written,
    }
