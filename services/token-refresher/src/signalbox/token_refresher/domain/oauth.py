"""Token requests and their answers, as pure functions: OAuth 2.0 (RFC 6749), PKCE (RFC 7636), jwt-bearer (RFC 7523).

A document's own headers reach the token endpoint and nothing else. Where they say `content-type: application/json` the
request is JSON, otherwise the form that RFC 6749 wants. No text that is made here holds a token or a secret.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any
from urllib.parse import quote, urlencode

from signalbox.token_refresher.domain.grants import Grant, Seed, Tokens, is_token

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
FEDERATION_BETAS = "oauth-2025-04-20,oidc-federation-2026-04-01"
DEFAULT_LIFETIME_S = 3600
LONGEST_LIFETIME_S = 366 * 86_400
MAX_SHOWN_CHARS = 300
_JSON = "application/json"
_FORM = "application/x-www-form-urlencoded"
_CONFIGURATION = frozenset((
    "invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_scope", "invalid_request",
))
_BUSY_ERRORS = frozenset(("temporarily_unavailable", "server_error", "slow_down"))
_BUSY_STATUSES = frozenset((408, 425, 429))


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A POST to a token endpoint. `hidden` are the secrets in it, which no message may show."""

    url: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(repr=False)
    proxy_url: str = field(repr=False)
    hidden: tuple[str, ...] = field(repr=False)


class Refusal(Enum):
    """What an endpoint's refusal is about."""

    GRANT = auto()            # the refresh token or assertion: re-read the store once, then somebody must act
    CONFIGURATION = auto()    # client, scopes, address: the documents or the provider's settings


@dataclass(frozen=True, slots=True)
class Issued:
    """The endpoint gave tokens."""

    tokens: Tokens


@dataclass(frozen=True, slots=True)
class Refused:
    """The endpoint said no, and why; the message is safe to show."""

    about: Refusal
    message: str


@dataclass(frozen=True, slots=True)
class Busy:
    """The endpoint could not do it now (429, 5xx); `asked_ms` is how long it asked to be left alone."""

    message: str
    asked_ms: int = 0


@dataclass(frozen=True, slots=True)
class Unsent:
    """Nothing reached the endpoint."""

    message: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The request left and no whole answer came back: it may have taken effect."""

    message: str


Answer = Issued | Refused | Busy | Unsent | Lost


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer that was read whole. Header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def refresh_request(grant: Grant) -> TokenRequest:
    """Return the request that exchanges the grant's refresh token (RFC 6749 §6)."""
    parameters = {"grant_type": "refresh_token", "refresh_token": grant.refresh_token}
    if scopes := grant.seed.config.get("scopes"):
        parameters["scope"] = scopes
    return _with_client(grant.seed, parameters, (grant.refresh_token,))


def code_request(seed: Seed, code: str, redirect_uri: str, verifier: str) -> TokenRequest:
    """Return the request that exchanges an authorisation code (RFC 6749 §4.1.3, RFC 7636 §4.5)."""
    parameters = {
        "grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri, "code_verifier": verifier,
    }
    return _with_client(seed, parameters, (code, verifier))


def authorization_url(seed: Seed, redirect_uri: str, state: str, verifier: str) -> str:
    """Return where the operator's browser is sent (RFC 6749 §4.1.1 with PKCE, S256 only)."""
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    parameters = {
        "response_type": "code", "client_id": seed.config["clientID"], "redirect_uri": redirect_uri, "state": state,
        "code_challenge": challenge, "code_challenge_method": "S256",
    }
    if scopes := seed.config.get("scopes"):
        parameters["scope"] = scopes
    return f"{seed.config['authorizationURL']}?{urlencode(parameters)}"


def federation_request(grant: Grant, assertion: str) -> TokenRequest:
    """Return the request that exchanges an identity token (wire facts of the provider's federation, November 2026)."""
    config = grant.seed.config
    parameters = {
        "grant_type": JWT_BEARER, "assertion": assertion, "federation_rule_id": config["federationRuleID"],
        "organization_id": config["organizationID"],
    }
    for name, key in (("service_account_id", "serviceAccountID"), ("workspace_id", "workspaceID")):
        if value := config.get(key):
            parameters[name] = value
    headers = (("accept", _JSON), ("content-type", _JSON), ("anthropic-beta", FEDERATION_BETAS))
    body = json.dumps(parameters).encode()
    return TokenRequest(config["tokenURL"], headers, body, grant.seed.material.get("proxyURL", ""), (assertion,))


