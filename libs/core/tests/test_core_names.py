"""Of a name's addresses: which one a proxy is told, and which ones a call tries."""

import asyncio
import socket

import pytest

from signalbox.core import settings
from signalbox.core.grpc_stream import Endpoint
from signalbox.core.names import address_of

V6 = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 80, 0, 0))
V4 = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))
NOBODY = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 80))


@pytest.fixture
def resolves(monkeypatch):
    def to(*found):
        async def getaddrinfo(host, port, **_):
            return list(found)

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)

    return to


@pytest.mark.parametrize(("found", "told"), [((V6, V4), "127.0.0.1"), ((V4, V6), "127.0.0.1"), ((V6,), "::1")])
async def test_a_proxy_is_told_an_address_of_ipv4_where_there_is_one(resolves, found, told):
    resolves(*found)
    assert await address_of("provider.example", 80) == told


async def test_a_call_goes_to_an_address_that_is_listened_on(resolves):
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    endpoint = Endpoint(settings.RoomSettings(shared_secret="s" * 40), f"rooms.example:{port}")
    try:
        resolves(NOBODY, V4, NOBODY)
        for _ in range(10):
            (await endpoint.open("/a.B/C", lambda _: None)).close()
        resolves(NOBODY, NOBODY)
        with pytest.raises(ConnectionRefusedError):
            await endpoint.open("/a.B/C", lambda _: None)
    finally:
        server.close()
