"""Proxies for tests, over real sockets: HTTP CONNECT and SOCKS5, with or without TLS and a password. Written anew here:
shares no code with what is tested."""

import asyncio
import base64
import contextlib
import ipaddress
import ssl
from typing import Any

USER, PASSWORD = "signal", "p:@ss/wörd"


class TestProxy:
    """One proxy; `kind` is the scheme of its URL. `asked` holds the targets as they were named, `tunnels` counts the open ones.

    `fault`: "silent", "hangs up", "garbage", "refuses", or "talks" (into the tunnel); "" for a good one.
    """

    __test__ = False

    def __init__(self, kind: str, *, tls: ssl.SSLContext | None = None, password: bool = False, fault: str = "") -> None:
        self.kind = kind
        self.password = password
        self.fault = fault
        self.asked: list[str] = []
        self.seen: list[bytes] = []
        self.tunnels = 0
        self._tls = tls
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self, host: str = "127.0.0.1") -> "TestProxy":
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, host, 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def url(self, host: str = "127.0.0.1", *, user: str = "signal", password: str = "p%3A%40ss%2Fw%C3%B6rd") -> str:
        """Return the URL that opens it."""
        return f"{self.kind}://{user}:{password}@{host}:{self.port}" if self.password else f"{self.kind}://{host}:{self.port}"

    def stop(self) -> None:
        """Close everything."""
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        try:
            if self.fault == "silent":
                await reader.read(1 << 16)
                await asyncio.sleep(60)
            elif self.fault == "hangs up":
                await reader.read(1)
            elif self.fault == "garbage":
                await reader.read(1)
                writer.write(b"\x00garbage\r\n\r\n" * 4)
                await writer.drain()
                await reader.read(1 << 16)
            elif self.kind.startswith("http"):
                await self._connect(reader, writer)
            else:
                await self._socks(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, OSError):
            pass
        finally:
            writer.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        method, target, _ = first.split(" ")
        assert method == "CONNECT"
        self.asked.append(target)
        wanted = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        given = next((v.strip() for k, _, v in (x.partition(":") for x in lines) if k.lower() == "proxy-authorization"), "")
        if self.password and given != wanted:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nproxy-authenticate: Basic\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
            return
        if self.fault == "refuses":
            writer.write(b"HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
            return
        host, _, port = target.rpartition(":")
        await self._tunnel(reader, writer, host.strip("[]"), int(port), b"HTTP/1.1 200 OK\r\nvia: test\r\n\r\n")

    async def _socks(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, count = await reader.readexactly(2)
        methods = await reader.readexactly(count)
        method = 2 if self.password else 0
        if method not in methods:
            writer.write(b"\x05\xff")
            await writer.drain()
            return
        writer.write(bytes((5, method)))
        if self.password:
            _, length = await reader.readexactly(2)
            user = await reader.readexactly(length)
            password = await reader.readexactly((await reader.readexactly(1))[0])
            good = (user, password) == (USER.encode(), PASSWORD.encode())
            writer.write(bytes((1, 0 if good else 1)))
            if not good:
                await writer.drain()
                return
        _, _, _, kind = await reader.readexactly(4)
        if kind == 3:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        else:
            host = str(ipaddress.ip_address(await reader.readexactly(4 if kind == 1 else 16)))
        port = int.from_bytes(await reader.readexactly(2), "big")
        self.asked.append(f"{host}:{port}")
        if self.fault == "refuses":
            writer.write(b"\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00")
            await writer.drain()
            return
        await self._tunnel(reader, writer, host, port, b"\x05\x00\x00\x03\x04test\x00\x50")

    async def _tunnel(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int, opened: bytes,
    ) -> None:
        there, out = await asyncio.open_connection(host, port)
        self._writers.append(out)
        for piece in (opened[:3], opened[3:]):    # in pieces, as a network may deliver it
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.005)
        if self.fault == "talks":
            writer.write(b"hello")
        self.tunnels += 1
        both = asyncio.gather(self._pump(reader, out, self.seen), self._pump(there, writer, []))
        with contextlib.suppress(ConnectionError):
            await both
        self.tunnels -= 1

    @staticmethod
    async def _pump(source: Any, sink: Any, seen: list[bytes]) -> None:
        while data := await source.read(1 << 16):
            seen.append(data)
            sink.write(data)
            await sink.drain()
        sink.close()
