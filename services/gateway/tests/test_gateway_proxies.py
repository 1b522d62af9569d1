"""Accounts' proxies: the handshakes byte by byte, tunnels through real proxies of every kind, and whose fault it was."""

import asyncio
import ssl
from urllib.parse import urlsplit

import pytest

from signalbox.core.tunnels import TunnelRefused, proxy_of
from signalbox.gateway.adapters.origins import Route
from signalbox.gateway.adapters.upstream_pool import Unreachable, UpstreamPool
from signalbox.v1.common_pb2 import OUTCOME_UPSTREAM_ERROR
from signalbox.v1.scheduler_pb2 import AccountEffect, AccountModels
from tests.support.certificates import self_signed
from tests.support.machine import busy
from tests.support.proxies import PASSWORD, TestProxy

REQUEST = b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n"
SCHEMES = ["http", "https", "socks5", "socks5h"]

# ---------------------------------------------------------------------------------------------- without a socket

GRANTED = b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50"
TALKS = [
    ("http://p", "h.example", [(b"CONNECT h.example:443 HTTP/1.1\r\nhost: h.example:443\r\n\r\n", b"HTTP/1.1 200 OK\r\na: b\r\n\r\n")]),
    ("http://u:p%40s@p:1", "2001:db8::1", [
        (b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nhost: [2001:db8::1]:443\r\nproxy-authorization: Basic dTpwQHM=\r\n\r\n",
         b"HTTP/1.0 299 Fine\r\n\r\n"),
    ]),
    ("socks5h://p", "h.example", [
        (b"\x05\x01\x00", b"\x05\x00"), (b"\x05\x01\x00\x03\x09h.example\x01\xbb", GRANTED),
    ]),
    ("socks5://u:pw@p", "192.0.2.7", [
        (b"\x05\x02\x00\x02", b"\x05\x02"), (b"\x01\x01u\x02pw", b"\x01\x00"),
        (b"\x05\x01\x00\x01\xc0\x00\x02\x07\x01\xbb", b"\x05\x00\x00\x04" + bytes(18)),
    ]),
    ("socks5://p", "2001:db8::1", [
        (b"\x05\x01\x00", b"\x05\x00"),
        (b"\x05\x01\x00\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x01\x01\xbb", b"\x05\x00\x00\x03\x02xy\x00\x00"),
    ]),
]


