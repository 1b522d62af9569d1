"""What can be told of a key, and of a request with it, from documents alone; its counters are Redis's."""

from signalbox.scheduler.domain import denials
from signalbox.scheduler.domain.policies import KeyPolicy
from signalbox.scheduler.domain.snapshot import NOWHERE, Reach
from signalbox.scheduler.domain.view import View
from signalbox.v1.scheduler_pb2 import AdmitRequest, Denial, InspectRequest


def check_key(
    view: View, asked: AdmitRequest | InspectRequest, now_ms: int,
) -> tuple[KeyPolicy | None, Denial | None]:
    """Check what can be checked of a key without its counters: it is known, active, and may be used like this."""
    key = view.snapshot.key_by_hash(asked.key_hash, now_ms)
    if key is None:
        return None, denials.key_invalid()
    if key.paused:
        return key, denials.key_paused(key)
    if key.reason == "Expired" or (key.expires_at_ms and now_ms >= key.expires_at_ms):
        return key, denials.key_expired(key)
    if key.networks and not key.permits_source(asked.source_address):
        return key, denials.source_not_allowed(key)
    if key.clients and asked.client not in key.clients:
        return key, denials.client_not_allowed(key)
    return key, None


def check_request(
    view: View, request: AdmitRequest, attempt: int, now_ms: int,
) -> tuple[KeyPolicy | None, Reach, Denial | None]:
    """Check a request's `attempt` (1...); also return its key, and where the key's requests may go as far as known."""
    key, denial = check_key(view, request, now_ms)
    if key is None or denial is not None:
        return key, NOWHERE, denial
    for model in (request.model, *request.models[:]):    # copied: a loop over a field itself ends with an exception
        if not key.permits(model):
            return key, NOWHERE, denials.model_not_allowed(key, model)
    if key.reason == "PoolNotAllowed":
        return key, NOWHERE, denials.pool_not_allowed(key)
    reach = view.snapshot.reach(key)
    if not reach.has_members:
        return key, reach, denials.pool_empty(key)
    return key, reach, denials.pool_unavailable(key) if attempt > reach.most_attempts else None
