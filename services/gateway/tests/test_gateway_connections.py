"""Connections of callers over real sockets: kept, pipelined, broken, slow, of strangers, and at the end of a gateway."""

import asyncio
import json
import sys
import time

import pytest

from signalbox.v1.scheduler_pb2 import Denial
from tests.support.machine import busy


async def test_a_connection_serves_many_requests_one_after_the_other(gate, wire, ok):
    provider = await gate.provider()
    provider.standing = ok
    reader, writer = await gate.client.connect()
    for _ in range(3):
        writer.write(gate.client.message(wire.body()))
        assert (await gate.client.read(reader)).status == 200
    writer.write(gate.client.message(wire.body(), headers={"x-api-key": "short"}))
    assert (await gate.client.read(reader)).status == 401
    writer.write(gate.client.message(wire.body(), headers={"connection": "close"}))
    reply = await gate.client.read(reader)
    assert (reply.status, reply.headers["connection"]) == (200, "close")
    assert await reader.read() == b""


async def test_pipelined_requests_are_answered_in_order(gate, wire):
    seen = []

    async def echo(w):
        seen.append(json.loads(w.body)["max_tokens"])
        await asyncio.sleep(0.05 / seen[-1])
        w.answer(200, b'{"n": %d}' % seen[-1])

    provider = await gate.provider()
    provider.standing = echo
    reader, writer = await gate.client.connect()
    raw = b"".join(gate.client.message(json.dumps({**wire.BODY, "max_tokens": n}).encode()) for n in range(1, 6))
    unknown = gate.client.message(b"", "/nowhere", method="GET", headers={"content-length": "-"})
    writer.write(raw + unknown + gate.client.message(wire.body()))
    bodies = [(await gate.client.read(reader)).body for _ in range(5)]
    assert bodies == [b'{"n": %d}' % n for n in range(1, 6)]
    assert (await gate.client.read(reader)).status == 404
    assert (await gate.client.read(reader)).status == 200
    writer.close()


async def test_a_pipelining_caller_that_hangs_up_is_noticed(gate, wire):
    async def slow(w):
        await w.reader.read(1)

    provider = await gate.provider(slow)
    _, writer = await gate.client.connect()
    writer.write(gate.client.message(wire.body()) * 3)
    while not provider.requests:
        await asyncio.sleep(0.01)
    writer.transport.abort()
    await gate.quiet()
    assert len(gate.journal.rows) == 1
    assert len(gate.scheduler.admits) == 1


async def test_http_1_0_callers_get_whole_answers_too(gate, wire, ok):
    stream = wire.START + wire.CONTENT + wire.LAST + wire.STOP

    async def streamed(w):
        w.stream_head()
        w.chunk(stream)
        w.end()

    await gate.provider(ok, streamed)
    old = gate.client.message(wire.body()).replace(b"HTTP/1.1", b"HTTP/1.0")
    reply = await gate.client.send(old)
    assert (reply.body, reply.headers["content-length"]) == (wire.MESSAGE, str(len(wire.MESSAGE)))
    old = gate.client.message(json.dumps(wire.STREAM).encode()).replace(b"HTTP/1.1", b"HTTP/1.0")
    reply = await gate.client.send(old)
    assert reply.body == stream
    assert "transfer-encoding" not in reply.headers


async def test_http_1_0_callers_are_not_told_to_continue(gate, wire, ok):
    await gate.provider(ok)
    old = gate.client.message(wire.body(), headers={"expect": "100-continue"}).replace(b"HTTP/1.1", b"HTTP/1.0")
    head, _, body = old.partition(b"\r\n\r\n")
    reader, writer = await gate.client.connect()
    writer.write(head + b"\r\n\r\n")
    await asyncio.sleep(0.1)
    writer.write(body)
    assert (await gate.client.read(reader)).status == 200
    writer.close()


