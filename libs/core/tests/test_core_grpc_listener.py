"""The listener of our own against the gRPC library and our own stream, over real sockets: sizes, refusals, mTLS,
callers that are cut into pieces, hostile, silent or do not read.
"""

import asyncio
import os
import random
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from hpack import Encoder

from signalbox.core import grpc_listener, http2, rpc, settings
from signalbox.core.errors import StartupError
from signalbox.core.grpc_listener import Call, Listener
from signalbox.core.grpc_stream import Endpoint
from signalbox.v1 import scheduler_pb2 as pb
from signalbox.v1 import scheduler_pb2_grpc

from .test_core_grpc_stream import METHOD, PLAIN, SECRET, certificates, hello, rooms_of_two

WRONG = settings.RoomSettings(shared_secret=SECRET[::-1])


class Echo:
    """Sends each gateway id back as an epoch, and a last word once the caller has none; `end` ends the call."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def take(self, message: bytes) -> None:
        batch = pb.GatewayBatch.FromString(message)
        if batch.hello.protocol == "end":
            self.call.finish(grpc_listener.UNAVAILABLE, "not now, später")
        self.call.send(answer(batch.hello.gateway_id))

    def take_end(self) -> None:
        self.call.send(answer("bye"))
        self.call.finish(grpc_listener.OK)


def answer(text: str) -> bytes:
    return pb.SchedulerBatch(deliver_journal=pb.DeliverJournal(epoch=text)).SerializeToString()


def text_of(message: bytes | pb.SchedulerBatch) -> str:
    batch = pb.SchedulerBatch.FromString(message) if isinstance(message, bytes) else message
    return batch.deliver_journal.epoch


@pytest.fixture
async def hasty(monkeypatch: pytest.MonkeyPatch, address: str) -> str:
    """Where a caller that stays after its call is closed on soon."""
    monkeypatch.setattr(grpc_listener, "_LINGER_S", 0.1)
    return address


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    where = f"unix:{tmp_path}/l.sock"
    listener = Listener(PLAIN, where, METHOD, Echo)
    await listener.start()
    assert os.stat(tmp_path / "l.sock").st_mode & 0o777 == 0o600
    yield where
    await listener.stop(0)


def session(channel: grpc.aio.Channel) -> Any:
    return scheduler_pb2_grpc.SchedulerStub(channel).Session(timeout=30, wait_for_ready=True)


async def say(call: Any, text: str, protocol: str = "v1") -> None:
    await call.write(pb.GatewayBatch(hello=pb.Hello(gateway_id=text, protocol=protocol)))


# ---------------------------------------------------------------------- the library's client


@pytest.mark.slow
async def test_the_library_gets_messages_of_all_sizes_and_both_ends(address: str) -> None:
    """More than both sides' windows hold at once, in one message and in many."""
    sizes = [0, 1, 16_370, 16_384, 16_385, 65_535, 100_000, 20 << 20, *([3000] * 500), 5]
    async with rpc.connect(PLAIN, address) as channel:
        call = session(channel)

        async def write() -> None:
            for n, size in enumerate(sizes):
                await say(call, f"{n}:" + "x" * size)
            await call.done_writing()

        writing = asyncio.create_task(write())
        for n, size in enumerate(sizes):
            assert text_of(await call.read()) == f"{n}:" + "x" * size
        await writing
        assert text_of(await call.read()) == "bye"
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_the_library_makes_one_call_after_another_and_several_at_once(address: str) -> None:
    """A connection carries one call; the library opens another for the next, and nobody's call is lost."""
    async with rpc.connect(PLAIN, address) as channel:

        async def whole(text: str) -> None:
            call = session(channel)
            await say(call, text)
            await call.done_writing()
            assert [text_of(b) async for b in call] == [text, "bye"]

        for n in range(3):
            await whole(f"one {n}")
        await asyncio.gather(*(whole(f"of many {n}") for n in range(5)))


