"""A gRPC channel that takes up a renewed certificate: calls begun later go over a new connection that shows it.

gRPC's Python library gives a channel its certificate once. Calls that run stay where they are until they end.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Self

import grpc
import grpc.aio

from signalbox.core.certificates import Certificates, Pem

_LOOK_EVERY_S = 1.0
_LEAVE_S = 900.0
"""How long calls may still run on the connection before: longer than a server keeps any connection."""

Dial = Callable[[Pem], grpc.aio.Channel]


class RenewingChannel(grpc.aio.Channel):
    """Looks like a channel to stubs; `dial` makes the one behind it."""

    def __init__(self, certificates: Certificates, dial: Dial) -> None:
        self._certificates = certificates
        self._dial = dial
        self._pem = certificates.pem
        self._channel = dial(self._pem)
        self._looked_s = time.monotonic()
        self._leaving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        for task in self._leaving:
            task.cancel()
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._current().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._current().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._current().channel_ready()

    def unary_unary(self, *method: Any, **options: Any) -> Any:
        return self._callable("unary_unary", method, options)

    def unary_stream(self, *method: Any, **options: Any) -> Any:
        return self._callable("unary_stream", method, options)

    def stream_stream(self, *method: Any, **options: Any) -> Any:
        return self._callable("stream_stream", method, options)

    def stream_unary(self, *method: Any, **options: Any) -> Any:
        return self._callable("stream_unary", method, options)

    def _callable(self, kind: str, method: tuple[Any, ...], options: dict[str, Any]) -> Callable[..., Any]:
        made: tuple[grpc.aio.Channel, Any] | None = None

        def call(*arguments: Any, **more: Any) -> Any:
            nonlocal made
            channel = self._current()
            if made is None or made[0] is not channel:
                made = channel, getattr(channel, kind)(*method, **options)
            return made[1](*arguments, **more)

        return call

    def _current(self) -> grpc.aio.Channel:
        now_s = time.monotonic()
        if now_s - self._looked_s < _LOOK_EVERY_S:
            return self._channel
        self._looked_s = now_s
        pem = self._certificates.refresh()
        if pem is not self._pem:
            task = asyncio.get_running_loop().create_task(self._channel.close(_LEAVE_S))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
            self._pem, self._channel = pem, self._dial(pem)
        return self._channel
