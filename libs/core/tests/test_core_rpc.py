"""Rooms' servers and channels over real Unix sockets; settings that stop a start; telemetry over HTTP."""

import os
from pathlib import Path

import grpc
import httpx2
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic_settings import SettingsConfigDict
from structlog.testing import capture_logs

from signalbox.core import rpc, settings
from signalbox.core.errors import StartupError
from signalbox.core.telemetry import Readiness, TelemetryServer
from signalbox.v1 import scheduler_pb2, scheduler_pb2_grpc

SECRET = "0123456789abcdef0123456789abcdef"
SERVICE = "signalbox.v1.Scheduler"


class Inspector(scheduler_pb2_grpc.SchedulerServicer):
    async def Inspect(self, request: scheduler_pb2.InspectRequest, context: object) -> scheduler_pb2.InspectResponse:
        return scheduler_pb2.InspectResponse(key_id="default/ada")


async def test_a_call_needs_the_secret_and_health_does_not(tmp_path: Path) -> None:
    mine = settings.RoomSettings(shared_secret=SECRET)
    address = f"unix:{tmp_path}/s.sock"
    server = rpc.Server(mine, address, [SERVICE])
    scheduler_pb2_grpc.add_SchedulerServicer_to_server(Inspector(), server.grpc)
    await server.start()
    await server.set_serving(True)
    assert os.stat(tmp_path / "s.sock").st_mode & 0o777 == 0o600
    try:
        async with rpc.connect(mine, address) as channel:
            reply = await scheduler_pb2_grpc.SchedulerStub(channel).Inspect(scheduler_pb2.InspectRequest(), timeout=5)
            assert reply.key_id == "default/ada"
        wrong = settings.RoomSettings(shared_secret=SECRET[::-1])
        async with rpc.connect(wrong, address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await scheduler_pb2_grpc.SchedulerStub(channel).Inspect(scheduler_pb2.InspectRequest(), timeout=5)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        async with grpc.aio.insecure_channel(address) as bare:
            status = await health_pb2_grpc.HealthStub(bare).Check(health_pb2.HealthCheckRequest(service=SERVICE))
            assert status.status == health_pb2.HealthCheckResponse.SERVING
    finally:
        await server.stop(0)


@pytest.mark.parametrize(
    ("variables", "what"),
    [
        ({}, "SIGNALBOX_SHARED_SECRET"),
        ({"SIGNALBOX_SHARED_SECRET": "short"}, "SIGNALBOX_SHARED_SECRET"),
        ({"SIGNALBOX_SHARED_SECRET": SECRET, "SIGNALBOX_LOG_LEVEL": "loud"}, "SIGNALBOX_LOG_LEVEL"),
        ({"SIGNALBOX_SHARED_SECRET": SECRET, "SIGNALBOX_TELEMETRY_ADDRESS": "nonsense"}, "SIGNALBOX_TELEMETRY_ADDRESS"),
        ({"SIGNALBOX_SHARED_SECRET": SECRET, "SIGNALBOX_STOP_GRACE_SECONDS": "-1"}, "SIGNALBOX_STOP_GRACE_SECONDS"),
        ({"SIGNALBOX_SHARED_SECRET": SECRET, "SIGNALBOX_STOP_GRACE_SECONDS": "inf"}, "SIGNALBOX_STOP_GRACE_SECONDS"),
        ({"SIGNALBOX_SHARED_SECRET": SECRET, "SIGNALBOX_START_PATIENCE_SECONDS": "nan"}, "SIGNALBOX_START_PATIENCE_SECONDS"),
        ({"SIGNALBOX_SHARED_SECRET_FILE": "/nonexistent"}, "/nonexistent"),
        ({"SIGNALBOX_SHARED_SECRET": SECRET, "SIGNALBOX_TLS_CERT_FILE": "/c"}, "SIGNALBOX_TLS_CERT_FILE"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], what: str) -> None:
    for name in [n for n in os.environ if n.startswith("SIGNALBOX_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StartupError, match=what) as stopped:
        settings.load(settings.RoomSettings)
    assert "short" not in str(stopped.value).replace("shorter", "")


def test_an_env_file_that_is_no_text_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "env").write_bytes(b"SIGNALBOX_LOG_LEVEL=info\n\xff\xfe")
    monkeypatch.setenv("SIGNALBOX_ENV_FILE", str(tmp_path / "env"))
    with pytest.raises(StartupError, match="SIGNALBOX_ENV_FILE"):
        settings.load(settings.RoomSettings)


class Kitchen(settings.RoomSettings):
    model_config = SettingsConfigDict(env_prefix="SIGNALBOX_KITCHEN_")

    ovens: int = 1


def test_a_room_begins_its_log_with_its_settings_and_those_that_are_mistyped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    (tmp_path / "env").write_text("SIGNALBOX_KITCHEN_OVEN=1\nSIGNALBOX_KITCHEN_OVENS=2\n")
    for name, value in {
        "SIGNALBOX_SHARED_SECRET": SECRET, "SIGNALBOX_ENV_FILE": str(tmp_path / "env"),
        "SIGNALBOX_KITCHEN_TOKEN": "hunter2", "SIGNALBOX_KITCHEN_LOGLEVEL": "info", "SIGNALBOX_KITCHEN_ADDRESS": "x", "SIGNALBOX_CELLAR_OVENS": "3",
        "SIGNALBOX_KITCHEN_SERVICE_HOST": "10.0.0.1", "SIGNALBOX_KITCHEN_SERVICE_PORT_HTTP": "80",
        "SIGNALBOX_KITCHEN_PORT": "tcp://10.0.0.1:80", "SIGNALBOX_KITCHEN_PORT_80_TCP_ADDR": "10.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    with capture_logs() as written:
        settings.load(Kitchen).announce(structlog.get_logger())
    assert SECRET not in str(written)
    assert "hunter2" not in str(written)
    assert (written[0]["event"], written[0]["ovens"]) == ("starting", "2")
    assert [(one["event"], one["name"], one["meant"]) for one in written[1:]] == [
        ("setting_unknown", "SIGNALBOX_KITCHEN_LOGLEVEL", "SIGNALBOX_LOG_LEVEL"),
        ("setting_unknown", "SIGNALBOX_KITCHEN_OVEN", "SIGNALBOX_KITCHEN_OVENS"),
        ("setting_unknown", "SIGNALBOX_KITCHEN_TOKEN", ""),
    ]


async def test_telemetry_tells_what_is_missing(tmp_path: Path) -> None:
    readiness = Readiness("redis")
    server = TelemetryServer(f"unix:{tmp_path}/t.sock", readiness)
    await server.start()
    try:
        transport = httpx2.AsyncHTTPTransport(uds=f"{tmp_path}/t.sock")
        async with httpx2.AsyncClient(transport=transport, base_url="http://room") as http:
            assert (await http.get("/healthz")).status_code == 200
            before = await http.get("/readyz")
            assert (before.status_code, before.json()["missing"]) == (503, {"redis": "starting"})
            readiness.ok("redis")
            assert (await http.get("/readyz")).status_code == 200
            assert "python_info" in (await http.get("/metrics")).text
    finally:
        await server.close()


async def test_a_taken_telemetry_address_stops_the_start() -> None:
    first = TelemetryServer("127.0.0.1:0", Readiness())
    await first.start()
    assert first._server is not None
    port = first._server.servers[0].sockets[0].getsockname()[1]
    try:
        with pytest.raises(StartupError, match="cannot be bound"):
            await TelemetryServer(f"127.0.0.1:{port}", Readiness()).start()
    finally:
        await first.close()
