"""Asking a proxy for a tunnel: CONNECT (RFC 9110 §9.3.6) and SOCKS5 (RFC 1928, RFC 1929), without a socket.

Bytes in, bytes out. Whatever a proxy says about itself stays here: texts of errors hold nothing that it sent and
nothing of its URL, which may hold a password.
"""

import base64
import ipaddress
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import unquote_to_bytes, urlsplit

_MAX_HEAD_BYTES = 16 << 10
_DEFAULT_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}

_SOCKS_VERSION = 5
_NO_AUTHENTICATION, _PASSWORD = 0, 2
_CONNECT = 1
_IPV4, _NAME, _IPV6 = 1, 3, 4
_LENGTH_OF = {_IPV4: 4, _IPV6: 16}
_SOCKS_REFUSALS = {
    1: "failed", 2: "does not allow it", 3: "finds the network unreachable", 4: "finds the host unreachable",
    5: "was refused by the provider", 6: "got no answer in time", 7: "does not tunnel",
    8: "does not take such addresses",
}


class TunnelRefused(Exception):
    """The proxy does not open the tunnel. The text is safe to show."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy's URL taken apart. `tls`: it is spoken to over TLS; `resolves`: it looks names up itself."""

    scheme: str
    host: str
    port: int
    username: bytes = field(default=b"", repr=False)
    password: bytes = field(default=b"", repr=False)

    @property
    def tls(self) -> bool:
        """Whether it is spoken to over TLS."""
        return self.scheme == "https"

    @property
    def resolves(self) -> bool:
        """Whether it is given names; a `socks5` one gets addresses that were looked up here."""
        return self.scheme != "socks5"

    def handshake(self, host: str, port: int) -> "Handshake":
        """Return the conversation that opens a tunnel to `host`, a name or an address."""
        steps = _connect if self.scheme in ("http", "https") else _socks
        return Handshake(steps(self, host, port))


@lru_cache(maxsize=4096)
def proxy_of(url: str) -> Proxy:
    """Take a proxy's URL apart (already validated by the documents' rules). Raises ValueError for another scheme."""
    parts = urlsplit(url)
    if parts.scheme not in _DEFAULT_PORTS:
        raise ValueError("not the URL of a proxy")
    return Proxy(
        parts.scheme, parts.hostname or "", parts.port or _DEFAULT_PORTS[parts.scheme],
        unquote_to_bytes(parts.username or ""), unquote_to_bytes(parts.password or ""),
    )


_Steps = Generator[bytes, bytes, None]
"""Yields what to send (nothing: more is needed) and gets what came."""


class Handshake:
    """One conversation with a proxy. `done` once the tunnel is open."""

    def __init__(self, steps: _Steps) -> None:
        self._steps = steps
        self.done = False

    def begin(self) -> bytes:
        """Return the first bytes to send."""
        return next(self._steps)

    def received(self, data: bytes) -> bytes:
        """Take what came and return what to send now. Raises TunnelRefused."""
        try:
            return self._steps.send(data)
        except StopIteration:
            self.done = True
            return b""


def _connect(proxy: Proxy, host: str, port: int) -> _Steps:
    target = b"%b:%d" % (f"[{host}]".encode() if ":" in host else host.encode("idna"), port)
    lines = [b"CONNECT %b HTTP/1.1" % target, b"host: %b" % target]
    if proxy.username or proxy.password:
        lines.append(b"proxy-authorization: Basic " + base64.b64encode(proxy.username + b":" + proxy.password))
    came = yield b"\r\n".join(lines) + b"\r\n\r\n"
    while b"\r\n\r\n" not in came:
        if len(came) > _MAX_HEAD_BYTES:
            raise TunnelRefused("the proxy's answer has no end")
        came += yield b""
    head, _, rest = came.partition(b"\r\n\r\n")
    version, _, status = head.partition(b"\r\n")[0].partition(b" ")
    if not version.startswith(b"HTTP/1.") or not status[:3].isdigit():
        raise TunnelRefused("the proxy does not speak HTTP")
    if status.startswith(b"407"):
        raise TunnelRefused("the proxy refuses the credentials" if proxy.username else "the proxy asks for credentials")
    if not status.startswith(b"2"):
        raise TunnelRefused(f"the proxy answers {status[:3].decode()}")
    if rest:
        raise TunnelRefused("the proxy talks inside the tunnel")


def _socks(proxy: Proxy, host: str, port: int) -> _Steps:
    with_password = bool(proxy.username or proxy.password)
    offered = bytes((_NO_AUTHENTICATION, _PASSWORD) if with_password else (_NO_AUTHENTICATION,))
    reader = _Reader()
    came = yield bytes((_SOCKS_VERSION, len(offered))) + offered
    version, method = yield from reader.exactly(2, came)
    if version != _SOCKS_VERSION:
        raise TunnelRefused("the proxy does not speak SOCKS5")
    if method not in offered:
        raise TunnelRefused("the proxy takes no password" if with_password else "the proxy asks for credentials")
    if method == _PASSWORD:
        user, password = proxy.username[:255], proxy.password[:255]
        came = yield bytes((1, len(user))) + user + bytes((len(password),)) + password
        _, status = yield from reader.exactly(2, came)
        if status != 0:
            raise TunnelRefused("the proxy refuses the credentials")
    came = yield bytes((_SOCKS_VERSION, _CONNECT, 0)) + _socks_address(host) + port.to_bytes(2)
    version, reply, _, kind = yield from reader.exactly(4, came)
    if version != _SOCKS_VERSION:
        raise TunnelRefused("the proxy does not speak SOCKS5")
    if reply != 0:
        raise TunnelRefused(f"the proxy {_SOCKS_REFUSALS.get(reply, 'refuses')}")
    length = _LENGTH_OF.get(kind) or (yield from reader.exactly(1))[0]
    yield from reader.exactly(length + 2)
    if reader.rest:
        raise TunnelRefused("the proxy talks inside the tunnel")


class _Reader:
    """What came and was not read yet."""

    def __init__(self) -> None:
        self.rest = b""

    def exactly(self, count: int, came: bytes = b"") -> Generator[bytes, bytes, bytes]:
        """Return the next `count` bytes, waiting for them."""
        self.rest += came
        while len(self.rest) < count:
            self.rest += yield b""
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken


def _socks_address(host: str) -> bytes:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.encode("idna")
        return bytes((_NAME, len(name))) + name
    return bytes((_IPV4 if address.version == 4 else _IPV6,)) + address.packed
