"""Lists everything that is watched: at the start, every few minutes, and whenever a watch may have missed something.

The first listing does not wait for the watches: they begin after it, and what they may have missed is listed then.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from signalbox.core import logs
from signalbox.core.errors import Refused, SignalboxError
from signalbox.kube import CUSTOM_KINDS, Cluster
from signalbox.operator.adapters.watching import Watch
from signalbox.operator.controllers.board import Board
from signalbox.operator.domain.world import Seen, identity_of, read, version_of
from signalbox.operator.metrics import Metrics

log = logs.logger(__name__)

KINDS = (*CUSTOM_KINDS, "Secret")
_FIRST_RETRY_S = 0.5
_LONGEST_RETRY_S = 10.0
_NAMESPACES_EVERY_S = 15.0
_NAMESPACE_WATCH_S = 25.0
# How long the watches are waited for to begin, so that what they have missed is listed all at once.
_WATCHES_BEGIN_S = 3.0
# A watch that begins anew again and again does not have everything listed each time.
_AGAIN_AFTER_S = 2.0
_GATHER_S = 0.1
_BEAT_S = 2.0

Place = tuple[str, str | None]


class Listing:
    """Keeps `board.world` whole, and has `watch` begin. `namespaces` None means all.

    `listed` is called after each whole listing.
    """

    def __init__(
        self, board: Board, cluster: Cluster, watch: Watch, namespaces: Sequence[str] | None, *, every_s: float,
        metrics: Metrics, listed: Callable[[], None],
    ) -> None:
        self._board = board
        self._cluster = cluster
        self._watch = watch
        self._every_s = every_s
        self._metrics = metrics
        self._listed = listed
        self._namespaces = namespaces
        spaces: Sequence[str | None] = [None] if namespaces is None else namespaces
        self._places: list[Place] = [(kind, namespace) for kind in KINDS for namespace in spaces]
        if namespaces is None:
            self._places.append(("Namespace", None))
        self._due: dict[Place, None] = {}
        self._some_due = asyncio.Event()
        self._failure = ""
        self._polled: set[str] = set()

    def _begun(self, kind: str, namespace: str | None) -> None:
        """Note that a watch begins: a listing finds what it missed."""
        log.info("watch_begins", kind=kind, namespace=namespace or "*")
        self._due[kind, namespace] = None
        self._some_due.set()

    async def keep_whole(self) -> None:
        """List everything at the start and every few minutes, and in between what watches may have missed."""
        retry_s, whole_at_s, watching = _FIRST_RETRY_S, 0.0, False
        while True:
            self._metrics.beat("listing")
            whole = time.monotonic() >= whole_at_s
            try:
                await self._list_all(self._places if whole else [*self._due], whole=whole)
                retry_s, self._failure = _FIRST_RETRY_S, ""
                whole_at_s = time.monotonic() + self._every_s if whole else whole_at_s
                if watching:
                    await asyncio.sleep(min(_AGAIN_AFTER_S, self._every_s))
                else:
                    watching = True
                    self._watch.start(self._begun)
                    await self._watches_begin()
            except SignalboxError as e:
                if str(e) != self._failure:
                    log.warning("listing_failed", why=str(e))
                self._failure = str(e)
                await asyncio.sleep(retry_s)
                retry_s = min(_LONGEST_RETRY_S, retry_s * 2)
                continue
            await self._wait(whole_at_s)

    async def keep_namespaces(self) -> None:
        """Follow the labels of the watched namespaces, where they are not watched with everything else."""
        async with asyncio.TaskGroup() as group:
            for name in self._namespaces or ():
                group.create_task(self._follow(name))

    async def _follow(self, namespace: str) -> None:
        """Watch a namespace where we may, else look at it every few seconds. Where we may not, it has no labels."""
        while True:
            try:
                async with asyncio.timeout(_NAMESPACE_WATCH_S):
                    async for raw in self._cluster.watch("Namespace", namespace):
                        self._take_namespace(raw)
            except TimeoutError:
                continue  # begun anew, for it might be dead
            except SignalboxError as e:
                if isinstance(e, Refused) and namespace not in self._polled:
                    log.info("namespace_polled", namespace=namespace, why=str(e))
                    self._polled.add(namespace)
                with contextlib.suppress(SignalboxError):
                    await self._look_at(namespace)
            await asyncio.sleep(_NAMESPACES_EVERY_S)

    async def _look_at(self, namespace: str) -> None:
        with contextlib.suppress(Refused):
            self._take_namespace(await self._cluster.get("Namespace", namespace))

    def _take_namespace(self, raw: dict[str, Any] | None) -> None:
        seen = read({**raw, "kind": "Namespace", "apiVersion": "v1"}) if raw else None
        if seen is not None:
            self._board.notice(seen)

    async def _watches_begin(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_WATCHES_BEGIN_S):
                while len(self._due) < len(self._places):
                    self._some_due.clear()
                    await self._some_due.wait()

    async def _wait(self, until_s: float) -> None:
        """Wait until something is due."""
        while (left_s := until_s - time.monotonic()) > 0 and not self._due:
            self._metrics.beat("listing")
            self._some_due.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._some_due.wait(), min(left_s, _BEAT_S))
        await asyncio.sleep(_GATHER_S)

    async def _list_all(self, places: Sequence[Place], *, whole: bool) -> None:
        for place in places:
            self._due.pop(place, None)
            try:
                await self._list(*place)
            except SignalboxError:
                self._due[place] = None
                raise
        if whole:
            for namespace in self._namespaces or ():
                await self._look_at(namespace)
            self._board.complete = True
            self._board.changed.set()
            self._listed()

    async def _list(self, kind: str, namespace: str | None) -> None:
        found: list[Seen] = []

        def take(raw: dict[str, Any]) -> None:
            # Items of a listing do not say their kind.
            named = {**raw, "kind": kind, "apiVersion": raw.get("apiVersion") or _api_version(kind)}
            known = self._board.world.get(identity_of(named))
            seen = known if known is not None and known.version >= version_of(raw) else read(named, known)
            if seen is not None:
                found.append(seen)

        version = await self._cluster.list(kind, namespace, take)
        news = self._board.world.replace(kind, namespace, found, version)
        self._board.withdrawn += [i for i in news if i.kind == "RelayKey" and self._board.world.get(i) is None]
        self._metrics.objects.labels(kind).set(len(found))
        if news:
            self._board.changed.set()
        self._board.mark(news)


def _api_version(kind: str) -> str:
    return "signalbox.dev/v1alpha1" if kind in CUSTOM_KINDS else "v1"
