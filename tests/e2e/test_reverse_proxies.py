"""The reverse proxies of docs/reverse-proxies.md, as configured there: streams flow, large bodies pass, addresses arrive."""

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.caller import message
from tests.support.instance import Instance, account, relay_key, secret
from tests.support.machine import free_port
from tests.support.sim import Simulator

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "reverse-proxies.md"
API_KEY = "sk-ant-behind-a-reverse-proxy"
UNPACKED = Path(__file__).parents[1] / "clients" / "debian" / "usr"    # scripts/setup.sh clients
PROGRAMS = os.pathsep.join(map(str, (UNPACKED / "sbin", UNPACKED / "bin", "/usr/sbin", "/usr/bin")))
ANYWHERE, FROM_TWO = "relay-key-from-anywhere", "relay-key-from-one-address"


def example(language: str) -> str:
    """Return the page's only example in this language."""
    [text] = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return str(text)


def nginx(directory: Path, port: int, upstream: int) -> list[str]:
    text = example("nginx").replace("127.0.0.1:8080", f"127.0.0.1:{upstream}").replace("listen 443 ssl", f"listen 127.0.0.1:{port}")
    text = "".join(line for line in text.splitlines(keepends=True) if "ssl_certificate" not in line)
    paths = "".join(
        f"{kind}_temp_path {directory}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "nginx.conf").write_text(
        f"daemon off; pid {directory}/pid; error_log {directory}/error.log;\nevents {{}}\n"
        f"http {{ access_log off;\n{paths}{text}}}\n",
    )
    return ["nginx", "-e", f"{directory}/error.log", "-p", str(directory), "-c", f"{directory}/nginx.conf"]


def caddy(directory: Path, port: int, upstream: int) -> list[str]:
    text = example("caddyfile").replace("127.0.0.1:8080", f"127.0.0.1:{upstream}")
    text = text.replace("relay.example.com", f"http://127.0.0.1:{port}")
    (directory / "Caddyfile").write_text("{\n admin off\n auto_https off\n}\n" + text)
    return ["caddy", "run", "--config", f"{directory}/Caddyfile", "--adapter", "caddyfile"]


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Instance, Simulator]]:
    with Simulator({"accounts": [{"name": "a", "key": API_KEY}]}) as sim:
        documents = [
            secret("a", **{"api-key": API_KEY}), account("a", sim.url),
            secret("ada", **{"relay-key": ANYWHERE}), relay_key("ada"),
            secret("bob", **{"relay-key": FROM_TWO}), relay_key("bob", sourceCIDRs=["127.0.0.2/32"]),
        ]
        environment = {"SIGNALBOX_GATEWAY_TRUSTED_PROXIES": "127.0.0.1/32"}
        with Instance(tmp_path_factory.mktemp("relay"), documents, environment=environment) as instance:
            yield instance, sim


@pytest.fixture(scope="module", params=[nginx, caddy], ids=["nginx", "caddy"])
def front(request: pytest.FixtureRequest, relay: tuple[Instance, Simulator], tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a reverse proxy before the relay."""
    configure: Callable[[Path, int, int], list[str]] = request.param
    if shutil.which(configure.__name__, path=PROGRAMS) is None:
        pytest.skip(f"{configure.__name__} is not here: scripts/setup.sh clients unpacks Debian's")
    directory, port = tmp_path_factory.mktemp("front"), free_port()
    upstream = urlsplit(relay[0].url).port
    assert upstream is not None
    environment = {"HOME": str(directory), "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory), "PATH": PROGRAMS}
    with (directory / "said").open("w") as said:
        program, *arguments = configure(directory, port, upstream)
        found = shutil.which(program, path=PROGRAMS)
        assert found is not None
        process = subprocess.Popen([found, *arguments], stdout=said, stderr=said, env=environment)
    try:
        end_s = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, (directory / "said").read_text()
                assert time.monotonic() < end_s
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(20)


def ask(port: int, body: bytes, *, key: str = ANYWHERE, source: str = "127.0.0.1", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60, source_address=(source, 0))
    fields = {"x-api-key": key, "anthropic-version": "2023-06-01", "content-type": "application/json", **headers}
    with contextlib.suppress(BrokenPipeError):    # who refuses a body may do so before it is whole
        connection.request("POST", "/v1/messages", body, fields)
    return connection.getresponse()


def small(**fields: object) -> bytes:
    return json.dumps(message(**fields)).encode()


def test_frames_arrive_as_they_are_sent(front, relay):
    _, sim = relay
    sim.script({"text": "slowly " * 8, "deltas": 8, "delta_delay_s": 0.5})
    answer = ask(front, small(stream=True))
    assert answer.status == 200
    arrivals = []
    while line := answer.readline():
        if line.startswith(b"data:") and b"content_block_delta" in line:
            arrivals.append(time.monotonic())
    assert len(arrivals) == 8
    assert arrivals[-1] - arrivals[0] > 1.2, "not held back until the end"


def test_large_bodies_pass_and_larger_ones_are_refused_by_the_gateway(front, relay):
    assert ask(front, small(prompt="x" * (31 << 20))).status == 200
    refused = ask(front, small(prompt="x" * (32 << 20)))
    assert refused.status == 413
    assert json.loads(refused.read())["error"]["details"]["error_code"] == "request_too_large"


def test_the_callers_address_arrives_and_cannot_be_claimed(front, relay):
    assert ask(front, small(), key=FROM_TWO, source="127.0.0.2").status == 200
    for claimed in ({}, {"x-forwarded-for": "127.0.0.2"}, {"x-forwarded-for": "127.0.0.2, 127.0.0.1"}):
        refused = ask(front, small(), key=FROM_TWO, source="127.0.0.3", **claimed)
        assert refused.status == 403
        assert json.loads(refused.read())["error"]["details"]["error_code"] == "source_not_allowed"


def test_what_the_proxy_adds_reaches_no_provider_and_nothing_is_lost(front, relay):
    instance, sim = relay
    sim.wait_quiet()
    sim.clear_truth()
    for session in ("session-id", "session_id"):
        assert ask(front, small(prompt=session), **{session: "s-1", "anthropic-beta": "made-up-2026-11-01"}).status == 200
    for row in sim.wait_quiet():
        named = {name.lower() for name, _ in row["headers"]}
        assert not {"x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip", "via", "forwarded"} & named
        assert "anthropic-beta" in named
    assert b"error" not in ask(front, small()).read()[:20]


def test_a_caller_that_hangs_up_ends_the_upstream_call(front, relay):
    _, sim = relay
    sim.wait_quiet()
    sim.script({"text": "long " * 400, "deltas": 400, "delta_delay_s": 0.1})
    answer = ask(front, small(stream=True))
    answer.readline()
    assert answer.fp is not None
    answer.close()
    sim.wait_quiet(2.0 + 3.0)    # the contract's two seconds, and slack for a busy machine
