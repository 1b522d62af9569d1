"""kopf, which watches the API server, in a thread and an event loop of its own.

Only `on.event`: every other kind of handler writes what it saw of an object, a Secret's values included, into an
annotation of that object. kopf counts every task of its loop as its own when it stops, hence the thread. It starts
anew when it ends by itself. Each watch lives for some seconds only, so that a dead one is replaced within 30 s; one
that the API server lets expire begins anew, and what it missed is found by listing (controllers/listing.py).
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

import aiohttp
import kopf
from yarl import URL

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
_NOBODY = "-"  # no object can have this name
_IDLE_WORKER_S = 1.0


class Watch:
    """Watches until stopped. The callbacks run in the event loop that called `start`.

    `notice` gets objects, `forget` deletions with their version; `begun` says that the watch of a kind (in one
    namespace or, None, in all) begins anew: what is listed from then on misses nothing.
    `known` is asked in kopf's thread for an object as it was seen last; in the same version, it costs nothing more.
    """

    def __init__(
        self, namespaces: Sequence[str] | None, *, known: Callable[[Identity], Seen | None],
        notice: Callable[[Seen], None], forget: Callable[[Identity, int], None],
        begun: Callable[[str, str | None], None], beat: Callable[[], None],
    ) -> None:
        self._namespaces = namespaces
        self._known = known
        self._notice = notice
        self._forget = forget
        self._begun = begun
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
        kopf.on.login(registry=registry, id="login")(self._login)
        for kind, group, version, plural in watched(self._namespaces):
            kopf.on.event(group, version, plural, registry=registry, id=kind)(self._event)
        return registry

    async def _event(self, type: str | None, event: Any, **_: Any) -> None:
        raw = event["object"]
        before = self._known(identity_of(raw))
        if type != "DELETED" and before is not None and before.version >= version_of(raw):
            return
        seen = read(raw, before)
        if seen is None:
            return
        if type == "DELETED":
            self._tell(self._forget, seen.identity, seen.version)
        else:
            self._tell(self._notice, seen)

    async def _login(self, **kwargs: Any) -> kopf.AiohttpSession | None:
        found = kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)
        if not isinstance(found, kopf.ConnectionInfo):
            return None
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=found.as_ssl_context()), headers=found.as_http_headers(),
            proxy=found.proxy_url, trust_env=found.trust_env, middlewares=[self._list_nothing],
        )
        return kopf.AiohttpSession(
            server=found.server, default_namespace=found.default_namespace, expiration=found.expiration,
            aiohttp_session=session,
        )

    async def _list_nothing(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType,
    ) -> aiohttp.ClientResponse:
        """Have kopf's own listings hold nothing but the version that its watch begins at.

        The operator lists for itself, cheaply. kopf would start a task for each object, ten thousand at once, and a
        change that somebody makes meanwhile would wait behind them.
        """
        place = _listed(request.url, self._namespaces)
        if place is None:
            return await handler(request)
        request.url = request.url.update_query(fieldSelector=f"metadata.name={_NOBODY}")
        response = await handler(request)
        if response.status == HTTPStatus.OK:
            self._tell(self._begun, *place)
        return response

    def _tell(self, callback: Callable[..., None], *arguments: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *arguments)


def watched(namespaces: Sequence[str] | None) -> list[tuple[str, str, str, str]]:
    """Return kind, group, version and plural of everything that is watched; `namespaces` None means all."""
    everywhere = [("Namespace", "", "v1", "namespaces")] if namespaces is None else []
    ours = [(kind, GROUP, VERSION, plural) for kind, plural in PLURALS.items()]
    return [*ours, ("Secret", "", "v1", "secrets"), *everywhere]


def _listed(url: URL, namespaces: Sequence[str] | None) -> tuple[str, str | None] | None:
    """Return which kind a request lists, and in which namespace; None for any other request."""
    if "watch" in url.query:
        return None
    for kind, group, version, plural in watched(namespaces):
        base = f"/apis/{group}/{version}" if group else f"/api/{version}"
        for namespace in (None,) if namespaces is None else namespaces:
            within = f"/namespaces/{namespace}" if namespace else ""
            if url.path.endswith(f"{base}{within}/{plural}"):
                return kind, namespace
    return None


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.server_timeout = WATCH_S
    settings.watching.client_timeout = _DEAD_AFTER_S
    settings.watching.connect_timeout = 5.0
    settings.watching.chunk_size = 500
    settings.queueing.idle_timeout = _IDLE_WORKER_S  # each holds a task and its memory
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
