#!/usr/bin/env python3
"""Does the load generator notice what it must? Runs it against the mock and against servers that lie. `make check`.

check.py MOCK LOAD: the two programs, built with sanitizers; nothing but Python's standard library is needed.
"""

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from typing import Any

MOCK, LOAD = sys.argv[1:3] if len(sys.argv) == 3 else sys.exit(__doc__)
JSON_ANSWER = b'HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{"usage": 1}'
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def load(port: int, directive: str, *arguments: str, stream: bool = False) -> dict[str, Any]:
    body = {"stream": stream, "session": "8000-000000000000", "messages": [{"content": f"hi [[mock {directive}]]"}]}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(body, file)
        file.flush()
        url = f"http://127.0.0.1:{port}/v1/messages"
        command = [LOAD, "-u", url, "-b", file.name, "-g", "8000-", "-d", "2", *arguments]
        run = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert run.returncode in (0, 1), run.stderr
    result: dict[str, Any] = json.loads(run.stdout)
    assert run.returncode == (result["errors"] > 0), run.stdout
    assert result["ok"] + result["errors"] >= result["sent"], run.stdout
    return result


def liar(answer: bytes, *, at_once: bool = False) -> int:
    """Serves `answer` to whatever is asked, and closes. Returns its port.

    The answer goes out one byte at a time, or `at_once`: in one segment with the end of the connection.
    """
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):  # the caller may have seen enough
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.recv(65536)
                if at_once:
                    connection.send(answer, socket.MSG_MORE)
                for i in range(0 if at_once else len(answer)):
                    connection.send(answer[i : i + 1])

    threading.Thread(target=serve, daemon=True).start()
    port: int = server.getsockname()[1]
    return port


def check_whole_answers(port: int) -> None:
    for arguments, stream in ((["-c", "8"], False), (["-r", "300"], False), (["-c", "8", "-e", "50"], True)):
        result = load(port, "n=50", *arguments, "-t", "0.5", stream=stream)
        assert result["errors"] == 0, result
        assert result["ok"] > 100, result
    slow = load(port, "n=20 delay_ms=10 ttfb_ms=50", "-c", "30", "-s", "0.2", "-t", "0.5", "-e", "20", stream=True)
    assert slow["errors"] == 0, slow
    assert 250 <= slow["latency_ms"]["p50"] < 400, slow
    assert 50 <= slow["first_byte_ms"]["p50"] < 150, slow


def check_faults_are_seen(port: int) -> None:
    short = load(port, "n=49", "-c", "2", "-t", "0.2", "-e", "50", stream=True)
    assert short["ok"] == 0, short
    assert short["incomplete"] == short["sent"], short
    refused = load(port, "status=529", "-c", "2", "-t", "0.2")
    assert refused["ok"] == 0, refused
    assert refused["status"] == refused["sent"], refused
    assert load(free_port(), "n=1", "-c", "1", "-t", "0.1")["connect"] > 0
    silent = load(port, "ttfb_ms=9000", "-c", "3", "-t", "0.1", "-d", "0.2")
    assert silent["unfinished"] == 3, silent
    for answer, kind in (
        (JSON_ANSWER[:-1], "reset"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "incomplete"),
        (CHUNKED_HEAD + b"c\r\n" + JSON_ANSWER[-12:] + b"\r\n", "reset"),
        (b"HTTP/1.1 200 OK\r\n" + b"x-long: 1\r\n" * 2000, "incomplete"),
    ):
        result = load(liar(answer), "n=1", "-c", "1", "-t", "0.2")
        assert result["ok"] == 0, (answer[:80], result)
        assert result[kind] >= 1, (answer[:80], result)
    for answer in (
        JSON_ANSWER,
        b"HTTP/1.1 100 Continue\r\n\r\n" + JSON_ANSWER,
        b"HTTP/1.1 200 OK\r\n\r\n" + JSON_ANSWER[-12:],
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nC;x=1\r\n"
        + JSON_ANSWER[-12:]
        + b"\r\n0\r\nt: 1\r\n\r\n",
    ):
        result = load(liar(answer), "n=1", "-c", "1", "-t", "0.2")
        assert result["ok"] >= 1, (answer, result)
        assert result["incomplete"] == 0, (answer, result)


def check_ended_connections_are_not_taken_up(_: int) -> None:
    result = load(liar(JSON_ANSWER, at_once=True), "n=1", "-c", "1", "-t", "0.2")
    assert result["errors"] == 0, result
    assert result["opened"] == result["ok"] > 1, result


def check_omission_is_not_coordinated(port: int) -> None:
    """One connection can serve 20 requests a second of 100; what waits for it must count as latency."""
    result = load(port, "ttfb_ms=50", "-r", "100", "-m", "1", "-t", "0.5", "-d", "5")
    assert result["errors"] == 0, result
    assert result["latency_ms"]["max"] > 1500, result


def check_requests_in_pieces(port: int) -> None:
    """The mock reads requests however they arrive: byte by byte, chunked, several at once."""
    body = b'{"stream":false}'
    chunked = b"POST /v1/messages HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n7\r\n" + body[:7] + b"\r\n"
    chunked += b"9\r\n" + body[7:] + b"\r\n0\r\n\r\n"
    plain = b"POST /v1/messages/count_tokens HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(5)
        for i in range(len(chunked)):
            connection.send(chunked[i : i + 1])
        connection.sendall(plain * 2 + b"GET /nowhere HTTP/1.1\r\nconnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.count(b"HTTP/1.1 200 OK") == 3, answer
    assert answer.count(b"HTTP/1.1 404") == 1, answer
    assert answer.count(b'{"input_tokens":215}') == 2, answer
    assert b'"output_tokens":42' in answer, answer


def check_stats(port: int) -> None:
    def stats() -> dict[str, int]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats") as answer:
            counts: dict[str, int] = json.load(answer)
            return counts

    before = stats()
    sent = load(port, "n=7", "-c", "2", "-t", "0.2", "-e", "7", stream=True)["sent"]
    after = stats()
    assert after["requests"] - before["requests"] == after["streams"] - before["streams"] == sent
    assert after["output_tokens"] - before["output_tokens"] == 7 * sent
    assert after["input_tokens"] - before["input_tokens"] == 215 * sent
    hung_up = socket.create_connection(("127.0.0.1", port))
    hung_up.sendall(b"POST /v1/messages HTTP/1.1\r\ncontent-length: 22\r\n\r\n[[mock ttfb_ms=9000 ]]")
    time.sleep(0.1)
    hung_up.close()
    time.sleep(0.1)
    assert stats()["aborted"] == after["aborted"] + 1


def main() -> None:
    port = free_port()
    mock = subprocess.Popen([MOCK, str(port)])
    try:
        for _ in range(50):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/stats").close()
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        for name, check in list(globals().items()):
            if name.startswith("check_"):
                check(port)
                print("ok", name.removeprefix("check_").replace("_", " "))
        assert mock.poll() is None, "the mock has died"
    finally:
        mock.terminate()
        mock.wait()


if __name__ == "__main__":
    main()
