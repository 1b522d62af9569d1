"""How a span is told from room to room: the W3C's `traceparent`. Only imported where traces are wanted.

`tracestate` is left alone: a caller's may hold anything.
"""

from opentelemetry.context import Context
from opentelemetry.trace import Span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_propagator = TraceContextTextMapPropagator()


def parent_of(traceparent: str) -> Context:
    """Return the context below the span that is named; an empty one where it names none."""
    if not traceparent:
        return Context()
    return _propagator.extract({"traceparent": traceparent}, context=Context())


def format_traceparent(span: Span) -> str:
    """Return what names a span."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, context=set_span_in_context(span, Context()))
    return carrier["traceparent"]
