"""The smallest possible HTTP client: it keeps every byte that came, when it came, and how the connection ended."""

import json
import select
import socket
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

KEY = "sk-ant-one-0000000000"
MODEL = "claude-sonnet-5-5"


def body(prompt: str = "Hello", *, stream: bool = False, **fields: Any) -> dict[str, Any]:
    """Return a Messages body."""
    message = {"role": "user", "content": prompt}
    return {"model": MODEL, "max_tokens": 256, "messages": [message], **({"stream": True} if stream else {}), **fields}


@dataclass
class Answer:
    """What came back. `ended` is `open`, `fin` or `rst`; `pieces` are what each read gave, with its time."""

    raw: bytes = b""
    ended: str = "open"
    pieces: list[tuple[float, bytes]] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(self.raw.split(b" ", 2)[1]) if self.raw else 0

    @property
    def headers(self) -> dict[str, str]:
        lines = self.raw.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
        return {n.lower(): v for n, _, v in (line.partition(": ") for line in lines)}

    @property
    def payload(self) -> bytes:
        """The body without its chunking, as far as it came."""
        data = self.raw.partition(b"\r\n\r\n")[2]
        if self.headers.get("transfer-encoding") != "chunked":
            return data
        out = b""
        while data:
            size, _, data = data.partition(b"\r\n")
            try:
                n = int(size, 16)
            except ValueError:
                break
            out, data = out + data[:n], data[n + 2 :]
        return out

    @property
    def chunks(self) -> list[int]:
        """The sizes of the body's chunks."""
        data, sizes = self.raw.partition(b"\r\n\r\n")[2], []
        while data:
            size, _, data = data.partition(b"\r\n")
            sizes.append(int(size, 16))
            data = data[sizes[-1] + 2 :]
        return sizes

    @property
    def whole(self) -> bool:
        """Whether HTTP's own framing says that the body has ended as announced."""
        if self.headers.get("transfer-encoding") == "chunked":
            return self.raw.endswith(b"0\r\n\r\n")
        return len(self.payload) == int(self.headers.get("content-length", -1))

    @property
    def json(self) -> Any:
        return json.loads(self.payload)

    @property
    def events(self) -> list[tuple[str, Any]]:
        """The whole SSE events; data that is not JSON stays text."""
        found = []
        for block in self.payload.decode(errors="replace").split("\n\n")[:-1]:
            name, _, data = block.partition("\n")
            text = data.removeprefix("data: ")
            try:
                found.append((name.removeprefix("event: "), json.loads(text)))
            except ValueError:
                found.append((name.removeprefix("event: "), text))
        return found

    @property
    def types(self) -> list[str]:
        return [name for name, _ in self.events]


class Raw:
    """One connection to the simulator."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.host = f"{parts.hostname}:{parts.port}"
        self.sock = socket.create_connection((parts.hostname, parts.port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def head(self, length: int, *, path: str = "/v1/messages", method: str = "POST", key: str | None = KEY,
             headers: dict[str, str] | None = None) -> bytes:
        lines = {"host": self.host, "anthropic-version": "2023-06-01", "content-type": "application/json",
                 "content-length": str(length), **({"x-api-key": key} if key else {}), **(headers or {})}
        return f"{method} {path} HTTP/1.1\r\n{''.join(f'{n}: {v}{chr(13)}{chr(10)}' for n, v in lines.items())}\r\n".encode()

    def send(self, document: Any = None, **options: Any) -> "Raw":
        data = document if isinstance(document, bytes) else b"" if document is None else json.dumps(document).encode()
        self.sock.sendall(self.head(len(data), **options) + data)
        return self

    def read(self, limit_s: float = 5.0, *, until: bytes | None = None) -> Answer:
        """Read until the answer is whole, the connection ends, `until` was seen, or the time is over."""
        answer = Answer()
        end_s = time.monotonic() + limit_s
        while (left_s := end_s - time.monotonic()) > 0:
            if not select.select([self.sock], [], [], left_s)[0]:
                break
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                answer.ended = "rst"
                break
            if not data:
                answer.ended = "fin"
                break
            answer.raw += data
            answer.pieces.append((time.monotonic(), data))
            if until is not None and until in answer.raw:
                break
            if until is None and b"\r\n\r\n" in answer.raw and answer.whole:
                break
        return answer


def ask(url: str, document: Any = None, *, limit_s: float = 5.0, **options: Any) -> Answer:
    """Make one request on a connection of its own."""
    with Raw(url) as raw:
        return raw.send(document, **options).read(limit_s)
