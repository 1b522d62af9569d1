"""What the operator writes to the API server: statuses, its finalizer, Events. Nothing else, and never a Secret."""

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from signalbox.kube import Cluster
from signalbox.kube.cluster import Object
from signalbox.operator.domain.events import Event
from signalbox.operator.domain.world import FINALIZER, Seen
from signalbox.resources.models import API_VERSION

_LONGEST_NOTE = 1024


class Writer:
    """Writes as one field manager. Every call raises Unavailable or Refused."""

    def __init__(self, cluster: Cluster, component: str) -> None:
        self._cluster = cluster
        self._component = component

    async def status(self, seen: Seen, status: Mapping[str, Any]) -> Object:
        """Apply a status; return the object as it is then. `NotFound` or `Conflict`: that object is gone."""
        return await self._cluster.apply({**_head(seen), "status": status}, status=True)

    async def hold(self, seen: Seen) -> Object:
        """Put our finalizer on an object."""
        body = _head(seen)
        return await self._cluster.apply({**body, "metadata": {**body["metadata"], "finalizers": [FINALIZER]}})

    async def release(self, seen: Seen) -> Object:
        """Take our finalizer off an object; those of others stay."""
        return await self._cluster.apply(_head(seen))

    async def event(self, seen: Seen, event: Event) -> None:
        """Tell of a change."""
        identity, now = seen.identity, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        await self._cluster.create({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": f"{identity.name[:200]}.{uuid.uuid4().hex}", "namespace": identity.namespace},
            "involvedObject": {
                "apiVersion": API_VERSION, "kind": identity.kind, "name": identity.name,
                "namespace": identity.namespace, "uid": seen.uid,
            },
            "type": event.type, "reason": event.reason, "message": event.message[:_LONGEST_NOTE],
            "source": {"component": self._component}, "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        })


def _head(seen: Seen) -> Object:
    """Name an object by its UID too: applying to one that was deleted meanwhile must not create it anew."""
    identity = seen.identity
    metadata = {"name": identity.name, "namespace": identity.namespace, "uid": seen.uid}
    return {"apiVersion": API_VERSION, "kind": identity.kind, "metadata": metadata}
