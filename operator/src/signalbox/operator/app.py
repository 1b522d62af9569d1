"""Puts the operator together and runs it: kopf's watches, the loops, telemetry; stops in good order."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from datetime import timedelta

from signalbox.core import logs
from signalbox.core.errors import SignalboxError, StartupError
from signalbox.core.telemetry import Readiness, TelemetryServer
from signalbox.kube import Cluster, connect
from signalbox.operator.adapters.starts import next_fence, renew, version
from signalbox.operator.adapters.watching import Watch
from signalbox.operator.adapters.writing import Writer
from signalbox.operator.controllers.board import Board
from signalbox.operator.controllers.deletions import Deletions
from signalbox.operator.controllers.documents import Documents
from signalbox.operator.controllers.listing import Listing
from signalbox.operator.controllers.live import Live
from signalbox.operator.controllers.statuses import Statuses
from signalbox.operator.domain.succession import RENEW_EVERY_S, Silence, Superseded
from signalbox.operator.metrics import Metrics
from signalbox.operator.settings import EVERYWHERE, OperatorSettings
from signalbox.resources.state import Policy
from signalbox.rooms.addresses import Addresses
from signalbox.rooms.carryout import Carrier
from signalbox.rooms.client import Rooms

log = logs.logger(__name__)

WRITER = "operator"
NEED = "documents"
# A loop that has not turned for so long is stuck: liveness fails and the pod is started anew.
STUCK_AFTER_S = 180.0
_TRY_AGAIN_S = 1.0


async def main(settings: OperatorSettings, stop: asyncio.Event) -> None:
    """Reconcile until `stop` is set. Raises StartupError."""
    logs.configure("operator", settings.log_level, settings.log_format)
    settings.announce(log)
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
        operating = asyncio.create_task(_take_turns(settings, cluster, rooms, readiness=readiness, metrics=metrics))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([operating, stopping], return_when=asyncio.FIRST_COMPLETED)
        log.info("stopping")
        if operating.done():
            operating.result()  # a defect ends the process rather than half of it
        operating.cancel()
        await asyncio.gather(operating, return_exceptions=True)
    await telemetry.close()
    log.info("stopped")


async def _take_turns(
    settings: OperatorSettings, cluster: Cluster, rooms: Rooms, *, readiness: Readiness, metrics: Metrics,
) -> None:
    """Operate; where a newer operator takes over wait, not ready, until it is silent; then operate again."""
    namespace = settings.namespace or cluster.namespace
    while True:
        fence = await _take_over(cluster, namespace, settings.name, readiness=readiness)
        try:
            await _operate(settings, cluster, rooms, namespace, fence, readiness=readiness, metrics=metrics)
        except* Superseded:
            pass
        metrics.rest()
        readiness.missing(NEED, "a newer operator has taken over")
        log.warning("superseded", why="a newer operator has taken over; this one waits until that one is silent")
        await _wait_for_silence(cluster, namespace, settings.name)
        log.warning("taking_over", why="the newer operator has not renewed its Lease")


async def _operate(
    settings: OperatorSettings, cluster: Cluster, rooms: Rooms, namespace: str, fence: int, *, readiness: Readiness,
    metrics: Metrics,
) -> None:
    """Reconcile until cancelled. Raises a group with Superseded."""
    namespaces = _watched(settings.watch_namespaces, namespace)
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
    watch = Watch(
        namespaces, known=board.world.get, notice=board.notice, forget=board.forget,
        beat=lambda: metrics.beat("watch"),
    )
    listing = Listing(
        board, cluster, watch, namespaces, every_s=settings.resync_s, metrics=metrics, listed=documents.relist,
    )
    live = Live(board, rooms, every_s=settings.numbers_every_s, metrics=metrics, lost=documents.relist)
    statuses = Statuses(
        board, writer, writers=settings.status_writers, every_s=settings.numbers_every_s, metrics=metrics,
    )
    deletions = Deletions(
        board, rooms, writer, limit=timedelta(seconds=settings.drain_limit_s), metrics=metrics,
    )
    loops = (
        listing.keep_whole, listing.keep_namespaces, documents.keep_in_force, documents.keep_withdrawing,
        live.keep_watching, live.keep_asking, live.keep_counting, live.keep_grants, statuses.keep_true,
        deletions.keep_holding,
    )
    try:
        async with asyncio.TaskGroup() as group:
            for loop in loops:
                group.create_task(loop(), name=loop.__name__)
            group.create_task(_keep_lease(cluster, namespace, settings.name, fence))
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


async def _keep_lease(cluster: Cluster, namespace: str, name: str, fence: int) -> None:
    """Renew the Lease, and notice a newer operator also while there is nothing to write. Raises Superseded."""
    while True:
        await asyncio.sleep(RENEW_EVERY_S)
        with contextlib.suppress(SignalboxError):  # the API server is away, or somebody else wrote it just now
            await renew(cluster, namespace, name, fence)


async def _wait_for_silence(cluster: Cluster, namespace: str, name: str) -> None:
    """Wait until nobody renews the Lease."""
    silence = Silence()
    while True:
        await asyncio.sleep(RENEW_EVERY_S)
        try:
            if silence.look(await version(cluster, namespace, name), time.monotonic()):
                return
        except SignalboxError:
            silence.lost()
