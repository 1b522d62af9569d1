"""`accounts authorize` against a token-refresher and a provider of their own: the browser is this test."""

import asyncio
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from signalbox.cli.commands.authorize import _read, authorize
from signalbox.cli.errors import CommandFailed
from signalbox.core.errors import Refused
from signalbox.core.settings import RoomSettings
from signalbox.rooms.addresses import Addresses
from signalbox.rooms.client import Rooms
from signalbox.v1 import token_refresher_pb2 as pb
from tests.support.refresher import SECRET, Process, process
from tests.support.sim import Simulator


class Here:
    """Leads commands to one token-refresher."""

    def __init__(self, refresher: Process) -> None:
        self._addresses = Addresses(("unix:/nowhere",), refresher.address, "unix:/nowhere")

    def rooms(self) -> Rooms:
        return Rooms(self._addresses, RoomSettings(shared_secret=SECRET))


async def put(here: Here, url: str) -> None:
    config = {"tokenURL": f"{url}/v1/oauth/token", "authorizationURL": f"{url}/oauth/authorize", "clientID": "public",
              "baseURL": url}
    async with here.rooms() as rooms:
        for _ in range(20):
            try:
                await rooms.put_grant(pb.PutGrantRequest(
                    account_id="default/new", kind="oauth", config=config, seed_version="1"))
            except Exception:   # it is still starting
                await asyncio.sleep(1)
            else:
                return


def open_page(url: str) -> tuple[str, bytes]:
    """Follow the provider back to the loopback address; return where one ends and what is said there."""
    with urllib.request.urlopen(url, timeout=60) as page:
        return page.url, page.read()


class Command(threading.Thread):
    """Runs the command beside the test; `url` is the address that it prints."""

    def __init__(self, here: Here, name: str) -> None:
        super().__init__(daemon=True)
        self._here, self._name = here, name
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            authorize(self._here, self._name, browser=False)  # type: ignore[arg-type]
        except Exception as e:
            self.failure = e

    def url(self, capsys: Any) -> str:
        printed = ""
        while self.is_alive():
            printed += capsys.readouterr().out
            for line in printed.splitlines():
                if line.startswith("http"):
                    return line
            self.join(0.05)
        raise AssertionError(f"no address: {self.failure}")


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_browser_brings_the_code_back_and_nobody_else_does(tmp_path: Path, capsys: Any) -> None:
    with Simulator({
        "accounts": [{"name": "new"}], "oauth": {"clients": [{"id": "public", "account": "new"}], "expires_in": 600},
    }) as sim, process(tmp_path) as refresher:
        here = Here(refresher)
        asyncio.run(put(here, sim.url))
        command = Command(here, "new")
        command.start()
        url = command.url(capsys)
        callback = parse_qs(urlsplit(url).query)["redirect_uri"][0]
        assert callback.startswith("http://127.0.0.1:")
        open_page(f"{callback}?state=guessed&code=mine")
        with pytest.raises(urllib.error.HTTPError):
            open_page(callback.replace("/callback", "/favicon.ico"))
        where, said = open_page(url)
        assert where.startswith(callback)
        assert b"close this page" in said
        command.join(60)
        assert command.failure is None
        assert "default/new is authorised" in capsys.readouterr().out
        assert sim.truth(path="/v1/oauth/token")[0]["status"] == 200
        refused = Command(here, "new")
        refused.start()
        state = parse_qs(urlsplit(url2 := refused.url(capsys)).query)["state"][0]
        callback = parse_qs(urlsplit(url2).query)["redirect_uri"][0]
        open_page(f"{callback}?state={state}&error=access_denied&error_description=not+today")
        refused.join(60)
        assert isinstance(refused.failure, CommandFailed)
        assert "access_denied not today" in str(refused.failure)
        unknown = Command(here, "nobody")
        unknown.start()
        unknown.join(60)
        assert isinstance(unknown.failure, Refused)
        assert "there is no grant of default/nobody" in str(unknown.failure)


@pytest.mark.parametrize("line", [
    "POST /callback?state=s&code=c HTTP/1.1", "GET /?state=s&code=c HTTP/1.1", "GET /callback HTTP/1.1",
    "GET /callback?code=c HTTP/1.1", "nonsense", "", f"GET /callback?state=s&code={'c' * 5000} HTTP/1.1",
])
def test_what_is_no_redirect_is_passed_over(line: str) -> None:
    assert _read(line.encode() + b"\r\nhost: x\r\n\r\n") is None