async def test_an_offered_upgrade_is_ignored(gate, wire, ok):
    await gate.provider(ok, ok)
    raw = gate.client.message(wire.body(), headers={"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c"})
    reader, writer = await gate.client.connect()
    writer.write(raw + gate.client.message(wire.body()))
    assert (await gate.client.read(reader)).status == 200
    assert (await gate.client.read(reader)).status == 200
    writer.close()


@pytest.mark.parametrize("raw", [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET\r\n\r\n",
    b"POST /v1/messages HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
    b"POST /v1/messages HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
    b"POST /v1/messages HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    b"POST /v1/messages HTTP/1.1\r\ncontent-length: 99999999999999999999999999\r\n\r\n",
    b"POST /v1/messages HTTP/1.1\r\nbad header\r\n\r\n",
    b"CONNECT provider:443 HTTP/1.1\r\nhost: x\r\n\r\n",
    b"CONNECT /v1/messages HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nx: " + b"y" * 100_000 + b"\r\n\r\n",
])
async def test_what_is_not_http_gets_an_error_in_the_callers_format(gate, wire, raw):
    reply = await gate.client.send(raw)
    assert (reply.status, reply.error_code) == (400, "request_invalid")
    assert reply.headers["x-signalbox-request-id"] == json.loads(reply.body)["request_id"]


@pytest.mark.parametrize("body", [
    b"zz\r\n", b"2\r\n{}\r\n0\r\nt: " + b"y" * 400_000, b"2\r\n{}\r\n0\r\n" + b"t: x\r\n" * 70_000,
    b"2;" + b"x" * 400_000,
])
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_body_that_can_never_be_whole_is_refused_at_once(gate, wire, body, at_once):
    reader, writer = await gate.client.connect()
    writer.write(gate.client.message(b"", headers={"content-length": "-", "transfer-encoding": "chunked"}))
    if not at_once:
        await asyncio.sleep(0.05)
    writer.write(body)
    reply = await asyncio.wait_for(gate.client.read(reader), 30)
    assert (reply.status, reply.error_code, reply.headers["connection"]) == (400, "request_invalid", "close")
    assert await reader.read() == b""
    writer.close()
    await gate.quiet()
    assert gate.buffers.held == 0


async def test_a_route_that_wants_no_body_outlives_a_broken_one(gate, wire, caplog):
    raw = b"GET /healthz HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
    assert (await gate.client.send(raw)).status == 200
    assert not caplog.records


async def test_a_body_in_many_small_pieces_takes_no_more_memory_than_it_has_bytes(gate, wire, ok):
    provider = await gate.provider(ok)
    body = wire.body(300_000)
    raw = gate.client.message(b"", headers={"content-length": "-", "transfer-encoding": "chunked"})
    raw += b"".join(b"3\r\n%s\r\n" % body[i:i + 3] for i in range(0, len(body) - 3, 3))
    last = body[(len(body) - 1) // 3 * 3:]
    reader, writer = await gate.client.connect()
    writer.write(raw)
    while gate.buffers.held < len(body) - 3:
        await asyncio.sleep(0.01)
    [connection] = gate.server._server.server_state.connections
    assert sum(map(sys.getsizeof, connection._incoming._parts)) < 2 * len(body)
    writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(last), last))
    assert (await gate.client.read(reader)).status == 200
    writer.close()
    assert provider.requests[0][1] == body


async def test_garbage_after_a_request_does_not_disturb_its_answer(gate, wire, ok):
    await gate.provider(ok)
    reader, writer = await gate.client.connect()
    writer.write(gate.client.message(wire.body()) + b"\x00\x01garbage\r\n\r\n")
    reply = await gate.client.read(reader)
    assert (reply.status, reply.body, reply.headers["connection"]) == (200, wire.MESSAGE, "close")
    assert await reader.read() == b""
    writer.close()


