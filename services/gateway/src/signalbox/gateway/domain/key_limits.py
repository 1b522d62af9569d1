"""The caller's own limits as the headers that Anthropic's clients know; the provider's are never passed on."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from signalbox.core.clock import rfc3339
from signalbox.v1.common_pb2 import Amount, LimitState

Header = tuple[bytes, bytes]


class _Kind(NamedTuple):
    amounts: bytes
    reset: bytes


_REQUESTS = _Kind(
    b"anthropic-ratelimit-requests-limit: %d\r\nanthropic-ratelimit-requests-remaining: %d\r\n",
    b"anthropic-ratelimit-requests-reset: %b\r\n",
)
_TOKENS = _Kind(
    b"anthropic-ratelimit-tokens-limit: %d\r\nanthropic-ratelimit-tokens-remaining: %d\r\n",
    b"anthropic-ratelimit-tokens-reset: %b\r\n",
)

_Left = tuple[int, int, int]    # remaining, limit, when it resets (Unix ms); the smallest is the tightest


def ratelimit_headers(limits: Sequence[LimitState]) -> list[Header]:
    """Return `anthropic-ratelimit-{requests,tokens}-{limit,remaining,reset}` of the tightest limits, if any."""
    lines = ratelimit_lines(limits).splitlines()
    return [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]


def ratelimit_lines(limits: Sequence[LimitState]) -> bytes:
    """Return the same as lines of a head, each with its end."""
    requests: _Left | None = None
    tokens: _Left | None = None
    for state in limits:    # reading a message is dear: each is looked at once
        if state.HasField("requests"):
            left = _left(state.requests, state.resets_at_ms)
            requests = left if requests is None else min(requests, left)
        if state.HasField("tokens"):
            left = _left(state.tokens, state.resets_at_ms)
            tokens = left if tokens is None else min(tokens, left)
    return _lines(_REQUESTS, requests) + _lines(_TOKENS, tokens)


def _left(amount: Amount, resets_at_ms: int) -> _Left:
    limit = amount.limit
    return max(0, limit - amount.used - amount.reserved), limit, resets_at_ms


def _lines(kind: _Kind, left: _Left | None) -> bytes:
    if left is None:
        return b""
    remaining, limit, resets_at_ms = left
    amounts = kind.amounts % (limit, remaining)
    return amounts + kind.reset % _second(resets_at_ms // 1000) if resets_at_ms else amounts


@lru_cache(maxsize=1024)
def _second(unix_s: int) -> bytes:
    return rfc3339(unix_s * 1000).encode()
