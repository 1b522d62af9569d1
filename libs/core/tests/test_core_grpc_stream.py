"""A gRPC stream of our own against the library's server, over real sockets: sizes, refusals, mTLS, nonsense."""

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from signalbox.core import rpc, settings
from signalbox.core.grpc_stream import Endpoint
from signalbox.v1 import scheduler_pb2 as pb
from signalbox.v1 import scheduler_pb2_grpc

SECRET = "0123456789abcdef0123456789abcdef"
SERVICE = "signalbox.v1.Scheduler"
METHOD = f"/{SERVICE}/Session"
PLAIN = settings.RoomSettings(shared_secret=SECRET)


class Echo(scheduler_pb2_grpc.SchedulerServicer):
    """Sends each gateway id back as an epoch; protocols `end` and `abort` end the call."""

    async def Session(self, request_iterator: AsyncIterator[pb.GatewayBatch], context: Any) -> Any:
        async for batch in request_iterator:
            if batch.hello.protocol == "end":
                return
            if batch.hello.protocol == "abort":
                await context.abort(rpc.grpc.StatusCode.UNAVAILABLE, "not now, später")
            yield pb.SchedulerBatch(deliver_journal=pb.DeliverJournal(epoch=batch.hello.gateway_id))


async def serve(config: settings.RoomSettings, address: str) -> tuple[rpc.Server, int]:
    server = rpc.Server(config, address, [SERVICE])
    scheduler_pb2_grpc.add_SchedulerServicer_to_server(Echo(), server.grpc)
    return server, await server.start()


def hello(text: str, protocol: str = "v1") -> bytes:
    return pb.GatewayBatch(hello=pb.Hello(gateway_id=text, protocol=protocol)).SerializeToString()


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    where = f"unix:{tmp_path}/s.sock"
    server, _ = await serve(PLAIN, where)
    yield where
    await server.stop(0)


async def test_messages_of_all_sizes_come_back_whole_and_in_order(address: str) -> None:
    """More than both sides' windows hold at once, in one message and in many."""
    answers: asyncio.Queue[bytes] = asyncio.Queue()
    stream = await Endpoint(PLAIN, address).open(METHOD, answers.put_nowait)
    sizes = [0, 1, 16_370, 16_384, 16_385, 65_535, 100_000, 20 << 20, *([3000] * 500), 5]
    for n, size in enumerate(sizes):
        stream.send(hello(f"{n}:" + "x" * size))
    async with asyncio.timeout(30):
        for n, size in enumerate(sizes):
            assert pb.SchedulerBatch.FromString(await answers.get()).deliver_journal.epoch == f"{n}:" + "x" * size
    stream.close()
    assert await stream.ended == "closed"


async def test_a_wrong_secret_is_told(address: str) -> None:
    stream = await Endpoint(settings.RoomSettings(shared_secret=SECRET[::-1]), address).open(METHOD, lambda _: None)
    stream.send(hello("let me in"))
    async with asyncio.timeout(5):
        assert await stream.ended == "the shared secret is missing or wrong"
    stream.send(hello("nobody hears this"))


@pytest.mark.parametrize(("protocol", "why"), [("abort", "not now, später"), ("end", "gRPC status 0")])
async def test_why_the_service_ended_it(address: str, protocol: str, why: str) -> None:
    stream = await Endpoint(PLAIN, address).open(METHOD, lambda _: None)
    stream.send(hello("", protocol))
    async with asyncio.timeout(5):
        assert await stream.ended == why


async def test_a_method_that_is_not_there(address: str) -> None:
    stream = await Endpoint(PLAIN, address).open(f"/{SERVICE}/Nothing", lambda _: None)
    async with asyncio.timeout(5):
        assert "not found" in (await stream.ended).lower()


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0\1\0\0\0\0\0\1\0" * 3, b"\xff" * 40])
async def test_what_is_no_grpc_ends_it(tmp_path: Path, said: bytes) -> None:
    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(nonsense, f"{tmp_path}/n.sock") as server:
        stream = await Endpoint(PLAIN, f"unix:{tmp_path}/n.sock").open(METHOD, lambda _: None)
        asyncio.get_running_loop().call_later(0.2, stream.close, "closed by hand")
        async with asyncio.timeout(5):
            why = await stream.ended
        assert said.startswith(b"\0") or why.startswith("not gRPC"), why
        server.close()


@pytest.mark.parametrize("strict", [False, True])
async def test_mutual_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, strict: bool) -> None:
    """Authorities without key identifiers are believed, as gRPC believes them, by Pythons from 3.13 on too."""
    if strict:
        usual = ssl.create_default_context

        def as_python_3_13(*args: Any, **kwargs: Any) -> ssl.SSLContext:
            context = usual(*args, **kwargs)
            context.verify_flags |= ssl.VERIFY_X509_STRICT
            return context

        monkeypatch.setattr(ssl, "create_default_context", as_python_3_13)
    ours, theirs = rooms_of_two(tmp_path)
    server, port = await serve(ours, "localhost:0")
    try:
        answers: asyncio.Queue[bytes] = asyncio.Queue()
        stream = await Endpoint(ours, f"localhost:{port}").open(METHOD, answers.put_nowait)
        stream.send(hello("encrypted"))
        async with asyncio.timeout(5):
            assert pb.SchedulerBatch.FromString(await answers.get()).deliver_journal.epoch == "encrypted"
        stream.close()
        with pytest.raises(OSError, match=r"(?i)certificate"):
            await Endpoint(theirs, f"localhost:{port}").open(METHOD, lambda _: None)
    finally:
        await server.stop(0)


def rooms_of_two(directory: Path) -> tuple[settings.RoomSettings, settings.RoomSettings]:
    """Return the settings of rooms whose certificates two authorities have signed that do not know each other."""
    certificates(directory)
    ours, theirs = (
        settings.RoomSettings(
            shared_secret=SECRET, tls_ca_file=directory / f"{ca}.pem", tls_cert_file=directory / f"{ca}-room.pem",
            tls_key_file=directory / f"{ca}-room.key",
        )
        for ca in ("ours", "theirs")
    )
    return ours, theirs


def certificates(directory: Path) -> None:
    """Two authorities, each with one room called localhost."""
    now = datetime.datetime.now(datetime.UTC)
    for ca in ("ours", "theirs"):
        ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ca)])
        for subject, public, name, is_ca in ((issuer, ca_key, ca, True), (x509.Name([]), key, f"{ca}-room", False)):
            builder = (
                x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public.public_key())
                .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(minutes=5))
                .not_valid_after(now + datetime.timedelta(hours=1))
                .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
                .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            )
            (directory / f"{name}.pem").write_bytes(
                builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM),
            )
            (directory / f"{name}.key").write_bytes(public.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption(),
            ))
