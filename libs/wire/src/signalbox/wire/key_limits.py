"""A relay key's own limits as the headers that Anthropic's clients know; a provider's are never passed on."""

from datetime import UTC, datetime
from functools import lru_cache

Left = tuple[int, int, int]
"""Remaining, limit, when it resets (Unix ms, 0: not by itself). Of several limits the smallest is the tightest."""

_REQUESTS = b"anthropic-ratelimit-requests-limit: %d\r\nanthropic-ratelimit-requests-remaining: %d\r\n"
_REQUESTS_RESET = b"anthropic-ratelimit-requests-reset: %b\r\n"
_TOKENS = b"anthropic-ratelimit-tokens-limit: %d\r\nanthropic-ratelimit-tokens-remaining: %d\r\n"
_TOKENS_RESET = b"anthropic-ratelimit-tokens-reset: %b\r\n"


def left(limit: int, used: int, reserved: int, resets_at_ms: int) -> Left:
    """Return what is left of a limit."""
    return max(0, limit - used - reserved), limit, resets_at_ms


def limit_lines(requests: Left | None, tokens: Left | None) -> bytes:
    """Return `anthropic-ratelimit-{requests,tokens}-{limit,remaining,reset}` as lines of a head, each with its end."""
    lines = b""
    if requests is not None:
        remaining, limit, resets_at_ms = requests
        lines = _REQUESTS % (limit, remaining)
        if resets_at_ms:
            lines += _REQUESTS_RESET % _second(resets_at_ms // 1000)
    if tokens is not None:
        remaining, limit, resets_at_ms = tokens
        lines += _TOKENS % (limit, remaining)
        if resets_at_ms:
            lines += _TOKENS_RESET % _second(resets_at_ms // 1000)
    return lines


@lru_cache(maxsize=1024)
def _second(unix_s: int) -> bytes:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()
