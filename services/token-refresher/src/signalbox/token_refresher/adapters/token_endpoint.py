"""Calls to token endpoints: through the account's proxy, without redirects, within a time limit, whole or not at all.

What an answer means is decided in domain/oauth.py; here only what the network did is told apart: whether the request
can have reached the endpoint, and whether all of the answer came back.
"""

import asyncio
import ssl
from importlib.metadata import version
from typing import Any

import httpx2

from signalbox.core.clock import Clock
from signalbox.token_refresher.adapters import tunnelling
from signalbox.token_refresher.domain.oauth import Answer, Lost, Reply, TokenRequest, Unsent, read_reply

_MAX_ANSWER_BYTES = 256 << 10
_USER_AGENT = f"signalbox/{version('signalbox-token-refresher')}"


class AnswerTooLarge(Exception):
    """The endpoint's answer is larger than any token is."""


class TokenEndpoint:
    """Asks token endpoints, each time over a new connection: calls are rare, and each account has its own proxy."""

    def __init__(self, clock: Clock, limit_s: float, tls: ssl.SSLContext | None = None) -> None:
        self._clock = clock
        self._limit_s = limit_s
        self._tls = tls or tunnelling.trust()

    async def ask(self, request: TokenRequest) -> Answer:
        """Return what came of it, within the limit. Never raises for what the endpoint or the network does."""
        sent_at_ms = self._clock.now_ms()
        phase = _Phase()
        try:
            async with asyncio.timeout(self._limit_s):
                reply = await self._post(request, phase)
        except TimeoutError:
            return phase.failure(f"no answer within {self._limit_s:g} s")
        except (httpx2.HTTPError, httpx2.InvalidURL, AnswerTooLarge, ssl.SSLError, OSError, ValueError) as e:
            # The texts of these errors may quote a proxy's URL, which may hold a password.
            return phase.failure(f"can't be reached ({type(e).__name__})")
        return read_reply(reply, request, sent_at_ms)

    async def _post(self, request: TokenRequest, phase: "_Phase") -> Reply:
        headers = {"user-agent": _USER_AGENT, "accept-encoding": "identity", **dict(request.headers)}
        outgoing = httpx2.Request(
            "POST", request.url, headers=headers, content=request.body, extensions={"trace": phase.trace},
        )
        async with tunnelling.client(request.proxy_url, self._tls, self._limit_s) as client:
            answer = await client.send(outgoing, stream=True, follow_redirects=False)
            try:
                body = b""
                async for chunk in answer.aiter_bytes():
                    body += chunk
                    if len(body) > _MAX_ANSWER_BYTES:
                        raise AnswerTooLarge
            finally:
                await answer.aclose()
        return Reply(answer.status_code, {name.lower(): value for name, value in answer.headers.items()}, body)


class _Phase:
    """How far a call came, as the HTTP library tells while it works."""

    def __init__(self) -> None:
        self._left = False

    async def trace(self, event: str, _: dict[str, Any]) -> None:
        """Note the first moment at which the endpoint may have got the whole request."""
        if event.endswith("send_request_body.started"):
            self._left = True

    def failure(self, why: str) -> Answer:
        message = f"the token endpoint: {why}"
        return Lost(message) if self._left else Unsent(message)
