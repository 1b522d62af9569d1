"""Counts the operator's starts in a Lease, so that rooms can tell the newest operator from one thought dead."""

import socket
import time
from datetime import UTC, datetime

from signalbox.core.errors import Refused, Unavailable
from signalbox.kube import Cluster
from signalbox.kube.cluster import Object

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


async def present_fence(cluster: Cluster, namespace: str, name: str) -> int:
    """Return the newest start's number, 0 where there is none. Raises Unavailable, Refused."""
    return _kept(await cluster.get("Lease", name, namespace))


def _kept(lease: Object | None) -> int:
    text = ((lease or {}).get("metadata", {}).get("annotations") or {}).get(_FENCE, "")
    return int(text) if text.isdigit() else 0


def _lease(namespace: str, name: str, fence: int, old: Object | None) -> Object:
    metadata = {"name": name, "namespace": namespace, "annotations": {_FENCE: str(fence)}}
    if old is not None:
        metadata["resourceVersion"] = old["metadata"]["resourceVersion"]
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec = {"holderIdentity": socket.gethostname()[:63] or "operator", "acquireTime": now, "renewTime": now}
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
