"""What a request will probably use, from what its key's requests for the same model have lately used."""

from bisect import bisect_left, insort
from collections import OrderedDict, deque

_KEPT = 32
_MOST_SERIES = 50_000
_BYTES_PER_TOKEN = 4
_FIRST_OUTPUT_TOKENS = 4096
_MOST_UNSHARED = 500

Amount = tuple[int, int]
"""Tokens and nano-dollars."""


class _Series:
    """The last amounts of one key and model, as they came and in order of size: no request waits for a sort."""

    __slots__ = ("_costs", "_last", "_tokens")

    def __init__(self) -> None:
        self._last: deque[Amount] = deque()
        self._tokens: list[int] = []
        self._costs: list[int] = []

    def add(self, amount: Amount) -> None:
        if len(self._last) == _KEPT:
            tokens, cost = self._last.popleft()
            del self._tokens[bisect_left(self._tokens, tokens)], self._costs[bisect_left(self._costs, cost)]
        self._last.append(amount)
        insort(self._tokens, amount[0])
        insort(self._costs, amount[1])

    def p90(self) -> Amount:
        at = (len(self._last) * 9 - 1) // 10
        return self._tokens[at], self._costs[at]


Sample = tuple[str, str, int, int]
"""Key, model, tokens and nano-dollars of one request."""


class Estimates:
    """The last amounts by key and model. Estimates are no truth: what schedulers tell one another may be a sample."""

    def __init__(self) -> None:
        self._series: OrderedDict[tuple[str, str], _Series] = OrderedDict()
        self._unshared: deque[Sample] = deque(maxlen=_MOST_UNSHARED)

    def learn(self, key_id: str, model: str, amount: Amount) -> None:
        """Take note of what one request used, to be told to the other schedulers."""
        self._unshared.append((key_id, model, *amount))
        self.take(key_id, model, amount)

    def unshared(self) -> list[Sample]:
        """Return what was learned since the last call."""
        samples = list(self._unshared)
        self._unshared.clear()
        return samples

    def take(self, key_id: str, model: str, amount: Amount) -> None:
        """Take note of what one request used, as another scheduler told."""
        series = self._series.get((key_id, model))
        if series is None:
            series = self._series[key_id, model] = _Series()
            if len(self._series) > _MOST_SERIES:
                self._series.popitem(last=False)
        else:
            self._series.move_to_end((key_id, model))
        series.add(amount)

    def usual(self, key_id: str, model: str, input_bytes: int, max_tokens: int, worst: Amount) -> Amount:
        """Return the 90th percentile of what was lately used, at most `worst`.

        Where nothing is known yet: a token for four bytes of input and at most 4096 of output, at the worst price.
        """
        series = self._series.get((key_id, model))
        if series is None:
            tokens = min(worst[0], input_bytes // _BYTES_PER_TOKEN + min(max_tokens, _FIRST_OUTPUT_TOKENS))
            return tokens, worst[1] * tokens // worst[0] if worst[0] else worst[1]
        tokens, cost = series.p90()
        return min(worst[0], tokens), min(worst[1], cost)