@pytest.mark.parametrize("piecewise", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize(("url", "host", "talk"), TALKS, ids=[f"{u} {h}" for u, h, _ in TALKS])
def test_what_is_said_to_a_proxy(url, host, talk, piecewise):
    handshake = proxy_of(url).handshake(host, 443)
    said = handshake.begin()
    for expected, answer in talk:
        assert said == expected
        assert not handshake.done
        pieces = [answer[i:i + 1] for i in range(len(answer))] if piecewise else [answer]
        said = b"".join(handshake.received(piece) for piece in pieces)
    assert handshake.done


@pytest.mark.parametrize(("url", "answers", "why"), [
    ("http://p", [b"HTTP/1.1 407 No\r\n\r\n"], "asks for credentials"),
    ("http://u:secret@p", [b"HTTP/1.1 407 No\r\n\r\n"], "refuses the credentials"),
    ("http://p", [b"HTTP/1.1 503 secret\r\n\r\n"], "answers 503"),
    ("http://p", [b"SSH-2.0-x\r\n\r\n"], "does not speak HTTP"),
    ("http://p", [b"HTTP/1.1 200 OK\r\n\r\nsecret"], "talks inside the tunnel"),
    ("http://p", [b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 5000, b"x"], "has no end"),
    ("socks5h://p", [b"\x04\x00"], "does not speak SOCKS5"),
    ("socks5h://p", [b"\x05\xff"], "asks for credentials"),
    ("socks5h://u:secret@p", [b"\x05\xff"], "takes no password"),
    ("socks5h://u:secret@p", [b"\x05\x02", b"\x01\x01"], "refuses the credentials"),
    ("socks5h://p", [b"\x05\x00", b"\x05\x02\x00\x01"], "does not allow it"),
    ("socks5h://p", [b"\x05\x00", b"\x05\x63\x00\x01"], "refuses"),
    ("socks5h://p", [b"\x05\x00", GRANTED + b"secret"], "talks inside the tunnel"),
])
def test_a_refusal_says_why_and_quotes_nothing(url, answers, why):
    handshake = proxy_of(url).handshake("h.example", 443)
    handshake.begin()
    with pytest.raises(TunnelRefused, match=why) as refused:
        for answer in answers:
            handshake.received(answer)
    assert "secret" not in str(refused.value)


def test_no_proxy_shows_its_password():
    proxy = proxy_of("socks5h://user:hidden@p.example")
    assert (proxy.host, proxy.port, proxy.password) == ("p.example", 1080, b"hidden")
    assert "hidden" not in repr(proxy)
    with pytest.raises(ValueError, match="not the URL of a proxy"):
        proxy_of("ftp://p.example")


# ---------------------------------------------------------------------------------------------- over real sockets


class Answer:
    def __init__(self):
        self.data = b""
        self.done = asyncio.get_running_loop().create_future()

    def received(self, head, data, whole):
        self.data += data
        if whole:
            self.done.set_result("whole")

    def lost(self, how):
        self.done.set_result(how)


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    """A certificate for localhost as a server's context, and a client's context that trusts it alone."""
    server, cert = self_signed(tmp_path_factory.mktemp("tls"))
    client = ssl.create_default_context(cafile=str(cert))
    client.set_alpn_protocols(["http/1.1"])
    return server, client


@pytest.fixture
async def proxied(identity):
    """Makes proxies, and a pool that trusts what `identity` proves."""
    server, client = identity
    pool = UpstreamPool(idle_s=5, idle_per_route=2, tls=client)
    made = []

    async def make(scheme, **options):
        proxy = TestProxy(scheme, tls=server if scheme == "https" else None, **options)
        made.append(await proxy.start())
        return proxy

    make.pool = pool
    yield make
    pool.close()
    for proxy in made:
        proxy.stop()


@pytest.fixture
async def provider(identity):
    """An HTTPS provider that says which path it was asked for."""

    async def answer(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(2)
                body = head.split(b" ")[1]
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    servers = []

    async def start(*, tls):
        server = await asyncio.start_server(answer, "localhost", 0, ssl=identity[0] if tls else None, family=2)
        servers.append(server)
        return f"{'https' if tls else 'http'}://localhost:{server.sockets[0].getsockname()[1]}"

    yield start
    for server in servers:
        server.close()


async def until(condition):
    """Wait for what a peer does."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def ask(pool, route):
    connection = pool.take(route) or await pool.connect(route, 20)
    answer = Answer()
    connection.send(REQUEST, b"{}", answer)
    assert await asyncio.wait_for(answer.done, 20) == "whole"
    return connection, answer.data


@pytest.mark.parametrize("tls", [True, False], ids=["https", "http"])
@pytest.mark.parametrize("password", [True, False], ids=["password", "open"])
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_requests_go_through_the_tunnel_and_the_connection_is_kept(proxied, provider, scheme, password, tls):
    proxy = await proxied(scheme, password=password)
    url = await provider(tls=tls)
    host = "localhost" if scheme == "https" else "127.0.0.1"
    route = Route("default/a", url, proxy.url(host))
    first, data = await ask(proxied.pool, route)
    assert data == b"/v1/messages"
    second, _ = await ask(proxied.pool, route)
    assert second is first
    port = urlsplit(url).port
    assert proxy.asked == [f"{'127.0.0.1' if scheme == 'socks5' else 'localhost'}:{port}"], "once, by name unless it does not resolve"
    assert any(b"/v1/messages" in seen for seen in proxy.seen) == (not tls), "TLS runs inside the tunnel"
    assert proxied.pool.take(Route("default/b", url, proxy.url(host))) is None, "nobody else's"
    assert proxied.pool.take(Route("default/a", url)) is None, "nor without the proxy"


FAULTS = [
    *(("silent", s, True) for s in ("http", "https", "socks5h")), *(("hangs up", s, False) for s in SCHEMES),
    *(("garbage", s, False) for s in ("http", "socks5h")), *(("refuses", s, False) for s in SCHEMES),
    *(("talks", s, False) for s in ("http", "socks5h")),
]


@pytest.mark.parametrize(("fault", "scheme", "timed_out"), FAULTS, ids=[f"{s} {f}" for f, s, _ in FAULTS])
async def test_a_proxy_at_fault_is_named_in_time(proxied, provider, fault, scheme, timed_out):
    proxy = await proxied(scheme, fault=fault, password=True)
    began_s = asyncio.get_running_loop().time()
    # TLS inside makes a proxy that talks into the tunnel the provider's fault where its words come late: plain http here.
    route = Route("default/a", await provider(tls=False), proxy.url("localhost"))
    with pytest.raises(Unreachable) as caught:
        connection = await proxied.pool.connect(route, 0.5 if timed_out else 20)
        answer = Answer()    # words that come after the tunnel was opened are found when the connection is used
        connection.send(REQUEST, b"{}", answer)
        await until(lambda: connection.closed)
        raise Unreachable("closed", proxy=True)
    assert (caught.value.proxy, caught.value.timed_out) == (True, timed_out)
    assert asyncio.get_running_loop().time() - began_s < 2.5 * busy()
    assert PASSWORD not in str(caught.value)
    assert "signal" not in str(caught.value)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_wrong_credentials_are_refused(proxied, provider, scheme):
    proxy = await proxied(scheme, password=True)
    route = Route("default/a", await provider(tls=True), proxy.url("localhost", password="wrong-one"))
    with pytest.raises(Unreachable, match="refuses the credentials") as caught:
        await proxied.pool.connect(route, 20)
    assert caught.value.proxy
    assert "wrong-one" not in repr(caught.value.__cause__)


@pytest.mark.slow
async def test_a_provider_behind_a_good_proxy_answers_for_itself(proxied, identity):
    """Who does not prove its name, and who says nothing, is at fault itself."""
    proxy = await proxied("http")

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(listen, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    with pytest.raises(Unreachable) as caught:
        await proxied.pool.connect(Route("default/a", f"https://127.0.0.1:{port}", proxy.url()), 1.0)
    assert (caught.value.proxy, caught.value.timed_out) == (False, True)
    silent.close()
    stranger = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=identity[0])
    port = stranger.sockets[0].getsockname()[1]
    with pytest.raises(Unreachable) as caught:
        await proxied.pool.connect(Route("default/a", f"https://127.0.0.1:{port}", proxy.url()), 20)
    assert (caught.value.proxy, caught.value.timed_out) == (False, False)
    stranger.close()


async def test_who_hangs_up_while_a_tunnel_is_asked_for_leaves_nothing_open(proxied, provider):
    proxy = await proxied("http", fault="silent")
    route = Route("default/a", await provider(tls=True), proxy.url())
    dialling = asyncio.create_task(proxied.pool.connect(route, 20))
    await until(lambda: proxy._writers)
    dialling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialling
    [writer] = proxy._writers
    await until(lambda: writer.transport.is_closing() or not proxied.pool._routes)
    proxy.fault = ""


# ---------------------------------------------------------------------------------------------- a whole request


async def test_an_account_whose_proxy_is_away_rests_alone_and_another_serves(gate, wire):
    async def hello(w):
        w.answer(200, wire.MESSAGE)

    first = await gate.provider(hello)
    await gate.provider(hello)
    gate.credentials.proxies["default/a1"] = "socks5h://signal:hidden-word@127.0.0.1:1"
    reply = await gate.client.post(wire.BODY)
    assert (reply.status, reply.headers["x-signalbox-attempts"]) == (200, "2")
    failed, served = gate.journal.rows
    assert (failed.account_id, failed.outcome, failed.reason, failed.sent) == (
        "default/a1", OUTCOME_UPSTREAM_ERROR, "proxy_unreachable", False,
    )
    assert served.account_id == "default/a2"
    assert first.requests == []
    effect = gate.scheduler.retries[0].failed.effect
    assert effect == AccountEffect(kind=AccountEffect.COOL, reason="ProxyUnreachable", account_only=True)
    assert "hidden-word" not in str(gate.journal.rows) + str(gate.scheduler.retries)


async def test_models_are_listed_through_the_proxy_too(gate, proxied):
    async def models(w):
        w.answer(200, b'{"data": [{"id": "claude-x", "type": "model"}], "has_more": false}')

    provider = await gate.provider(models)
    proxy = await proxied("socks5h", password=True)
    gate.credentials.proxies["default/a1"] = proxy.url()
    account = AccountModels(account_id="default/a1", base_url=gate.scheduler.accounts[0][1])
    assert [m["id"] for m in await gate.models.of(account)] == ["claude-x"]
    assert len(proxy.asked) == len(provider.requests) == 1
    gate.credentials.proxies["default/a1"] = "socks5h://127.0.0.1:1"
    account.account_id = "default/a1"
    account.base_url += "/"
    assert await gate.models.of(account) is None