def _with_client(seed: Seed, parameters: dict[str, str], hidden: tuple[str, ...]) -> TokenRequest:
    """Authenticate the client: by Basic in a form, in the body where the document wants JSON or its own header."""
    config, secret = seed.config, seed.material.get("clientSecret", "")
    headers = {name.lower(): value for name, value in json.loads(config.get("headers", "{}")).items()}
    as_json = headers.get("content-type", "").split(";")[0].strip().lower() == _JSON
    if secret and not as_json and "authorization" not in headers:
        pair = f"{quote(config['clientID'], safe='')}:{quote(secret, safe='')}"
        headers["authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        hidden = (*hidden, headers["authorization"])
    else:
        parameters["client_id"] = config["clientID"]
        if secret:
            parameters["client_secret"] = secret
    headers = {"accept": _JSON, "content-type": _FORM, **headers}
    body = json.dumps(parameters).encode() if as_json else urlencode(parameters).encode()
    hidden = tuple(text for text in (*hidden, secret) if text)
    return TokenRequest(config["tokenURL"], tuple(headers.items()), body, seed.material.get("proxyURL", ""), hidden)


def read_reply(reply: Reply, request: TokenRequest, sent_at_ms: int) -> Answer:
    """Return what a whole HTTP answer means. A success that can't be read counts as lost: it may have rotated.

    Issued tokens can lack the access token, where the answer's is unusable but the next refresh token is not.
    """
    document = _object(reply.body)
    error = document.get("error")
    if error:
        return _refusal(reply, error, document, request)
    if 300 <= reply.status < 400:
        message = "the token endpoint answered with a redirect, which is not followed; check tokenURL"
        return Refused(Refusal.CONFIGURATION, message)
    if 200 <= reply.status < 300:
        tokens = _tokens(document, sent_at_ms)
        return Issued(tokens) if tokens else Lost("the token endpoint's answer holds no usable token")
    if reply.status in (400, 401, 404, 405, 415):
        message = f"the token endpoint answered {reply.status} without an OAuth error; check tokenURL"
        return Refused(Refusal.CONFIGURATION, message)
    return Busy(f"the token endpoint answered {reply.status}", _asked_ms(reply))


def _refusal(reply: Reply, error: Any, document: Mapping[str, Any], request: TokenRequest) -> Answer:
    if isinstance(error, dict):   # a provider's own envelope instead of RFC 6749's
        code, text = str(error.get("type") or ""), str(error.get("message") or "")
    else:
        code, text = str(error), str(document.get("error_description") or "")
    said = shown(f"{code}: {text}" if text else code, request.hidden)
    message = f"the token endpoint answered {reply.status} {said}"
    if code == "invalid_grant":
        return Refused(Refusal.GRANT, message)
    if code in _CONFIGURATION:
        return Refused(Refusal.CONFIGURATION, message)
    if reply.status >= 500 or reply.status in _BUSY_STATUSES or code in _BUSY_ERRORS or reply.status == 403:
        return Busy(message, _asked_ms(reply))
    return Refused(Refusal.CONFIGURATION, message)


def _tokens(document: Mapping[str, Any], sent_at_ms: int) -> Tokens | None:
    access, refresh = document.get("access_token"), document.get("refresh_token")
    kind = document.get("token_type", "Bearer")
    refresh = refresh if isinstance(refresh, str) and is_token(refresh) else ""
    if not isinstance(access, str) or not is_token(access) or not isinstance(kind, str) or kind.lower() != "bearer":
        return Tokens("", sent_at_ms, 0, refresh) if refresh else None
    try:
        lifetime_s = float(document.get("expires_in", DEFAULT_LIFETIME_S))
    except (TypeError, ValueError, OverflowError):
        lifetime_s = DEFAULT_LIFETIME_S
    if not 0 < lifetime_s <= LONGEST_LIFETIME_S:
        lifetime_s = DEFAULT_LIFETIME_S
    # Counted from the sending: the token's life began at the latest when its answer was written.
    return Tokens(access, sent_at_ms, sent_at_ms + int(lifetime_s * 1000), refresh)


def _asked_ms(reply: Reply) -> int:
    """Return `retry-after` in milliseconds; of its two forms only seconds, which is what token endpoints send."""
    text = reply.headers.get("retry-after", "").strip()
    return int(text) * 1000 if text.isascii() and text.isdigit() and len(text) < 8 else 0


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def shown(text: str, hidden: tuple[str, ...]) -> str:
    """Return `text` for people: without the secrets that it may quote, in one line, of bounded length."""
    for secret in hidden:
        text = text.replace(secret, "***")
    return "".join(c if c.isprintable() else " " for c in text)[:MAX_SHOWN_CHARS]
