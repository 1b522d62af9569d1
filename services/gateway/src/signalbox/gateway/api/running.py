"""Runs one coroutine on the event loop without making a task of it.

A request's course reads best as a coroutine, but it waits only two or three times: a task with its registration, its
context and its last turn would cost more than that. What it awaits are futures and tasks; `asyncio.timeout` and
`asyncio.current_task` know nothing of it, and nobody can cancel it but by cancelling the future that it waits for.
"""

from collections.abc import Callable, Coroutine
from typing import Any


class Running:
    """A coroutine under way. `ended` is called with this object when it has returned or raised."""

    __slots__ = ("_coroutine", "_ended")

    def __init__(self, coroutine: Coroutine[Any, None, None], ended: Callable[["Running"], None]) -> None:
        self._coroutine = coroutine
        self._ended = ended

    def go_on(self, _: object = None) -> None:
        """Run it up to the next future that it must wait for; called once to begin, then by those futures."""
        try:
            awaited = self._coroutine.send(None)
        except StopIteration:
            self._ended(self)
        except BaseException:
            self._ended(self)
            raise
        else:
            awaited._asyncio_future_blocking = False    # says that whoever drives the coroutine has seen it
            awaited.add_done_callback(self.go_on)
