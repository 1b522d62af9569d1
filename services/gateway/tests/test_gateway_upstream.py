"""Connections to providers over real sockets: TLS, keep-alive, odd and hostile answers, the pool's bounds."""

import asyncio
import contextlib
import os
import resource
import ssl

import pytest

from signalbox.gateway.adapters.origins import Route, origin_of
from signalbox.gateway.adapters.upstream import MAX_HEAD_BYTES, MAX_HEADERS
from signalbox.gateway.adapters.upstream_pool import Unreachable, UpstreamPool
from signalbox.gateway.domain.events import Lost
from tests.support.certificates import self_signed
from tests.support.machine import busy

REQUEST = b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class Receiver:
    def __init__(self):
        self.head = None
        self.data = b""
        self.how = None
        self.done = asyncio.get_running_loop().create_future()

    def received(self, head, data, whole):
        self.head = head or self.head
        self.data += data
        if whole:
            self.done.set_result("whole")

    def lost(self, how):
        self.done.set_result(how)


@pytest.fixture
async def pool(wire):
    made = UpstreamPool(idle_s=5, idle_per_route=2, tls=wire.TLS)
    yield made
    made.close()


@pytest.fixture
async def serve():
    servers = []

    async def start(raw, *, close=False, tls=None, cuts=()):
        async def answer(reader, writer):
            try:
                while True:
                    await reader.readuntil(b"\r\n\r\n")
                    await reader.readexactly(2)
                    for a, b in zip((0, *cuts), (*cuts, len(raw)), strict=True):
                        writer.write(raw[a:b])
                        await writer.drain()
                        await asyncio.sleep(0.002)
                    if close:
                        writer.close()
                        return
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
        servers.append(server)
        return server.sockets[0].getsockname()[1]

    yield start
    for server in servers:
        server.close()


async def ask(pool, port, *, host="127.0.0.1", scheme="http"):
    route = Route("default/a1", f"{scheme}://{host}:{port}")
    connection = pool.take(route) or await pool.connect(route, 20)
    receiver = Receiver()
    connection.send(REQUEST, b"{}", receiver)
    receiver.result = await asyncio.wait_for(receiver.done, 20)
    return route, receiver


async def test_tls_is_spoken_and_its_connections_are_kept(serve, tmp_path):
    server, cert = self_signed(tmp_path)
    server.set_alpn_protocols(["h2", "http/1.1"])
    client = ssl.create_default_context(cafile=str(cert))
    client.set_alpn_protocols(["http/1.1"])
    pool = UpstreamPool(idle_s=5, idle_per_route=2, tls=client)
    port = await serve(OK, tls=server)
    route, receiver = await ask(pool, port, host="localhost", scheme="https")
    assert (receiver.result, receiver.data) == ("whole", b"{}")
    connection = pool.take(route)
    assert connection is not None
    assert connection._transport.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
    pool.put_back(connection)
    assert (await ask(pool, port, host="localhost", scheme="https"))[1].result == "whole"
    pool.close()


@pytest.mark.parametrize(("trusted", "name"), [(False, "localhost"), (True, "elsewhere.example")])
async def test_a_provider_that_cannot_prove_its_name_gets_nothing(serve, tmp_path, trusted, name):
    server, cert = self_signed(tmp_path, name)
    client = ssl.create_default_context(cafile=str(cert) if trusted else None)
    pool = UpstreamPool(idle_s=5, idle_per_route=2, tls=client)
    port = await serve(OK, tls=server)
    with pytest.raises(Unreachable):
        await pool.connect(Route("a", f"https://localhost:{port}"), 20)


