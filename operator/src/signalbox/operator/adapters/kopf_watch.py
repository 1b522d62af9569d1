"""kopf, told to watch and to do nothing else.

Only `on.event`: every other kind of handler writes what it saw of an object, a Secret's values included, into an
annotation of that object. Each watch lives for some seconds only, so that a dead one is replaced within 30 s; one that
the API server lets expire begins anew, and what it missed is found by listing (controllers/listing.py).
"""

import asyncio
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

import aiohttp
import kopf
from yarl import URL

from signalbox.core.tls import not_by_form
from signalbox.operator.domain.world import Seen, identity_of, read, version_of
from signalbox.resources.crds import GROUP, PLURALS, VERSION
from signalbox.resources.reading import Identity

WATCH_S = 20  # whole seconds, or the API server refuses
_DEAD_AFTER_S = 25.0
_NOBODY = "-"  # no object can have this name
_IDLE_WORKER_S = 1.0


class KopfWatch:
    """One run of kopf. Everything, callbacks included, happens in the event loop that runs it."""

    def __init__(
        self, namespaces: Sequence[str] | None, *, known: Callable[[Identity], Seen | None],
        notice: Callable[[Seen], None], forget: Callable[[Identity, int], None],
        begun: Callable[[str, str | None], None],
    ) -> None:
        self._namespaces = namespaces
        self._known = known
        self._notice = notice
        self._forget = forget
        self._begun = begun

    async def run(self, stop: asyncio.Event) -> None:
        """Watch until `stop` is set, or kopf gives up."""
        await kopf.operator(
            registry=self._registry(), settings=_settings(), standalone=True, stop_flag=stop,
            clusterwide=self._namespaces is None, namespaces=self._namespaces or (),
        )

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
            self._forget(seen.identity, seen.version)
        else:
            self._notice(seen)

    async def _login(self, **kwargs: Any) -> kopf.AiohttpSession | None:
        found = kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)
        if not isinstance(found, kopf.ConnectionInfo):
            return None
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=not_by_form(found.as_ssl_context())),
            headers=found.as_http_headers(), proxy=found.proxy_url, trust_env=found.trust_env,
            middlewares=[self._list_nothing],
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
            self._begun(*place)
        return response


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
