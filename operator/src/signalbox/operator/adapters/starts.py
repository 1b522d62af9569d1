"""Counts the operator's starts in a Lease, which the newest renews, so that it can be told from one thought dead."""

import socket
import time
from datetime import UTC, datetime

from signalbox.core.errors import Refused, Unavailable
from signalbox.kube import Cluster
from signalbox.kube.cluster import Object
from signalbox.operator.domain.succession import SILENT_AFTER_S, Superseded

_FENCE = "signalbox.dev/fence"
_TRIES = 5


async def next_fence(cluster: Cluster, namespace: str, name: str) -> int:
    """Return a number greater than that of any earlier start, and keep it. Raises Unavailable, Refused.

    It is the time in Unix milliseconds, unless an earlier start's clock was ahead.
    """
    for _ in range(_TRIES):
        lease = await cluster.get("Lease", name, namespace)
        fence = max(_kept(lease) + 1, time.time_ns() // 1_000_000)
        body = _lease(namespace, name, fence, lease)
        try:
            await (cluster.create(body) if lease is None else cluster.replace(body))
        except Refused as e:
            if e.code not in ("Conflict", "AlreadyExists"):
                raise
            continue
        return fence
    raise Unavailable("the Lease", "others write it all the time")


async def renew(cluster: Cluster, namespace: str, name: str, fence: int) -> None:
    """Say that the start with this number lives. Raises Superseded where there is a newer one; Unavailable, Refused."""
    lease = await cluster.get("Lease", name, namespace)
    if _kept(lease) > fence:
        raise Superseded
    body = _lease(namespace, name, fence, lease)
    await (cluster.create(body) if lease is None else cluster.replace(body))


async def version(cluster: Cluster, namespace: str, name: str) -> str:
    """Return what changes whenever the Lease is renewed, "" where there is none. Raises Unavailable, Refused."""
    lease = await cluster.get("Lease", name, namespace)
    return str(lease["metadata"]["resourceVersion"]) if lease else ""


def _kept(lease: Object | None) -> int:
    text = ((lease or {}).get("metadata", {}).get("annotations") or {}).get(_FENCE, "")
    return int(text) if text.isdigit() else 0


def _lease(namespace: str, name: str, fence: int, old: Object | None) -> Object:
    metadata = {"name": name, "namespace": namespace, "annotations": {_FENCE: str(fence)}}
    if old is not None:
        metadata["resourceVersion"] = old["metadata"]["resourceVersion"]
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec = {
        "holderIdentity": socket.gethostname()[:63] or "operator", "renewTime": now,
        "acquireTime": old["spec"].get("acquireTime", now) if old is not None and _kept(old) == fence else now,
        "leaseDurationSeconds": int(SILENT_AFTER_S),
    }
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
