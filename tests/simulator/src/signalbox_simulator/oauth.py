"""Token endpoints: consent by code, refreshing with rotation and family revocation, identity tokens (RFC 6749, 7523).

What is issued opens the API for the account that it belongs to, until it expires. Faults are the script's, except those
that concern a grant's state: they are fields of a behaviour too and are read here.
"""

import base64
import fnmatch
import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlencode

import jwt

from signalbox_simulator.behaviour import Behaviour
from signalbox_simulator.errors import dumps

if TYPE_CHECKING:
    from signalbox_simulator.provider import Call, Provider

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
FEDERATION_BETAS = {"oauth-2025-04-20", "oidc-federation-2026-04-01"}
ALGORITHMS = ["RS256", "ES256", "EdDSA"]
DEFAULT_LIFETIME_S = 3600
EXPIRED_KEPT = 10_000


class TokenError(Exception):
    """A token request is refused (RFC 6749 §5.2)."""

    def __init__(self, error: str, description: str, status: int = 400) -> None:
        self.error = error
        self.description = description
        self.status = status
        super().__init__(f"{error}: {description}")


@dataclass(slots=True)
class Grant:
    """A family of refresh tokens that began with one consent. Only the newest is good."""

    account: str
    client_id: str
    current: str
    spent: dict[str, float] = field(default_factory=dict)
    revoked: str = ""
    refreshes: int = 0
    reuses: int = 0
    last_answer: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the family's state for tests, tokens included: they open nothing but this simulator."""
        return {"account": self.account, "client_id": self.client_id, "current": self.current,
                "spent": list(self.spent), "revoked": self.revoked, "refreshes": self.refreshes, "reuses": self.reuses}


@dataclass(frozen=True, slots=True)
class Code:
    """An authorisation code that was not redeemed yet, and what redeeming it takes."""

    account: str
    client_id: str
    redirect_uri: str
    challenge: str


@dataclass(frozen=True, slots=True)
class Rule:
    """Which identity tokens are exchanged for which account's access tokens."""

    id: str
    organization_id: str
    account: str
    issuer: str
    audience: str
    keys: dict[str, Any]
    subject: str = "*"
    service_account_id: str | None = None
    workspace_id: str | None = None
    token_lifetime_seconds: int = 600


