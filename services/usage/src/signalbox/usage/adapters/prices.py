"""The price book as the ledger uses it: protobuf usage in, exact nano-dollars out.

Prices, factors and rounding are signalbox.wire.prices' business.
"""

from pathlib import Path

from signalbox.core.clock import from_ms
from signalbox.core.errors import StartupError
from signalbox.usage.domain.rows import Price
from signalbox.v1.common_pb2 import TokenUsage
from signalbox.wire.prices import PriceBook, PriceDataError
from signalbox.wire.usage import Usage


class LedgerPrices:
    """Implements rows.Prices on a price book."""

    def __init__(self, book: PriceBook) -> None:
        self._book = book

    @classmethod
    def load(cls, path: Path | None) -> "LedgerPrices":
        """Read the built-in prices and what `path` overrides. Raises StartupError."""
        try:
            return cls(PriceBook.load(path))
        except (PriceDataError, OSError) as e:
            raise StartupError(f"prices file {path}", str(e)) from e

    def price(self, usage: TokenUsage, model: str, at_ms: int) -> Price:
        """Return what `usage`, other models' iterations included, cost when `model` served it at `at_ms`."""
        cost = self._book.cost(_usage(usage), model, from_ms(at_ms))
        return Price(cost.nano_usd, cost.price_assumed)

    def known(self, model: str) -> bool:
        """Whether `model` has a price of its own."""
        return self._book.known(model)


def _usage(usage: TokenUsage) -> Usage:
    return Usage(
        usage.input_tokens, usage.output_tokens, usage.cache_write_5m_tokens, usage.cache_write_1h_tokens,
        usage.cache_read_tokens, usage.web_search_requests, usage.service_tier, usage.inference_geo, usage.speed,
        tuple((other.model, _usage(other.usage)) for other in usage.other_models),
    )
