"""What answers tell about their account's limits, told on to the scheduler as often as it can matter.

A busy account's answers repeat the same windows hundreds of times a second. How windows rank accounts is the
scheduler's business.
"""

from signalbox.gateway.domain.events import ResponseHead
from signalbox.v1.common_pb2 import Window
from signalbox.wire.limits import read_windows

TOLD_EVERY_S = 0.1
TIGHT = 0.8     # utilization from which on every answer counts
FIRST_ERROR_STATUS = 400


class LimitNews:
    """Remembers, by account, when its windows may be left out. Only what is plentiful is ever left out."""

    def __init__(self) -> None:
        self._known_until_s: dict[str, float] = {}

    def windows(self, account_id: str, head: ResponseHead | None, now_s: float) -> list[Window]:
        """Return the windows of an answer, or nothing where ample ones were told a moment ago."""
        if head is None:
            return []
        if head.status < FIRST_ERROR_STATUS and now_s < self._known_until_s.get(account_id, 0.0):
            return []
        windows = _windows(head)
        ample = all(w.utilization < TIGHT and w.status in ("", "allowed") for w in windows)
        self._known_until_s[account_id] = now_s + TOLD_EVERY_S if ample else 0.0
        return windows


def _windows(head: ResponseHead) -> list[Window]:
    return [
        Window(
            name=w.name, utilization=w.utilization or 0.0, limit=w.limit or 0,
            remaining=-1 if w.remaining is None else w.remaining,
            resets_at_ms=int(w.resets_at.timestamp() * 1000) if w.resets_at is not None else 0, status=w.status,
        )
        for w in read_windows(head.headers)
    ]
