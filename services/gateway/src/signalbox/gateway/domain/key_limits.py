"""The caller's own limits as the headers that Anthropic's clients know; the provider's are never passed on."""

from collections.abc import Sequence

from signalbox.core.clock import rfc3339
from signalbox.v1.common_pb2 import Amount, LimitState

Header = tuple[bytes, bytes]


def ratelimit_headers(limits: Sequence[LimitState]) -> list[Header]:
    """Return `anthropic-ratelimit-{requests,tokens}-{limit,remaining,reset}` of the tightest limits, if any."""
    headers: list[Header] = []
    for kind in ("requests", "tokens"):
        tightest: tuple[int, Amount, LimitState] | None = None
        for state in limits:
            if state.HasField(kind):
                amount: Amount = getattr(state, kind)
                remaining = max(0, amount.limit - amount.used - amount.reserved)
                if tightest is None or remaining < tightest[0]:
                    tightest = (remaining, amount, state)
        if tightest is not None:
            headers += _of(f"anthropic-ratelimit-{kind}", *tightest)
    return headers


def _of(prefix: str, remaining: int, amount: Amount, state: LimitState) -> list[Header]:
    headers = [
        (f"{prefix}-limit".encode(), b"%d" % amount.limit),
        (f"{prefix}-remaining".encode(), b"%d" % remaining),
    ]
    if state.resets_at_ms:
        headers.append((f"{prefix}-reset".encode(), rfc3339(state.resets_at_ms // 1000 * 1000).encode()))
    return headers
