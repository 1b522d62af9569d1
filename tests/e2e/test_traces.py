"""One trace of a request that fails over, from all of a running Signalbox: gateway and scheduler, each span in its place."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.caller import MODEL, Caller, eventually, message
from tests.support.collector import Collector, attributes
from tests.support.instance import Instance, account, pool, relay_key, secret
from tests.support.sim import Simulator

pytestmark = pytest.mark.slow

KEY, OWNER, PROMPT = "sbx_e2e_key_of_a_traced_caller", "ada@example.com", "a-prompt-that-nobody-may-see"
API_KEYS = {"a": "sk-ant-e2e-traced-a", "b": "sk-ant-e2e-traced-b"}
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.stop()


@pytest.fixture
def sim() -> Iterator[Simulator]:
    with Simulator({"accounts": [{"name": name, "key": key} for name, key in API_KEYS.items()]}) as running:
        yield running


@pytest.fixture
def instance(tmp_path: Path, sim: Simulator, collector: Collector) -> Iterator[Instance]:
    documents = [secret("ada", **{"relay-key": KEY}), relay_key("ada", owner=OWNER), pool("default", list(API_KEYS))]
    for priority, (name, key) in enumerate(API_KEYS.items()):
        documents += [secret(name, **{"api-key": key}), account(name, sim.url, priority=priority)]
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "600000"}
    with Instance(tmp_path, documents, environment=environment) as running:
        yield running


def test_two_attempts_are_two_admissions_in_one_trace(instance: Instance, sim: Simulator, collector: Collector) -> None:
    sim.script({"status": 429, "retry_after": 60}, account="a")
    caller = Caller(instance.url, KEY)
    answer = caller.ask("POST", "/v1/messages", message(PROMPT), traceparent=f"00-{TRACE}-{CALLER}-01")
    assert answer.status == 200
    assert caller.ask("POST", "/v1/messages", message(PROMPT), traceparent=f"00-{TRACE}-{CALLER}-00").status == 200
    rows = eventually(
        lambda: instance.run("explain", answer.request_id, "-o", "json", check=False), within_s=15,
        wanted=lambda result: result.returncode == 0 and len(_rows(result.stdout)) == 2,
    )
    assert collector.spans == []
    assert instance.stop() == 0    # what a room has it sends before it ends

    spans = collector.spans
    assert {name: len(of) for name, of in collector.of.items()} == {"signalbox-gateway": 5, "signalbox-scheduler": 2}
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    [request] = collector.named("POST /v1/messages")
    assert request.parent_span_id.hex() == CALLER
    asked = [span for span in collector.named("admit") if span.kind == Span.SPAN_KIND_CLIENT]
    decided = [span for span in collector.named("admit") if span.kind == Span.SPAN_KIND_SERVER]
    attempts = collector.named(f"chat {MODEL}")
    assert {span.parent_span_id for span in (*asked, *attempts)} == {request.span_id}
    assert [span.parent_span_id for span in decided] == [span.span_id for span in asked]
    for outer, inner in zip(asked, decided, strict=True):
        assert outer.start_time_unix_nano <= inner.start_time_unix_nano <= inner.end_time_unix_nano <= outer.end_time_unix_nano

    # What the spans say is what `explain` says.
    for span, attempt, row in zip(decided, attempts, _rows(rows.stdout), strict=True):
        told, decision = attributes(span), row["decision"]
        assert told["signalbox.request_id"] == row["request_id"] == answer.request_id
        assert told["signalbox.attempt"] == attributes(attempt)["signalbox.attempt"] == row["attempt"]
        assert told["signalbox.account"] == attributes(attempt)["signalbox.account"] == row["account"]
        assert (told["signalbox.key"], told["signalbox.pool"]) == (row["key"], row["pool"])
        assert (told["signalbox.outcome"], told["signalbox.reason"]) == ("granted", decision["reason"])
        assert told["signalbox.strategy"] == decision["strategy"]
        assert told.get("signalbox.left_out", []) == [f"{why} {n}" for why, n in decision["excluded"].items()]
    for hidden in (KEY, *API_KEYS.values(), OWNER, PROMPT):
        assert hidden.encode() not in collector.raw


def _rows(text: str) -> list[dict[str, Any]]:
    return list(json.loads(text))
