"""Puts the operator together and runs it: kopf's watches, the loops, telemetry; stops in good order."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

from signalbox.core import logs
from signalbox.core.errors import SignalboxError, StartupError
from signalbox.core.telemetry import Readiness, TelemetryServer
from signalbox.kube import Cluster, connect
from signalbox.operator.adapters.starts import next_fence, present_fence
from signalbox.operator.adapters.watching import Watch
from signalbox.operator.adapters.writing import Writer
from signalbox.operator.controllers.board import Board
from signalbox.operator.controllers.deletions import Deletions
from signalbox.operator.controllers.documents import Documents
from signalbox.operator.controllers.listing import Listing
from signalbox.operator.controllers.live import Live
from signalbox.operator.controllers.statuses import Statuses
from signalbox.operator.metrics import Metrics
from signalbox.operator.settings import EVERYWHERE, OperatorSettings
from signalbox.resources.state import Policy
from signalbox.rooms.carryout import Carrier
from signalbox.rooms.client import Addresses, Rooms

log = logs.logger(__name__)

WRITER = "operator"
NEED = "documents"
# A loop that has not turned for so long is stuck: liveness fails and the pod is started anew.
STUCK_AFTER_S = 180.0
_TRY_AGAIN_S = 1.0
_LEASE_EVERY_S = 15.0


async def main(settings: OperatorSettings, stop: asyncio.Event) -> None:
    """Reconcile until `stop` is set. Raises StartupError."""
    logs.configure("operator", settings.log_level, settings.log_format)
    log.info("starting", **settings.masked())
    metrics = Metrics()
    readiness = Readiness(NEED)
    telemetry = TelemetryServer(
        settings.telemetry_address, readiness, stuck=lambda: metrics.stuck(STUCK_AFTER_S),
    )
    await telemetry.start()
    addresses = Addresses(settings.scheduler_address, settings.token_refresher_address)
    async with (
        connect(settings.name, kubeconfig=settings.kubeconfig) as cluster, Rooms(addresses, settings) as rooms,
    ):
        operating = asyncio.create_task(_operate(settings, cluster, rooms, readiness=readiness, metrics=metrics))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([operating, stopping], return_when=asyncio.FIRST_COMPLETED)
        log.info("stopping")
        if operating.done():
            operating.result()  # a defect ends the process rather than half of it
        operating.cancel()
        await asyncio.gather(operating, return_exceptions=True)
    await telemetry.close()
    log.info("stopped")


async def _operate(
    settings: OperatorSettings, cluster: Cluster, rooms: Rooms, *, readiness: Readiness, metrics: Metrics,
) -> None:
    namespace = settings.namespace or cluster.namespace
    namespaces = _watched(settings.watch_namespaces, namespace)
    fence = await _take_over(cluster, namespace, settings.name, readiness=readiness)
    log.info("watching", namespaces=",".join(namespaces or (EVERYWHERE,)), cluster=cluster.where, fence=fence)

    def ready(failure: str) -> None:
        if failure:
            readiness.missing(NEED, failure)
        else:
            readiness.ok(NEED)

    board = Board()
    writer = Writer(cluster, settings.name)
    documents = Documents(
        board, rooms, Carrier(rooms, WRITER, fence), _policy(settings), metrics=metrics, ready=ready,
    )
    listing = Listing(
        board, cluster, namespaces, every_s=settings.resync_s, metrics=metrics, listed=documents.relist,
    )
    live = Live(board, rooms, every_s=settings.numbers_every_s, metrics=metrics, lost=documents.relist)
    statuses = Statuses(
        board, writer, writers=settings.status_writers, every_s=settings.numbers_every_s, metrics=metrics,
    )
    deletions = Deletions(
        board, rooms, writer, limit=timedelta(seconds=settings.drain_limit_s), metrics=metrics,
    )
    watch = Watch(
        namespaces, known=board.world.get, notice=board.notice, forget=board.forget, begun=listing.begun,
        beat=lambda: metrics.beat("watch"),
    )
    watch.start()
    loops = (
        listing.keep_whole, listing.keep_namespaces, documents.keep_in_force, documents.keep_withdrawing,
        live.keep_watching, live.keep_asking, live.keep_counting, live.keep_grants, statuses.keep_true,
        deletions.keep_holding,
    )
    try:
        async with asyncio.TaskGroup() as group:
            for loop in loops:
                group.create_task(loop(), name=loop.__name__)
            group.create_task(_watch_lease(board, cluster, namespace, settings.name, fence=fence))
    finally:
        await watch.stop()


def _watched(named: Sequence[str], own: str) -> tuple[str, ...] | None:
    """Return the namespaces to watch, None for all."""
    return None if EVERYWHERE in named else tuple(named) or (own,)


def _policy(settings: OperatorSettings) -> Policy:
    return Policy(cluster=True, allowed_upstream_hosts=settings.allowed_upstream_hosts or None)


async def _take_over(cluster: Cluster, namespace: str, name: str, *, readiness: Readiness) -> int:
    """Take the place of earlier starts, as soon as the API server answers."""
    while True:
        try:
            return await next_fence(cluster, namespace, name)
        except StartupError:
            raise
        except SignalboxError as e:
            readiness.missing(NEED, str(e))
            log.warning("cannot_take_over", why=str(e))
            await asyncio.sleep(_TRY_AGAIN_S)


async def _watch_lease(board: Board, cluster: Cluster, namespace: str, name: str, *, fence: int) -> None:
    """Notice that a newer operator has started, also while there is nothing to write."""
    while True:
        await asyncio.sleep(_LEASE_EVERY_S)
        try:
            newest = await present_fence(cluster, namespace, name)
        except SignalboxError:
            continue
        if newest > fence and not board.superseded:
            board.superseded = True
            log.error("superseded", why="a newer operator has taken over; this one does nothing more")
