"""An operator's own authorisation of an account (code with PKCE, loopback redirect): what travels in `state`.

The state holds all that the second half needs, sealed, so that any process can complete what another began and nothing
is kept meanwhile. RFC 8252 for the redirect, RFC 7636 for the verifier, RFC 9700 for both.
"""

import json
import re
import secrets
from dataclasses import dataclass, field

LASTS_MS = 600_000
_LOOPBACK = re.compile(r"http://(127\.0\.0\.1|\[::1\]|localhost):[0-9]{1,5}(/[A-Za-z0-9._~/-]*)?")


class AuthorizationRefused(ValueError):
    """An authorisation can't be begun or completed. The text is for the operator and holds no secret."""


@dataclass(frozen=True, slots=True)
class Begun:
    """One authorisation under way."""

    account_id: str
    seed_version: str
    redirect_uri: str
    began_at_ms: int
    verifier: str = field(repr=False)

    def write(self) -> bytes:
        """Return it as bytes to be sealed."""
        return json.dumps([self.seed_version, self.redirect_uri, self.began_at_ms, self.verifier]).encode()


def begin(account_id: str, seed_version: str, redirect_uri: str, now_ms: int) -> Begun:
    """Begin one with a fresh verifier. Raises AuthorizationRefused for a redirect that leaves this machine."""
    if _LOOPBACK.fullmatch(redirect_uri) is None:
        raise AuthorizationRefused("redirect_uri must be a loopback address: http://127.0.0.1:PORT/PATH")
    return Begun(account_id, seed_version, redirect_uri, now_ms, secrets.token_urlsafe(48))


def read(account_id: str, written: bytes, now_ms: int) -> Begun:
    """Return what `write` wrote. Raises AuthorizationRefused where it is too old."""
    seed_version, redirect_uri, began_at_ms, verifier = json.loads(written)
    if not 0 <= now_ms - began_at_ms <= LASTS_MS:
        raise AuthorizationRefused("the authorisation took longer than ten minutes; begin again")
    return Begun(account_id, seed_version, redirect_uri, began_at_ms, verifier)
