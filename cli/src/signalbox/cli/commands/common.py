"""What several commands need: names, and waiting for something to come into force."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from signalbox.resources.models import DEFAULT_NAMESPACE

IN_FORCE_LIMIT_S = 10.0
_ASK_EVERY_S = 0.1


def object_id(name: str) -> str:
    """Return `namespace/name` for a name as people type it."""
    return name if "/" in name else f"{DEFAULT_NAMESPACE}/{name}"


def split_id(name: str) -> tuple[str, str]:
    """Return (namespace, name) for a name as people type it."""
    namespace, _, own = object_id(name).partition("/")
    return namespace, own


async def becomes_true(ask: Callable[[], Awaitable[bool]], limit_s: float = IN_FORCE_LIMIT_S) -> bool:
    """Ask until the answer is yes; False when it is not within the limit."""
    until_s = time.monotonic() + limit_s
    while not await ask():
        if time.monotonic() > until_s:
            return False
        await asyncio.sleep(_ASK_EVERY_S)
    return True
