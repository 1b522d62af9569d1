"""The price book as admission and settling use it. Prices, factors and rounding are signalbox.wire.prices' business."""

import time
from datetime import datetime
from functools import lru_cache

from signalbox.core.clock import from_ms
from signalbox.wire.prices import PriceBook
from signalbox.wire.usage import Usage


class BookPrices:
    """Implements view.Prices on a price book."""

    def __init__(self, book: PriceBook) -> None:
        self._book = book

    def worst_case(self, model: str, input_bytes: int, max_tokens: int) -> tuple[int, int]:
        """Return the most tokens and nano-dollars that a request may use."""
        return self._book.worst_case(model, input_bytes, max_tokens, _moment(time.time_ns() // 1_000_000))

    def cost(self, usage: Usage, model: str, at_ms: int) -> int:
        """Return what an attempt cost, nano-dollars."""
        return self._book.cost(usage, model, _moment(at_ms)).nano_usd


@lru_cache(maxsize=64)
def _moment(ms: int) -> datetime:
    """Return a moment that a batch's requests share."""
    return from_ms(ms)
