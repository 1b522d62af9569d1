"""A loop of the operator that no longer turns: liveness fails and names it, and the metric shows since when."""

import asyncio
import json
import time

from prometheus_client import CollectorRegistry

from signalbox.core.telemetry import Readiness, TelemetryServer
from signalbox.operator.metrics import Metrics
from tests.support.machine import free_port
from tests.support.release import fetch

STUCK_AFTER_S = 1.0
PATIENCE_S = 30.0


async def test_a_loop_that_no_longer_turns_fails_liveness_until_it_turns_again() -> None:
    registry, port = CollectorRegistry(), free_port()
    metrics = Metrics(registry)
    server = TelemetryServer(
        f"127.0.0.1:{port}", Readiness(), registry, stuck=lambda: metrics.stuck(STUCK_AFTER_S),
    )
    await server.start()

    async def page(path: str) -> tuple[int, str]:
        return await asyncio.to_thread(fetch, f"http://127.0.0.1:{port}{path}")

    async def becomes(status: int, *turning: str) -> dict[str, object]:
        until_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < until_s:
            for loop in turning:
                metrics.beat(loop)
            found, body = await page("/healthz")
            if found == status:
                return dict(json.loads(body))
            await asyncio.sleep(0.05)
        raise AssertionError(f"liveness never answered {status}")

    try:
        assert await page("/healthz") == (200, '{"live": true}'), "no loop has begun"
        stopped_at = time.time()
        metrics.beat("stops")
        assert await becomes(503, "turns") == {"live": False, "stuck": "stops"}
        assert time.time() - stopped_at >= STUCK_AFTER_S
        lines = dict(line.rsplit(" ", 1) for line in (await page("/metrics"))[1].splitlines() if line.startswith("signalbox_heartbeat"))
        assert set(lines) == {f'signalbox_heartbeat_timestamp_seconds{{loop="{loop}"}}' for loop in ("turns", "stops")}
        assert stopped_at <= float(lines['signalbox_heartbeat_timestamp_seconds{loop="stops"}']) <= time.time() - STUCK_AFTER_S
        assert await becomes(200, "turns", "stops") == {"live": True}
        await becomes(503, "turns")
        metrics.rest()  # a newer operator has taken over: nothing is to turn
        assert (await page("/healthz"))[0] == 200
    finally:
        await server.close()
