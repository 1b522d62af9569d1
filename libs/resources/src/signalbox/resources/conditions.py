"""Condition types and reasons, each with its meaning; the documentation is generated from here."""

from dataclasses import dataclass
from typing import Final

READY: Final = "Ready"
ACCEPTED: Final = "Accepted"
CREDENTIAL_VALID: Final = "CredentialValid"
AVAILABLE: Final = "Available"

TYPES: Final = {
    READY: "The object serves, as far as its documents say; its state (Paused, Draining) is not part of it.",
    ACCEPTED: "The newest document is in force; False: an older one is, because the newest breaks a rule.",
    CREDENTIAL_VALID: "Accounts: the credential can be used, as far as the token-refresher knows.",
    AVAILABLE: "Accounts: a request could be sent with it now.",
}

PENDING: Final = "Pending"
IN_FORCE: Final = "InForce"
INVALID: Final = "Invalid"
SERVES: Final = "Serves"
NOT_IMPLEMENTED: Final = "NotImplemented"
SECRET_NOT_FOUND: Final = "SecretNotFound"  # noqa: S105
SECRET_INVALID: Final = "SecretInvalid"  # noqa: S105
POOL_NOT_ALLOWED: Final = "PoolNotAllowed"
POOL_NOT_FOUND: Final = "PoolNotFound"
NO_MEMBERS: Final = "NoMembers"
DUPLICATE_KEY: Final = "DuplicateKey"
EXPIRED: Final = "Expired"
LIMITED: Final = "Limited"
CREDENTIAL_INVALID: Final = "CredentialInvalid"
UPSTREAM_NOT_ALLOWED: Final = "UpstreamNotAllowed"
TOKEN_FILE_NOT_ALLOWED: Final = "TokenFileNotAllowed"  # noqa: S105

REASONS: Final = {
    PENDING: "The operator has not looked at it yet, or has not heard from the rooms.",
    SERVES: "Nothing in the documents keeps the object from serving.",
    IN_FORCE: "The newest document is in force.",
    INVALID: "The newest document breaks a rule; the last good one serves on, with the newest state and expiry.",
    NOT_IMPLEMENTED: "This kind of credential is understood but not served yet.",
    SECRET_NOT_FOUND: "A Secret, or the key inside it, does not exist.",
    SECRET_INVALID: "A Secret's value cannot be used; the message says what is expected.",
    POOL_NOT_ALLOWED: "The key names a pool of another namespace that does not let it in.",
    POOL_NOT_FOUND: "None of the pools that the key names exists.",
    NO_MEMBERS: "The pool has no account.",
    DUPLICATE_KEY: "An older document has the same key; that one serves.",
    EXPIRED: "expiresAt has passed, or the key's lifetime.",
    LIMITED: "Account: it rests until the provider's limit resets. Key: a limit is used up; it works again by itself.",
    CREDENTIAL_INVALID: "The provider refused the credential, or it cannot be used; change the Secret.",
    UPSTREAM_NOT_ALLOWED: "The upstream host is not among allowedUpstreamHosts, or is plain http through a proxy.",
    TOKEN_FILE_NOT_ALLOWED: "The identity token file lies outside the directory for projected tokens.",
}

# What the rooms say of this moment, in CredentialValid and Available; they choose the words, here they are explained.
LIVE_REASONS: Final = {
    "Valid": "CredentialValid: the credential works, as far as is known.",
    "RefreshPending": "The first token is being fetched.",
    "RefreshFailing": "The token endpoint fails; the old token serves while it lasts, and it is tried again.",
    "NeedsAuthorization": "The provider refused the grant: authorise the account again, or change the Secret.",
    "Paused": "Somebody paused it; the message says why.",
    "Draining": "It finishes what it has and takes no new conversation: as asked, or because it is being deleted.",
    "CoolingDown": "The account rests for seconds after a failure at the provider or on the way.",
    "Capped": "The account's own `limits` are used up; it serves again once there is room, at the time shown.",
    "Benched": "The account is out until its document or credential changes, or a probe succeeds.",
    "BillingError": "The provider refuses for want of money.",
    "AccountDisabled": "The provider has disabled the account.",
    "OrganizationOnHold": "The provider has put the organisation on hold.",
    "Overloaded": "The provider is overloaded; tried again soon.",
    "Unreachable": "The provider cannot be reached; tried again soon.",
    "ProxyUnreachable": "The account's proxy cannot be reached; tried again soon.",
    "Failing": "The provider answers with errors; tried again soon.",
}


@dataclass(frozen=True)
class Condition:
    """One statement about an object, as in Kubernetes. `reason` is one of REASONS; `message` is for people."""

    type: str
    status: bool
    reason: str
    message: str = ""
