"""What reaches the client is, byte for byte, what the provider sent: however it was cut up, however slowly it is read."""

import hashlib
import json
import random
import socket
import time

import pytest

from tests.support.relay import KEY, MODEL, Relay

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("relay")]

SEEDS = range(20)
TEXT = "Zürich, 東京, São Paulo. 🚦🚂 naïve café — “quoted” \\u0000 \\ud83d\\ude00 \r\n\r\ndata: not a frame\n\n"
BIG_BYTES = 10_000_000


class Reader:
    """Reads an answer from a bare socket: so many bytes at a time, with a pause before the first."""

    def __init__(self, url: str, *, at_once: int = 65536, pause_s: float = 0.0, buffer: int | None = None) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._socket = socket.socket()
        if buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self._socket.settimeout(30)
        self._socket.connect((host, int(port)))
        self._at_once = at_once
        self._pause_s = pause_s

    def ask(self, *, stream: bool, content: object = "Hello", write: int | None = None) -> tuple[int, bytes]:
        """Send a message, `write` bytes at a time, and return the status and the body without its framing."""
        body = json.dumps({"model": MODEL, "max_tokens": 10_000_000, "stream": stream,
                           "messages": [{"role": "user", "content": content}]}).encode()
        head = (f"POST /v1/messages HTTP/1.1\r\nhost: relay\r\nx-api-key: {KEY}\r\nanthropic-version: 2023-06-01\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n")
        data = head.encode() + body
        step = write or len(data)
        for start in range(0, len(data), step):
            self._socket.sendall(data[start : start + step])
        time.sleep(self._pause_s)
        received = bytearray()
        while piece := self._socket.recv(self._at_once):
            received += piece
        self._socket.close()
        return _parsed(bytes(received))


def _parsed(raw: bytes) -> tuple[int, bytes]:
    head, _, rest = raw.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    status = int(lines[0].split()[1])
    if headers.get("transfer-encoding") != "chunked":
        assert len(rest) == int(headers["content-length"])
        return status, rest
    body = bytearray()
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body += rest[:length]
        assert rest[length : length + 2] == b"\r\n"
        rest = rest[length + 2 :]
        if length == 0:
            assert rest == b"", "nothing after the last chunk"
            return status, bytes(body)


def check(relay: Relay, answer: tuple[int, bytes]) -> dict:
    """Hold an answer against the provider's last row, and return that row."""
    row = relay.sim.wait_quiet()[-1]
    status, body = answer
    assert status == row["status"]
    assert (len(body), hashlib.sha256(body).hexdigest()) == (row["sent_bytes"], row["sent_sha256"]), row["behaviour"]
    return row


def drawn(rng: random.Random) -> dict:
    """Draw a way of answering."""
    split = rng.choice([None, 1, 2, 3, 7, "utf8", [rng.randrange(1, 400) for _ in range(rng.randrange(1, 60))]])
    behaviour = {
        "split": split, "pings": rng.randrange(4), "deltas": rng.randrange(1, 40), "thinking": rng.random() < 0.3,
        "text": TEXT * rng.randrange(1, 5) if rng.random() < 0.7 else None,
        "extra_events": rng.choice([[], [{"type": "of_tomorrow", "x": TEXT}]]),
    }
    if rng.random() < 0.3:
        behaviour["malformed"] = {"at": rng.choice(["content", "half", "usage"]), "text": rng.choice([
            "event: content_block_delta\ndata: {not json\n\n", ": a comment\r\n\r\n", "data: a\ndata: b\n\n",
            "event: of_tomorrow\r\ndata: {}\r\n\r\n", "id: 7\nretry: 10\n\n", "\n\n\n", "data\n\n",
        ])}
    return {name: value for name, value in behaviour.items() if value is not None}


@pytest.mark.parametrize("seed", SEEDS)
def test_streams_however_cut_up(relay, seed):
    rng = random.Random(seed)
    for _ in range(3):
        relay.sim.script(drawn(rng))
        at_once = rng.choice([1, 100, 65536])
        row = check(relay, Reader(relay.instance.url, at_once=at_once).ask(stream=True, content=f"{rng.random()}"))
        assert row["outcome"] == "complete"


@pytest.mark.parametrize("seed", SEEDS)
def test_whole_answers_however_cut_up(relay, seed):
    rng = random.Random(seed)
    for _ in range(3):
        behaviour = drawn(rng)
        behaviour.pop("malformed", None)
        relay.sim.script(behaviour)
        check(relay, Reader(relay.instance.url, at_once=rng.choice([1, 100, 65536])).ask(stream=False))


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_trickles_in(relay, stream):
    relay.sim.script({"split": 1, "split_delay_s": 0.0005, "text": "Slow, but 信号 honest."})
    row = check(relay, Reader(relay.instance.url).ask(stream=stream, content=TEXT, write=1))
    assert json.loads(row["request_body"])["messages"][0]["content"] == TEXT


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reader", [{}, {"at_once": 16384, "pause_s": 1.0, "buffer": 4096}], ids=["quick", "slow"])
def test_ten_megabytes_both_ways(relay, stream, reader):
    relay.sim.script({"text_bytes": BIG_BYTES, "deltas": 200})
    prompt = "信号" * (BIG_BYTES // 12)  # each character is six bytes in the body
    row = check(relay, Reader(relay.instance.url, **reader).ask(stream=stream, content=prompt))
    assert min(row["sent_bytes"], row["request_bytes"]) >= BIG_BYTES


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("error", [
    {"status": 400, "message": "prompt is too long: 210000 tokens > 200000 maximum"},
    {"status": 400, "body": {"oddly": ["shaped", "信号", 1.0, 1e400 > 1]}},
    {"status": 400, "body": "<html>not JSON at all</html>", "content_type": "text/html"},
    {"status": 403, "message": "Your key may not use this model."},
    {"status": 404, "message": "model: claude-nothing"},
    {"status": 413, "body": "<center>413 Request Entity Too Large</center>", "content_type": "text/html"},
    {"status": 418, "body": {"type": "error", "error": {"type": "of_tomorrow", "message": "?"}}},
], ids=lambda error: str(error["status"]))
def test_the_callers_own_errors_are_verbatim_and_asked_once(relay, error, stream):
    relay.sim.script({**error, "split": 3})
    check(relay, Reader(relay.instance.url).ask(stream=stream))
    assert len(relay.sim.truth()) == 1


@pytest.mark.usefixtures("healed_afterwards")
@pytest.mark.parametrize("stream", [True, False])
def test_the_last_of_lasting_faults_is_verbatim(relay, stream):
    relay.sim.script(*({"status": 529, "message": f"Overloaded, time {n}"} for n in range(3)))
    check(relay, Reader(relay.instance.url).ask(stream=stream, content=f"{stream}"))
    assert len(relay.sim.truth()) > 1, "it was tried elsewhere before the caller was told"
