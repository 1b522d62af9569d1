"""GET over a Unix socket: how the supervisor reads its rooms' telemetry, and the commands the supervisor's status."""

import asyncio
from pathlib import Path


async def get(socket: Path, path: str, limit_s: float = 2.0) -> tuple[int, bytes]:
    """Return status and body. Raises OSError (TimeoutError included) when nothing answers in time."""
    return await asyncio.wait_for(_get(socket, path), limit_s)


async def _get(socket: Path, path: str) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
    finally:
        writer.close()
    parts = head.split(b" ", 2)
    if len(parts) < 2 or not parts[1].isdigit():
        raise ConnectionResetError(f"{socket} closed the connection without an answer")
    return int(parts[1]), body
