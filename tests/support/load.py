"""Callers that behave like people: streamed and not, some of whom hang up; each writes down what it saw."""

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx2

MODEL = "claude-sonnet-5-5"


@dataclass
class Seen:
    """What one caller saw of one request."""

    status: int = 0
    request_id: str = ""
    upstream_request_id: str = ""
    attempts: int = 0
    error_code: str = ""
    whole: bool = False
    hung_up: bool = False
    failed: str = ""
    body: bytes = field(default=b"", repr=False)

    @property
    def kind(self) -> str:
        """A short word for the result, to count by."""
        if self.hung_up:
            return "hung up"
        if self.failed:
            return f"connection: {self.failed}"
        if self.error_code:
            return self.error_code
        return "whole" if self.whole else f"status {self.status}, not whole"


def message(prompt: str = "Hello", *, stream: bool = False, model: str = MODEL, **fields: Any) -> dict[str, Any]:
    """Return a Messages body."""
    body: dict[str, Any] = {
        "model": model, "max_tokens": 256, "messages": [{"role": "user", "content": prompt}], **fields,
    }
    return {**body, "stream": True} if stream else body


def error_code_of(body: bytes) -> str:
    """Return the error code in an answer's or a stream's end, or an empty string."""
    text = body.decode(errors="replace")
    candidates = [text, *(line[len("data: ") :] for line in text.splitlines() if line.startswith("data: "))]
    for candidate in reversed(candidates):
        try:
            parsed = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(parsed, dict) and parsed.get("type") == "error":
            error = parsed["error"]
            return str((error.get("details") or {}).get("error_code") or error["type"])
    return ""


async def ask(
    http: httpx2.AsyncClient, key: str, body: dict[str, Any], *, hang_up_after_bytes: int | None = None,
) -> Seen:
    """Make one request and read it to its end, or hang up after so many bytes of the answer."""
    seen = Seen()
    headers = {"x-api-key": key, "anthropic-version": "2023-06-01"}
    try:
        async with http.stream("POST", "/v1/messages", json=body, headers=headers) as response:
            seen.status = response.status_code
            seen.request_id = response.headers.get("x-signalbox-request-id", "")
            seen.upstream_request_id = response.headers.get("request-id", "")
            seen.attempts = int(response.headers.get("x-signalbox-attempts", 0))
            chunks = []
            async for chunk in response.aiter_raw():
                chunks.append(chunk)
                if hang_up_after_bytes is not None and sum(map(len, chunks)) >= hang_up_after_bytes:
                    seen.hung_up = True
                    break
            seen.body = b"".join(chunks)
    except httpx2.HTTPError as e:
        seen.failed = type(e).__name__
        return seen
    seen.error_code = error_code_of(seen.body) if not seen.hung_up else ""
    end = b"message_stop" if body.get("stream") else b'"usage"'
    seen.whole = seen.status == 200 and end in seen.body and not seen.error_code
    return seen


async def mixed(
    url: str, key: str, *, seed: int, callers: int, until: asyncio.Event, prompts: list[str], hang_ups: float = 0.1,
) -> list[Seen]:
    """Let `callers` ask one request after another until the event is set; return what all of them saw."""
    rng = random.Random(seed)
    seen: list[Seen] = []
    limits = httpx2.Limits(max_connections=callers * 2, max_keepalive_connections=callers)
    async with httpx2.AsyncClient(base_url=url, timeout=60, limits=limits) as http:

        async def caller(own: random.Random) -> None:
            while not until.is_set():
                stream = own.random() < 0.6
                after = own.randrange(1, 4000) if own.random() < hang_ups else None
                result = await ask(http, key, message(own.choice(prompts), stream=stream), hang_up_after_bytes=after)
                seen.append(result)
                if result.failed or result.status >= 429:
                    await asyncio.sleep(0.05)

        await asyncio.gather(*(caller(random.Random(rng.random())) for _ in range(callers)))
    return seen


def count(seen: list[Seen]) -> Counter[str]:
    """Count results by kind."""
    return Counter(s.kind for s in seen)
