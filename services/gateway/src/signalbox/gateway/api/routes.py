"""Which request targets are relayed, under which prefixes, and what of the query goes on to the provider."""

from functools import lru_cache
from re import compile as regex
from urllib.parse import unquote_to_bytes

import httptools

PREFIXES = (b"/api", b"/claude", b"/anthropic")
RELAYED = {b"/v1/messages": "messages", b"/v1/messages/count_tokens": "count_tokens"}
UPSTREAM_PATHS = {route: path for path, route in RELAYED.items()}

_SLASHES = regex(rb"//+")


@lru_cache(maxsize=1024)
def plain_path(path: bytes) -> bytes:
    """Return `path` with runs of slashes collapsed and the prefix, if any, taken off."""
    path = _SLASHES.sub(b"/", path)
    for prefix in PREFIXES:
        if path == prefix:
            return b"/"
        if path.startswith(prefix + b"/"):
            return path[len(prefix):]
    return path


@lru_cache(maxsize=1024)
def relayed_target(method: bytes, target: bytes) -> tuple[str | None, bytes]:
    """Return the name of the route that relays this request, or None, and the target's query.

    Raises httptools.HttpParserInvalidURLError.
    """
    url = httptools.parse_url(target)
    query = url.query or b""
    if method != b"POST":
        return None, query
    path = unquote_to_bytes(url.path or b"/")    # spelt with escapes it is the same path (RFC 3986, 6.2.2)
    return RELAYED.get(path) or RELAYED.get(plain_path(path)), query


def forwarded_query(query: bytes) -> bytes:
    """Return the query as sent, but for `key`, which would carry a relay key to the provider."""
    if b"key=" not in query:
        return query
    return b"&".join(part for part in query.split(b"&") if part.partition(b"=")[0].lower() != b"key")
