"""Rooms on different machines: mutual TLS between them, and a name that leads to several pods."""

import asyncio
import subprocess
from pathlib import Path

import grpc
import pytest

from signalbox.core import rpc, settings
from signalbox.core.errors import StartupError
from signalbox.core.lifecycle import patiently
from signalbox.v1 import scheduler_pb2, scheduler_pb2_grpc

SECRET = "0123456789abcdef0123456789abcdef"
SERVICE = "signalbox.v1.Scheduler"


class Inspector(scheduler_pb2_grpc.SchedulerServicer):
    async def Inspect(self, request: scheduler_pb2.InspectRequest, context: object) -> scheduler_pb2.InspectResponse:
        return scheduler_pb2.InspectResponse(key_id="default/ada")


def certificate(directory: Path, name: str) -> dict[str, Path]:
    """An authority and one certificate for `localhost`, as the chart makes them for the rooms' Services."""
    where = directory / name
    where.mkdir()

    def openssl(*args: str) -> None:
        subprocess.run(["openssl", *args], cwd=where, check=True, capture_output=True)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=authority")
    openssl("req", *new_key, "-keyout", "tls.key", "-out", "tls.csr", "-subj", "/CN=rooms")
    (where / "names").write_text("subjectAltName=DNS:localhost\n")
    openssl(
        "x509", "-req", "-in", "tls.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
        "-extfile", "names", "-out", "tls.crt",
    )
    return {"tls_cert_file": where / "tls.crt", "tls_key_file": where / "tls.key", "tls_ca_file": where / "ca.crt"}


async def ask(mine: settings.RoomSettings, address: str) -> str:
    async with rpc.connect(mine, address) as channel:
        stub = scheduler_pb2_grpc.SchedulerStub(channel)
        reply = await stub.Inspect(scheduler_pb2.InspectRequest(), timeout=30)
    key_id: str = reply.key_id
    return key_id


async def test_with_tls_only_a_room_with_a_certificate_of_the_same_authority_is_answered(tmp_path: Path) -> None:
    rooms = settings.RoomSettings(shared_secret=SECRET, **certificate(tmp_path, "rooms"))
    strangers = settings.RoomSettings(shared_secret=SECRET, **certificate(tmp_path, "strangers"))
    server = rpc.Server(rooms, "127.0.0.1:0", [SERVICE])
    scheduler_pb2_grpc.add_SchedulerServicer_to_server(Inspector(), server.grpc)
    port = await server.start()
    try:
        assert await ask(rooms, f"localhost:{port}") == "default/ada"
        for other in (strangers, settings.RoomSettings(shared_secret=SECRET)):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask(other, f"localhost:{port}")
            assert refused.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
        wrong = settings.RoomSettings(shared_secret=SECRET[::-1], **{k: getattr(rooms, k) for k in ("tls_cert_file", "tls_key_file", "tls_ca_file")})
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(wrong, f"localhost:{port}")
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    finally:
        await server.stop(0)


@pytest.mark.slow
async def test_a_patient_start_waits_for_what_comes_later_and_an_impatient_one_does_not() -> None:
    tries = 0

    async def step() -> str:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise StartupError("Redis", "is not there yet")
        return "started"

    with pytest.raises(StartupError):
        await patiently(0, step)
    assert tries == 1
    assert await patiently(30, step) == "started"
    assert tries == 3


@pytest.mark.slow
async def test_renewed_certificates_are_taken_up_without_a_restart(tmp_path: Path) -> None:
    """First a new certificate of the same authority, then, once both trust it, one of another authority."""
    first, second = certificate(tmp_path, "first"), certificate(tmp_path, "second")
    mounted = {name: tmp_path / file.name for name, file in first.items()}

    def mount(**files: bytes) -> None:
        for name, content in files.items():
            mounted[name].write_bytes(content)

    mount(**{name: file.read_bytes() for name, file in first.items()})
    rooms = settings.RoomSettings(shared_secret=SECRET, **mounted)
    strangers = settings.RoomSettings(shared_secret=SECRET, **second)
    server = rpc.Server(rooms, "127.0.0.1:0", [SERVICE])
    scheduler_pb2_grpc.add_SchedulerServicer_to_server(Inspector(), server.grpc)
    address = f"localhost:{await server.start()}"
    kept = rpc.connect(rooms, address)
    stub = scheduler_pb2_grpc.SchedulerStub(kept)
    try:
        assert (await stub.Inspect(scheduler_pb2.InspectRequest(), timeout=30)).key_id == "default/ada"
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(strangers, address)
        both = first["tls_ca_file"].read_bytes() + second["tls_ca_file"].read_bytes()
        mount(tls_ca_file=both)
        trusting = settings.RoomSettings(shared_secret=SECRET, **{**second, "tls_ca_file": mounted["tls_ca_file"]})
        assert await ask(trusting, address) == "default/ada", "the server took up the authorities"
        mount(tls_cert_file=second["tls_cert_file"].read_bytes())
        assert await ask(trusting, address) == "default/ada", "half a renewal disturbs nobody"
        mount(tls_key_file=second["tls_key_file"].read_bytes())
        mount(tls_ca_file=second["tls_ca_file"].read_bytes())
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(settings.RoomSettings(shared_secret=SECRET, **first), address)
        await asyncio.sleep(1.1)
        # The connection that the kept channel had is still good; a new one shows the new certificate.
        assert (await stub.Inspect(scheduler_pb2.InspectRequest(), timeout=30)).key_id == "default/ada"
        await server.stop(0)
        again = rpc.Server(strangers, address.replace("localhost", "127.0.0.1"), [SERVICE])
        scheduler_pb2_grpc.add_SchedulerServicer_to_server(Inspector(), again.grpc)
        await again.start()
        try:
            assert (await stub.Inspect(scheduler_pb2.InspectRequest(), timeout=30, wait_for_ready=True)).key_id == "default/ada"
        finally:
            await again.stop(0)
    finally:
        await kept.close()
        await server.stop(0)
