"""What a request will probably use, from what its key's requests for the same model have lately used."""

from collections import OrderedDict, deque

_KEPT = 32
_MOST_SERIES = 50_000
_BYTES_PER_TOKEN = 4
_FIRST_OUTPUT_TOKENS = 4096

Amount = tuple[int, int]
"""Tokens and nano-dollars."""


class Estimates:
    """The last amounts by key and model, in this process alone: estimates are no truth, and a sample is enough."""

    def __init__(self) -> None:
        self._series: OrderedDict[tuple[str, str], deque[Amount]] = OrderedDict()

    def learn(self, key_id: str, model: str, amount: Amount) -> None:
        """Take note of what one request used."""
        series = self._series.get((key_id, model))
        if series is None:
            series = self._series[key_id, model] = deque(maxlen=_KEPT)
            if len(self._series) > _MOST_SERIES:
                self._series.popitem(last=False)
        else:
            self._series.move_to_end((key_id, model))
        series.append(amount)

    def usual(self, key_id: str, model: str, input_bytes: int, max_tokens: int, worst: Amount) -> Amount:
        """Return the 90th percentile of what was lately used, at most `worst`.

        Where nothing is known yet: a token for four bytes of input and at most 4096 of output, at the worst price.
        """
        series = self._series.get((key_id, model))
        if not series:
            tokens = min(worst[0], input_bytes // _BYTES_PER_TOKEN + min(max_tokens, _FIRST_OUTPUT_TOKENS))
            return tokens, worst[1] * tokens // worst[0] if worst[0] else worst[1]
        return _p90([a[0] for a in series], worst[0]), _p90([a[1] for a in series], worst[1])


def _p90(values: list[int], most: int) -> int:
    values.sort()
    return min(most, values[(len(values) * 9 - 1) // 10])
