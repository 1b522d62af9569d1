"""OpenTelemetry traces of one room. Nothing of OpenTelemetry's SDK is imported before a room starts them.

The provider is this room's own and never the process's global one: libraries that trace by themselves stay silent.
"""

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

MAX_ATTRIBUTE_CHARS = 256    # some are what callers send, such as a model's name


class Tracing:
    """Makes spans and sends them in batches from a thread of its own until closed."""

    def __init__(self, room: str, instance_id: str, url: str) -> None:
        """`url` takes OTLP over HTTP, protobuf. Sampling, batches, timeouts and headers are read from `OTEL_*`."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import SpanLimits, TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        self._provider = TracerProvider(
            resource=Resource.create({"service.name": f"signalbox-{room}", "service.instance.id": instance_id}),
            span_limits=SpanLimits(max_attribute_length=MAX_ATTRIBUTE_CHARS),
            shutdown_on_exit=False,    # it would wait for longer than a stopping room may
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))

    def tracer(self) -> "Tracer":
        """Return what spans are made with."""
        return self._provider.get_tracer("signalbox")

    async def close(self, limit_s: float) -> None:
        """Send what is left, for `limit_s` seconds at most; what could not be sent by then is dropped."""
        loop = asyncio.get_running_loop()
        sent = asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):    # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(sent.set)

        # Not the loop's executor: a stopping loop waits for its threads, however long they take.
        threading.Thread(target=shut_down, name="traces-close", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(sent.wait(), limit_s)
