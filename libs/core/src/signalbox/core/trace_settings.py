"""What an operator may set on a room that sends traces: OpenTelemetry's own variables, set once for all rooms."""

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from signalbox.core.settings import RoomSettings

OTLP_PROTOCOL = "http/protobuf"
DEFAULT_COLLECTOR = "http://localhost:4318"


def _collector(value: str) -> str:
    url = urlsplit(value)
    if value and (url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc or url.query):
        raise ValueError("must be http(s)://HOST[:PORT][/PATH]; secrets belong into OTEL_EXPORTER_OTLP_HEADERS")
    return value


Collector = Annotated[str, AfterValidator(_collector)]


class TracedSettings(RoomSettings):
    """What a room reads that can send traces."""

    traces_exporter: Literal["", "otlp", "none"] = Field(
        "", validation_alias="OTEL_TRACES_EXPORTER",
        description="otlp: traces are sent, by OTLP over HTTP (protobuf); none: never. Empty: where an endpoint is "
        "named below. OpenTelemetry's other variables for sampling, batches, headers and certificates hold too.",
    )
    otlp_endpoint: Collector = Field(
        "", validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        description="The collector, such as http://collector:4318; traces go to /v1/traces there.",
    )
    otlp_traces_endpoint: Collector = Field(
        "", validation_alias="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        description="Where traces go, path and all, if not below the collector's URL.",
    )
    otlp_protocol: str = Field(
        "", validation_alias="OTEL_EXPORTER_OTLP_PROTOCOL",
        description="http/protobuf or empty. A room that is to send traces in another way does not start.",
    )
    otlp_traces_protocol: str = Field(
        "", validation_alias="OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", description="The same, for traces alone.",
    )

    @model_validator(mode="after")
    def _spoken(self) -> Self:
        protocol = self.otlp_traces_protocol or self.otlp_protocol
        if self.traces_url and protocol not in ("", OTLP_PROTOCOL):
            raise ValueError(
                f"traces are sent by OTLP over HTTP: OTEL_EXPORTER_OTLP_TRACES_PROTOCOL must be {OTLP_PROTOCOL}, not "
                f"{protocol}, and the endpoint the collector's port for it (4318 by default)",
            )
        return self

    @property
    def traces_url(self) -> str:
        """Where traces are sent; empty: nobody wants any."""
        wanted = self.traces_exporter or self.otlp_endpoint or self.otlp_traces_endpoint
        if not wanted or wanted == "none":
            return ""
        return self.otlp_traces_endpoint or (self.otlp_endpoint or DEFAULT_COLLECTOR).rstrip("/") + "/v1/traces"
