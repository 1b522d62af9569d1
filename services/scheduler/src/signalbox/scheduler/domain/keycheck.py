"""What can be told of a key from its document alone; its counters are Redis's, its models each request's."""

from signalbox.scheduler.domain import denials
from signalbox.scheduler.domain.policies import KeyPolicy
from signalbox.scheduler.domain.view import View
from signalbox.v1.scheduler_pb2 import Denial


def check_key(
    view: View, digest: bytes, client: str, source: str, now_ms: int,
) -> tuple[KeyPolicy | None, Denial | None]:
    """Check what can be checked of a key without its counters: it is known, active, and may be used like this."""
    key = view.snapshot.key_by_hash(digest, now_ms)
    if key is None:
        return None, denials.key_invalid()
    if key.paused:
        return key, denials.key_paused(key)
    if key.reason == "Expired" or (key.expires_at_ms and now_ms >= key.expires_at_ms):
        return key, denials.key_expired(key)
    if not key.permits_source(source):
        return key, denials.source_not_allowed(key)
    if key.clients and client not in key.clients:
        return key, denials.client_not_allowed(key)
    return key, None
