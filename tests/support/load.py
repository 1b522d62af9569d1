"""Callers that behave like people: streamed and not, long and short, some of whom hang up or meet a provider's faults.

Each request asks for a model name of its own (a date that no other request uses), so that it can be found again in
the provider's truth and in the ledger, whoever was killed in between. Callers write down what they saw; whether that
agrees with anything is compare.py's business.
"""

import asyncio
import json
import random
import threading
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count as counting
from typing import Any

import httpx2

MESSAGES = "/v1/messages"
COUNT_TOKENS = "/v1/messages/count_tokens"
MODEL = "claude-sonnet-5-5"
MODELS = ("claude-sonnet-5-5", "claude-opus-5-5", "claude-haiku-4-5")
_NUMBERS = counting(random.SystemRandom().randrange(1_000_000))

# What a caller may ask the provider to do to its request, and how often out of a hundred. Without a stream, only the
# first attempt meets it: the second is whole.
STREAM_TROUBLES = (
    (2, "[[sim once status=500]]"),
    (1, "[[sim once drop=reset]]"),
    (2, "[[sim cut=fin cut.at=half]]"),
    (1, "[[sim cut=rst cut.at=content]]"),
    (2, "[[sim status=400]]"),
    (1, "[[sim error_event=overloaded_error error_event.at=half]]"),
)
PLAIN_TROUBLES = (
    (2, "[[sim once status=500]]"),
    (1, "[[sim once drop=reset]]"),
    (1, "[[sim once cut=fin cut.at=half]]"),
    (2, "[[sim status=400]]"),
)


def model_of_its_own(base: str = MODEL) -> str:
    """Return a name for a known model that no other request of this run uses."""
    return f"{base}-20{next(_NUMBERS) % 1_000_000:06d}"


@dataclass
class Seen:
    """What one caller saw of one request. Times are monotonic."""

    model: str = ""
    streamed: bool = False
    troubled: bool = False   # asked the provider for a fault
    began_s: float = 0.0
    ended_s: float = 0.0
    status: int = 0
    request_id: str = ""
    upstream_request_id: str = ""
    attempts: int = 0
    retry_after: str = ""
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


def _asks_for_trouble(body: dict[str, Any]) -> bool:
    prompt = str(body["messages"])
    return any(marker in prompt for _, marker in (*STREAM_TROUBLES, *PLAIN_TROUBLES))


def data_lines(body: bytes) -> list[dict[str, Any]]:
    """Return the data of a stream's whole frames."""
    found = []
    for line in body.decode(errors="replace").splitlines():
        if line.startswith("data: "):
            try:
                found.append(json.loads(line[len("data: ") :]))
            except ValueError:
                continue  # the stream broke off here
    return [d for d in found if isinstance(d, dict)]


def error_code_of(body: bytes) -> str:
    """Return the error code in an answer's or a stream's end, or an empty string."""
    try:
        candidates = [json.loads(body)]
    except ValueError:
        candidates = data_lines(body)[-1:]
    for parsed in candidates:
        if isinstance(parsed, dict) and parsed.get("type") == "error":
            error = parsed["error"]
            return str((error.get("details") or {}).get("error_code") or error["type"])
    return ""


async def ask(
    http: httpx2.AsyncClient, key: str, body: dict[str, Any], *, path: str = MESSAGES,
    hang_up_after_bytes: int | None = None, hang_up_after_s: float | None = None, pause_s: float = 0.0,
) -> Seen:
    """Make one request and read it to its end, or hang up after so many bytes of the answer or so many seconds.

    `pause_s`: how long to wait before each further piece of the answer is read.
    """
    seen = Seen(model=body["model"], streamed=bool(body.get("stream")), began_s=time.monotonic())
    seen.troubled = _asks_for_trouble(body)
    headers = {"x-api-key": key, "anthropic-version": "2023-06-01"}
    chunks: list[bytes] = []
    try:
        async with (
            asyncio.timeout(hang_up_after_s),
            http.stream("POST", path, json=body, headers=headers) as response,
        ):
            seen.status = response.status_code
            seen.request_id = response.headers.get("x-signalbox-request-id", "")
            seen.upstream_request_id = response.headers.get("request-id", "")
            seen.attempts = int(response.headers.get("x-signalbox-attempts", 0))
            seen.retry_after = response.headers.get("retry-after", "")
            async for chunk in response.aiter_raw():
                chunks.append(chunk)
                if hang_up_after_bytes is not None and sum(map(len, chunks)) >= hang_up_after_bytes:
                    seen.hung_up = True
                    break
                if pause_s:
                    await asyncio.sleep(pause_s)
    except TimeoutError:
        seen.hung_up = True
    except httpx2.HTTPError as e:
        seen.failed = type(e).__name__
    seen.body = b"".join(chunks)
    seen.ended_s = time.monotonic()
    if seen.failed or seen.hung_up:
        return seen
    seen.error_code = error_code_of(seen.body)
    end = b'"type":"message_stop"' if seen.streamed else b'"usage"' if path == MESSAGES else b'"input_tokens"'
    seen.whole = seen.status == 200 and end in seen.body.replace(b'": ', b'":') and not seen.error_code
    return seen


