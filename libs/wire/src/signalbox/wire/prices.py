"""What tokens cost: dated prices as data, exact arithmetic, rounded half up once per attempt to the nano-dollar.

prices.json is the built-in data with the source of each entry; a file of the same shape overrides it.
Limits and the ledger use the same functions, so that they agree to the nano-dollar.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any

from signalbox.wire.models import base_name
from signalbox.wire.usage import Usage

_CLASSES = ("input", "cache_write_5m", "cache_write_1h", "cache_read", "output")
_UNIT = "USD per million tokens"
_FIELDS = frozenset(("unit", "web_search_per_1000", "batch_multiplier", "prices"))
_ENTRY_FIELDS = frozenset((
    *_CLASSES, "model", "provider", "from", "above", "fast_multiplier", "us_multiplier", "max_output", "source",
))
_OTHER_PROVIDERS = ((re.compile(r"gpt-|o\d|codex-|chatgpt-"), "openai"), (re.compile(r"gemini-"), "google"))
PICO_PER_NANO = 1000


class PriceDataError(ValueError):
    """A price file is not what it should be; the message names the entry."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What an attempt costs. `price_assumed`: some model was unknown and priced as its provider's dearest."""

    nano_usd: int
    price_assumed: bool


@dataclass(frozen=True, slots=True)
class _Rates:
    """Pico-dollars per token."""

    input: int
    cache_write_5m: int
    cache_write_1h: int
    cache_read: int
    output: int

    def of(self, usage: Usage) -> int:
        return (
            usage.input_tokens * self.input + usage.output_tokens * self.output
            + usage.cache_write_5m_tokens * self.cache_write_5m + usage.cache_write_1h_tokens * self.cache_write_1h
            + usage.cache_read_tokens * self.cache_read
        )


@dataclass(frozen=True, slots=True)
class _Entry:
    model: str
    provider: str
    from_ms: int
    rates: _Rates
    above_tokens: int          # prompts over this many tokens (cached ones included) cost `above`; 0: no such tier
    above: _Rates
    fast: Fraction
    us: Fraction
    max_output: int

    def rates_for(self, usage: Usage) -> _Rates:
        if not self.above_tokens:
            return self.rates
        prompt = (usage.input_tokens + usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
                  + usage.cache_read_tokens)
        return self.above if prompt > self.above_tokens else self.rates

    def factor(self, speed: str, geo: str) -> Fraction | int:
        factor = self.fast if speed == "fast" else 1
        return factor * self.us if geo == "us" else factor


