"""Which headers pass through the relay, in each direction. All names are lower-case, order and repetition are kept.

Upstream goes what the client sent, but for what belongs to one connection, to the relay itself (credentials, length,
encoding, host) or would tell the provider about the path behind the client. Downstream goes what the provider sent,
but for what tells about the account that served (its limits, organisation, cookies).
"""

from collections.abc import Container

Headers = list[tuple[bytes, bytes]]

_HOP_BY_HOP = frozenset((
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
    b"trailer", b"transfer-encoding", b"upgrade",
))
CREDENTIALS = frozenset((b"x-api-key", b"authorization", b"x-goog-api-key", b"api-key"))
_NOT_UPSTREAM = _HOP_BY_HOP | CREDENTIALS | frozenset((
    b"host", b"content-length", b"accept-encoding", b"expect", b"cookie", b"x-session-id",
    # what proxies on the way to the relay add of the caller and of themselves
    b"forwarded", b"via", b"cdn-loop", b"true-client-ip", b"x-real-ip", b"x-client-ip", b"x-cluster-client-ip",
    b"x-original-forwarded-for", b"x-scheme", b"x-amzn-trace-id", b"fastly-client-ip",
))
_NOT_UPSTREAM_PREFIXES = (b"x-signalbox-", b"x-forwarded-", b"cf-", b"x-envoy-")
_NOT_DOWNSTREAM = _HOP_BY_HOP | frozenset((
    b"content-length", b"set-cookie", b"anthropic-organization-id", b"anthropic-workspace-id", b"alt-svc",
    b"strict-transport-security", b"report-to", b"nel",
))
_NOT_DOWNSTREAM_PREFIXES = (b"anthropic-ratelimit-", b"anthropic-priority-", b"anthropic-fast-", b"x-signalbox-")


def upstream(headers: Headers, names: Container[bytes]) -> Headers:
    """Return the client's headers that go to the provider; `names` are those of all of them."""
    passing = [header for header in headers if _UPSTREAM[header[0]]]
    return _but_for_named(headers, passing) if b"connection" in names else passing


def downstream(headers: Headers, names: Container[bytes]) -> Headers:
    """Return the provider's headers that go to the client. The caller frames the body itself (length, chunks)."""
    passing = [header for header in headers if _DOWNSTREAM[header[0]]]
    return _but_for_named(headers, passing) if b"connection" in names else passing


def lines(headers: Headers) -> bytes:
    """Return headers as the lines of a head, each with its end."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def _but_for_named(headers: Headers, passing: Headers) -> Headers:
    """Take out what a `connection` header names as belonging to the connection."""
    options = [value for name, value in headers if name == b"connection"]
    named = frozenset(part.strip().lower() for value in options for part in value.split(b","))
    return [header for header in passing if header[0] not in named]


class _Passing(dict[bytes, bool]):
    """Whether a header of this name passes; remembered, as names are few and asked about at every request."""

    def __init__(self, stopped: frozenset[bytes], prefixes: tuple[bytes, ...]) -> None:
        super().__init__()
        self._stopped = stopped
        self._prefixes = prefixes

    def __missing__(self, name: bytes) -> bool:
        passes = name not in self._stopped and not name.startswith(self._prefixes)
        if len(self) < MAX_REMEMBERED and len(name) <= MAX_REMEMBERED_BYTES:
            self[name] = passes
        return passes


MAX_REMEMBERED = 1024
MAX_REMEMBERED_BYTES = 64
_UPSTREAM = _Passing(_NOT_UPSTREAM, _NOT_UPSTREAM_PREFIXES)
_DOWNSTREAM = _Passing(_NOT_DOWNSTREAM, _NOT_DOWNSTREAM_PREFIXES)
