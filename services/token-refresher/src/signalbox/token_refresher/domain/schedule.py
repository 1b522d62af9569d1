"""When a grant is renewed: ahead of its token's end, with jitter, and after failures ever more slowly.

Pure. The jitter is a digest of account and generation: it differs between accounts, so that grants made in one moment
do not fall due in one moment, and is the same for every process that looks.
"""

import hashlib
from dataclasses import dataclass

from signalbox.token_refresher.domain.credentials import has_usable_token
from signalbox.token_refresher.domain.grants import Grant, Reason

LATEST_LEAD_SHARE = 0.2      # of a token's life; a short-lived one is not renewed all the time
SPREAD = 0.5                 # of the lead, by which it may come earlier
FIRST_RETRY_MS = 1_000
LONGEST_RETRY_MS = 60_000
FIRST_RECHECK_MS = 300_000   # after a refusal for good, which somebody may mend at the provider's end
LONGEST_RECHECK_MS = 3_600_000
LONGEST_ASKED_WAIT_MS = 3_600_000
URGENT_SHARE = 0.1           # of a token's life that is left when callers wait for a new one
URGENT_MS = 30_000


@dataclass(frozen=True, slots=True)
class Ahead:
    """How long before its end a token is renewed, milliseconds."""

    lead_ms: int


def due_at_ms(grant: Grant, ahead: Ahead) -> int | None:
    """Return when the grant is to be renewed (Unix ms; 0: now), None where time does not change anything."""
    if not grant.renewable or grant.retired_at_ms:
        return None
    if grant.fault is not None and (grant.fault.reason is Reason.NEEDS_AUTHORIZATION or not grant.retry_at_ms):
        return None
    if grant.retry_at_ms:
        return grant.retry_at_ms
    if grant.rejected or not grant.access_token:
        return 0
    if not grant.expires_at_ms:
        return None
    lead_ms = min(ahead.lead_ms, LATEST_LEAD_SHARE * _life_ms(grant))
    return grant.expires_at_ms - int(lead_ms * (1 + SPREAD * share_of(grant)))


def is_urgent(grant: Grant, now_ms: int) -> bool:
    """Whether the token is so near its end that a caller had better wait for the next one."""
    if not has_usable_token(grant, now_ms):
        return True
    if not grant.expires_at_ms:
        return False
    return now_ms >= grant.expires_at_ms - min(URGENT_MS, URGENT_SHARE * _life_ms(grant))


def retry_at_ms(grant: Grant, now_ms: int, asked_ms: int = 0) -> int:
    """Return when to try again after one more failure; `asked_ms` is what the endpoint asked for (retry-after)."""
    delay_ms = _doubled(FIRST_RETRY_MS, grant.failures, LONGEST_RETRY_MS)
    delay_ms *= 1 - SPREAD * share_of(grant)
    return now_ms + max(int(delay_ms), min(asked_ms, LONGEST_ASKED_WAIT_MS))


def recheck_at_ms(grant: Grant, now_ms: int) -> int:
    """Return when a refusal for good is put to the test again, in case that it was mended elsewhere."""
    delay_ms = _doubled(FIRST_RECHECK_MS, grant.failures, LONGEST_RECHECK_MS)
    return now_ms + int(delay_ms * (1 - SPREAD * share_of(grant)))


def share_of(grant: Grant) -> float:
    """Return this generation's own number from 0 to 1."""
    digest = hashlib.sha256(f"{grant.account_id}\n{grant.generation}\n{grant.failures}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def _life_ms(grant: Grant) -> int:
    return max(0, grant.expires_at_ms - grant.issued_at_ms)


def _doubled(first_ms: int, times: int, most_ms: int) -> float:
    return float(min(most_ms, first_ms * 2 ** min(times, 30)))
