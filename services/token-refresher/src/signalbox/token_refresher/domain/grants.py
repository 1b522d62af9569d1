"""A grant and everything that may happen to it: seeded, refreshed, rejected by the provider, proven good, retired.

Pure: each step takes a grant and returns the next one; callers store it before anybody sees the result. What may be
handed out of a grant is in credentials.py, when it is renewed in schedule.py, how in renewal.py.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

API_KEY = "apiKey"
OAUTH = "oauth"
FEDERATION = "federation"
RENEWABLE = frozenset((OAUTH, FEDERATION))
KINDS = (API_KEY, OAUTH, FEDERATION, "bedrock", "vertex", "foundry")
_VERSION_DIGEST_CHARS = 12
MAX_MATERIAL_CHARS = 64 << 10
MAX_SPENT = 32
# What makes a token another one; the rest (proxy, client secret, headers) only says how it is fetched.
_ISSUER = (
    "tokenURL", "clientID", "scopes", "organizationID", "federationRuleID", "serviceAccountID", "workspaceID",
)
_NEEDED_CONFIG = {
    OAUTH: ("tokenURL", "clientID"),
    FEDERATION: ("tokenURL", "organizationID", "federationRuleID", "identityTokenFile"),
}


class Reason(StrEnum):
    """Why a grant stands as it does; the names that conditions show."""

    VALID = "Valid"
    CREDENTIAL_INVALID = "CredentialInvalid"
    NEEDS_AUTHORIZATION = "NeedsAuthorization"
    NOT_IMPLEMENTED = "NotImplemented"
    REFRESH_FAILING = "RefreshFailing"
    REFRESH_PENDING = "RefreshPending"


class GrantRejected(ValueError):
    """A seed that can't become a grant. The text names what is wrong, never a value."""


@dataclass(frozen=True, slots=True)
class Seed:
    """What a reconciler gives: an account's credential as its documents and Secrets have it."""

    account_id: str
    kind: str
    material: Mapping[str, str] = field(repr=False)   # secret values by role
    config: Mapping[str, str]
    version: str                                      # digest of the above

    @property
    def refresh_token(self) -> str:
        """The refresh token that the documents hold, "" for none."""
        return self.material.get("refreshToken", "")


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a token endpoint gave. `refresh_token` "": the one that was sent stays; `expires_at_ms` 0: not said."""

    access_token: str = field(repr=False)
    issued_at_ms: int
    expires_at_ms: int
    refresh_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a grant can't be renewed until something else changes: its reason and a message that is safe to show."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Grant:
    """What is kept of an account's credential.

    `in_doubt` counts how often the current refresh token was sent without its answer being read. `failures` are the
    attempts to renew since the last good one, `retry_at_ms` when the next may be made, `why` what the last one met.
    `spent` are digests of seeds' refresh tokens that have successors: these are never sent again.
    """

    seed: Seed
    generation: int           # grows whenever the credential that is handed out changes
    seeded_at_ms: int
    rejected: bool = False    # the provider refused this generation
    refresh_token: str = field(default="", repr=False)
    access_token: str = field(default="", repr=False)
    issued_at_ms: int = 0
    expires_at_ms: int = 0
    in_doubt: int = 0
    failures: int = 0
    retry_at_ms: int = 0
    why: str = ""
    fault: Fault | None = None
    spent: tuple[str, ...] = ()
    retired_at_ms: int = 0    # the account is gone; kept for a while in case that it comes back
    healings: int = 0         # how often it became good again after a fault
    turned_at_ms: int = 0     # since when it can serve, or can't, as far as that was known when it was written

    @property
    def account_id(self) -> str:
        """namespace/name of the account."""
        return self.seed.account_id

    @property
    def version(self) -> str:
        """Names this generation of the credential to those who cache it."""
        return f"{self.generation}-{self.seed.version[:_VERSION_DIGEST_CHARS]}"

    @property
    def renewable(self) -> bool:
        """Whether its credential is a token that is fetched and runs out."""
        return self.seed.kind in RENEWABLE


def check(seed: Seed) -> None:
    """Raise GrantRejected where the seed is not one that its kind can work with."""
    if not seed.account_id or len(seed.account_id) > 512 or not seed.account_id.isprintable():
        raise GrantRejected("account_id must be namespace/name")
    if not seed.version:
        raise GrantRejected("seed_version is missing")
    if seed.kind not in KINDS:
        raise GrantRejected(f"kind must be one of {', '.join(KINDS)}")
    for role, value in seed.material.items():
        if len(value) > MAX_MATERIAL_CHARS:
            raise GrantRejected(f"material {role[:64]} is longer than {MAX_MATERIAL_CHARS} characters")
    needed = {API_KEY: "apiKey", OAUTH: "refreshToken"}.get(seed.kind)
    if needed is not None:
        value = seed.material.get(needed, "")
        may_lack = seed.kind == OAUTH and bool(seed.config.get("authorizationURL"))
        if not is_token(value) and not (may_lack and not value):
            raise GrantRejected(f"material {needed} must be printable ASCII without spaces at its ends")
    for name in _NEEDED_CONFIG.get(seed.kind, ()):
        if not seed.config.get(name):
            raise GrantRejected(f"config {name} is missing")


def is_token(text: str) -> bool:
    """Whether `text` can travel in a header: printable ASCII without spaces at its ends, of bounded length."""
    return 0 < len(text) <= MAX_MATERIAL_CHARS and text.isascii() and text.isprintable() and text == text.strip()


def seeded(kept: Grant | None, seed: Seed, now_ms: int) -> Grant:
    """Return the grant that `seed` makes: `kept` itself where it is the same seed, else a new generation.

    What a refresh has earned outlives a change of everything but the seed's own refresh token: that one is spent, and
    sending it again would make the provider revoke what it gave since.
    """
    if kept is None:
        return _judged(Grant(seed, 1, now_ms, refresh_token=seed.refresh_token))
    if (kept.seed.version, kept.seed.kind) == (seed.version, seed.kind) and not kept.retired_at_ms:
        return kept
    spent = _remember(kept.spent, kept.seed.refresh_token) if kept.in_doubt else kept.spent
    fresh = Grant(
        seed, kept.generation + 1, now_ms, refresh_token=seed.refresh_token, spent=spent, healings=kept.healings,
    )
    if seed.kind not in RENEWABLE or seed.kind != kept.seed.kind or seed.refresh_token != kept.seed.refresh_token:
        return _judged(fresh)
    same = _judged(replace(fresh, refresh_token=kept.refresh_token, in_doubt=kept.in_doubt, spent=kept.spent))
    if not _same_issuer(kept.seed, seed):
        return same
    return replace(
        same, access_token=kept.access_token, issued_at_ms=kept.issued_at_ms, expires_at_ms=kept.expires_at_ms,
        rejected=kept.rejected, fault=same.fault or _lasting(kept),
    )


def rejected(grant: Grant, version: str) -> Grant:
    """The provider answered 401 to `version`; of an older one that says nothing about the grant."""
    return replace(grant, rejected=True) if version == grant.version else grant


def proven(grant: Grant, version: str) -> Grant:
    """The provider accepted `version` in a test, which is a reason to try the account again."""
    return replace(grant, rejected=False, healings=grant.healings + 1) if version == grant.version else grant


def sending(grant: Grant) -> Grant:
    """The grant's refresh token is about to be sent; stored before it is, so that no crash hides it."""
    return replace(grant, in_doubt=grant.in_doubt + 1)


