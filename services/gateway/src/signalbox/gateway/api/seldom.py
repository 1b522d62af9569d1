"""An ASGI application that is imported and built when it is first asked.

FastAPI is two fifths of what a gateway would import, and most gateways relay and are asked nothing else.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class OnDemand:
    """Answers as the application that `build` returns, once, in a thread: running streams go on meanwhile."""

    def __init__(self, build: Callable[[], Application]) -> None:
        self._build = build
        self._building: asyncio.Task[Application] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._building is None:
            self._building = asyncio.create_task(asyncio.to_thread(self._build))
        # A caller who goes away while it is built takes nothing from those who wait with it.
        application = await asyncio.shield(self._building)
        await application(scope, receive, send)
