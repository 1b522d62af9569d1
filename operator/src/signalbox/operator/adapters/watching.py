"""Watches the API server: kopf, in a thread and an event loop of its own, begun anew when it ends by itself.

kopf counts every task of its loop as its own when it stops, hence the thread. kopf_watch.py is imported in that thread:
with aiohttp below it, it is a third of all that the operator loads, and documents are in force before it is needed.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence

from signalbox.core import logs
from signalbox.operator.domain.world import Seen
from signalbox.resources.reading import Identity

log = logs.logger(__name__)

_AGAIN_AFTER_S = 1.0
_BEAT_S = 5.0
_STOP_S = 5.0

Begun = Callable[[str, str | None], None]
"""Told that the watch of a kind, in one namespace or (None) in all, begins: a listing from then on misses nothing."""


class Watch:
    """Watches from `start` to `stop`. The callbacks run in the event loop that called `start`.

    `notice` gets objects, `forget` deletions with their version. `known` is asked in kopf's thread for an object as it
    was seen last; in the same version, it costs nothing more.
    """

    def __init__(
        self, namespaces: Sequence[str] | None, *, known: Callable[[Identity], Seen | None],
        notice: Callable[[Seen], None], forget: Callable[[Identity, int], None], beat: Callable[[], None],
    ) -> None:
        self._namespaces = namespaces
        self._known = known
        self._notice = notice
        self._forget = forget
        self._beat = beat
        self._stop = threading.Event()
        self._stop_kopf: Callable[[], object] = lambda: None
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)

    def start(self, begun: Begun) -> None:
        """Begin to watch; `begun` is told whenever a watch begins, the first time too."""
        self._begun = begun
        self._loop = asyncio.get_running_loop()
        self._beat()  # from now on it is missed
        self._thread.start()

    async def stop(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._stop_kopf()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, _STOP_S)

    # ------------------------------------------------------------------ in kopf's thread

    def _run(self) -> None:
        while True:
            try:
                asyncio.run(self._operate())
            except Exception as e:
                log.warning("watch_failed", why=f"{type(e).__name__}: {e}"[:300])
            if self._stop.wait(_AGAIN_AFTER_S):
                return

    async def _operate(self) -> None:
        from signalbox.operator.adapters.kopf_watch import KopfWatch  # noqa: PLC0415  # see above

        # A flag of kopf's own loop: it would wait for a thread's in a thread that outlives it.
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        self._stop_kopf = lambda: None if loop.is_closed() else loop.call_soon_threadsafe(stop.set)
        if self._stop.is_set():
            return
        watch = KopfWatch(
            self._namespaces, known=self._known, notice=self._told(self._notice), forget=self._told(self._forget),
            begun=self._told(self._begun),
        )
        beating = asyncio.create_task(self._keep_beating())
        try:
            await watch.run(stop)
        finally:
            beating.cancel()

    async def _keep_beating(self) -> None:
        beat = self._told(self._beat)
        while True:
            beat()
            await asyncio.sleep(_BEAT_S)

    def _told(self, callback: Callable[..., None]) -> Callable[..., None]:
        """Return what calls a callback in the event loop that called `start`."""

        def tell(*arguments: object) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(callback, *arguments)

        return tell
