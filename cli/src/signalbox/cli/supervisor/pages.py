"""The telemetry port of a local instance: all rooms' metrics as one page, each room's own, health, and the status.

    /metrics                    every process, with the labels `room` and, where there can be several, `worker`
    /rooms/NAME/metrics         one room or one process; /rooms/NAME/healthz and /readyz likewise
    /healthz, /readyz           of the whole instance
    /status                     what `signalbox status` shows
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from signalbox.cli.supervisor import unixhttp
from signalbox.cli.supervisor.exposition import merge
from signalbox.core.quiet_server import QuietServer

_JSON = "application/json"
_STOP_LIMIT_S = 1

Answer = tuple[int, str, bytes]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Source:
    """One process's telemetry. `process` is `gateway-0` where `room` is `gateway`."""

    process: str
    room: str
    worker: int | None
    socket: Path

    @property
    def labels(self) -> dict[str, str]:
        """The labels that mark this process's samples."""
        labels = {"room": self.room}
        return labels if self.worker is None else {**labels, "worker": str(self.worker)}


class Pages:
    """Serves the instance's telemetry on sockets that are already bound."""

    def __init__(self, sources: Sequence[Source], status: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        self._sources = sources
        self._status = status
        self._server: QuietServer | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, sockets: list[socket.socket]) -> None:
        """Serve until closed."""
        config = uvicorn.Config(
            self._app, http="httptools", ws="none", loop="none", lifespan="off", interface="asgi3",
            log_config=None, access_log=False, proxy_headers=False, timeout_graceful_shutdown=_STOP_LIMIT_S,
        )
        self._server = QuietServer(config)
        self._task = asyncio.create_task(self._server.serve(sockets=sockets))

    async def close(self) -> None:
        """Stop serving."""
        if self._server is not None and self._task is not None:
            self._server.leave()
            await self._task

    async def _app(self, scope: MutableMapping[str, Any], _receive: Any, send: Send) -> None:
        status, content_type, body = await self._answer(scope["path"])
        headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, path: str) -> Answer:
        match path.strip("/").split("/"):
            case ["metrics"]:
                own = generate_latest(REGISTRY).decode()
                return await self._metrics(self._sources, [({"room": "supervisor"}, own)])
            case ["healthz"]:
                return 200, _JSON, b'{"live":true}'
            case ["readyz"]:
                status = await self._status()
                return (200 if status["ready"] else 503), _JSON, json.dumps({"ready": status["ready"]}).encode()
            case ["status"]:
                return 200, _JSON, json.dumps(await self._status()).encode()
            case ["rooms", name, page] if chosen := [s for s in self._sources if name in (s.room, s.process)]:
                return await self._of_room(chosen, page)
        return 404, _JSON, b'{"error":"not found"}'

    async def _of_room(self, sources: Sequence[Source], page: str) -> Answer:
        if page == "metrics":
            return await self._metrics(sources, [])
        if page not in ("healthz", "readyz"):
            return 404, _JSON, b'{"error":"not found"}'
        answers = [await _fetch(s, f"/{page}") for s in sources]
        worst = max((a for a in answers if a is not None), default=(503, b""), key=lambda a: a[0])
        missing = None in answers
        return (503 if missing else worst[0]), _JSON, b'{"error":"does not answer"}' if missing else worst[1]

    async def _metrics(self, sources: Sequence[Source], pages: list[tuple[dict[str, str], str]]) -> Answer:
        answers = await asyncio.gather(*(_fetch(s, "/metrics") for s in sources))
        for source, answer in zip(sources, answers, strict=True):
            if answer is not None:
                pages.append((source.labels, answer[1].decode()))
        return 200, CONTENT_TYPE_LATEST, merge(pages).encode()


async def _fetch(source: Source, path: str) -> tuple[int, bytes] | None:
    """Return the page, None where the process does not answer: one room that is away hides no other's numbers."""
    with contextlib.suppress(OSError):
        return await unixhttp.get(source.socket, path)
    return None