class PriceBook:
    """Prices by model and date."""

    def __init__(self, data: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> None:
        """`data` and `overrides` have prices.json's shape. Raises PriceDataError."""
        merged = {**data, **(overrides or {})}
        self._web_search_nano = _nano(merged["web_search_per_1000"]) // 1000
        self._batch = Fraction(merged["batch_multiplier"])
        self._by_model: dict[str, list[_Entry]] = {}
        replaced: set[tuple[str, int]] = set()
        for entry in _entries((overrides or {}).get("prices", ())):
            self._add(entry)
            replaced.add((entry.model, entry.from_ms))
        for entry in _entries(data["prices"]):
            if (entry.model, entry.from_ms) not in replaced:
                self._add(entry)
        for entries in self._by_model.values():
            entries.sort(key=lambda e: e.from_ms)
        self._found: dict[str, list[_Entry] | None] = {}

    @classmethod
    def load(cls, path: Path | None = None) -> "PriceBook":
        """Return the built-in prices, overridden by the file at `path`. Raises PriceDataError, OSError."""
        built_in = json.loads(resources.files("signalbox.wire").joinpath("prices.json").read_text())
        if path is None:
            return cls(built_in)
        try:
            return cls(built_in, _in_shape(json.loads(path.read_text())))
        except (ValueError, ArithmeticError, TypeError) as e:
            raise PriceDataError(f"{path}: {e}") from e

    def known(self, model: str) -> bool:
        """Whether the model has a price of its own."""
        return self._entries_of(model) is not None

    def cost(self, usage: Usage, model: str, at: datetime) -> Cost:
        """Return what `usage` costs when `model` served it at `at`, other models' iterations included."""
        pico, assumed = self._pico(usage, model, at)
        searches = usage.web_search_requests
        for other, iteration in usage.other_models:
            more, unknown = self._pico(iteration, other, at)
            pico += more
            searches += iteration.web_search_requests
            assumed = assumed or unknown
        return Cost(_rounded_nano(pico) + searches * self._web_search_nano, assumed)

    def worst_case(
        self, model: str, input_bytes: int, max_tokens: int, at: datetime, *, speed: str = "", geo: str = "",
    ) -> tuple[int, int]:
        """Return the most tokens and nano-dollars that a request may use, as far as its bytes tell.

        Input is a token per two bytes at the dearest class that it can fall in; without `max_tokens` output is the
        model's longest.
        """
        entry, _ = self._entry(model, at)
        tokens_in = -(-input_bytes // 2)
        tokens_out = max_tokens or entry.max_output
        rates = entry.above if entry.above_tokens and tokens_in > entry.above_tokens else entry.rates
        dearest = max(rates.input, rates.cache_write_5m, rates.cache_write_1h, rates.cache_read)
        pico = (tokens_in * dearest + tokens_out * rates.output) * entry.factor(speed, geo)
        return tokens_in + tokens_out, int(-(-pico // PICO_PER_NANO))

    # ------------------------------------------------------------------ inside

    def _add(self, entry: _Entry) -> None:
        self._by_model.setdefault(entry.model, []).append(entry)

    def _pico(self, usage: Usage, model: str, at: datetime) -> tuple[Fraction | int, bool]:
        entry, assumed = self._entry(model, at)
        factor = entry.factor(usage.speed, usage.inference_geo)
        if usage.service_tier == "batch":
            factor *= self._batch
        return entry.rates_for(usage).of(usage) * factor, assumed

    def _entry(self, model: str, at: datetime) -> tuple[_Entry, bool]:
        entries = self._entries_of(model)
        if entries is not None and len(entries) == 1:
            return entries[0], False
        at_ms = int(at.timestamp() * 1000)
        if entries is not None:
            return _in_force(entries, at_ms), False
        provider = next((p for start, p in _OTHER_PROVIDERS if start.match(base_name(model))), "anthropic")
        candidates = [_in_force(e, at_ms) for e in self._by_model.values() if e[0].provider == provider]
        return max(candidates, key=lambda e: (e.rates.output, e.rates.input, e.rates.cache_read)), True

    def _entries_of(self, model: str) -> list[_Entry] | None:
        if model not in self._found:
            if len(self._found) > 4096:
                self._found.clear()
            self._found[model] = self._by_model.get(model) or self._by_model.get(base_name(model))
        return self._found[model]


def _in_shape(data: Any) -> Mapping[str, Any]:
    """Return a file's content if nothing in it would be passed over in silence. Raises PriceDataError."""
    if not isinstance(data, dict) or not isinstance(data.get("prices", []), list):
        raise PriceDataError('must be an object with a list of "prices"')
    if data.get("unit", _UNIT) != _UNIT:
        raise PriceDataError(f"unit: must be {_UNIT!r}")
    if unknown := sorted(data.keys() - _FIELDS):
        raise PriceDataError(f"{unknown[0]}: is not a known field")
    for row in data.get("prices", ()):
        if not isinstance(row, dict):
            raise PriceDataError(f"price entry {row!r}: must be an object")
        if unknown := sorted(row.keys() - _ENTRY_FIELDS):
            raise PriceDataError(f"price entry {row.get('model')!r}: {unknown[0]}: is not a known field")
    return data


def _in_force(entries: list[_Entry], at_ms: int) -> _Entry:
    """Return the entry that applies at a time: the last that began, else the first."""
    begun = [e for e in entries if e.from_ms <= at_ms]
    return begun[-1] if begun else entries[0]


def _entries(rows: Iterable[Mapping[str, Any]]) -> Iterable[_Entry]:
    for row in rows:
        try:
            rates = _rates(row)
            above = row.get("above")
            yield _Entry(
                model=str(row["model"]),
                provider=str(row["provider"]),
                from_ms=int(datetime.fromisoformat(row["from"]).replace(tzinfo=UTC).timestamp() * 1000),
                rates=rates,
                above_tokens=int(above["prompt_tokens"]) if above else 0,
                above=_rates(above) if above else rates,
                fast=Fraction(row.get("fast_multiplier", 1)),
                us=Fraction(row.get("us_multiplier", 1)),
                max_output=int(row.get("max_output", 128_000)),
            )
        except (KeyError, TypeError, ValueError, ArithmeticError) as e:
            raise PriceDataError(f"price entry {row.get('model', row)!r}: {e!r}") from e


def _rates(row: Mapping[str, Any]) -> _Rates:
    return _Rates(*(_pico_per_token(row[name]) for name in _CLASSES))


def _pico_per_token(usd_per_million: str) -> int:
    pico = Decimal(usd_per_million) * 1_000_000
    if pico != pico.to_integral_value() or pico < 0:
        raise ValueError(f"{usd_per_million} is negative or has more than 6 decimal places")
    return int(pico)


def _nano(usd: str) -> int:
    return int(Decimal(usd).scaleb(9))


def _rounded_nano(pico: Fraction | int) -> int:
    """Round half up."""
    return int((2 * pico + PICO_PER_NANO) // (2 * PICO_PER_NANO))
