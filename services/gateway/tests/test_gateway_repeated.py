"""Requests that repeat the head of the one before pass the parser by: same requests, same answers, same refusals."""

import asyncio
import json

import pytest

from signalbox.gateway.api.protocol import RelayProtocol
from signalbox.gateway.domain.caller import Caller
from signalbox.gateway.domain.repeated import RepeatedHead

HEAD = b"POST /v1/messages HTTP/1.1\r\nhost: relay\r\nContent-Length: %d\r\nx-api-key: some-key\r\n\r\n"


def known(first: bytes = HEAD % 3 + b"abc") -> RepeatedHead | None:
    return RepeatedHead.of(first, "messages", b"", Caller([], "127.0.0.1"))


@pytest.mark.parametrize("body", [b"", b"x", b"{}" * 500, b"\r\n\r\n", HEAD % 0])
def test_the_same_head_is_known_whatever_its_bodys_length(body):
    head = known()
    assert head is not None
    assert head.body(HEAD % len(body) + body) == body


@pytest.mark.parametrize("data", [
    b"", b"POST", HEAD[:40], HEAD % 5 + b"four", HEAD % 3 + b"four", HEAD % 1 + b"a" + HEAD % 1 + b"a",
    HEAD.replace(b"relay", b"other") % 1 + b"a", HEAD.replace(b"some-key", b"more-key") % 1 + b"a",
    HEAD.replace(b"%d", b"+1") + b"a", HEAD.replace(b"%d", b" 1") + b"a", HEAD.replace(b"%d", b"") + b"a",
    HEAD.replace(b"%d", b"1_0") + b"a" * 10, HEAD.replace(b"%d", b"0000000001") + b"a",
    HEAD.replace(b"%d\r\n", b"1\r\nexpect: 100-continue\r\n") + b"a", HEAD.replace(b"\r\n", b"\n") % 1 + b"a",
])
def test_anything_else_goes_to_the_parser(data):
    head = known()
    assert head is not None
    assert head.body(data) is None


@pytest.mark.parametrize("first", [
    b"POST / HTTP/1.1\r\nhost: relay\r\n\r\n",
    b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\ncontent-length: 1\r\nx: content-length\r\n\r\na",
    b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\na",
    b"POST / HTTP/1.1\r\ncontent-length:1\r\n\r\na",
    b"POST / HTTP/1.1\r\ncontent-length: 1\r\n\r\nab",
    b"POST / HTTP/1.1\r\ncontent-length: 1\r\nx: " + b"y" * 9000 + b"\r\n\r\na",
])
def test_heads_of_another_kind_are_not_remembered(first):
    assert known(first) is None


@pytest.fixture
def passed(monkeypatch):
    """How many requests passed the parser by."""
    taken = []
    take = RelayProtocol._take_usual

    def counted(self, usual, body):
        taken.append(body)
        take(self, usual, body)

    monkeypatch.setattr(RelayProtocol, "_take_usual", counted)
    return taken


async def test_requests_of_one_connection_reach_the_provider_byte_for_byte(gate, wire, passed):
    async def answer(w):
        w.answer(200, json.dumps({**json.loads(wire.MESSAGE), "id": str(len(provider.requests))}).encode())

    provider = await gate.provider()
    provider.standing = answer
    reader, writer = await gate.client.connect()
    sent = []
    for n in range(6):
        body = json.dumps({**wire.BODY, "system": "x" * 3**n}).encode()
        sent.append(body)
        writer.write(gate.client.message(body))
        reply = await gate.client.read(reader)
        assert (reply.status, json.loads(reply.body)["id"]) == (200, str(n + 1))
    assert len(passed) == 4, "the first teaches it, the second proves that it repeats"
    assert [body for _, body in provider.requests] == sent
    first, *others = (head.replace(b"ength: %d\r\n" % len(body), b"") for head, body in provider.requests)
    assert all(head == first for head in others)
    # Cut up, with other headers, two at once, another route, and as before.
    whole = gate.client.message(sent[0])
    for part in (whole[:30], whole[30:-10], whole[-10:]):
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(0.02)
    assert (await gate.client.read(reader)).status == 200
    writer.write(gate.client.message(sent[0], headers={"anthropic-beta": "b"}))
    assert (await gate.client.read(reader)).status == 200
    assert b"anthropic-beta: b\r\n" in provider.requests[-1][0]
    writer.write(whole + whole)
    assert [(await gate.client.read(reader)).status for _ in range(2)] == [200, 200]
    writer.write(gate.client.message(b"", "/healthz", {"content-length": "0"}, "GET"))
    assert (await gate.client.read(reader)).status == 200
    count = len(passed)
    for _ in range(3):
        writer.write(whole)
        assert (await gate.client.read(reader)).status == 200
    assert len(passed) > count
    await gate.quiet()
    assert len(provider.requests) == len(gate.journal.rows) == 13
    writer.close()


async def test_refusals_of_repeated_requests_are_those_of_first_ones(gate, wire, passed):
    reader, writer = await gate.client.connect()
    for _ in range(4):
        writer.write(gate.client.message(b"not json"))
        reply = await gate.client.read(reader)
        assert (reply.status, reply.error_code) == (400, "request_invalid")
    assert len(passed) == 2
    writer.write(gate.client.message(b"too large", headers={"content-length": str(10**8)}))
    reply = await gate.client.read(reader)
    assert (reply.status, reply.error_code) == (413, "request_too_large")
    writer.close()


async def test_a_caller_that_hangs_up_during_a_repeated_request_is_noticed(gate, wire, passed):
    asked, gone = asyncio.Event(), asyncio.Event()

    async def silent(w):
        asked.set()
        assert await w.reader.read() == b""
        gone.set()

    async def answer(w):
        w.answer(200, wire.MESSAGE)

    await gate.provider(answer, answer, silent)
    reader, writer = await gate.client.connect()
    for _ in range(2):
        writer.write(gate.client.message(json.dumps(wire.BODY).encode()))
        await gate.client.read(reader)
    writer.write(gate.client.message(json.dumps(wire.BODY).encode()))
    await asyncio.wait_for(asked.wait(), 5)
    assert len(passed) == 1
    writer.close()
    await asyncio.wait_for(gone.wait(), 5)
    await gate.quiet()
    assert len(gate.scheduler.settles) == 3
