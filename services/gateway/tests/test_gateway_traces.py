"""Traces as a collector gets them, by OTLP over HTTP: which spans, what they hold and what not; none by default."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.semconv._incubating.attributes import (
    error_attributes,
    gen_ai_attributes,
    http_attributes,
    server_attributes,
    url_attributes,
)

from signalbox.core.tracing import Tracing
from signalbox.gateway.spans import Spans
from tests.support.collector import Collector, attributes
from tests.support.machine import busy, free_port

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
SESSION = "5f0c4a52-7a3e-4a44-9a0d-session-of-ada"
CONVENTIONAL = {
    value for module in (error_attributes, gen_ai_attributes, http_attributes, server_attributes, url_attributes)
    for value in vars(module).values() if isinstance(value, str)
}


@pytest.fixture
def collector():
    running = Collector()
    yield running
    running.stop()


@pytest.fixture
async def tracing(collector):
    running = Tracing("gateway", "gateway-1", f"{collector.url}/v1/traces")
    yield running
    await running.close(5)


@pytest.fixture
def traces(tracing):
    return Spans(tracing.tracer())


async def test_a_request_that_fails_over_is_one_span_with_one_of_each_attempt(gate, wire, collector, tracing):
    async def limited(w):
        w.answer(429, b'{"type":"error","error":{"type":"rate_limit_error","message":"the-words-of-an-error"}}')

    async def ok(w):
        w.answer(200, wire.MESSAGE)

    first = await gate.provider(limited)
    second = await gate.provider(ok)
    body = {**wire.BODY, "messages": [{"role": "user", "content": "a-question-of-ada"}],
            "metadata": {"user_id": SESSION}, "system": "a-system-prompt"}
    reply = await gate.client.post(
        body, traceparent=TRACEPARENT, tracestate="vendor=a-word-of-the-caller", x_claude_code_session_id=SESSION,
    )
    assert reply.status == 200
    await gate.quiet()
    for provider in (first, second):
        [(head, _)] = provider.requests
        lines = head.lower().split(b"\r\n")
        assert [li for li in lines if li.startswith(b"trace")] == [
            b"traceparent: " + TRACEPARENT.encode(), b"tracestate: vendor=a-word-of-the-caller",
        ]
    await tracing.close(5)

    [request] = collector.named("POST /v1/messages")
    assert collector.services == {"signalbox-gateway"}
    assert (request.kind, request.status.code) == (Span.SPAN_KIND_SERVER, Status.STATUS_CODE_UNSET)
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    request_id = reply.headers["x-signalbox-request-id"]
    assert attributes(request) == {
        "http.request.method": "POST", "http.route": "/v1/messages", "url.path": "/v1/messages", "url.scheme": "http",
        "http.response.status_code": 200, "signalbox.request_id": request_id, "signalbox.outcome": "ok",
        "signalbox.attempts": 2,
    }
    failed, served = collector.named("chat claude-sonnet-5-5")
    admits = collector.named("admit")
    assert len(collector.spans) == 1 + 2 + len(admits) == 5
    for span in (failed, served, *admits):
        assert (span.trace_id, span.parent_span_id) == (request.trace_id, request.span_id)
        assert request.start_time_unix_nano - 1_000_000 <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= request.end_time_unix_nano
    assert {span.kind for span in (failed, served, *admits)} == {Span.SPAN_KIND_CLIENT}
    told = [gate.scheduler.admits[0].traceparent, gate.scheduler.retries[0].traceparent]
    assert told == [f"00-{TRACE}-{span.span_id.hex()}-01" for span in admits]
    assert (failed.status.code, served.status.code) == (Status.STATUS_CODE_ERROR, Status.STATUS_CODE_UNSET)
    common = {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": "claude-sonnet-5-5", "server.address": "127.0.0.1",
        "signalbox.pool": "default/default", "signalbox.request_id": request_id,
    }
    ports = [int(url.rpartition(":")[2]) for _, url in gate.scheduler.accounts]
    assert attributes(failed) == {
        **common, "server.port": ports[0], "signalbox.account": "default/a1", "signalbox.attempt": 1,
        "signalbox.outcome": "upstream_error", "http.response.status_code": 429,
        "error.type": gate.journal.rows[0].reason,
    }
    told = attributes(served)
    assert 0 < told.pop("gen_ai.response.time_to_first_chunk") < 20
    assert told == {
        **common, "server.port": ports[1], "signalbox.account": "default/a2", "signalbox.attempt": 2,
        "signalbox.outcome": "ok", "http.response.status_code": 200,
        "gen_ai.response.model": "claude-sonnet-5-5-20260901", "gen_ai.response.finish_reasons": ["end_turn"],
        "gen_ai.usage.input_tokens": 13, "gen_ai.usage.output_tokens": 5, "gen_ai.usage.cache_read.input_tokens": 3,
        "gen_ai.usage.cache_creation.input_tokens": 0, "signalbox.usage_estimated": False,
    }
    used = {a.key for span in collector.spans for a in span.attributes}
    assert {name for name in used if not name.startswith("signalbox.")} <= CONVENTIONAL
    for secret in (wire.KEY, "secret-default", SESSION, "a-question-of-ada", "a-system-prompt", "a-word-of-the-caller",
                   "the-words-of-an-error", '"hi"', "ada@example.com"):
        assert secret.encode() not in collector.raw


async def test_a_stream_and_a_refusal(gate, wire, collector, tracing):
    async def stream(w):
        w.stream_head()
        w.chunk(wire.START + wire.CONTENT + wire.LAST + wire.STOP)
        w.end()

    await gate.provider(stream)
    assert (await gate.client.post(wire.STREAM)).status == 200
    assert (await gate.client.post(b"{}", x_api_key="-")).status == 401
    await gate.quiet()
    await tracing.close(5)
    streamed, refused = collector.named("POST /v1/messages")
    assert streamed.parent_span_id == b""
    [attempt] = collector.named("chat claude-sonnet-5-5")
    told = attributes(attempt)
    assert told["gen_ai.response.finish_reasons"] == ["end_turn"]
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (10, 7)
    assert attributes(refused)["error.type"] == attributes(refused)["signalbox.outcome"] == "key_missing"
    assert attributes(refused)["http.response.status_code"] == 401
    assert refused.status.code == Status.STATUS_CODE_UNSET


@pytest.mark.parametrize("header", ["00-zz-zz-01", "", f"00-{TRACE}-{PARENT}-01-\xff"])
async def test_a_traceparent_that_is_none_begins_a_new_trace(gate, wire, collector, tracing, header):
    async def ok(w):
        w.answer(200, wire.MESSAGE)

    await gate.provider(ok)
    raw = gate.client.message(json.dumps(wire.BODY).encode(), headers={"traceparent": "@"})
    reply = await gate.client.send(raw.replace(b"traceparent: @", b"traceparent: " + header.encode("latin-1")))
    assert reply.status == 200
    await gate.quiet()
    await tracing.close(5)
    [request] = collector.named("POST /v1/messages")
    assert (request.trace_id.hex() == TRACE, request.parent_span_id) == (False, b"")


async def test_what_the_caller_does_not_sample_is_not_sent(gate, wire, collector, tracing):
    async def ok(w):
        w.answer(200, wire.MESSAGE)

    await gate.provider(ok)
    assert (await gate.client.post(wire.BODY, traceparent=f"00-{TRACE}-{PARENT}-00")).status == 200
    assert gate.scheduler.admits[0].traceparent == ""
    await gate.quiet()
    await tracing.close(5)
    assert collector.spans == []


async def test_closing_does_not_wait_for_a_collector_that_is_silent():
    silent = Collector(silent=True)
    tracing = Tracing("gateway", "gateway-1", f"{silent.url}/v1/traces")
    tracing.tracer().start_span("one").end()
    try:
        async with asyncio.timeout(5 * busy()):
            await tracing.close(0.3)
    finally:
        silent.stop()


@pytest.mark.parametrize(("given", "url"), [
    ({}, ""),
    ({"traces_exporter": "otlp"}, "http://localhost:4318/v1/traces"),
    ({"otlp_endpoint": "http://c:4318/"}, "http://c:4318/v1/traces"),
    ({"otlp_endpoint": "http://c:4318", "traces_exporter": "none"}, ""),
    ({"otlp_endpoint": "http://c:4318", "otlp_traces_endpoint": "https://t/x"}, "https://t/x"),
])
def test_where_traces_go(wire, given, url):
    assert wire.settings(**given).traces_url == url


@pytest.mark.parametrize("url", ["collector:4318", "ftp://collector", "http://ada:word@collector", "http://c/?token=1"])
def test_what_is_no_collector(wire, url):
    with pytest.raises(ValueError, match="HOST"):
        wire.settings(otlp_endpoint=url)


@pytest.mark.parametrize(("given", "fine"), [
    ({"otlp_protocol": "grpc"}, True),  # nobody wants traces here: it is other programs' business
    ({"otlp_protocol": "grpc", "otlp_endpoint": "http://c:4317"}, False),
    ({"otlp_protocol": "grpc", "otlp_endpoint": "http://c:4317", "traces_exporter": "none"}, True),
    ({"otlp_protocol": "grpc", "otlp_traces_protocol": "http/protobuf", "otlp_endpoint": "http://c:4318"}, True),
    ({"otlp_protocol": "http/protobuf", "traces_exporter": "otlp"}, True),
    ({"otlp_traces_protocol": "http/json", "traces_exporter": "otlp"}, False),
])
def test_a_protocol_that_is_not_spoken_is_refused_rather_than_traces_lost(wire, given, fine):
    if fine:
        wire.settings(**given)
        return
    with pytest.raises(ValueError, match="must be http/protobuf, not"):
        wire.settings(**given)


# ---------------------------------------------------------------- as a process


def environment(tmp_path, **more):
    plain = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return {
        **plain, "SIGNALBOX_SHARED_SECRET": "s" * 32, "SIGNALBOX_SCHEDULER_ADDRESS": "127.0.0.1:1",
        "SIGNALBOX_TOKEN_REFRESHER_ADDRESS": "127.0.0.1:1", "SIGNALBOX_USAGE_ADDRESS": "127.0.0.1:1",
        "SIGNALBOX_GATEWAY_JOURNAL_DIR": str(tmp_path / "journal"), "SIGNALBOX_STOP_GRACE_SECONDS": "2",
        "SIGNALBOX_TELEMETRY_ADDRESS": f"127.0.0.1:{free_port()}", **more,
    }


LOADED = """
import asyncio, sys
from signalbox.core.settings import load
from signalbox.gateway.app import Gateway
from signalbox.gateway.settings import GatewaySettings

