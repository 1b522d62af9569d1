"""Admissions as a collector gets them: below the span that asked, with what `explain` tells; nothing where nobody asks."""

import asyncio
import os
import subprocess
import sys

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from signalbox.v1 import scheduler_pb2 as pb
from tests.support.collector import Collector, attributes

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{PARENT}-01"
SESSION = b"session-of-ada-1"


@pytest.fixture
def collector(monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    running = Collector()
    yield running
    running.stop()


@pytest.fixture
async def stub(stage, make, collector):
    """A traced scheduler with two accounts for one request each, the first of which a third request ever may have."""
    stub = await stage.add(otlp_endpoint=collector.url)
    await stage.put(
        make.account("a", limits=[{"per": "Day", "requests": 1}]), make.account("b", priority=1, maxConcurrency=1),
        make.pool("default", "a", "b", queue={"maxWait": "10s", "maxDepth": 10}), make.key("ada"),
    )
    return stub


async def seen(collector, number):
    """Return so many spans, in the order of their beginnings."""
    async with asyncio.timeout(30):
        while len(collector.spans) < number:
            await asyncio.sleep(0.02)
    return collector.named("admit")


async def test_a_decision_is_told_below_the_span_that_asked(stub, make, collector):
    asked = [make.ask("ada", traceparent=SAMPLED, session=SESSION, source_address="192.0.2.7") for _ in range(2)]
    grants = [(await stub.Admit(ask, timeout=30)).grant for ask in asked]
    assert [g.account_id for g in grants] == ["default/a", "default/b"]
    first, second = await seen(collector, 2)
    assert collector.services == {"signalbox-scheduler"}
    for span, ask in zip((first, second), asked, strict=True):
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
        assert (span.kind, span.status.code) == (Span.SPAN_KIND_SERVER, Status.STATUS_CODE_UNSET)
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        told = attributes(span)
        assert told.items() >= {
            "signalbox.request_id": ask.request_id, "signalbox.attempt": 1, "signalbox.outcome": "granted",
            "signalbox.key": "default/ada", "signalbox.pool": "default/default", "signalbox.strategy": "Headroom",
            "gen_ai.request.model": "claude-sonnet-4-5", "signalbox.considered": 2,
        }.items()
    assert attributes(first)["signalbox.account"] == "default/a"
    assert attributes(first)["signalbox.pin"] == "new"
    told = attributes(second)
    assert (told["signalbox.account"], told["signalbox.passed"]) == ("default/b", ["default/a capped"])
    assert told["signalbox.left_out"] == ["capped 1"]
    assert (told["signalbox.pin"], told["signalbox.pinned"]) == ("full", "default/a")
    for secret in (SESSION, SESSION.hex().encode(), make.digest("ada"), make.digest("ada").hex().encode(), b"ada@example.com",
                   b"192.0.2.7", grants[0].lease_token):
        assert secret not in collector.raw


async def test_a_retry_is_a_span_of_its_own_and_a_refusal_says_why(stub, make, collector):
    ask = make.ask("ada", traceparent=SAMPLED)
    first = (await stub.Admit(ask, timeout=30)).grant
    failed = make.ended(first, outcome="OUTCOME_UPSTREAM_ERROR", status=500, more_attempts=True)
    again = f"00-{TRACE}-1111111111111111-01"
    second = (await stub.Retry(pb.RetryRequest(failed=failed, traceparent=again), timeout=30)).grant
    assert (await stub.Admit(make.ask("nobody", traceparent=SAMPLED), timeout=30)).denial.error_code == "key_invalid"
    _, retried, refused = await seen(collector, 3)
    assert retried.parent_span_id.hex() == "1" * 16
    assert attributes(retried).items() >= {
        "signalbox.request_id": ask.request_id, "signalbox.attempt": 2, "signalbox.account": second.account_id,
    }.items()
    assert attributes(retried)["signalbox.left_out"] == ["tried 1"]
    told = attributes(refused)
    assert (told["signalbox.outcome"], told["error.type"]) == ("denied", "key_invalid")
    assert "signalbox.key" not in told


async def until_waiting(stage):
    async with asyncio.timeout(30):
        while stage.rooms[0].dispatcher.queue.depths.total() != 1:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.02)    # so that it waits for some milliseconds


async def test_waiting_and_giving_up_are_told(stage, stub, make, collector):
    grants = [(await stub.Admit(make.ask("ada"), timeout=30)).grant for _ in range(2)]
    waits = asyncio.create_task(_admitted(stub, make.ask("ada", traceparent=SAMPLED)))
    await until_waiting(stage)
    await stub.Settle(make.ended(grants[1]), timeout=30)
    answer = await waits
    [served] = await seen(collector, 1)
    told = attributes(served)
    assert told["signalbox.waited_ms"] == answer.grant.waited_ms > 0
    assert told["signalbox.waited_for"] == "every account rested or was full"
    [event] = served.events
    assert event.name == "queued"
    assert served.start_time_unix_nano <= event.time_unix_nano <= served.end_time_unix_nano
    limit = attributes(event)
    assert limit["signalbox.pool"] == "default/default"
    assert 0 < limit["signalbox.wait_limit_ms"] <= 10_000

    gone = asyncio.create_task(_admitted(stub, make.ask("ada", traceparent=SAMPLED)))
    await until_waiting(stage)
    gone.cancel()
    _, cancelled = await seen(collector, 2)
    assert attributes(cancelled)["signalbox.outcome"] == "cancelled"


async def _admitted(stub, ask):
    return await stub.Admit(ask, timeout=30)


@pytest.mark.parametrize("traceparent", ["", f"00-{TRACE}-{PARENT}-00", "00-zz-zz-01", "\u00e9"])
async def test_nothing_is_told_of_what_nobody_traces(stub, make, collector, traceparent):
    untraced = make.ask("ada", traceparent=traceparent)
    assert (await stub.Admit(untraced, timeout=30)).HasField("grant")
    traced = make.ask("ada", traceparent=SAMPLED)
    assert (await stub.Admit(traced, timeout=30)).HasField("grant")
    [span] = await seen(collector, 1)
    assert attributes(span)["signalbox.request_id"] == traced.request_id


LOADED = """
import asyncio, sys
from prometheus_client import CollectorRegistry
from signalbox.core.settings import load
from signalbox.scheduler.app import Room
from signalbox.scheduler.settings import SchedulerSettings

async def made():
    Room(load(SchedulerSettings), CollectorRegistry())

asyncio.run(made())
print([name for name in ("opentelemetry", "opentelemetry.sdk", "requests", "signalbox.scheduler.spans") if name in sys.modules])
"""


@pytest.mark.slow
def test_by_default_nothing_of_it_is_loaded():
    plain = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}

    def loaded(**more):
        return subprocess.run(
            [sys.executable, "-c", LOADED], env={**plain, "SIGNALBOX_SHARED_SECRET": "s" * 32, **more},
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout.splitlines()[-1]

    assert loaded() == "[]"
    assert "signalbox.scheduler.spans" in loaded(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
