"""Names become addresses here where somebody else dials them: a SOCKS5 proxy that is told an address, not a name."""

import asyncio
import socket


async def address_of(host: str, port: int) -> str:
    """Return a host's address, of IPv4 where it has one: nobody tells whether a proxy has IPv6. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    best = min(found, key=lambda one: one[0] != socket.AF_INET)
    return str(best[4][0])
