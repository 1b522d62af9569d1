"""A TCP tunnel that can go silently dead: bytes vanish, nobody is told. Imports nothing of the product."""

import contextlib
import socket
import threading
from urllib.parse import urlsplit


class Tunnel:
    """Listens on a loopback port, `url`, in front of a server. Use it as a context manager."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"{parts.scheme}://127.0.0.1:{self._server.getsockname()[1]}"
        self._generation = 0

    def __enter__(self) -> "Tunnel":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def swallow(self) -> None:
        """From now on nothing passes on the connections that there are, and none of them is closed."""
        self._generation += 1

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(source, sink, self._generation), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, generation: int) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if generation == self._generation:
                    sink.sendall(data)
            if generation == self._generation:
                sink.shutdown(socket.SHUT_WR)