async def test_a_handshake_that_does_not_end_is_unreachable_in_time(pool):
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    began_s = asyncio.get_running_loop().time()
    with pytest.raises(Unreachable) as caught:
        await pool.connect(Route("a", f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"), 0.3)
    assert caught.value.timed_out
    assert asyncio.get_running_loop().time() - began_s < 2 * busy()
    server.close()


async def test_want_of_file_descriptors_is_no_fault_of_the_provider(pool, serve):
    port = await serve(OK)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (used[0] + 8, before[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                used.append(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(Unreachable) as caught:
            for _ in range(50):    # what others give back meanwhile is used up as well
                await pool.connect(Route("a", f"http://127.0.0.1:{port}"), 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in used:
            os.close(descriptor)
    assert caught.value.own_fault
    with pytest.raises(Unreachable) as caught:
        await pool.connect(Route("a", "http://127.0.0.1:1"), 1)
    assert not caught.value.own_fault


async def test_nothing_goes_direct_where_a_proxy_is_asked_for(pool, serve):
    with pytest.raises(Unreachable):
        await pool.connect(Route("a", f"http://127.0.0.1:{await serve(OK)}", "socks5://127.0.0.1:1"), 1)


@pytest.mark.parametrize(("raw", "close", "result", "kept"), [
    (OK, False, "whole", True),
    (OK.replace(b"1.1 200", b"1.0 200"), False, "whole", False),
    (OK.replace(b"content-type", b"connection: close\r\ncontent-type"), False, "whole", False),
    (OK + OK, False, "whole", False),
    (b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" + OK, False, "whole", True),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\ntrailer: x\r\n\r\n", False, "whole", True),
    (b"HTTP/1.1 200 OK\r\n\r\n{}", True, "whole", False),
    (OK[:-1], True, Lost.CUT, False),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n", True, Lost.CUT, False),
    (b"HTTP/1.1 200 OK\r\ncontent-ty", True, Lost.RESET, False),
    (b"", True, Lost.RESET, False),
    (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", False, Lost.MALFORMED, False),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", False, Lost.MALFORMED, False),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}", False, Lost.MALFORMED, False),
    (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 300_000, False, Lost.MALFORMED, False),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + b"t: x\r\n" * 90_000, False, Lost.MALFORMED, False),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nt: " + b"y" * 600_000, False, Lost.MALFORMED, False),
    (b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" * 10_000, False, Lost.MALFORMED, False),
    (OK.replace(b"\r\n\r\n", b"\r\n" + b"n: v\r\n" * (MAX_HEADERS - 2) + b"\r\n"), False, "whole", True),
    (OK.replace(b"\r\n\r\n", b"\r\n" + b"n: v\r\n" * (MAX_HEADERS - 1) + b"\r\n"), False, Lost.MALFORMED, False),
    (OK.replace(b"\r\n\r\n", b"\r\nn: " + b"v" * MAX_HEAD_BYTES + b"\r\n\r\n"), False, Lost.MALFORMED, False),
    (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", False, Lost.MALFORMED, False),
])
async def test_how_answers_end(pool, serve, raw, close, result, kept):
    route, receiver = await ask(pool, await serve(raw, close=close))
    assert receiver.result == result
    if result == "whole":
        assert (receiver.head.status, receiver.data) == (200, b"{}")
        assert b"link" not in dict(receiver.head.headers)
    if kept:
        await asyncio.sleep(0.01)
        assert pool.take(route) is not None
    async with asyncio.timeout(20):    # the provider's end may arrive after its answer
        while not kept and (connection := pool.take(route)) is not None:
            pool.put_back(connection)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("step", [1, 3, 17])
async def test_answers_arrive_whole_however_they_are_cut(pool, serve, step):
    raw = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" + b"".join(
        b"%x\r\n%s\r\n" % (len(part), part) for part in (b"event: ping\n", b"data: {}\n\n", "ä".encode() * 20)
    ) + b"0\r\n\r\n"
    _, receiver = await ask(pool, await serve(raw, cuts=range(step, len(raw), step)))
    assert receiver.data == b"event: ping\ndata: {}\n\n" + "ä".encode() * 20


async def test_a_provider_that_speaks_unasked_loses_its_connection(pool, serve):
    port = await serve(OK)
    route, _ = await ask(pool, port)
    connection = pool.take(route)
    pool.put_back(connection)
    connection.data_received(b"HTTP/1.1 408 Timeout\r\n\r\n")
    assert pool.take(route) is None


async def test_idle_connections_are_bounded_in_number_and_age(serve, wire):
    pool = UpstreamPool(idle_s=0.8, idle_per_route=2, tls=wire.TLS)
    port = await serve(OK)
    route = Route("default/a1", f"http://127.0.0.1:{port}")
    connections = [await pool.connect(route, 20) for _ in range(3)]
    for connection in connections:
        pool.put_back(connection)
    assert [c.closed for c in connections] == [False, False, True]
    assert pool.take(route, max_idle_s=0.0) is None
    taken = pool.take(route)
    assert taken is connections[1], "the one used last is the likeliest to be alive"
    pool.put_back(taken)
    await asyncio.sleep(0.85)
    assert pool.take(route) is None
    pool._sweep()
    assert all(c.closed for c in connections)
    pool.close()


@pytest.mark.parametrize(("url", "origin"), [
    ("https://api.anthropic.com", ("api.anthropic.com", 443, True, b"", b"api.anthropic.com")),
    ("http://127.0.0.1:8000/base/", ("127.0.0.1", 8000, False, b"/base", b"127.0.0.1:8000")),
    ("https://[::1]:8443", ("::1", 8443, True, b"", b"[::1]:8443")),
])
def test_base_urls_are_taken_apart(url, origin):
    found = origin_of(url)
    assert (found.host, found.port, found.tls, found.path, found.authority) == origin
