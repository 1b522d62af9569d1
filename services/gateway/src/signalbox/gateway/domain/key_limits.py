"""The caller's own limits as the headers that Anthropic's clients know; the provider's are never passed on."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from signalbox.core.clock import rfc3339
from signalbox.v1.common_pb2 import Amount, LimitState

Header = tuple[bytes, bytes]


def ratelimit_headers(limits: Sequence[LimitState]) -> list[Header]:
    """Return `anthropic-ratelimit-{requests,tokens}-{limit,remaining,reset}` of the tightest limits, if any."""
    headers: list[Header] = []
    for kind, names in _NAMES.items():
        tightest: LimitState | None = None
        least = most = 0
        for state in limits:
            if state.HasField(kind):
                amount: Amount = getattr(state, kind)
                limit = amount.limit
                remaining = limit - amount.used - amount.reserved
                if tightest is None or remaining < least:
                    tightest, least, most = state, remaining, limit
        if tightest is not None:
            headers += _of(names, max(0, least), most, tightest)
    return headers


_NAMES: dict[Literal["requests", "tokens"], tuple[bytes, bytes, bytes]] = {
    "requests": (
        b"anthropic-ratelimit-requests-limit", b"anthropic-ratelimit-requests-remaining",
        b"anthropic-ratelimit-requests-reset",
    ),
    "tokens": (
        b"anthropic-ratelimit-tokens-limit", b"anthropic-ratelimit-tokens-remaining",
        b"anthropic-ratelimit-tokens-reset",
    ),
}


def _of(names: tuple[bytes, bytes, bytes], remaining: int, limit: int, state: LimitState) -> list[Header]:
    headers = [(names[0], b"%d" % limit), (names[1], b"%d" % remaining)]
    resets_at_ms = state.resets_at_ms
    if resets_at_ms:
        headers.append((names[2], _second(resets_at_ms // 1000)))
    return headers


@lru_cache(maxsize=1024)
def _second(unix_s: int) -> bytes:
    return rfc3339(unix_s * 1000).encode()
