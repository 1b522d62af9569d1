"""The price book as the ledger uses it: usage in, exact nano-dollars out.

Prices, factors and rounding are signalbox.wire.prices' business.
"""

from pathlib import Path

from signalbox.core.clock import from_ms
from signalbox.core.errors import StartupError
from signalbox.usage.domain.rows import Price
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

    def price(self, usage: Usage, model: str, at_ms: int) -> Price:
        """Return what `usage`, other models' iterations included, cost when `model` served it at `at_ms`."""
        cost = self._book.cost(usage, model, from_ms(at_ms))
        return Price(cost.nano_usd, cost.price_assumed)

    def known(self, model: str) -> bool:
        """Whether `model` has a price of its own."""
        return self._book.known(model)