async def made():
    gateway = Gateway(load(GatewaySettings))
    return gateway.tracing is not None

on = asyncio.run(made())
wanted = ("opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto", "requests", "signalbox.gateway.spans")
print(on, [name for name in wanted if name in sys.modules])
"""


@pytest.mark.slow
def test_by_default_nothing_of_it_is_loaded(tmp_path):
    def loaded(**more):
        return subprocess.run(
            [sys.executable, "-c", LOADED], env=environment(tmp_path, **more), capture_output=True, text=True, timeout=60,
            check=True,
        ).stdout.splitlines()[-1]

    assert loaded() == "False []"
    on = loaded(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert on.startswith("True")
    assert "opentelemetry.sdk" in on


@pytest.mark.slow
def test_a_stopping_gateway_sends_what_it_has(tmp_path, collector):
    port = free_port()
    env = environment(
        tmp_path, SIGNALBOX_GATEWAY_LISTEN=f"127.0.0.1:{port}", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_BSP_SCHEDULE_DELAY="600000",
    )
    process = subprocess.Popen([sys.executable, "-m", "signalbox.gateway"], env=env, stderr=subprocess.PIPE, text=True)
    try:
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/messages", data=b"{}", headers={"x-api-key": "a-key-that-nobody-knows"},
        )
        for _ in range(1200):
            try:
                urllib.request.urlopen(asked, timeout=10)
            except urllib.error.HTTPError:
                break    # it answers
            except OSError:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.05)
        assert collector.spans == []
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
    assert [s.name for s in collector.spans].count("POST /v1/messages") == 1
    assert b"a-key-that-nobody-knows" not in collector.raw
