"""How many denials are worth a record: a caller that is refused again and again must not fill journal and ledger.

Every denial is counted in the metrics, whether it is recorded or not.
"""

ANONYMOUS_PER_S = 50.0     # of all callers without a known key together
KNOWN_PER_S = 1.0          # of each known key, after
KNOWN_AT_ONCE = 300.0      # so many in a row
_TIDY_FIRST_AT = 10_000


class DenialBudget:
    """A bucket of tokens for each known key, and one for all other callers."""

    def __init__(self) -> None:
        self._left: dict[str, tuple[float, float]] = {}    # tokens, when they were counted
        self._tidy_at = _TIDY_FIRST_AT

    def take(self, key_id: str, now_s: float) -> bool:
        """Return whether a denial of this key ("": of no known one) may be recorded. `now_s`: monotonic seconds."""
        per_s, most = (KNOWN_PER_S, KNOWN_AT_ONCE) if key_id else (ANONYMOUS_PER_S, ANONYMOUS_PER_S)
        left, at_s = self._left.get(key_id, (most, now_s))
        left = min(most, left + (now_s - at_s) * per_s)
        recorded = left >= 1.0
        if len(self._left) >= self._tidy_at:
            self._forget_full(now_s)
        self._left[key_id] = (left - 1.0 if recorded else left, now_s)
        return recorded

    def _forget_full(self, now_s: float) -> None:
        full_after_s = KNOWN_AT_ONCE / KNOWN_PER_S
        self._left = {key: kept for key, kept in self._left.items() if now_s - kept[1] < full_after_s}
        self._tidy_at = max(_TIDY_FIRST_AT, 2 * len(self._left))
