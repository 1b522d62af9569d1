"""An object of the registry, read back as the reconciler once wanted it. Pure."""

from signalbox.core.clock import from_ms
from signalbox.resources.conditions import Condition
from signalbox.resources.reading import Identity
from signalbox.resources.state import DesiredObject
from signalbox.v1 import scheduler_pb2


def identity_in_registry(kind: str, object_id: str) -> Identity:
    """Return what names an object of the registry, where its id is `namespace/name`."""
    return Identity(kind, *object_id.split("/", 1))


def read_back(item: scheduler_pb2.Object) -> DesiredObject:
    """Return an object as an earlier reconciler wanted it."""
    return DesiredObject(
        kind=item.kind,
        id=item.id,
        revision=item.revision,
        spec_json=item.spec_json.decode(),
        conditions=tuple(Condition(c.type, c.status, c.reason, c.message) for c in item.conditions),
        uid=item.uid,
        created_at=from_ms(item.created_at_ms) if item.created_at_ms else None,
        labels=dict(item.labels),
        source=item.source,
    )