class TokenServer:
    """All grants, rules and access tokens. The clock gives Unix seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.clear()

    # ------------------------------------------------------------------ set up and look

    def clear(self) -> None:
        """Forget everything that was configured and issued."""
        self._clients: dict[str, str | None] = {}
        self._consenting: dict[str, str] = {}
        self._codes: dict[str, Code] = {}
        self._grants: list[Grant] = []
        self._rules: dict[str, Rule] = {}
        self._access: dict[str, tuple[str, float]] = {}
        self._expires_in = DEFAULT_LIFETIME_S
        self._reuse_grace_s = 0.0

    def configure(self, document: dict[str, Any]) -> None:
        """Add `clients`, `grants` and `rules`; set `expires_in` and `reuse_grace_s`. Raises KeyError, TypeError."""
        for client in document.get("clients", []):
            self._clients[client["id"]] = client.get("secret")
            if "account" in client:
                self._consenting[client["id"]] = client["account"]
        for grant in document.get("grants", []):
            self._grants.append(Grant(grant["account"], grant.get("client_id", ""), grant["refresh_token"]))
        for rule in document.get("rules", []):
            self._rules[rule["id"]] = Rule(**rule)
        self._expires_in = int(document.get("expires_in", self._expires_in))
        self._reuse_grace_s = float(document.get("reuse_grace_s", self._reuse_grace_s))

    def as_json(self) -> dict[str, Any]:
        """Return the state for tests."""
        now = self._clock()
        return {"grants": [g.as_json() for g in self._grants], "rules": sorted(self._rules),
                "access_tokens": {t: name for t, (name, until) in self._access.items() if until > now}}

    def revoke(self, account: str, *, family: bool) -> None:
        """Take back an account's access tokens, and its refresh tokens with `family`."""
        self._access = {t: v for t, v in self._access.items() if v[0] != account}
        for grant in self._grants:
            if family and grant.account == account:
                grant.revoked = "revoked"

    def issued(self, token: str) -> bool:
        """Tell whether an access token was issued here."""
        return token in self._access

    def account_of(self, token: str) -> str | None:
        """Return the account that an access token opens, None if it opens none (any longer)."""
        name, until = self._access.get(token, (None, 0.0))
        return name if until > self._clock() else None

    # ------------------------------------------------------------------ consent

    def consent(self, query: dict[str, str]) -> str:
        """Return where the browser goes next: the client's account consents at once (RFC 6749 §4.1, RFC 7636)."""
        account = self._consenting.get(query.get("client_id", ""))
        if account is None:
            raise TokenError("invalid_client", "Unknown client, or nobody who consents", 401)
        if query.get("response_type") != "code" or query.get("code_challenge_method") != "S256":
            raise TokenError("invalid_request", "response_type=code with an S256 challenge is expected")
        code = secrets.token_urlsafe(24)
        redirect_uri = query["redirect_uri"]
        self._codes[code] = Code(account, query["client_id"], redirect_uri, query["code_challenge"])
        return f"{redirect_uri}?{urlencode({'code': code, 'state': query.get('state', '')})}"

    def redeem(self, form: dict[str, Any], b: Behaviour) -> dict[str, Any]:
        """Exchange a code, once, for a new family of tokens."""
        self._check_client(form)
        code = self._codes.pop(str(form.get("code", "")), None)
        digest = hashlib.sha256(str(form.get("code_verifier", "")).encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if code is None or (code.client_id, code.redirect_uri, code.challenge) != (
            form.get("client_id"), form.get("redirect_uri"), challenge,
        ):
            raise TokenError("invalid_grant", "The code was not accepted")
        grant = Grant(code.account, code.client_id, f"sk-ant-ort-sim-{secrets.token_urlsafe(24)}")
        self._grants.append(grant)
        answer = self._issue(code.account, b.expires_in or self._expires_in)
        return answer if b.omit_refresh_token else answer | {"refresh_token": grant.current}

    # ------------------------------------------------------------------ grants

    def refresh(self, form: dict[str, Any], b: Behaviour) -> dict[str, Any]:
        """Exchange a refresh token, rotating it. A spent one is answered again within the grace, else revokes its family."""
        self._check_client(form)
        token = str(form.get("refresh_token", ""))
        grant = next((g for g in self._grants if token == g.current or token in g.spent), None)
        if grant is None or grant.client_id not in {"", str(form.get("client_id", ""))}:
            raise TokenError("invalid_grant", "Refresh token not found or invalid")
        if grant.revoked:
            raise TokenError("invalid_grant", f"Refresh token {grant.revoked}")
        if token != grant.current:
            return self._reuse(grant, token)
        if b.rotate:
            grant.spent[grant.current] = self._clock()
            grant.current = f"sk-ant-ort-sim-{secrets.token_urlsafe(24)}"
        grant.refreshes += 1
        answer = self._issue(grant.account, b.expires_in or self._expires_in)
        if b.rotate and not b.omit_refresh_token:
            answer["refresh_token"] = grant.current
        grant.last_answer = answer
        return answer

    def _reuse(self, grant: Grant, token: str) -> dict[str, Any]:
        grant.reuses += 1
        newest = next(reversed(grant.spent))
        if token == newest and self._clock() - grant.spent[token] < self._reuse_grace_s:
            return grant.last_answer
        grant.revoked = "was used again after its rotation; its family is revoked"
        self.revoke(grant.account, family=False)
        raise TokenError("invalid_grant", f"Refresh token {grant.revoked}")

    def _check_client(self, form: dict[str, Any]) -> None:
        if not self._clients:
            return
        client_id = str(form.get("client_id", ""))
        if client_id not in self._clients:
            raise TokenError("invalid_client", "Unknown client", 401)
        secret = self._clients[client_id]
        if secret is not None and not secrets.compare_digest(secret, str(form.get("client_secret", ""))):
            raise TokenError("invalid_client", "Client authentication failed", 401)

    def federate(self, form: dict[str, Any], betas: set[str]) -> dict[str, Any]:
        """Exchange an identity token by its rule."""
        if not betas >= FEDERATION_BETAS:
            raise TokenError("invalid_request", f"anthropic-beta must name {', '.join(sorted(FEDERATION_BETAS))}")
        rule = self._rules.get(str(form.get("federation_rule_id", "")))
        if rule is None or form.get("organization_id") != rule.organization_id:
            raise TokenError("invalid_grant", "No such federation rule in this organization", 401)
        for name in ("service_account_id", "workspace_id"):
            wanted = getattr(rule, name)
            if wanted is not None and form.get(name) != wanted:
                raise TokenError("invalid_grant", f"{name} does not match the rule", 401)
        try:
            claims = self._verified(str(form.get("assertion", "")), rule)
        except (jwt.PyJWTError, KeyError, ValueError) as e:
            raise TokenError("invalid_grant", f"The identity token was not accepted: {e}", 401) from e
        if not fnmatch.fnmatchcase(str(claims.get("sub", "")), rule.subject):
            raise TokenError("invalid_grant", "The identity token's subject does not match the rule", 401)
        return self._issue(rule.account, rule.token_lifetime_seconds)

    def _verified(self, assertion: str, rule: Rule) -> dict[str, Any]:
        kid = jwt.get_unverified_header(assertion).get("kid")
        keys = [k for k in jwt.PyJWKSet.from_dict(rule.keys).keys if kid is None or k.key_id == kid]
        if not keys:
            raise ValueError("no key with this id")
        claims: dict[str, Any] = jwt.decode(
            assertion, keys[0], algorithms=ALGORITHMS, audience=rule.audience, issuer=rule.issuer,
            options={"require": ["exp", "iat", "sub"]},
        )
        return claims

    def _issue(self, account: str, expires_in: int) -> dict[str, Any]:
        now = self._clock()
        if len(self._access) > EXPIRED_KEPT:
            self._access = {t: v for t, v in self._access.items() if v[1] > now}
        token = f"sk-ant-oat-sim-{secrets.token_urlsafe(24)}"
        self._access[token] = (account, now + expires_in)
        return {"token_type": "Bearer", "access_token": token, "expires_in": expires_in}


async def authorize(provider: "Provider", call: "Call") -> str:
    """Send the browser back with a code."""
    try:
        target = provider.tokens.consent(call.exchange.request.query)
    except (TokenError, KeyError) as e:
        return await provider.answer(call, dumps({"error": str(e)}), status=400)
    return await provider.answer(call, b"", status=302, headers=[("location", target)])


async def token(provider: "Provider", call: "Call") -> str:
    """Answer a token request. With `apply_first` its effect lasts although the answer is lost."""
    b = call.behaviour
    try:
        form = _form(call)
        if b.oauth_error is not None:
            raise TokenError(b.oauth_error, b.message or "refused by script", b.status or 400)
        kind = form.get("grant_type")
        if kind == "refresh_token":
            answer = provider.tokens.refresh(form, b)
        elif kind == "authorization_code":
            answer = provider.tokens.redeem(form, b)
        elif kind == JWT_BEARER:
            betas = {part.strip() for part in call.exchange.request.header("anthropic-beta").split(",")}
            answer = provider.tokens.federate(form, betas)
        else:
            raise TokenError("unsupported_grant_type", f"{kind} is not supported")
    except TokenError as e:
        body = dumps({"error": e.error, "error_description": e.description})
        return await provider.answer(call, body, status=e.status)
    return await provider.answer(call, dumps(answer), headers=[("cache-control", "no-store")])


def _form(call: "Call") -> dict[str, Any]:
    """Return the request's parameters, from JSON or a form, with a client's Basic credentials added."""
    request = call.exchange.request
    if isinstance(call.parsed, dict):
        form = dict(call.parsed)
    elif "x-www-form-urlencoded" in request.header("content-type"):
        form = dict(parse_qsl(request.body.decode(errors="replace")))
    else:
        raise TokenError("invalid_request", "The body is neither JSON nor a form")
    scheme, _, value = request.header("authorization").partition(" ")
    if scheme.lower() == "basic":
        try:
            client_id, _, secret = base64.b64decode(value).decode().partition(":")
        except ValueError as e:
            raise TokenError("invalid_client", "Basic credentials are not readable", 401) from e
        form.update(client_id=unquote(client_id), client_secret=unquote(secret))
    return form