@pytest.mark.gateway_settings(head_timeout_s=0.2, body_timeout_s=0.3, keep_alive_s=1)
@pytest.mark.parametrize(("first", "code"), [
    (b"", None),
    (b"\r\n", None),
    (b"POST /v1/messages HTTP/1.1\r\nhost: x\r\n", None),
    (b"POST /v1/messages HTTP/1.1\r\nx-api-key: a-relay-key-of-some-length\r\ncontent-length: 50\r\n\r\n{", "request_invalid"),
    (b"POST /v1/messages HTTP/1.1\r\nx-api-key: a-relay-key-of-some-length\r\ncontent-length: 90000\r\n\r\n{", "request_invalid"),
    (b"POST /nowhere HTTP/1.1\r\ncontent-length: 50\r\n\r\n", None),
])
async def test_slow_callers_do_not_hold_connections(gate, wire, first, code):
    reader, writer = await gate.client.connect()
    writer.write(first)
    began_s = time.monotonic()
    if code:
        reply = await gate.client.read(reader)
        assert (reply.status, reply.error_code) == (400, code)
    await reader.read()
    assert time.monotonic() - began_s < 4 * busy()
    writer.close()
    await gate.quiet()
    assert gate.buffers.held == 0


@pytest.mark.slow
@pytest.mark.gateway_settings(head_timeout_s=0.3)
async def test_a_head_that_trickles_is_not_waited_for(gate, wire):
    reader, writer = await gate.client.connect()
    began_s = time.monotonic()
    with pytest.raises((ConnectionError, RuntimeError)):  # uvloop says the latter where the end was noticed before
        for byte in b"POST /v1/messages HTTP/1.1\r\nx-slow: " + b"y" * 1000:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.01)
            if reader.at_eof():
                raise ConnectionResetError
    assert time.monotonic() - began_s < 2 * busy()


@pytest.mark.slow
@pytest.mark.gateway_settings(keep_alive_s=1, client_stall_s=1.5)
@pytest.mark.parametrize("takes_it", [False, True])
async def test_an_ended_answer_that_nobody_reads_is_not_kept_for_ever(gate, wire, takes_it):
    async def large(w):
        w.answer(200, b'{"type": "message", "usage": {}, "a": "' + b"x" * (8 << 20) + b'"}')
        await w.writer.drain()

    await gate.provider(large)
    reader, writer = await gate.client.connect()
    writer.transport.pause_reading()
    writer.write(gate.client.message(wire.body()))
    end_s = time.monotonic() + 30
    while not any(c.transport.get_write_buffer_size() for c in gate.server._server.server_state.connections):
        assert time.monotonic() < end_s, "the caller keeps up, though it reads nothing"
        await asyncio.sleep(0.01)
    await gate.quiet()
    end_s, taken = time.monotonic() + 30, 0
    while gate.server._server.server_state.connections and time.monotonic() < end_s:
        await asyncio.sleep(0.1)
        if takes_it:    # slowly, but it goes on
            writer.transport.resume_reading()
            taken += len(await reader.read(1 << 20))
    assert not gate.server._server.server_state.connections
    if takes_it:
        assert taken + len(await reader.read(-1)) > 8 << 20, "cut off although it read on"
    writer.transport.abort()


async def test_a_stopping_gateway_finishes_answers_and_closes_connections(gate, wire):
    async def slow(w):
        await asyncio.sleep(0.3)
        w.answer(200, wire.MESSAGE)

    provider = await gate.provider(slow)
    idle_reader, idle_writer = await gate.client.connect()
    reader, writer = await gate.client.connect()
    writer.write(gate.client.message(wire.body()))
    while not provider.requests:
        await asyncio.sleep(0.01)
    stopping = asyncio.create_task(gate.server.stop(5))
    reply = await gate.client.read(reader)
    assert (reply.status, reply.headers["connection"]) == (200, "close")
    assert await idle_reader.read() == b""
    assert await stopping
    with pytest.raises(ConnectionRefusedError):
        await gate.client.connect()
    writer.close()
    idle_writer.close()


