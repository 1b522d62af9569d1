"""What a provider's error means for the relay, and Signalbox's own errors in the callers' wire format.

Sources: docs/errors.md, docs/failure-modes.md, Anthropic's API documentation (errors).
Deciding what to do about a verdict is the gateway's and the scheduler's business.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

import msgspec

from signalbox.wire.limits import read_windows

Headers = Iterable[tuple[bytes, bytes]]
MAX_RETRY_AFTER_S = 31 * 86_400.0


class ErrorClass(Enum):
    """What kind of failure an error is; the value is what the ledger shows as the reason."""

    CALLER = "caller_error"                 # the request's own fault: verbatim, no retry anywhere
    CONFLICT = "conflict"                   # may pass when tried again in place
    LIMITED = "limited"                     # a limit of the account: rest it, serve from another
    CREDENTIAL = "credential_rejected"      # refresh once, then bench
    BILLING = "billing"                     # the account's own standing: bench, serve from another
    DISABLED = "disabled"                   # likewise
    ORGANIZATION_ON_HOLD = "organization_on_hold"   # bench, never replay the request, verbatim
    SERVER = "server_error"                 # once more in place, then another account
    OVERLOADED = "overloaded"               # the provider as a whole: bounded attempts, cool down


@dataclass(frozen=True, slots=True)
class Verdict:
    """An error, understood. `retry_after_s`: seconds until the provider expects success, None where it did not say."""

    error_class: ErrorClass
    status: int
    error_type: str = ""
    error_code: str = ""
    retry_after_s: float | None = None
    model_scoped: bool = False              # the limit holds for the request's class of models only
    until_month_end: bool = False           # a spend limit that lasts to 00:00 UTC on the 1st

    def rest_until_ms(self, now_ms: int) -> int:
        """Return when the account may serve again, Unix milliseconds; 0 where that is unknown."""
        if self.until_month_end:
            now = datetime.fromtimestamp(now_ms / 1000, UTC)
            first = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
            return int((first + timedelta(days=32)).replace(day=1).timestamp() * 1000)
        return now_ms + int(self.retry_after_s * 1000) if self.retry_after_s is not None else 0


ENFORCED_SPEND_LIMIT = "enforced_spend_limit_reached"
ON_HOLD = "organization_on_hold"
KEY_CREATOR_GONE = "claude_code_key_creator_not_member"
# About whom the caller's own user-profile header names, not about the account: anyone could bench accounts with it.
_PROFILE_CODES = ("user_profile_", "linked_organization_")
_MODEL_SCOPED_CLAIMS = ("seven_day_opus", "seven_day_sonnet", "seven_day_overage_included")
OVERLOADED_STATUS = 529


def classify(status: int, headers: Headers, body: bytes, now: datetime | None = None) -> Verdict:
    """Say what a reply's status, headers (lower-case names) and body mean. `status` is 400 or more.

    Recognised billing, hold and disabled codes decide whatever the status is. `now` (aware) turns dates into seconds
    from now; where it is not given, the reply's own `date` does, so that this machine's clock may be off.
    """
    fields = dict(headers)
    kind, code = _error_of(body)
    error_class = _class_of(status, kind, code)
    limited = error_class is ErrorClass.LIMITED
    now = now or _date_of(fields) or datetime.now(UTC)
    return Verdict(
        error_class, status, kind, code,
        retry_after_s=_retry_after_s(fields, now, limited=limited),
        model_scoped=limited and fields.get(b"anthropic-ratelimit-unified-representative-claim", b"").decode("latin-1")
        in _MODEL_SCOPED_CLAIMS,
        until_month_end=limited and code == ENFORCED_SPEND_LIMIT,
    )


def _class_of(status: int, kind: str, code: str) -> ErrorClass:
    if code == ON_HOLD:
        return ErrorClass.ORGANIZATION_ON_HOLD
    if code == ENFORCED_SPEND_LIMIT:
        return ErrorClass.LIMITED
    if code.startswith(_PROFILE_CODES):
        return ErrorClass.CALLER
    if status == 402 or kind == "billing_error" or _is_billing(code):
        return ErrorClass.BILLING
    if code.endswith(("_disabled", "_suspended", "_deactivated")) or code == KEY_CREATOR_GONE:
        return ErrorClass.DISABLED
    if status == 401:
        return ErrorClass.CREDENTIAL
    if status == 429:
        return ErrorClass.LIMITED
    if status == OVERLOADED_STATUS or kind == "overloaded_error":
        return ErrorClass.OVERLOADED
    if status == 409:
        return ErrorClass.CONFLICT
    if status >= 500 or status == 408:
        return ErrorClass.SERVER
    return ErrorClass.CALLER


def _is_billing(code: str) -> bool:
    return "billing" in code or "spend_limit" in code or code.startswith(("credit_balance", "payment_"))


class _Envelope(msgspec.Struct):
    error: Any = None


_envelope_decoder = msgspec.json.Decoder(_Envelope)


def _error_of(body: bytes) -> tuple[str, str]:
    """Return `error.type` and `error.details.error_code`, "" for what an envelope does not hold."""
    try:
        error = _envelope_decoder.decode(body).error
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(error, dict):
        return "", ""
    details = error.get("details")
    return _text(error.get("type")), _text(details.get("error_code")) if isinstance(details, dict) else ""


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _date_of(fields: dict[bytes, bytes]) -> datetime | None:
    try:
        return _http_date(fields[b"date"].decode("ascii").strip())
    except (KeyError, ValueError, TypeError, OverflowError):
        return None


def _http_date(value: str) -> datetime:
    when = parsedate_to_datetime(value)
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _retry_after_s(fields: dict[bytes, bytes], now: datetime, *, limited: bool) -> float | None:
    """Read `retry-after-ms`, then `retry-after` (seconds or a date), then the resets of the windows that are spent."""
    for name, parse in ((b"retry-after-ms", _milliseconds), (b"retry-after", _seconds_or_date)):
        try:
            value = parse(fields[name].decode("ascii").strip(), now)
        except (KeyError, ValueError, TypeError, OverflowError):
            continue
        if value >= 0:
            return min(value, MAX_RETRY_AFTER_S)
    if not limited:
        return None
    spent = (w for w in read_windows(fields.items()) if w.status == "rejected" or w.remaining == 0)
    resets = [w.resets_at for w in spent if w.resets_at is not None]
    if not resets:
        return None
    return min(max(0.0, (max(resets) - now).total_seconds()), MAX_RETRY_AFTER_S)


def _milliseconds(value: str, _: datetime) -> float:
    return float(value) / 1000


def _seconds_or_date(value: str, now: datetime) -> float:
    try:
        return float(value)
    except ValueError:
        return max(0.0, (_http_date(value) - now).total_seconds())


# ---------------------------------------------------------------------------------------- Signalbox's own errors


@dataclass(frozen=True, slots=True)
class OwnError:
    """One row of the error table. `meaning` and `remedy` are for the documentation."""

    status: int
    type: str
    meaning: str
    remedy: str


OWN_ERRORS: dict[str, OwnError] = {
    "key_missing": OwnError(401, "authentication_error", "The request presents no relay key.",
                            "Send it in x-api-key or as Authorization: Bearer."),
    "key_invalid": OwnError(401, "authentication_error", "No document has this key.",
                            "Check for typing errors; ask for a new key if it was revoked."),
    "key_expired": OwnError(401, "authentication_error", "The key's expiresAt or lifetime has passed.",
                            "Ask for a new key or a later date."),
    "key_paused": OwnError(401, "authentication_error", "The key's state is Paused.", "Ask its owner to resume it."),
    "key_conflict": OwnError(401, "authentication_error", "The request presents two different keys.", "Send one."),
    "model_not_allowed": OwnError(403, "permission_error", "The key may not use a model that the body names.",
                                  "Use another model or have the key's models changed."),
    "client_not_allowed": OwnError(403, "permission_error", "The key may not be used by this client program.",
                                   "Use one of the clients that the key's document lists."),
    "source_not_allowed": OwnError(403, "permission_error", "The key may not be used from this address.",
                                   "Call from a listed network; check the gateway's trusted proxies."),
    "pool_not_allowed": OwnError(403, "permission_error", "The key names a pool that it may not use.",
                                 "Change the key's pools or the pool's allowedNamespaces."),
    "key_limit_requests": OwnError(429, "rate_limit_error", "The key's limit on requests is reached.",
                                   "Wait for retry-after; where x-should-retry is false, have it raised."),
    "key_limit_tokens": OwnError(429, "rate_limit_error", "The key's limit on tokens is reached.",
                                 "Wait for retry-after; where x-should-retry is false, send less or have it raised."),
    "key_limit_cost": OwnError(429, "rate_limit_error", "The key's limit on cost is reached.",
                               "Wait for retry-after; where x-should-retry is false, send less or have it raised."),
    "key_limit_concurrency": OwnError(429, "rate_limit_error", "The key has as many requests running as it may.",
                                      "Wait for one of them to end."),
    "pool_limited": OwnError(429, "rate_limit_error", "Some account could serve, but all of them rest or are full.",
                             "Wait for retry-after (send less where x-should-retry is false); add accounts if often."),
    "pool_empty": OwnError(503, "overloaded_error", "The key's pools have no member.", "Add accounts to the pool."),
    "pool_unavailable": OwnError(503, "overloaded_error", "Every account of the pool has a fault of its own.",
                                 "See `signalbox accounts list` for the reasons."),
    "no_account_for_model": OwnError(404, "not_found_error", "No account of the key's pools serves this model.",
                                     "Check the model's name and the accounts' model rules."),
    "route_unknown": OwnError(404, "not_found_error", "Signalbox has no such route.", "Check the path and the method."),
    "request_invalid": OwnError(400, "invalid_request_error", "The body can't be read as a Messages request.",
                                "The message names the field."),
    "request_too_large": OwnError(413, "request_too_large", "The body is over 32 MiB.", "Send less."),
    "upstream_timeout": OwnError(504, "timeout_error", "The provider was silent for too long.", "Try again."),
    "upstream_failed": OwnError(502, "api_error", "The provider could not be reached or broke off.", "Try again."),
    "upstream_truncated": OwnError(200, "api_error", "A stream broke off after its first content (an SSE event).",
                                   "What came before is all there is; ask again."),
    "scheduler_unavailable": OwnError(503, "overloaded_error", "Signalbox can't decide on requests at the moment.",
                                      "Try again after retry-after."),
    "ledger_unavailable": OwnError(503, "overloaded_error", "The gateway can't write its journal, so nothing is sent.",
                                   "Free space on the gateway's disk."),
    "overloaded": OwnError(503, "overloaded_error", "The gateway holds as many bytes as it may.",
                           "Try again after retry-after; raise SIGNALBOX_GATEWAY_MAX_BUFFERED_BYTES."),
}


def envelope(error_type: str, message: str, error_code: str, request_id: str) -> bytes:
    """Return an error body in Anthropic's wire format."""
    error: dict[str, Any] = {"type": error_type, "message": message, "details": {"error_code": error_code}}
    return msgspec.json.encode({"type": "error", "error": error, "request_id": request_id})


def sse_error_event(error_type: str, message: str, error_code: str, request_id: str) -> bytes:
    """Return the same as an event that ends a stream truthfully."""
    return b"event: error\ndata: " + envelope(error_type, message, error_code, request_id) + b"\n\n"
