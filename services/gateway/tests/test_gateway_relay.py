"""Requests relayed over real sockets: whole answers byte for byte, what goes upstream, what is recorded."""

import asyncio
import contextlib
import json
import socket

import pytest


async def test_a_message_is_relayed_byte_for_byte(gate, wire):
    async def answer(w):
        w.answer(200, wire.MESSAGE, b"anthropic-organization-id: org", b"anthropic-ratelimit-requests-limit: 50")

    provider = await gate.provider(answer)
    reply = await gate.client.post(wire.BODY, "/v1/messages?beta=true")
    assert (reply.status, reply.body) == (200, wire.MESSAGE)
    assert reply.headers["request-id"] == "req_1"
    assert reply.headers["x-signalbox-request-id"].startswith("sbx_req_")
    assert reply.headers["x-signalbox-attempts"] == "1"
    assert "anthropic-organization-id" not in reply.headers
    assert "anthropic-ratelimit-requests-limit" not in reply.headers
    head, body = provider.requests[0]
    assert head.startswith(b"POST /v1/messages?beta=true HTTP/1.1\r\n")
    assert json.loads(body) == wire.BODY
    assert b"x-api-key: secret-default/a1-1\r\n" in head
    assert wire.KEY.encode() not in head
    names = sorted(line.partition(b":")[0] for line in head.strip().split(b"\r\n")[1:])
    assert names == [b"accept-encoding", b"anthropic-version", b"content-length", b"content-type", b"host", b"x-api-key"]
    await gate.quiet()
    [row] = gate.journal.rows
    assert (row.attempt, row.status, row.had_content, row.sent, row.outcome) == (1, 200, True, True, 1)
    assert (row.usage.input_tokens, row.usage.output_tokens, row.usage.cache_read_tokens) == (10, 5, 3)
    assert row.served_model == "claude-sonnet-5-5-20260901"
    assert row.upstream_request_id == "req_1"
    [settle] = gate.scheduler.settles
    assert settle.usage == row.usage
    assert [w.name for w in settle.windows] == ["requests"]
    assert gate.buffers.held == 0


async def test_a_stream_is_relayed_byte_for_byte(gate, wire):
    stream = wire.START + wire.PING + wire.CONTENT + wire.LAST + wire.STOP

    async def answer(w):
        w.stream_head()
        for i in range(0, len(stream), 7):
            w.chunk(stream[i:i + 7])
        w.end()

    await gate.provider(answer)
    reply = await gate.client.post(wire.STREAM)
    assert (reply.status, reply.body) == (200, stream)
    await gate.quiet()
    [row] = gate.journal.rows
    assert (row.outcome, row.usage.input_tokens, row.usage.output_tokens, row.estimated) == (1, 10, 7, False)
    assert row.ttft_ms > 0
    assert row.streamed


@pytest.mark.parametrize("streamed", [True, False])
async def test_the_outcome_is_written_before_the_caller_has_the_whole_answer(gate, wire, streamed):
    """Whoever has seen all of an answer finds it in the ledger with what it used, even if the gateway dies right then."""
    stream = wire.START + wire.CONTENT + wire.LAST + wire.STOP

    async def answer(w):
        if not streamed:
            w.answer(200, wire.MESSAGE)
            return
        w.stream_head()
        w.chunk(stream)
        await asyncio.sleep(0.3)    # what ends the stream's framing comes later than what ends the message
        w.end()

    await gate.provider(answer)
    caller = socket.create_connection(("127.0.0.1", gate.server.port))
    had: list[bytes] = []
    end = gate.journal.end

    def ended(event):
        with contextlib.suppress(BlockingIOError):
            had.append(caller.recv(1 << 20, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        end(event)

    gate.journal.end = ended
    caller.send(gate.client.message(json.dumps(wire.STREAM if streamed else wire.BODY).encode()))
    last = b"0\r\n\r\n" if streamed else wire.MESSAGE
    async with asyncio.timeout(20):
        whole = b""
        while not whole.endswith(last):
            whole += await asyncio.get_running_loop().run_in_executor(None, caller.recv, 1 << 20)
    assert whole.count(b"message_stop") == 2 * streamed    # the event's name and its type
    assert b"message_stop" not in b"".join(had)
    assert not had or streamed
    [row] = gate.journal.rows
    assert (row.outcome, row.usage.output_tokens) == (1, 7 if streamed else 5)
    caller.close()