async def test_the_library_is_told_why_it_is_refused(address: str) -> None:
    async with rpc.connect(WRONG, address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await session(channel).read()
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    async with grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await session(channel).read()
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    async with rpc.connect(PLAIN, address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await scheduler_pb2_grpc.SchedulerStub(channel).Inspect(pb.InspectRequest(), timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        call = session(channel)
        await say(call, "", "end")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert refused.value.details() == "not now, später"


async def test_a_stopping_listener_waits_and_then_ends_calls(tmp_path: Path) -> None:
    listener = Listener(PLAIN, f"unix:{tmp_path}/l.sock", METHOD, Echo)
    await listener.start()
    async with rpc.connect(PLAIN, f"unix:{tmp_path}/l.sock") as channel:
        call = session(channel)
        await say(call, "here")
        assert text_of(await call.read()) == "here"
        await listener.stop(0.1)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_old_call_between_machines_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_listener, "_OLDEST_S", 0.1)
    monkeypatch.setattr(grpc_listener, "_OLDEST_SPREAD_S", 0.1)
    listener = Listener(PLAIN, "127.0.0.1:0", METHOD, Echo)
    port = await listener.start()
    stream = await Endpoint(PLAIN, f"127.0.0.1:{port}").open(METHOD, lambda _: None)
    async with asyncio.timeout(5):
        assert await stream.ended == "look the name up again"
    await listener.stop(0)


async def test_an_address_that_is_taken_stops_the_start(address: str) -> None:
    listener = Listener(PLAIN, "127.0.0.1:0", METHOD, Echo)
    port = await listener.start()
    for where in (f"127.0.0.1:{port}", "unix:/nowhere/l.sock"):
        with pytest.raises(StartupError, match="cannot be bound"):
            await Listener(PLAIN, where, METHOD, Echo).start()
    await listener.stop(0)


# ---------------------------------------------------------------------- our own client


async def test_our_own_stream_gets_messages_of_all_sizes(address: str) -> None:
    answers: asyncio.Queue[bytes] = asyncio.Queue()
    stream = await Endpoint(PLAIN, address).open(METHOD, answers.put_nowait)
    sizes = [0, 16_385, 20 << 20, *([3000] * 500), 5]
    for n, size in enumerate(sizes):
        stream.send(hello(f"{n}:" + "x" * size))
    async with asyncio.timeout(30):
        for n, size in enumerate(sizes):
            assert text_of(await answers.get()) == f"{n}:" + "x" * size
    stream.close()


async def test_where_the_faster_address_does_not_answer_the_other_does(address: str, tmp_path: Path) -> None:
    answers: asyncio.Queue[bytes] = asyncio.Queue()
    for faster in (f"unix:{tmp_path}/nobody.sock", "127.0.0.1:1"):
        stream = await Endpoint(PLAIN, address, faster).open(METHOD, answers.put_nowait)
        stream.send(hello("all the same"))
        async with asyncio.timeout(5):
            assert text_of(await answers.get()) == "all the same"
        stream.close()


async def test_mutual_tls(tmp_path: Path) -> None:
    ours, theirs = rooms_of_two(tmp_path)
    listener = Listener(ours, "127.0.0.1:0", METHOD, Echo)
    port = await listener.start()
    where = f"localhost:{port}"
    try:
        answers: asyncio.Queue[bytes] = asyncio.Queue()
        stream = await Endpoint(ours, where).open(METHOD, answers.put_nowait)
        stream.send(hello("encrypted"))
        async with asyncio.timeout(5):
            assert text_of(await answers.get()) == "encrypted"
        stream.close()
        async with rpc.connect(ours, where) as channel:
            call = session(channel)
            await say(call, "by the library")
            assert text_of(await call.read()) == "by the library"
        for stranger in (theirs, PLAIN):
            async with rpc.connect(stranger, where) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await scheduler_pb2_grpc.SchedulerStub(channel).Session(timeout=3).read()
                assert refused.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    finally:
        await listener.stop(0)


async def test_renewed_certificates_are_shown_and_asked_for_without_a_restart(tmp_path: Path) -> None:
    certificates(tmp_path)
    names = {"tls_ca_file": "{}.pem", "tls_cert_file": "{}-room.pem", "tls_key_file": "{}-room.key"}
    ours, theirs = (
        settings.RoomSettings(shared_secret=SECRET, **{k: tmp_path / v.format(ca) for k, v in names.items()})
        for ca in ("ours", "theirs")
    )
    mounted = {k: tmp_path / k for k in names}

    def mount(ca: str) -> None:
        for k, v in names.items():
            mounted[k].write_bytes((tmp_path / v.format(ca)).read_bytes())

    mount("ours")
    listener = Listener(settings.RoomSettings(shared_secret=SECRET, **mounted), "127.0.0.1:0", METHOD, Echo)
    where = f"localhost:{await listener.start()}"
    try:
        for now, known, stranger in (("ours", ours, theirs), ("theirs", theirs, ours)):
            mount(now)
            answers: asyncio.Queue[bytes] = asyncio.Queue()
            stream = await Endpoint(known, where).open(METHOD, answers.put_nowait)
            stream.send(hello("encrypted"))
            async with asyncio.timeout(20):
                assert text_of(await answers.get()) == "encrypted"
            stream.close()
            with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
                await Endpoint(stranger, where).open(METHOD, answers.put_nowait)
    finally:
        await listener.stop(0)


# ---------------------------------------------------------------------- bytes by hand


def head(path: str = METHOD, **more: str) -> bytes:
    return Encoder().encode([
        (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x"), ("te", "trailers"),
        ("content-type", "application/grpc"), ("authorization", f"Bearer {SECRET}"), *more.items(),
    ])


def message(text: str) -> bytes:
    body = hello(text)
    return struct.pack(">BI", 0, len(body)) + body


BEGIN = http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0, b"")
CALL = BEGIN + http2.frame(http2.HEADERS, http2.END_HEADERS, 1, head())
PADDED = http2.frame(http2.DATA, http2.PADDED, 1, b"\x03" + message("padded") + b"\0\0\0")
SPLIT = b"".join((
    BEGIN,
    http2.frame(http2.HEADERS, http2.PADDED | http2.HAS_PRIORITY, 1, b"\x02" + bytes(5) + head()[:40] + b"\0\0"),
    http2.frame(http2.CONTINUATION, 0, 1, head()[40:60]),
    http2.frame(http2.CONTINUATION, http2.END_HEADERS, 1, head()[60:]),
    PADDED,
    http2.frame(http2.DATA, 0, 1, message("two ") [:7]),
    http2.frame(99, 0, 7, b"of an unknown kind"),
    http2.frame(http2.DATA, 0, 1, message("two ")[7:] + message("three")),
    http2.frame(http2.PRIORITY, 0, 1, bytes(5)),
    http2.frame(http2.DATA, http2.END_STREAM, 1, b""),
))


class Peer:
    """A caller that says bytes and reads frames. Unlike others it does not close when its call is over."""

    def __init__(self, address: str) -> None:
        self._path = address.removeprefix("unix:")

    async def __aenter__(self) -> "Peer":
        self.reader, self.writer = await asyncio.open_unix_connection(self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def kind(self) -> int:
        """Read one frame; return its kind."""
        high, low, kind = struct.unpack(">HBB5x", await self.reader.readexactly(9))
        await self.reader.readexactly(high << 8 | low)
        return int(kind)

    async def frames(self, limit_s: float = 5.0) -> list[tuple[int, int, int, bytes]]:
        """Read until the listener closes: kind, flags, stream, payload of each frame."""
        async with asyncio.timeout(limit_s):
            data = await self.reader.read()
        found = []
        while data:
            high, low, kind, flags, stream = struct.unpack_from(">HBBBI", data)
            size = high << 8 | low
            found.append((kind, flags, stream, data[9 : 9 + size]))
            data = data[9 + size :]
        return found


def texts(frames: list[tuple[int, int, int, bytes]]) -> list[str]:
    body = b"".join(payload for kind, _, _, payload in frames if kind == http2.DATA)
    found = []
    while body:
        size = int.from_bytes(body[1:5], "big")
        found.append(text_of(body[5 : 5 + size]))
        body = body[5 + size :]
    return found


@pytest.mark.parametrize("seed", range(12))
async def test_however_the_bytes_are_cut_the_call_is_the_same(hasty: str, seed: int) -> None:
    chance = random.Random(seed)
    async with Peer(hasty) as peer:
        left = SPLIT
        while left:
            size = chance.choice((1, 2, 5, 9, 30, 200, len(left))) if seed else 1
            peer.writer.write(left[:size])
            await peer.writer.drain()
            await asyncio.sleep(0)
            left = left[size:]
        frames = await peer.frames()
    assert texts(frames) == ["padded", "two ", "three", "bye"]
    assert (frames[-1][0], frames[-1][1] & http2.END_STREAM) == (http2.HEADERS, http2.END_STREAM)


def settings_frame(name: int, value: int) -> bytes:
    return http2.frame(http2.SETTINGS, 0, 0, struct.pack(">HI", name, value))


@pytest.mark.parametrize("said", [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10,
    BEGIN + b"\xff" * 40,
    BEGIN + http2.frame(http2.DATA, 0, 1, message("no head")),
    BEGIN + http2.frame(http2.HEADERS, http2.END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"),
    BEGIN + http2.frame(http2.HEADERS, http2.END_HEADERS, 0, head()),
    BEGIN + http2.frame(http2.HEADERS, http2.END_HEADERS, 2, head()),
    BEGIN + http2.frame(http2.CONTINUATION, http2.END_HEADERS, 1, head()),
    BEGIN + http2.frame(http2.HEADERS, 0, 1, head()[:9]) + http2.frame(http2.PING, 0, 0, bytes(8)),
    BEGIN + http2.frame(http2.HEADERS, 0, 1, b"") + http2.frame(http2.CONTINUATION, 0, 1, bytes(16_000)) * 5,
    BEGIN + http2.frame(http2.HEADERS, http2.END_HEADERS, 1, head(**{f"x{n}": "y" * 3000 for n in range(30)})[:16_000]),
    CALL + http2.frame(http2.HEADERS, http2.END_HEADERS, 1, head()),
    CALL + http2.frame(http2.DATA, 0, 1, b"\1\0\0\0\1x"),
    CALL + http2.frame(http2.DATA, 0, 1, b"\0\xff\xff\xff\xff"),
    CALL + http2.frame(http2.DATA, http2.PADDED, 1, b"\x09abc"),
    CALL + http2.frame(http2.DATA, http2.PADDED, 1, b""),
    CALL + http2.frame(http2.DATA, http2.END_STREAM, 1, b"") + http2.frame(http2.DATA, 0, 1, message("late")),
    CALL + http2.frame(http2.PING, 0, 0, b"short"),
    CALL + http2.frame(http2.WINDOW_UPDATE, 0, 0, bytes(4)),
    CALL + http2.frame(http2.WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff"),
    CALL + http2.frame(http2.WINDOW_UPDATE, 0, 1, b"\1"),
    CALL + http2.frame(http2.RESET, 0, 1, bytes(4)),
    CALL + http2.frame(http2.SETTINGS, 0, 0, b"odd"),
    CALL + settings_frame(http2.INITIAL_WINDOW_SIZE, 1 << 31),
    CALL + settings_frame(http2.MAX_FRAME_SIZE, 0),
    CALL + settings_frame(http2.MAX_FRAME_SIZE, 1 << 24),
    CALL + struct.pack(">HBBBI", 1, 0, http2.DATA, 0, 1) + bytes(1 << 16),
])
async def test_who_speaks_otherwise_is_left_and_others_are_served(hasty: str, said: bytes) -> None:
    async with Peer(hasty) as peer:
        peer.writer.write(said)
        await peer.frames()
    async with rpc.connect(PLAIN, hasty) as channel:
        call = session(channel)
        await say(call, "still here")
        assert text_of(await call.read()) == "still here"


async def test_pings_settings_and_a_second_call_on_one_connection(hasty: str) -> None:
    async with Peer(hasty) as peer:
        second = http2.frame(http2.HEADERS, http2.END_HEADERS, 3, head()) + http2.frame(http2.DATA, 0, 3, message("no"))
        ping = http2.frame(http2.PING, 0, 0, b"12345678")
        end = http2.frame(http2.DATA, http2.END_STREAM, 1, message("yes"))
        away = http2.frame(http2.GOAWAY, 0, 0, bytes(8))
        peer.writer.write(CALL + second + ping + away + end)
        frames = await peer.frames()
    assert (http2.PING, http2.ACK, 0, b"12345678") in frames
    assert (http2.SETTINGS, http2.ACK, 0, b"") in frames
    assert (http2.RESET, 0, 3, http2.REFUSED_STREAM.to_bytes(4, "big")) in frames
    assert texts(frames) == ["yes", "bye"]


async def test_small_windows_are_kept(hasty: str) -> None:
    """Nothing comes before there is room for it, and all of it after."""
    async with Peer(hasty) as peer:
        peer.writer.write(CALL + settings_frame(http2.INITIAL_WINDOW_SIZE, 0))
        peer.writer.write(http2.frame(http2.DATA, 0, 1, message("x" * 100)))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                while await peer.kind() != http2.DATA:
                    pass
        for _ in range(30):
            peer.writer.write(http2.frame(http2.WINDOW_UPDATE, 0, 1, (7).to_bytes(4, "big")))
        peer.writer.write(http2.frame(http2.DATA, http2.END_STREAM, 1, b""))
        frames = await peer.frames()
    assert next(len(p) for k, _, _, p in frames if k == http2.DATA) == 7
    assert texts(frames) == ["x" * 100, "bye"]


async def test_who_shows_no_secret_in_time_is_left(hasty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_listener, "_PROOF_S", 0.2)
    for said in (b"", http2.PREFACE[:5], BEGIN, CALL[:-10]):
        async with Peer(hasty) as peer:
            peer.writer.write(said)
            await peer.frames()


async def test_who_does_not_read_is_left(hasty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What gathers for it is bounded: before the secret was shown, and after."""
    monkeypatch.setattr(http2, "_MOST_UNSENT", 1 << 20)
    flood = http2.frame(http2.PING, 0, 0, bytes(8)) * 10_000
    asked = http2.frame(http2.DATA, 0, 1, message("x" * 16_000))
    for begin, flood_of in ((BEGIN, flood), (CALL, asked * 100)):
        async with Peer(hasty) as peer:
            peer.writer.write(begin)
            with pytest.raises(ConnectionError):
                async with asyncio.timeout(20):
                    while True:
                        peer.writer.write(flood_of)
                        await peer.writer.drain()


@pytest.mark.slow
async def test_a_caller_that_is_gone_without_a_word_is_left(hasty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "_QUIET_S", 0.1)
    monkeypatch.setattr(http2, "_SIGN_OF_LIFE_S", 0.2)
    async with Peer(hasty) as peer:
        peer.writer.write(CALL)
        frames = await peer.frames()
        assert (http2.PING, 0, 0, bytes(8)) in frames
    stream = await Endpoint(PLAIN, hasty).open(METHOD, lambda _: None)
    await asyncio.sleep(1)
    assert not stream.ended.done()  # who answers stays
    stream.close()