@pytest.mark.gateway_settings(trusted_proxies=("127.0.0.0/8", "10.0.0.0/8"))
@pytest.mark.parametrize(("forwarded", "source"), [
    ("", "127.0.0.1"), ("203.0.113.9", "203.0.113.9"), ("1.1.1.1, 203.0.113.9, 10.0.0.1", "203.0.113.9"),
    ("::ffff:203.0.113.9", "203.0.113.9"), ("evil", "127.0.0.1"),
])
async def test_the_callers_address_is_what_trusted_proxies_say(gate, wire, ok, forwarded, source):
    await gate.provider(ok)
    await gate.client.post(wire.BODY, **({"x_forwarded_for": forwarded} if forwarded else {}))
    assert gate.scheduler.admits[0].source_address == source


async def test_nobody_else_is_believed_about_addresses(gate, wire, ok):
    await gate.provider(ok)
    await gate.client.post(wire.BODY, x_forwarded_for="203.0.113.9")
    assert gate.scheduler.admits[0].source_address == "127.0.0.1"


# -------------------------------------------------------------------------------- connections without a key


async def closed(reader):
    async with asyncio.timeout(30):
        try:
            return await reader.read() == b""
        except ConnectionResetError:
            return True


@pytest.mark.gateway_settings(max_strangers=3)
@pytest.mark.parametrize("held", [b"", b"POST /v1/mess", "body", "key_invalid"])
async def test_the_longest_standing_stranger_makes_room(gate, wire, ok, held):
    provider = await gate.provider()
    provider.standing = ok
    if held == "body":
        held = gate.client.message(b"{", headers={"content-length": "60000"})
    if held == "key_invalid":
        gate.scheduler.denial = Denial(error_code="key_invalid", message="No such key.")
        held = gate.client.message(json.dumps(wire.BODY).encode())
    strangers = []
    for _ in range(3):
        strangers.append(await gate.client.connect())
        strangers[-1][1].write(held)
        await asyncio.sleep(0.05)
    if gate.scheduler.denial is not None:
        for reader, _ in strangers:
            assert (await gate.client.read(reader)).error_code == "key_invalid"
        gate.scheduler.denial = None
        gate.keys._unknown.clear()
    known = []
    for _ in range(3):
        known.append(await gate.client.connect())
        known[-1][1].write(gate.client.message(json.dumps(wire.BODY).encode()))
        assert (await gate.client.read(known[-1][0])).status == 200
    assert await closed(strangers[0][0])
    assert not any(reader.at_eof() for reader, _ in strangers[1:])
    for reader, writer in known:     # those whose key is known are not counted
        writer.write(gate.client.message(json.dumps(wire.BODY).encode()))
        assert (await gate.client.read(reader)).status == 200
    for _, writer in (*known, *strangers):
        writer.close()


@pytest.mark.gateway_settings(max_strangers=1)
async def test_a_stranger_whose_request_is_under_way_is_answered_first(gate, wire):
    release = asyncio.Event()

    async def slow(w):
        await release.wait()
        w.answer(200, wire.MESSAGE)

    await gate.provider(slow)
    original, asked, asking = gate.scheduler.admit, asyncio.Event(), asyncio.Event()

    async def admit(request):
        asked.set()
        await asking.wait()
        return await original(request)

    gate.scheduler.admit = admit
    reader, writer = await gate.client.connect()
    writer.write(gate.client.message(json.dumps(wire.BODY).encode()))
    await asyncio.wait_for(asked.wait(), 30)
    _, other = await gate.client.connect()
    async with asyncio.timeout(30):
        while len(gate.server._server.server_state.connections) < 2:
            await asyncio.sleep(0.01)
    asking.set()
    release.set()
    reply = await gate.client.read(reader)
    assert (reply.status, reply.headers["connection"]) == (200, "close")
    writer.close()
    other.close()
