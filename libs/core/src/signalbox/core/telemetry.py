"""A room's /metrics, /healthz and /readyz on their own address, and the readiness that they show.

Liveness says only that the event loop turns; it never depends on Redis, the ledger or a pool.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import uvicorn
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    disable_created_metrics,
    generate_latest,
)

from signalbox.core.errors import StartupError
from signalbox.core.quiet_server import QuietServer

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the page and say nothing that a process's start time does not


class Readiness:
    """What this room needs before it can serve, by name, with the reason while it is missing."""

    def __init__(self, *needs: str) -> None:
        self._missing = dict.fromkeys(needs, "starting")

    def ok(self, need: str) -> None:
        """Note that `need` is there."""
        self._missing.pop(need, None)

    def missing(self, need: str, why: str) -> None:
        """Note that `need` is not there; `why` is shown, so it holds no secret."""
        self._missing[need] = why

    @property
    def ready(self) -> bool:
        """Whether nothing is missing."""
        return not self._missing

    def report(self) -> dict[str, str]:
        """Return what is missing and why."""
        return dict(self._missing)


class TelemetryServer:
    """Serves one room's telemetry until closed."""

    def __init__(
        self, address: str, readiness: Readiness, registry: CollectorRegistry = REGISTRY, *,
        stuck: Callable[[], str] = lambda: "",
    ) -> None:
        """`stuck` names what has not moved for too long, "" where all is well: liveness fails on it."""
        self._stuck = stuck
        self._address = address
        self._readiness = readiness
        self._registry = registry
        self._task: asyncio.Task[None] | None = None
        self._server: _Server | None = None

    async def start(self) -> None:
        """Bind and serve. Raises StartupError where the address is unusable."""
        options: dict[str, Any] = {
            "log_config": None, "access_log": False, "lifespan": "off", "loop": "none",
            "interface": "asgi3", "proxy_headers": False,
        }
        if self._address.startswith("unix:"):
            path = Path(self._address.removeprefix("unix:"))
            path.unlink(missing_ok=True)
            options["uds"] = str(path)
        else:
            host, _, port = self._address.rpartition(":")
            options |= {"host": host.strip("[]"), "port": int(port)}
        config = uvicorn.Config(self._app, http="httptools", ws="none", **options)
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve())
        while not self._server.started:
            if self._task.done():
                raise StartupError(f"telemetry address {self._address}", "cannot be bound; is it in use?")
            await asyncio.sleep(0.01)
        if self._address.startswith("unix:"):
            # uvicorn opens its Unix sockets to everybody.
            Path(self._address.removeprefix("unix:")).chmod(0o600)

    async def close(self) -> None:
        """Stop serving."""
        if self._server is not None and self._task is not None:
            self._server.leave()
            with contextlib.suppress(SystemExit):
                await self._task

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, content_type, body = self._answer(scope["path"])
        headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _answer(self, path: str) -> tuple[int, str, bytes]:
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(self._registry)
        if path == "/healthz":
            stuck = self._stuck()
            body = json.dumps({"live": not stuck, **({"stuck": stuck} if stuck else {})}).encode()
            return (503 if stuck else 200), "application/json", body
        if path == "/readyz":
            missing = self._readiness.report()
            body = json.dumps({"ready": not missing, "missing": missing}).encode()
            return (503 if missing else 200), "application/json", body
        return 404, "application/json", b'{"error":"not found"}'


class _Server(QuietServer):
    """Ends, rather than the process, where it can't be bound."""

    async def startup(self, sockets: Any = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:
            self.should_exit = True
