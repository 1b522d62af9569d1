"""A wire tap between a client and the relay: passes bytes on as they come, and keeps every exchange as it was said.

It parses copies of the bytes and never what it passes on, so it can neither repair nor break what it watches.
"""

import hashlib
import socket
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools

Headers = list[tuple[str, str]]


@dataclass
class Message:
    """A request or an answer: the body without its chunking, names of headers in lower case, in the order sent."""

    start: str = ""      # a request's target, an answer's status
    method: str = ""
    headers: Headers = field(default_factory=list)
    body: bytes = b""
    whole: bool = False

    def header(self, name: str) -> str:
        """Return a header's value, an empty string where it was not sent."""
        return next((value for n, value in self.headers if n == name), "")

    @property
    def sha256(self) -> str:
        """The body's digest."""
        return hashlib.sha256(self.body).hexdigest()


@dataclass
class Exchange:
    """What a client sent and what it got."""

    request: Message
    answer: Message = field(default_factory=Message)

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.request.start.partition("?")[0]

    @property
    def status(self) -> int:
        """The answer's status, 0 where none came."""
        return int(self.answer.start or 0)


class Tap:
    """Listens on a loopback port of its own, `url`, in front of a server. `exchanges` grows as clients ask."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.exchanges: list[Exchange] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            connection = _Connection(self.exchanges)
            for source, sink, seen in (
                (client, server, connection.requests), (server, client, connection.answers),
            ):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=_pass, args=(source, sink, seen), daemon=True).start()


def _pass(source: socket.socket, sink: socket.socket, seen: Any) -> None:
    try:
        while data := source.recv(65536):
            seen.feed_data(data)
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, sink):
            end.close()


class _Connection:
    """One connection's two parsers; answers belong to requests in their order."""

    def __init__(self, exchanges: list[Exchange]) -> None:
        self._exchanges = exchanges
        self._waiting: list[Exchange] = []
        self.requests = httptools.HttpRequestParser(_Collector(self._asked, lambda: self.requests))
        self.answers = httptools.HttpResponseParser(_Collector(self._answered, lambda: self.answers))

    def _asked(self, message: Message) -> None:
        exchange = Exchange(message)
        self._waiting.append(exchange)
        self._exchanges.append(exchange)

    def _answered(self, message: Message) -> None:
        self._waiting.pop(0).answer = message


class _Collector:
    """httptools' callbacks: fills a Message, and gives it to `begun` when its head is complete."""

    def __init__(self, begun: Any, parser: Any) -> None:
        self._begun = begun
        self._parser = parser
        self._message = Message()

    def on_message_begin(self) -> None:
        self._message = Message()

    def on_url(self, url: bytes) -> None:
        self._message.start += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._message.headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        parser = self._parser()
        if hasattr(parser, "get_status_code"):
            self._message.start = str(parser.get_status_code())
        else:
            self._message.method = parser.get_method().decode()
        self._begun(self._message)

    def on_body(self, data: bytes) -> None:
        self._message.body += data

    def on_message_complete(self) -> None:
        self._message.whole = True
