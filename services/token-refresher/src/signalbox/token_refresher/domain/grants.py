"""A grant and everything that may happen to it: seeded, rejected by the provider, proven good again.

Pure: each step takes a grant and returns the next one. The keeper stores before anybody sees the result. OAuth
refresh joins here as further steps; what it needs of a grant (generation, standing, expiry) is in place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

API_KEY = "apiKey"
KINDS = (API_KEY, "oauth", "federation", "bedrock", "vertex", "foundry")
_VERSION_DIGEST_CHARS = 12
MAX_MATERIAL_CHARS = 64 << 10


class Reason(StrEnum):
    """Why a grant stands as it does; the names that conditions show."""

    VALID = "Valid"
    CREDENTIAL_INVALID = "CredentialInvalid"
    NEEDS_AUTHORIZATION = "NeedsAuthorization"
    NOT_IMPLEMENTED = "NotImplemented"


class GrantRejected(ValueError):
    """A seed that can't become a grant. The text names what is wrong, never a value."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a grant can serve, and why (not)."""

    reason: Reason
    message: str

    @property
    def valid(self) -> bool:
        """Whether it can serve."""
        return self.reason is Reason.VALID


@dataclass(frozen=True, slots=True)
class Seed:
    """What a reconciler gives: an account's credential as its documents and Secrets have it."""

    account_id: str
    kind: str
    material: Mapping[str, str] = field(repr=False)   # secret values by role
    config: Mapping[str, str]
    version: str                                      # digest of the above


@dataclass(frozen=True, slots=True)
class Grant:
    """What is kept of an account's credential."""

    seed: Seed
    generation: int           # grows whenever the credential that is handed out changes
    seeded_at_ms: int
    rejected: bool = False    # the provider refused this generation

    @property
    def account_id(self) -> str:
        """namespace/name of the account."""
        return self.seed.account_id

    @property
    def version(self) -> str:
        """Names this generation of the credential to those who cache it."""
        return f"{self.generation}-{self.seed.version[:_VERSION_DIGEST_CHARS]}"


@dataclass(frozen=True, slots=True)
class Credential:
    """What one request needs to speak for the account."""

    account_id: str
    version: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    proxy_url: str = field(repr=False)
    expires_at_ms: int = 0    # 0: does not expire


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
    if seed.kind == API_KEY:
        key = seed.material.get("apiKey", "")
        if not (key and key.isascii() and key.isprintable() and key == key.strip()):
            raise GrantRejected("material apiKey must be printable ASCII without spaces at its ends")


def seeded(kept: Grant | None, seed: Seed, now_ms: int) -> Grant:
    """Return the grant that `seed` makes: `kept` itself where it is the same seed, else a new generation."""
    if kept is not None and (kept.seed.version, kept.seed.kind) == (seed.version, seed.kind):
        return kept
    return Grant(seed, kept.generation + 1 if kept else 1, now_ms)


def rejected(grant: Grant, version: str) -> Grant:
    """The provider answered 401 to `version`; of an older one that says nothing about the grant."""
    return replace(grant, rejected=True) if version == grant.version else grant


def proven(grant: Grant, version: str) -> Grant:
    """The provider accepted `version`."""
    return replace(grant, rejected=False) if version == grant.version else grant


def standing(grant: Grant) -> Standing:
    """Return whether `grant` can serve."""
    if grant.seed.kind != API_KEY:
        return Standing(Reason.NOT_IMPLEMENTED, f"credentials of kind {grant.seed.kind} are not implemented yet")
    if grant.rejected:
        message = "the provider rejected the API key; replace it, or test the account if the provider was wrong"
        return Standing(Reason.CREDENTIAL_INVALID, message)
    return Standing(Reason.VALID, "")


def credential(grant: Grant) -> Credential | None:
    """Return what requests need, None where the grant can't serve."""
    return _credential(grant) if standing(grant).valid else None


def credential_to_probe(grant: Grant) -> Credential | None:
    """Return what a test call needs: also of a grant that was rejected, since only a test can prove it good."""
    return _credential(grant) if grant.seed.kind == API_KEY else None


def _credential(grant: Grant) -> Credential:
    headers = (("x-api-key", grant.seed.material["apiKey"]),)
    return Credential(grant.account_id, grant.version, headers, grant.seed.material.get("proxyURL", ""))
