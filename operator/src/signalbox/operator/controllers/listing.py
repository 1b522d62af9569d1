"""Lists everything that is watched: at the start, every few minutes, and whenever a watch may have missed something."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from signalbox.core import logs
from signalbox.core.errors import Refused, SignalboxError
from signalbox.kube import CUSTOM_KINDS, Cluster
from signalbox.operator.controllers.board import Board
from signalbox.operator.domain.world import Seen, read
from signalbox.operator.metrics import Metrics

log = logs.logger(__name__)

KINDS = (*CUSTOM_KINDS, "Secret")
_FIRST_RETRY_S = 0.5
_LONGEST_RETRY_S = 10.0
_NAMESPACES_EVERY_S = 15.0
_SETTLED_S = 10.0
_LOOK_EVERY_S = 2.0


class Listing:
    """Keeps `board.world` whole. `namespaces` None means all; `listed` is called after each whole listing."""

    def __init__(
        self, board: Board, cluster: Cluster, namespaces: Sequence[str] | None, *, every_s: float, metrics: Metrics,
        listed: Callable[[], None],
    ) -> None:
        self._board = board
        self._cluster = cluster
        self._namespaces = namespaces
        self._every_s = every_s
        self._metrics = metrics
        self._listed = listed
        self._relisted_s = float("inf")
        self._failure = ""

    def relisted(self) -> None:
        """Note that a watch begins anew: once it has settled, a listing finds what was deleted in between."""
        self._relisted_s = time.monotonic()

    async def keep_whole(self) -> None:
        """List again and again."""
        retry_s = _FIRST_RETRY_S
        while True:
            self._metrics.beat("listing")
            try:
                await self._list_everything()
                wait_s, retry_s, self._failure = self._every_s, _FIRST_RETRY_S, ""
            except SignalboxError as e:
                if str(e) != self._failure:
                    log.warning("listing_failed", why=str(e))
                self._failure = str(e)
                wait_s, retry_s = retry_s, min(_LONGEST_RETRY_S, retry_s * 2)
            await self._wait(wait_s)

    async def keep_namespaces(self) -> None:
        """Look at the labels of the watched namespaces, where they are not watched with everything else."""
        while self._namespaces is not None:
            with contextlib.suppress(SignalboxError):
                for name in self._namespaces:
                    await self._look_at_namespace(name)
            await asyncio.sleep(_NAMESPACES_EVERY_S)

    async def _wait(self, wait_s: float) -> None:
        """Wait until a listing is due, or a watch that began anew has settled."""
        until_s = time.monotonic() + wait_s
        while (now_s := time.monotonic()) < min(until_s, self._relisted_s + _SETTLED_S):
            self._metrics.beat("listing")
            await asyncio.sleep(min(until_s - now_s, _LOOK_EVERY_S))
        if now_s >= self._relisted_s + _SETTLED_S:
            self._relisted_s = float("inf")

    async def _list_everything(self) -> None:
        places: Sequence[str | None] = [None] if self._namespaces is None else self._namespaces
        for kind in KINDS:
            for namespace in places:
                await self._list(kind, namespace)
        if self._namespaces is None:
            await self._list("Namespace", None)
        self._board.complete = True
        self._board.changed.set()
        self._listed()

    async def _list(self, kind: str, namespace: str | None) -> None:
        found: list[Seen] = []

        def take(raw: dict[str, Any]) -> None:
            # Items of a listing do not say their kind.
            seen = read({**raw, "kind": kind, "apiVersion": raw.get("apiVersion") or _api_version(kind)})
            if seen is not None:
                found.append(seen)

        version = await self._cluster.list(kind, namespace, take)
        news = self._board.world.replace(kind, namespace, found, version)
        self._board.withdrawn += [i for i in news if i.kind == "RelayKey" and self._board.world.get(i) is None]
        self._metrics.objects.labels(kind).set(len(found))
        self._board.mark(news)

    async def _look_at_namespace(self, name: str) -> None:
        try:
            raw = await self._cluster.get("Namespace", name)
        except Refused:
            return  # no permission: the namespace counts as one without labels
        seen = read({**raw, "kind": "Namespace", "apiVersion": "v1"}) if raw else None
        if seen is not None:
            self._board.notice(seen)


def _api_version(kind: str) -> str:
    return "signalbox.dev/v1alpha1" if kind in CUSTOM_KINDS else "v1"
