"""What may be handed out of a grant: the headers that a request needs, and whether the grant can serve at all.

An API key travels as x-api-key; a token as a bearer with the beta that the provider requires of such tokens (wire
facts of the Messages API, November 2026).
"""

from dataclasses import dataclass, field, replace

from signalbox.token_refresher.domain.grants import API_KEY, Grant, Reason

BEARER_BETA = "oauth-2025-04-20"


@dataclass(frozen=True, slots=True)
class Credential:
    """What one request needs to speak for the account. `expires_at_ms` 0: it does not expire, or nobody said when."""

    account_id: str
    version: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    proxy_url: str = field(repr=False)
    expires_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a grant can serve, and why (not). A grant that serves may still have a reason to worry."""

    reason: Reason
    message: str
    valid: bool


def standing(grant: Grant, now_ms: int) -> Standing:
    """Return whether `grant` can serve at `now_ms`."""
    if grant.seed.kind == API_KEY:
        if not grant.rejected:
            return Standing(Reason.VALID, "", valid=True)
        message = "the provider rejected the API key; replace it, or test the account if the provider was wrong"
        return Standing(Reason.CREDENTIAL_INVALID, message, valid=False)
    if not grant.renewable:
        message = f"credentials of kind {grant.seed.kind} are not implemented yet"
        return Standing(Reason.NOT_IMPLEMENTED, message, valid=False)
    usable = has_usable_token(grant, now_ms)
    if grant.fault is not None and (not usable or grant.fault.reason is Reason.NEEDS_AUTHORIZATION):
        return Standing(grant.fault.reason, grant.fault.message, valid=False)
    if grant.failures:
        return Standing(Reason.REFRESH_FAILING, grant.why, valid=usable)
    if not usable:
        return Standing(Reason.REFRESH_PENDING, "a token is being fetched", valid=False)
    return Standing(Reason.VALID, "", valid=True)


def has_usable_token(grant: Grant, now_ms: int) -> bool:
    """Whether the access token is there, was not rejected, and has not run out."""
    return bool(grant.access_token) and not grant.rejected and (
        not grant.expires_at_ms or now_ms < grant.expires_at_ms
    )


def since_ms(grant: Grant, now_ms: int) -> int:
    """Return since when the grant can serve, or can't. It may have run out since it was written."""
    ran_out_ms = grant.expires_at_ms
    if 0 < ran_out_ms <= now_ms and standing(grant, ran_out_ms - 1).valid and not standing(grant, now_ms).valid:
        return ran_out_ms
    return grant.turned_at_ms or grant.seeded_at_ms


def turned(before: Grant | None, after: Grant, now_ms: int) -> Grant:
    """Return `after`, which replaces `before`, with the moment since when it can serve, or can't."""
    same = before is not None and not before.retired_at_ms and (
        standing(before, now_ms).valid == standing(after, now_ms).valid
    )
    return replace(after, turned_at_ms=since_ms(before, now_ms) if same and before is not None else now_ms)


def credential(grant: Grant, now_ms: int) -> Credential | None:
    """Return what requests need, None where the grant can't serve."""
    return _credential(grant) if standing(grant, now_ms).valid else None


def credential_to_probe(grant: Grant, now_ms: int) -> Credential | None:
    """Return what a test call needs: also an API key that was rejected, since only a test can prove it good."""
    return _credential(grant) if grant.seed.kind == API_KEY else credential(grant, now_ms)


def _credential(grant: Grant) -> Credential:
    if grant.seed.kind == API_KEY:
        headers: tuple[tuple[str, str], ...] = (("x-api-key", grant.seed.material["apiKey"]),)
    else:
        headers = (("authorization", f"Bearer {grant.access_token}"), ("anthropic-beta", BEARER_BETA))
    proxy_url = grant.seed.material.get("proxyURL", "")
    return Credential(grant.account_id, grant.version, headers, proxy_url, grant.expires_at_ms)
