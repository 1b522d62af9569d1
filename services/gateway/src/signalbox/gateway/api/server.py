"""The public port: uvicorn run inside the room's own event loop, with the relay's protocol and no habits of its own."""

import asyncio
import socket
from typing import Any

import uvicorn

from signalbox.core.errors import StartupError
from signalbox.core.quiet_server import QuietServer
from signalbox.gateway.api.protocol import RelayProtocol
from signalbox.gateway.settings import GatewaySettings

_BACKLOG = 2048
# Bytes for a caller that the kernel takes beyond what is on its way; a reader that stalls would have it hold megabytes.
_UNSENT_IN_KERNEL = 128 << 10


class PublicServer:
    """Serves until told to stop accepting; what runs then may go on until the connections are gone."""

    def __init__(self, settings: GatewaySettings, app: Any, protocol: type[RelayProtocol]) -> None:
        config = uvicorn.Config(
            app, http=protocol, ws="none", lifespan="off", loop="none", interface="asgi3", log_config=None,
            access_log=False, server_header=False, date_header=True, proxy_headers=False,
            timeout_keep_alive=round(settings.keep_alive_s),
        )
        self._listen = settings.listen
        self._server = QuietServer(config)
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port that is listened on."""
        assert self._socket is not None
        port: int = self._socket.getsockname()[1]
        return port

    def bind(self) -> None:
        """Take the address without serving yet. Raises StartupError where it is unusable."""
        self._socket = _listening_socket(self._listen)
        # Its connections inherit this.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_IN_KERNEL)

    async def start(self) -> None:
        """Serve on the bound address."""
        assert self._socket is not None
        self._task = asyncio.create_task(self._server.serve([self._socket]))
        while not self._server.started:
            if self._task.done():
                raise StartupError(f"listen {self._listen}", "cannot be served")
            await asyncio.sleep(0.005)

    def cut(self) -> None:
        """Cut the connections that are left."""
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()

    async def stop(self, grace_s: float) -> bool:
        """Accept nothing more and wait for the connections to end; return whether they did within `grace_s`."""
        assert self._task is not None
        self._server.leave()
        done, _ = await asyncio.wait({self._task}, timeout=grace_s)
        return bool(done)


def _listening_socket(listen: str) -> socket.socket:
    kind, _, number = listen.rpartition(":")
    try:
        if kind == "fd":
            inherited = socket.socket(fileno=int(number))
            inherited.setblocking(False)
            return inherited
        return socket.create_server(
            (kind.strip("[]"), int(number)), family=socket.AF_INET6 if ":" in kind else socket.AF_INET,
            backlog=_BACKLOG, dualstack_ipv6=kind == "[::]",
        )
    except OSError as e:
        raise StartupError(f"listen {listen}", e.strerror or str(e)) from e
