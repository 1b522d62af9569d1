"""One count_tokens call with an account's credential: does the provider accept it?

Sends the credential, the API version and the body, and says of itself nothing else. Redirects are not followed.
"""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2

from signalbox.token_refresher.adapters import tunnelling
from signalbox.token_refresher.domain.credentials import Credential
from signalbox.token_refresher.domain.oauth import shown

API_VERSION = "2023-06-01"
DEFAULT_MODEL = "claude-haiku-4-5"
_PATH = "/v1/messages/count_tokens"
_MAX_ANSWER_BYTES = 64 << 10
MAX_TOKENS = 10**12    # beyond it, it is no count


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a probe ended. `status` 0: no answer came. `message` is safe to show."""

    status: int
    error_type: str
    message: str
    duration_ms: int
    input_tokens: int

    @property
    def ok(self) -> bool:
        """Whether the provider counted tokens for this credential."""
        return self.status == httpx2.codes.OK and not self.error_type


async def probe(credential: Credential, base_url: str, model: str, limit_s: float) -> Verdict:
    """Make the call, within `limit_s` seconds. Never raises for what the provider or the network does."""
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(limit_s):
            status, body = await _post(credential, base_url, model or DEFAULT_MODEL, limit_s)
    except TimeoutError:
        return _no_answer(began_s, "timeout_error", f"no answer within {limit_s:g} s")
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as e:
        # The texts of these errors may quote a proxy's URL, which may hold a password.
        return _no_answer(began_s, "connection_error", f"the provider can't be reached ({type(e).__name__})")
    return _read(status, body, _since(began_s), credential)


async def _post(credential: Credential, base_url: str, model: str, limit_s: float) -> tuple[int, bytes]:
    if urlsplit(base_url).scheme not in ("http", "https"):
        raise ValueError("not an http(s) URL")
    headers = {**dict(credential.headers), "anthropic-version": API_VERSION, "content-type": "application/json",
               "accept-encoding": "identity"}
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "ping"}]}).encode()
    # Built by hand: a client's own build_request would add a user-agent.
    request = httpx2.Request("POST", base_url.rstrip("/") + _PATH, headers=headers, content=body)
    async with tunnelling.client(credential.proxy_url, tunnelling.trust(), limit_s) as client:
        answer = await client.send(request, stream=True, follow_redirects=False)
        try:
            received = b""
            async for chunk in answer.aiter_raw():
                received += chunk
                if len(received) > _MAX_ANSWER_BYTES:
                    break
            return answer.status_code, received
        finally:
            await answer.aclose()


def _read(status: int, body: bytes, duration_ms: int, credential: Credential) -> Verdict:
    parsed = _object(body)
    if 300 <= status < 400:
        message = "the provider answered with a redirect, which is not followed; check baseURL"
        return Verdict(status, "invalid_request_error", message, duration_ms, 0)
    tokens = parsed.get("input_tokens")
    if status == httpx2.codes.OK and isinstance(tokens, int) and 0 <= tokens <= MAX_TOKENS:
        return Verdict(status, "", "", duration_ms, tokens)
    error = parsed.get("error")
    error = error if isinstance(error, dict) else {}
    kind, text = str(error.get("type") or "api_error"), str(error.get("message") or "no count_tokens answer")
    return Verdict(status, _shown(kind, credential)[:64], _shown(text, credential), duration_ms, 0)


def _object(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _shown(text: str, credential: Credential) -> str:
    """A provider may quote the credential that it refuses."""
    values = [value for name, value in credential.headers if name != "anthropic-beta"]
    return shown(text, (*values, *(value.removeprefix("Bearer ") for value in values)))


def _no_answer(began_s: float, error_type: str, message: str) -> Verdict:
    return Verdict(0, error_type, message, _since(began_s), 0)


def _since(began_s: float) -> int:
    return int((time.monotonic() - began_s) * 1000)