def renewed(grant: Grant, tokens: Tokens) -> Grant:
    """The token endpoint's answer was read. An answer without a refresh token keeps the stored one."""
    spent = grant.spent
    if grant.seed.refresh_token and tokens.refresh_token not in ("", grant.seed.refresh_token):
        spent = _remember(spent, grant.seed.refresh_token)
    return replace(
        grant, generation=grant.generation + 1, rejected=False, access_token=tokens.access_token,
        refresh_token=tokens.refresh_token or grant.refresh_token, issued_at_ms=tokens.issued_at_ms,
        expires_at_ms=tokens.expires_at_ms, in_doubt=0, failures=0, retry_at_ms=0, why="", fault=None, spent=spent,
        healings=grant.healings + (grant.fault is not None),
    )


def failed(grant: Grant, why: str, retry_at_ms: int, *, answered: bool) -> Grant:
    """An attempt brought nothing. `answered`: this one surely rotated nothing."""
    return replace(
        grant, failures=grant.failures + 1, retry_at_ms=retry_at_ms, why=why,
        in_doubt=max(0, grant.in_doubt - 1) if answered else grant.in_doubt,
    )


def faulted(grant: Grant, fault: Fault, retry_at_ms: int = 0) -> Grant:
    """The endpoint refused for good; `retry_at_ms` 0: until somebody changes something."""
    return replace(
        grant, fault=fault, failures=grant.failures + 1, retry_at_ms=retry_at_ms, why=fault.message, in_doubt=0,
    )


def retired(grant: Grant, now_ms: int) -> Grant | None:
    """The account is gone. What exists nowhere else is kept for a while; everything else is forgotten (None)."""
    earned = grant.refresh_token != grant.seed.refresh_token
    if grant.seed.kind != OAUTH or not (earned or grant.in_doubt or grant.spent):
        return None
    return replace(grant, retired_at_ms=now_ms, access_token="", expires_at_ms=0, issued_at_ms=0)


def _judged(grant: Grant) -> Grant:
    """Say at once of a new grant what sending its refresh token would only make worse."""
    if grant.seed.kind != OAUTH:
        return grant
    if not grant.refresh_token:
        return replace(grant, fault=Fault(Reason.NEEDS_AUTHORIZATION, "the account was not authorised yet"))
    if _digest(grant.refresh_token) in grant.spent:
        message = "the Secret's refresh token was exchanged before; put a new one there or authorise the account"
        return replace(grant, fault=Fault(Reason.NEEDS_AUTHORIZATION, message))
    return grant


def _lasting(kept: Grant) -> Fault | None:
    """A dead refresh token stays dead at its issuer; other faults may be mended by a changed document."""
    if kept.fault is not None and kept.fault.reason is Reason.NEEDS_AUTHORIZATION:
        return kept.fault
    return None


def _same_issuer(old: Seed, new: Seed) -> bool:
    return all(old.config.get(name) == new.config.get(name) for name in _ISSUER)


def _remember(spent: tuple[str, ...], token: str) -> tuple[str, ...]:
    digest = _digest(token)
    return spent if digest in spent else (*spent, digest)[-MAX_SPENT:]


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
