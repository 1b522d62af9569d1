"""The caller's own limits as headers, where a scheduler told the limits and not the lines (a denial, an older one)."""

from collections.abc import Sequence

from signalbox.v1.common_pb2 import Amount, LimitState
from signalbox.wire.key_limits import Left, left, limit_lines

Header = tuple[bytes, bytes]


def ratelimit_headers(limits: Sequence[LimitState]) -> list[Header]:
    """Return `anthropic-ratelimit-{requests,tokens}-{limit,remaining,reset}` of the tightest limits, if any."""
    lines = ratelimit_lines(limits).splitlines()
    return [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]


def ratelimit_lines(limits: Sequence[LimitState]) -> bytes:
    """Return the same as lines of a head, each with its end."""
    requests = [_left(s.requests, s) for s in limits if s.HasField("requests")]
    tokens = [_left(s.tokens, s) for s in limits if s.HasField("tokens")]
    return limit_lines(min(requests, default=None), min(tokens, default=None))


def _left(amount: Amount, state: LimitState) -> Left:
    return left(amount.limit, amount.used, amount.reserved, state.resets_at_ms)
