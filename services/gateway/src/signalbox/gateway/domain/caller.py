"""Who is calling, by what the request itself presents: the relay key, the client, the source address, the session.

Whether the key may is the scheduler's decision; here it is only found and hashed.
"""

from collections.abc import Iterable, Sequence
from hashlib import blake2b, sha256
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from signalbox.core import keys
from signalbox.gateway.domain.refusal import Refusal
from signalbox.wire.clients import identify, named_session

KEY_HEADERS = frozenset((b"x-api-key", b"authorization", b"x-goog-api-key", b"api-key"))
SESSION_DIGEST_BYTES = 16

Header = tuple[bytes, bytes]
Network = IPv4Network | IPv6Network


MISTYPED = (
    "This relay key is not known here, and its check digits do not agree: it may be mistyped or cut short. "
    "Copy it again."
)


class Caller:
    """What a request's headers present. A connection's requests mostly send the same ones: then they are read once."""

    __slots__ = (
        "chunked", "client", "expects_continue", "fields", "headers", "heads", "key_hash", "peer", "session", "source",
    )

    def __init__(self, headers: list[Header], peer: str) -> None:
        """`headers` have lower-case names; `peer` is the connection's other end."""
        self.headers = headers
        self.peer = peer
        self.fields = dict(headers)
        self.chunked = b"transfer-encoding" in self.fields    # llhttp has refused what contradicts it
        self.expects_continue = self.fields.get(b"expect", b"").lower() == b"100-continue"
        self.client = ""
        self.source = ""
        self.session = b""
        self.key_hash = b""
        self.heads: dict[tuple[bytes, bytes, tuple[Header, ...]], bytes] = {}   # kept by sending.request_head

    def identify(self, trusted: Sequence[Network]) -> None:
        """Find out client program, source address, session and key. Raises Refusal where no usable key is presented."""
        if not self.key_hash:
            self.client = identify(self.fields)
            self.source = source_address(self.peer, self.headers, trusted)
            self.session = named_session(self.fields)
            self.key_hash = key_hash(self.headers)


def key_hash(headers: Iterable[Header]) -> bytes:
    """Return the 32 bytes under which the presented key is known.

    Raises Refusal: `key_missing`, `key_conflict` (two different ones), `key_invalid` (can't be a key).
    """
    return keys.digest(_presented(headers))


def is_mistyped(headers: Iterable[Header]) -> bool:
    """Whether the presented key begins like a generated one and is none: a typing error rather than a revoked key."""
    text = _presented(headers).decode()
    return text.startswith(keys.PREFIX) and not keys.has_valid_check(text)


def _presented(headers: Iterable[Header]) -> bytes:
    found = b""
    for name, value in headers:
        if name not in KEY_HEADERS:
            continue
        presented = _bearer(value) if name == b"authorization" else value.strip()
        if not presented:
            continue
        if found and presented != found:
            raise Refusal("key_conflict", "The request presents two different keys; send one.")
        found = presented
    if not found:
        raise Refusal("key_missing", "Send your relay key in x-api-key or as Authorization: Bearer.")
    try:
        text = found.decode()
    except UnicodeDecodeError:
        text = ""
    if not keys.is_acceptable(text):
        raise Refusal("key_invalid", "This is not a relay key.")
    return found


def _bearer(value: bytes) -> bytes:
    scheme, _, token = value.strip().partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


def source_address(peer: str, headers: Iterable[Header], trusted: Sequence[Network]) -> str:
    """Return the caller's address: the peer's, or the last one in X-Forwarded-For that no trusted proxy has."""
    if not trusted or not _trusted(peer, trusted):
        return peer
    hops = [
        hop.strip()
        for name, value in headers if name == b"x-forwarded-for"
        for hop in value.decode("latin-1").split(",")
    ]
    for hop in reversed(hops):
        if _parse(hop) is None:
            return peer
        if not _trusted(hop, trusted):
            return plain_address(hop)
    return plain_address(hops[0]) if hops else peer


def plain_address(host: str) -> str:
    """Return a peer's address as documents write it: without a zone, IPv4 where IPv6 only wraps it."""
    host = host.partition("%")[0]
    parsed = _parse(host)
    return host if parsed is None else str(parsed)


def _parse(address: str) -> IPv4Address | IPv6Address | None:
    try:
        parsed = ip_address(address)
    except ValueError:
        return None
    return parsed.ipv4_mapped or parsed if isinstance(parsed, IPv6Address) else parsed


def _trusted(address: str, trusted: Sequence[Network]) -> bool:
    parsed = _parse(address)
    return parsed is not None and any(parsed in network for network in trusted)


def session_secret(secret: bytes) -> bytes:
    """Return the key of session digests, made from the rooms' shared secret."""
    return sha256(b"session\0" + secret).digest()


def session_digest(secret: bytes, key: bytes, session: bytes) -> bytes:
    """Return the name under which a conversation is pinned: keyed, scoped by relay key, not to be turned back.

    `secret` is what `session_secret` returned.
    """
    digest = blake2b(key, key=secret, digest_size=SESSION_DIGEST_BYTES)
    digest.update(session)    # not joined with the key: it may be a turn of many megabytes
    return digest.digest()
