"""Which headers pass through the relay, in each direction. All names are lower-case, order and repetition are kept.

Upstream goes what the client sent, but for what belongs to one connection, to the relay itself (credentials, length,
encoding, host) or would tell the provider about the path behind the client. Downstream goes what the provider sent,
but for what tells about the account that served (its limits, organisation, cookies).
"""

Headers = list[tuple[bytes, bytes]]

_HOP_BY_HOP = frozenset((
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
    b"trailer", b"transfer-encoding", b"upgrade",
))
CREDENTIALS = frozenset((b"x-api-key", b"authorization", b"x-goog-api-key", b"api-key"))
_NOT_UPSTREAM = _HOP_BY_HOP | CREDENTIALS | frozenset((
    b"host", b"content-length", b"accept-encoding", b"expect", b"cookie", b"forwarded", b"via", b"x-real-ip",
    b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-port", b"x-forwarded-prefix",
    b"x-session-id",
))
_NOT_DOWNSTREAM = _HOP_BY_HOP | frozenset((
    b"content-length", b"set-cookie", b"anthropic-organization-id", b"anthropic-workspace-id", b"alt-svc",
    b"strict-transport-security", b"report-to", b"nel",
))
_NOT_DOWNSTREAM_PREFIXES = (b"anthropic-ratelimit-", b"anthropic-priority-", b"anthropic-fast-", b"x-signalbox-")


def upstream(headers: Headers) -> Headers:
    """Return the client's headers that go to the provider."""
    named = _named_by_connection(headers)
    return [
        (name, value) for name, value in headers
        if name not in _NOT_UPSTREAM and name not in named and not name.startswith(b"x-signalbox-")
    ]


def downstream(headers: Headers) -> Headers:
    """Return the provider's headers that go to the client. The caller frames the body itself (length, chunks)."""
    named = _named_by_connection(headers)
    return [
        (name, value) for name, value in headers
        if name not in _NOT_DOWNSTREAM and name not in named and not name.startswith(_NOT_DOWNSTREAM_PREFIXES)
    ]


def _named_by_connection(headers: Headers) -> frozenset[bytes]:
    for name, value in headers:
        if name == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            return frozenset(
                part.strip().lower() for n, v in headers if n == b"connection" for part in v.split(b",")
            )
    return frozenset()