def count(seen: list[Seen]) -> Counter[str]:
    """Count results by kind."""
    return Counter(s.kind for s in seen)


class Load:
    """Callers in a thread of their own who ask one request after another from `with` to its end.

    `seen` grows as they go. `hold` begins long streams beside them, `ask` a single request.
    """

    def __init__(
        self, url: str, key: str, *, seed: int, callers: int = 10, hang_ups: float = 0.1, troubles: bool = True,
    ) -> None:
        self._url = url
        self._key = key
        self._rng = random.Random(seed)
        self._callers = callers
        self._hang_ups = hang_ups
        self._troubles = troubles
        self._loop = asyncio.new_event_loop()
        self._stopping = False
        self.seen: list[Seen] = []

    def __enter__(self) -> "Load":
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        limits = httpx2.Limits(max_connections=1000, max_keepalive_connections=self._callers)
        self._http = httpx2.AsyncClient(base_url=self._url, timeout=90, limits=limits)
        self._working = [
            asyncio.run_coroutine_threadsafe(self._caller(random.Random(self._rng.random())), self._loop)
            for _ in range(self._callers)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        for caller in self._working:
            caller.result(120)
        asyncio.run_coroutine_threadsafe(self._http.aclose(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def ask(self, body: dict[str, Any], *, key: str | None = None, **options: Any) -> Future[Seen]:
        """Begin one request (see the function `ask`); it is in `seen` as well once it has ended."""
        return asyncio.run_coroutine_threadsafe(self._ask(body, key=key, **options), self._loop)

    def hold(self, streams: int, *, for_s: float) -> list[Future[Seen]]:
        """Begin healthy streams that last about `for_s` seconds."""
        prompt = f"Take your time. [[sim deltas={int(for_s * 20)} delta_delay_s=0.05]]"
        bodies = [message(prompt, stream=True, model=model_of_its_own(), max_tokens=8192) for _ in range(streams)]
        return [self.ask(body) for body in bodies]

    # ------------------------------------------------------------------ in the thread

    async def _ask(self, body: dict[str, Any], *, key: str | None = None, **options: Any) -> Seen:
        seen = await ask(self._http, key or self._key, body, **options)
        self.seen.append(seen)
        return seen

    async def _caller(self, rng: random.Random) -> None:
        while not self._stopping:
            stream = rng.random() < 0.6
            hang_up = self._hang_up(rng) if rng.random() < self._hang_ups else {}
            body = message(self._prompt(rng, stream), stream=stream, model=model_of_its_own(rng.choice(MODELS)))
            seen = await self._ask(body, **hang_up)
            if seen.failed or seen.status >= 429:
                await asyncio.sleep(0.1)

    def _hang_up(self, rng: random.Random) -> dict[str, float]:
        if rng.random() < 0.5:
            return {"hang_up_after_s": rng.uniform(0.001, 0.3)}
        return {"hang_up_after_bytes": rng.randrange(1, 3000)}

    def _prompt(self, rng: random.Random, stream: bool) -> str:
        words = f"Question {rng.random()} " + "and so on " * rng.randrange(60)
        drawn = rng.randrange(100)
        troubles = STREAM_TROUBLES if stream else PLAIN_TROUBLES
        for share, marker in troubles if self._troubles else ():
            if drawn < share:
                return words + marker
            drawn -= share
        return words + f"[[sim deltas={rng.randrange(2, 30)} delta_delay_s=0.02]]"
