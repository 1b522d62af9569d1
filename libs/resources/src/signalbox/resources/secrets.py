"""Values of Secrets, looked up and judged: usable text, or the condition that says why not. Never printed."""

from collections.abc import Mapping
from urllib.parse import urlsplit

from signalbox.core import keys
from signalbox.resources import conditions
from signalbox.resources.models import SecretKeyRef

MAX_SECRET_CHARS = 8192
PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")

# Every Secret's values by (namespace, name).
Secrets = Mapping[tuple[str, str], Mapping[str, bytes]]


class Unusable(Exception):
    """Why an object cannot serve: a reason of conditions.py and a message for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def header_text(secrets: Secrets, namespace: str, ref: SecretKeyRef) -> str:
    """Return a value that will travel in a header: visible ASCII, white space around it dropped."""
    text = _text(secrets, namespace, ref)
    if not text or not text.isascii() or not text.isprintable() or len(text) > MAX_SECRET_CHARS:
        raise _invalid(namespace, ref, f"must be 1 to {MAX_SECRET_CHARS} printable ASCII characters in one line")
    return text


def relay_key(secrets: Secrets, namespace: str, ref: SecretKeyRef) -> str:
    """Return the text of a relay key, white space around it dropped."""
    text = _text(secrets, namespace, ref)
    if not keys.is_acceptable(text):
        raise _invalid(namespace, ref, f"must be {keys.MIN_KEY_CHARS} or more printable characters")
    return text


def proxy_url(secrets: Secrets, namespace: str, ref: SecretKeyRef) -> str:
    """Return a proxy's URL, with its credentials if it has some."""
    url = header_text(secrets, namespace, ref)
    try:
        parts = urlsplit(url)
        usable = parts.scheme in PROXY_SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise _invalid(namespace, ref, f"must be a URL with host, of {', '.join(PROXY_SCHEMES)}")
    return url


def _text(secrets: Secrets, namespace: str, ref: SecretKeyRef) -> str:
    values = secrets.get((namespace, ref.name))
    if values is None:
        raise Unusable(conditions.SECRET_NOT_FOUND, f"Secret {namespace}/{ref.name} does not exist")
    if ref.key not in values:
        raise Unusable(conditions.SECRET_NOT_FOUND, f"Secret {namespace}/{ref.name} has no key {ref.key}")
    try:
        return values[ref.key].decode().strip()
    except UnicodeDecodeError:
        raise _invalid(namespace, ref, "must be UTF-8 text") from None


def _invalid(namespace: str, ref: SecretKeyRef, what: str) -> Unusable:
    return Unusable(conditions.SECRET_INVALID, f"key {ref.key} of Secret {namespace}/{ref.name} {what}")
