"""kopf, which watches the API server, in a thread and an event loop of its own.

Only `on.event`: every other kind of handler writes what it saw of an object, a Secret's values included, into an
annotation of that object. kopf counts every task of its loop as its own when it stops, hence the thread. It starts
anew when it ends by itself. Each watch lives for some seconds only, so that a dead one is replaced within 30 s.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import kopf

from signalbox.core import logs
from signalbox.operator.domain.world import Seen, identity_of, read, version_of
from signalbox.resources.crds import GROUP, PLURALS, VERSION
from signalbox.resources.reading import Identity

log = logs.logger(__name__)

WATCH_S = 20  # whole seconds, or the API server refuses
_DEAD_AFTER_S = 25.0
_AGAIN_AFTER_S = 1.0
_BEAT_S = 5.0
_STOP_S = 5.0
_WATCHED = [*((kind, GROUP, VERSION, plural) for kind, plural in PLURALS.items()), ("Secret", "", "v1", "secrets")]


class Watch:
    """Watches until stopped. The callbacks run in the event loop that called `start`.

    `notice` gets objects, `forget` deletions with their version; `relisted` says that kopf lists everything anew:
    what was deleted since the last event goes unnoticed.
    `known` is asked in kopf's thread whether an object is there in this version, which then costs nothing more.
    """

    def __init__(
        self, namespaces: Sequence[str] | None, *, known: Callable[[Identity, int], bool],
        notice: Callable[[Seen], None], forget: Callable[[Identity, int], None], relisted: Callable[[], None],
        beat: Callable[[], None],
    ) -> None:
        self._namespaces = namespaces
        self._known = known
        self._notice = notice
        self._forget = forget
        self._relisted = relisted
        self._beat = beat
        self._stop = threading.Event()
        self._stop_kopf: Callable[[], object] = lambda: None
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._loop = asyncio.get_running_loop()
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
            self._tell(self._relisted)
            try:
                asyncio.run(self._operate())
            except Exception as e:
                log.warning("watch_failed", why=f"{type(e).__name__}: {e}"[:300])
            if self._stop.wait(_AGAIN_AFTER_S):
                return

    async def _operate(self) -> None:
        # A flag of kopf's own loop: it would wait for a thread's in a thread that outlives it.
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        self._stop_kopf = lambda: None if loop.is_closed() else loop.call_soon_threadsafe(stop.set)
        if self._stop.is_set():
            return
        beating = asyncio.create_task(self._keep_beating())
        try:
            await kopf.operator(
                registry=self._registry(), settings=_settings(), standalone=True, stop_flag=stop,
                clusterwide=self._namespaces is None, namespaces=self._namespaces or (),
            )
        finally:
            beating.cancel()

    async def _keep_beating(self) -> None:
        while True:
            self._tell(self._beat)
            await asyncio.sleep(_BEAT_S)

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry, id="login")(_login)
        watched = list(_WATCHED)
        if self._namespaces is None:
            watched.append(("Namespace", "", "v1", "namespaces"))
        for kind, group, version, plural in watched:
            kopf.on.event(group, version, plural, registry=registry, id=kind)(self._event)
        return registry

    async def _event(self, type: str | None, event: Any, **_: Any) -> None:
        raw = event["object"]
        if type is None:
            self._tell(self._relisted)
        if type != "DELETED" and self._known(identity_of(raw), version_of(raw)):
            return
        seen = read(raw)
        if seen is None:
            return
        if type == "DELETED":
            self._tell(self._forget, seen.identity, seen.version)
        else:
            self._tell(self._notice, seen)

    def _tell(self, callback: Callable[..., None], *arguments: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *arguments)


async def _login(**kwargs: Any) -> Any:
    return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.server_timeout = WATCH_S
    settings.watching.client_timeout = _DEAD_AFTER_S
    settings.watching.connect_timeout = 5.0
    settings.watching.chunk_size = 500
    settings.networking.request_timeout = 30.0
    settings.networking.error_backoffs = (0.5, 1.0, *(2.0,) * 300)
    settings.persistence.finalizer = f"{GROUP}/operator"  # with event handlers only, kopf puts it on nothing
    settings.persistence.progress_storage = _NoProgress()
    settings.persistence.diffbase_storage = _NoDiffs()
    return settings


class _NoDiffs(kopf.DiffBaseStorage):
    """Remembers nothing of an object anywhere, and so does not copy it at every event either."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        return None


class _NoProgress(kopf.ProgressStorage):
    """The same for the handlers' progress, of which there is none."""

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        return None

    def purge(self, **_: Any) -> None:
        return None

    def touch(self, **_: Any) -> None:
        return None

    def clear(self, *, essence: Any) -> Any:
        return essence
