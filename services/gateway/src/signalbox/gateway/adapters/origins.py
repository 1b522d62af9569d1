"""Where an account's requests go: its base URL taken apart, and what a connection there is good for."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Origin:
    """A base URL taken apart. `path` has no trailing slash; `authority` is the Host header's value."""

    host: str
    port: int
    tls: bool
    path: bytes
    authority: bytes


@lru_cache(maxsize=4096)
def origin_of(base_url: str) -> Origin:
    """Take a document's base URL apart (already validated by the documents' rules)."""
    url = urlsplit(base_url)
    tls = url.scheme == "https"
    host = url.hostname or ""
    port = url.port or (443 if tls else 80)
    authority = url.netloc.rpartition("@")[2].encode()
    return Origin(host, port, tls, url.path.rstrip("/").encode(), authority)


class Route(NamedTuple):
    """What a connection is good for: nothing else may use it."""

    account_id: str
    base_url: str
    proxy_url: str = ""
