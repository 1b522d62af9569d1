"""What a grant tells the gateway."""

from collections.abc import Callable

from signalbox.scheduler.domain.policies import AccountPolicy, PoolPolicy
from signalbox.v1.scheduler_pb2 import AdmitResponse


def answer_with_grant(
    respond: Callable[..., AdmitResponse], account: AccountPolicy, pool: PoolPolicy, *, seq: int, lease: str,
    token: bytes, attempt: int, send_model: str, key_id: str, owner: str, admitted_ms: int,
) -> AdmitResponse:
    """Return a grant for a request's `attempt` (1...), which was admitted as `lease` at `admitted_ms` (Unix ms)."""
    response = respond(seq=seq)
    grant = response.grant
    grant.CopyFrom(account.grant_in(pool))
    grant.lease_id, grant.lease_token = lease, token
    grant.attempt, grant.attempts_left = attempt, max(0, pool.max_attempts - attempt)
    grant.send_model, grant.key_id, grant.owner, grant.admitted_at_ms = send_model, key_id, owner, admitted_ms
    return response
