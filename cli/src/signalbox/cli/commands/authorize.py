"""`accounts authorize`: an operator signs in at the provider, in a browser, with the client that the document names.

Code with PKCE and a loopback redirect (RFC 8252). The verifier never comes here and the tokens neither: the
token-refresher makes the one and keeps the others; this only carries the code from the browser to it.
"""

import asyncio
import contextlib
import hmac
import sys
import webbrowser
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from signalbox.cli.commands.common import object_id
from signalbox.cli.errors import CommandFailed
from signalbox.cli.locate import Target

PATH = "/callback"
WAIT_S = 600.0
_READ_LIMIT_S = 10.0
_MAX_CODE_CHARS = 4096
_PAGE = "<!doctype html><meta charset=utf-8><title>Signalbox</title><p>{text}</p>"


@dataclass(frozen=True)
class Redirect:
    """What the provider sent the browser back with."""

    state: str
    code: str
    error: str


def authorize(target: Target, name: str, *, browser: bool) -> None:
    """Have an account authorised and wait until it is. Raises CommandFailed with what went wrong."""
    account = object_id(name)
    asyncio.run(_authorize(target, account, browser))
    print(f"{account} is authorised")


async def _authorize(target: Target, account: str, browser: bool) -> None:
    async with target.rooms() as rooms, _listening() as (redirect_uri, redirects):
        begun = await rooms.begin_authorization(account, redirect_uri)
        print(f"Open this address and sign in:\n\n{begun.authorization_url}\n", flush=True)
        if browser and sys.stdout.isatty():
            webbrowser.open(begun.authorization_url)
        try:
            async with asyncio.timeout(WAIT_S):
                redirect = await _matching(redirects, begun.state)
        except TimeoutError as e:
            raise CommandFailed(f"nobody came back from the provider within {WAIT_S / 60:g} minutes") from e
        if redirect.error or not redirect.code:
            raise CommandFailed(f"the provider refused: {_printable(redirect.error) or 'it gave no code'}")
        status = await rooms.complete_authorization(redirect.state, redirect.code)
        if not status.valid:
            raise CommandFailed(f"{account} is still not usable: {status.reason}: {status.message}")


async def _matching(redirects: "asyncio.Queue[Redirect]", state: str) -> Redirect:
    """Return the redirect that belongs to this authorisation; anybody on this machine can send others."""
    while True:
        redirect = await redirects.get()
        if hmac.compare_digest(redirect.state.encode(), state.encode()):
            return redirect


@contextlib.asynccontextmanager
async def _listening() -> AsyncIterator[tuple[str, "asyncio.Queue[Redirect]"]]:
    """Take redirects on a free loopback port."""
    redirects: asyncio.Queue[Redirect] = asyncio.Queue(16)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(_READ_LIMIT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                redirect = _read(head)
                if redirect is not None and not redirects.full():
                    redirects.put_nowait(redirect)
                text = "You can close this page and go back to the terminal." if redirect else "There is nothing here."
                body = _PAGE.format(text=text).encode()
                status = "200 OK" if redirect else "404 Not Found"
                writer.write(
                    f"HTTP/1.1 {status}\r\ncontent-type: text/html\r\ncontent-length: {len(body)}\r\n"
                    f"cache-control: no-store\r\nconnection: close\r\n\r\n".encode() + body,
                )
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{PATH}", redirects
    finally:
        server.close()


def _read(head: bytes) -> Redirect | None:
    """Return what a request says, None where it is none of a redirect."""
    words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    if len(words) != 3 or words[0] != "GET":
        return None
    url = urlsplit(words[1])
    if url.path != PATH:
        return None
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    code = query.get("code", "")
    if not query.get("state") or len(code) > _MAX_CODE_CHARS:
        return None
    error = " ".join(part for part in (query.get("error", ""), query.get("error_description", "")) if part)
    return Redirect(query["state"], code, error)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:300]
