"""uvicorn inside a room: it serves, dates its answers, leaves signals alone and ends when told."""

import asyncio
import signal
import socket
from typing import Any

import uvicorn

from signalbox.core.quiet_server import QuietServer


async def _application(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def test_it_serves_until_it_is_told_to_leave() -> None:
    before = [signal.getsignal(sig) for sig in (signal.SIGTERM, signal.SIGINT)]
    listening = socket.create_server(("127.0.0.1", 0))
    server = QuietServer(uvicorn.Config(_application, lifespan="off", log_config=None))
    serving = asyncio.create_task(server.serve([listening]))
    reader, writer = await asyncio.open_connection(*listening.getsockname())
    for _ in range(2):
        writer.write(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n")
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 204 ")
        assert b"\r\ndate: " in answer
        await asyncio.sleep(0.05)
    assert [signal.getsignal(sig) for sig in (signal.SIGTERM, signal.SIGINT)] == before
    assert not serving.done()
    writer.close()
    server.leave()
    await asyncio.wait_for(serving, 5)


async def test_it_ends_where_it_was_told_so_before_it_served() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    server = QuietServer(uvicorn.Config(_application, lifespan="off", log_config=None))
    server.leave()
    await asyncio.wait_for(server.serve([listening]), 5)
