"""One caller of a relay or a provider, without a client library: what is sent and received is what is written here.

Answers of any status are returned, never raised, so that tables of errors read as tables.
"""

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tests.support.machine import busy

T = TypeVar("T")
MODEL = "claude-sonnet-4-5-20250929"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Signalbox's own error code, "" where the answer is none of its errors."""
        try:
            return str(self.json["error"]["details"]["error_code"])
        except (ValueError, KeyError, TypeError):
            return ""

    @property
    def request_id(self) -> str:
        return self.headers.get("x-signalbox-request-id", "")


def message(prompt: str = "Hello", *, model: str = MODEL, **fields: Any) -> dict[str, Any]:
    """Return the body of a small request."""
    return {"model": model, "max_tokens": 20, "messages": [{"role": "user", "content": prompt}], **fields}


@dataclass(frozen=True)
class Caller:
    """Talks to `url`; presents `key` in x-api-key unless it is empty."""

    url: str
    key: str = ""

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Make one request. `body` is sent as JSON unless it is bytes; `x_session_id="s"` becomes a header."""
        own = {"x-api-key": self.key} if self.key else {}
        own |= {"anthropic-version": "2023-06-01", "content-type": "application/json"}
        own |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=own)
        try:
            response = urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as e:
            response = e
        with response:
            return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, response.read())

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def send(self, prompt: str = "Hello", *, headers: Mapping[str, str] | None = None, **fields: Any) -> Answer:
        """Ask for a message, not streamed unless `stream=True` is among the fields."""
        return self.ask("POST", "/v1/messages", message(prompt, **fields), **(headers or {}))


def exchange(url: str, data: bytes, *, patience_s: float = 0.5) -> bytes:
    """Send bytes as they are and return what comes until the other side closes or is silent for `patience_s`."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.settimeout(patience_s)
        connection.sendall(data)
        received = b""
        try:
            while piece := connection.recv(65536):
                received += piece
        except TimeoutError:
            pass
        return received


def eventually(look: Callable[[], T], *, within_s: float, wanted: Callable[[T], object] = bool) -> T:
    """Look until what is seen is as wanted, and return it; on a busy machine for as many times longer.

    Between two looks there is at least as long a pause as one takes, so that looking leaves room for what is looked for.
    Raises AssertionError with the last sight.
    """
    began_s = time.monotonic()
    while True:
        looking_s = time.monotonic()
        seen = look()
        if wanted(seen):
            return seen
        assert time.monotonic() < began_s + within_s * busy(), f"not within {within_s} s: {seen}"
        time.sleep(min(max(0.05, time.monotonic() - looking_s), 0.5))
