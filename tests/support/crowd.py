"""Crowds of callers close to the socket: large bodies, readers that stall, heads that never end, at little cost each.

A client library would spend more on a thousand connections than the relay that is tried. What comes back is kept as
bytes; `Reply` reads as much of it as a test wants to know.
"""

import asyncio
import contextlib
import json
import random
import re
import socket
import string
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# A peer across a network takes little at a time; over the loopback the kernel alone would take megabytes.
SMALL_SEGMENT_BYTES = 536
SMALL_WINDOW_BYTES = 4096
BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase


@dataclass
class Reply:
    """What one connection got back. `failed` names the exception where it broke before an answer."""

    raw: bytes = b""
    failed: str = ""
    took_s: float = 0.0

    @property
    def status(self) -> int:
        match = re.match(rb"HTTP/1\.1 (\d{3})", self.raw)
        return int(match[1]) if match else 0

    @property
    def head(self) -> str:
        return self.raw.partition(b"\r\n\r\n")[0].decode("latin-1").lower()

    @property
    def code(self) -> str:
        """Signalbox's own error code, "" where there is none."""
        match = re.search(rb'"error_code":\s*"(\w+)"', self.raw)
        return match[1].decode() if match else ""

    @property
    def whole(self) -> bool:
        """Whether this is a successful answer with its end."""
        return self.status == 200 and (b'"usage"' in self.raw) and not self.code

    @property
    def kind(self) -> str:
        """A short word to count by."""
        return self.failed or self.code or ("whole" if self.whole else f"status {self.status}")


@dataclass
class Crowd:
    """Makes connections to `url`. Close it to drop all that it still holds."""

    url: str
    held: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def connect(self, *, small: bool = False) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection; `small`: through segments and a window that take only a few kilobytes."""
        address = urlsplit(self.url)
        sock = socket.socket()
        sock.setblocking(False)
        if small:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SMALL_SEGMENT_BYTES)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_WINDOW_BYTES)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (address.hostname, address.port))
            return await asyncio.open_connection(sock=sock, limit=4096 if small else 1 << 16)
        except BaseException:
            sock.close()
            raise

    async def hold(self, data: bytes, *, small: bool = False) -> None:
        """Open a connection, send bytes and leave it so; `small`: without reading what comes."""
        reader, writer = await self.connect(small=small)
        if small:
            writer.transport.pause_reading()
        writer.write(data)
        self.held.append((reader, writer))

    @property
    def left(self) -> int:
        """How many of those that are held the other side has not ended."""
        return sum(
            not (reader._eof or reader.exception() or writer.is_closing()) for reader, writer in self.held
        )

    async def ask(self, *pieces: bytes, pause_s: float = 0.0, patience_s: float = 60.0) -> Reply:
        """Send the pieces with pauses between them while reading; return what came until the other side closed."""
        reply, began_s = Reply(), time.monotonic()
        try:
            async with asyncio.timeout(patience_s):
                reader, writer = await self.connect()
                try:
                    sending = asyncio.create_task(_send(writer, pieces, pause_s))
                    reply.raw = await reader.read(-1)
                    sending.cancel()
                finally:
                    writer.transport.abort()
        except (OSError, TimeoutError) as e:
            reply.failed = type(e).__name__
        reply.took_s = time.monotonic() - began_s
        return reply

    async def close(self) -> None:
        """Drop what is held."""
        for _, writer in self.held:
            writer.transport.abort()
        self.held.clear()
        await asyncio.sleep(0)


async def _send(writer: asyncio.StreamWriter, pieces: tuple[bytes, ...], pause_s: float) -> None:
    with contextlib.suppress(OSError):    # the answer, or its want, tells
        for number, piece in enumerate(pieces):
            if number and pause_s:
                await asyncio.sleep(pause_s)
            writer.write(piece)
            await writer.drain()


def post(key: str, body: bytes, *, length: int | None = None, headers: Mapping[str, str] | None = None,
         close: bool = True) -> bytes:
    """Return a request for a message, its head saying `length` where the rest of the body is to follow."""
    own = {
        "host": "relay", "x-api-key": key, "anthropic-version": "2023-06-01", "content-type": "application/json",
        "content-length": str(len(body) if length is None else length), **({"connection": "close"} if close else {}),
        **(headers or {}),
    }
    lines = [f"{name}: {value}" for name, value in own.items() if value]
    return "\r\n".join(["POST /v1/messages HTTP/1.1", *lines, "", ""]).encode() + body


def message_of(size: int, prompt: str = "", **fields: Any) -> bytes:
    """Return a message's body of exactly `size` bytes."""
    body: dict[str, Any] = {
        "model": "claude-sonnet-5-5", "max_tokens": 64, **fields, "messages": [{"role": "user", "content": prompt}],
    }
    missing = size - len(json.dumps(body).encode())
    body["messages"] = [{"role": "user", "content": prompt + "x" * missing}]
    return json.dumps(body).encode()


def in_pieces(data: bytes, size: int = 1 << 20) -> list[bytes]:
    """Cut what is sent, so that no caller has all of it waiting in its own memory."""
    return [data[at : at + size] for at in range(0, len(data), size)]


def unknown_key(rng: random.Random, *, good: bool) -> str:
    """Return a key that nobody has, in the form of generated ones; `good`: with check digits that agree."""
    head = "sbx_" + "".join(rng.choices(BASE62, k=37))
    value, digits = zlib.crc32(head.encode()) + (not good), ""
    for _ in range(6):
        value, digit = divmod(value, 62)
        digits = BASE62[digit] + digits
    return head + digits


def pss_bytes(pid: int) -> int:
    """Return a process's memory, pages that it shares counted in part."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


class Watch:
    """Looks at something again and again while the body of `async with` runs; keeps what it saw."""

    def __init__(self, look: Any, every_s: float = 0.1) -> None:
        self._look = look
        self._every_s = every_s
        self.seen: list[Any] = []

    async def __aenter__(self) -> "Watch":
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        while True:
            self.seen.append(await asyncio.to_thread(self._look))
            await asyncio.sleep(self._every_s)
