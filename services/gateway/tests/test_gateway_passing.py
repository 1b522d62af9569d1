"""The short way of a running stream beside the general one: same bytes, same facts, however the answer is cut up."""

import asyncio
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signalbox.gateway.adapters.upstream import Connection
from signalbox.v1.common_pb2 import OUTCOME_OK, OUTCOME_TIMEOUT
from signalbox.wire.sse import StreamReader
from tests.support.machine import busy

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Transport:
    """Takes what a connection does to its socket; nothing is ever refused."""

    def __init__(self):
        self.aborted = False

    def write(self, data):
        pass

    def abort(self):
        self.aborted = True

    def get_write_buffer_size(self):
        return 0


class Caller:
    """Follows an answer as the driver does and keeps what would reach the caller; `short` opens the short way."""

    def __init__(self, *, short):
        self.short = short
        self.reader = StreamReader()
        self.connection = Connection(lambda c: None, lambda c: None)
        self.transport = Transport()
        self.connection.connection_made(self.transport)
        self.connection.send(b"", b"", self)
        self.got = b""
        self.passed = 0
        self.ended = None

    def received(self, head, data, whole):
        self.got += self.reader.feed(data)
        if self.short and self.reader.content_seen and not whole:
            self.connection.pass_on(self.reader.skim, self.onward)
        if whole:
            self.got += self.reader.flush()
            self.ended = "whole"

    def onward(self, raw):
        self.passed += 1
        while raw:
            size, _, rest = raw.partition(b"\r\n")
            length = int(size, 16)
            assert rest[length : length + 2] == b"\r\n"
            self.got, raw = self.got + rest[:length], rest[length + 2 :]

    def lost(self, how):
        self.ended = how

    def facts(self):
        reader = self.reader
        return (
            self.got, self.ended, reader.delta_bytes, reader.stopped, reader.billed(), reader.error, reader.held,
            self.transport.aborted,
        )


def answer(wire, texts, sizes, *, end):
    """Return a stream whose frames are chunked by `sizes`: so many frames a chunk, 0 cuts the next frame in two."""
    deltas = [
        b"event: content_block_delta\ndata: " + json.dumps(
            {"type": "content_block_delta", "index": 0, "delta": {"type": f"{kind}_delta", kind: text}},
            separators=(",", ":") if dense else (", ", ": "), ensure_ascii=dense,
        ).encode() + b"\n\n"
        for kind, text, dense in texts
    ]
    frames = [wire.START, wire.CONTENT, *deltas, wire.PING, *deltas[:3], wire.LAST, wire.STOP]
    chunks = []
    for size in (*sizes, *[1] * len(frames)):
        if not frames:
            break
        if size:
            chunks.append(b"".join(frames[:size]))
            del frames[:size]
        else:
            half = len(frames[0]) // 2
            chunks += [frames[0][:half], frames.pop(0)[half:]]
    return HEAD + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + end


TEXTS = st.lists(
    st.tuples(st.sampled_from(["text", "thinking", "partial_json"]), st.text(), st.booleans()), max_size=12,
)
ENDS = st.sampled_from([b"0\r\n\r\n", b"0\r\nx-trailer: 1\r\n\r\n", b"", b"zz\r\n", b"5\r\nab"])


@given(texts=TEXTS, sizes=st.lists(st.integers(0, 3), max_size=10), cuts=st.lists(st.integers(0, 5000), max_size=25),
       end=ENDS)
def test_the_short_way_changes_nothing(wire, texts, sizes, cuts, end):
    raw = answer(wire, texts, sizes, end=end)
    edges = [0, *sorted(cut % len(raw) for cut in cuts), len(raw)]
    general, short = Caller(short=False), Caller(short=True)
    for caller in (general, short):
        for a, b in pairwise(edges):
            if a < b and caller.ended is None:
                caller.connection.data_received(raw[a:b])
    assert short.facts() == general.facts()


def test_the_short_way_is_taken(wire):
    raw = HEAD + b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in (wire.START, wire.CONTENT))
    chunk = b"%x\r\n%s\r\n" % (len(wire.DELTA), wire.DELTA)
    two = b"%x\r\n%s\r\n" % (len(wire.DELTA * 2), wire.DELTA * 2)
    caller = Caller(short=True)
    for read, passed in ((raw, 0), (chunk, 1), (chunk * 3 + two, 2), (chunk + two[:9], 3), (two[9:], 3), (chunk, 4)):
        caller.connection.data_received(read)
        assert caller.passed == passed
    assert caller.got == wire.START + wire.CONTENT + wire.DELTA * 10
    assert caller.reader.delta_bytes == 11 * len("hällo".encode())
    assert caller.connection.moved


@pytest.mark.parametrize("odd", [
    b"3\r\nabc\r\n",                                          # no delta
    b"%x\r\n{d}\r\n",                                         # a size that is wrong by one
    b"%X;ext=1\r\n{d}\r\n",                                   # a chunk extension
    b"%x\r\n{d}",                                             # not whole
])
def test_whatever_else_comes_goes_the_general_way(wire, odd):
    length = len(wire.DELTA) - (odd == b"%x\r\n{d}\r\n")
    reader = StreamReader()
    reader.feed(wire.START + wire.CONTENT)
    raw = (odd % length if b"%" in odd else odd).replace(b"{d}", wire.DELTA)
    assert reader.skim(raw) == 0
    chunk = b"%x\r\n%s\r\n" % (len(wire.DELTA), wire.DELTA)
    assert reader.skim(chunk + raw) == len(chunk)
    assert json.loads(wire.DELTA.split(b"data: ")[1])["delta"]["text"] == "hällo"
    assert reader.delta_bytes == 2 * len("hällo".encode())


def test_nothing_is_skimmed_before_content_or_inside_a_frame(wire):
    chunk = b"%x\r\n%s\r\n" % (len(wire.DELTA), wire.DELTA)
    reader = StreamReader()
    reader.feed(wire.START)
    assert reader.skim(chunk) == 0
    reader.feed(wire.CONTENT + wire.DELTA[:20])
    assert reader.skim(chunk) == 0
    reader.feed(wire.DELTA[20:])
    assert reader.skim(chunk) == len(chunk)


@pytest.mark.slow
@pytest.mark.parametrize("stalls", [False, True])
async def test_silence_is_noticed_on_the_short_way_and_nothing_else_is_taken_for_it(gate, wire, stalls):
    gate.scheduler.timeouts.idle = 1500

    async def answer(w):
        w.stream_head()
        w.chunk(wire.START + wire.CONTENT)
        for _ in range(8):
            await asyncio.sleep(0.25)
            w.chunk(wire.DELTA)
        if stalls:
            await w.reader.read()
            return
        w.chunk(wire.LAST + wire.STOP)
        w.end()

    await gate.provider(answer)
    began_s = asyncio.get_running_loop().time()
    reply = await gate.client.post(wire.STREAM)
    took_s = asyncio.get_running_loop().time() - began_s
    await gate.quiet()
    [row] = gate.journal.rows
    assert reply.body.startswith(wire.START + wire.CONTENT + wire.DELTA * 8)
    assert row.outcome == (OUTCOME_TIMEOUT if stalls else OUTCOME_OK)
    assert (b"upstream_truncated" in reply.body) == stalls
    assert row.usage.output_tokens == (9 * 6 // 3 if stalls else 7)
    assert not stalls or 2.0 + 1.5 <= took_s < 2.0 + 1.5 + 2 * busy()
    [lease] = gate.scheduler.tracked
    assert (lease.output_tokens, lease.usage.input_tokens, lease.served_model) == (18, 10, "claude-sonnet-5-5-20260901")
