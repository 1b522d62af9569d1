"""A collector of OpenTelemetry traces: takes OTLP over HTTP on a socket and keeps what it was sent."""

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """Takes what is exported; answers every request with success, or not at all. `spans` by the service that made them."""

    def __init__(self, *, silent: bool = False) -> None:
        self.raw = b""
        self.of: dict[str, list[Span]] = {}
        release = self.release = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if silent:
                    release.wait(30)
                    return
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                outer.take(self.path, body)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def take(self, path: str, body: bytes) -> None:
        """Take one export."""
        assert path == "/v1/traces"
        self.raw += body
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = next(a.value.string_value for a in group.resource.attributes if a.key == "service.name")
            self.of.setdefault(service, []).extend(span for scope in group.scope_spans for span in scope.spans)

    @property
    def services(self) -> set[str]:
        """Names of all that sent spans."""
        return set(self.of)

    @property
    def spans(self) -> list[Span]:
        """All spans, whoever sent them."""
        return [span for spans in self.of.values() for span in spans]

    def named(self, name: str) -> list[Span]:
        """Return the spans of a name in the order of their beginnings."""
        return sorted((s for s in self.spans if s.name == name), key=lambda s: s.start_time_unix_nano)

    def stop(self) -> None:
        """Close the socket."""
        self.release.set()
        self._server.shutdown()
        self._server.server_close()


def attributes(of: Span | Span.Event) -> dict[str, Any]:
    """Return the attributes of a span or of an event in it."""
    values: dict[str, Any] = {}
    for a in of.attributes:
        kind = a.value.WhichOneof("value")
        value = getattr(a.value, kind)
        values[a.key] = [v.string_value for v in value.values] if kind == "array_value" else value
    return values
