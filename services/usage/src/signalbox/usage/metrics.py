"""The usage service's metrics. Labels are bounded: accounts are documents, models only those with a known price."""

from collections.abc import Iterable
from operator import add, attrgetter
from typing import cast

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from signalbox.core.money import NANO_PER_USD
from signalbox.usage.adapters.ledger import Change
from signalbox.usage.domain.rows import Prices, Row

OTHER_MODEL = "other"
_KINDS = {
    "input": "input_tokens", "output": "output_tokens", "cache_write_5m": "cache_write_5m_tokens",
    "cache_write_1h": "cache_write_1h_tokens", "cache_read": "cache_read_tokens",
}


class Metrics:
    """What this replica committed and how far behind it is."""

    def __init__(self, prices: Prices, registry: CollectorRegistry = REGISTRY) -> None:
        self._prices = prices
        self._tokens = Counter(
            "signalbox_tokens_total", "Tokens billed, by kind. An estimate that turns out lower is not taken back.",
            ["account", "model", "kind"], registry=registry,
        )
        self._cost = Counter(
            "signalbox_cost_usd_total", "Cost in USD, under the same rule. The ledger itself is exact.",
            ["account", "model"], registry=registry,
        )
        self.lag = Gauge(
            "signalbox_ledger_lag_seconds", "Age of the oldest batch that has arrived and is not committed.",
            registry=registry,
        )
        self.transaction_rows = Histogram(
            "signalbox_ledger_transaction_rows", "Attempts in one transaction.",
            buckets=(1, 5, 20, 50, 100, 200, 500, 1000, 2000), registry=registry,
        )
        self.failures = Counter(
            "signalbox_ledger_failures_total", "Transactions that failed and are tried again.", registry=registry,
        )
        self.forgotten = Counter(
            "signalbox_ledger_rows_forgotten_total", "Rows that were removed because they are older than what is kept.",
            registry=registry,
        )
        self._events = Counter(
            "signalbox_ledger_events_total", "new, replaced (an orphan), unchanged (seen before) or refused.",
            ["result"], registry=registry,
        )

    def count_events(self, received: int, refused: int, changed: Iterable[Change]) -> None:
        """Count one transaction's events, and what they add to tokens and cost."""
        new = replaced = 0
        spend: dict[tuple[str, str], tuple[int, ...]] = {}
        for before, now in changed:
            if before is None:
                new += 1
            else:
                replaced += 1
            if now.attempt:
                label = (now.account_id, now.billed_model)
                spend[label] = tuple(map(add, spend.get(label, _NOTHING), _spent(before, now)))
        self._events.labels("new").inc(new)
        self._events.labels("replaced").inc(replaced)
        self._events.labels("unchanged").inc(received - refused - new - replaced)
        self._events.labels("refused").inc(refused)
        for (account, model), (nano_usd, *tokens) in spend.items():
            self._count_spend(account, model if self._prices.known(model) else OTHER_MODEL, nano_usd, tokens)

    def _count_spend(self, account: str, model: str, nano_usd: int, tokens: Iterable[int]) -> None:
        for kind, more in zip(_KINDS, tokens, strict=True):
            if more:
                self._tokens.labels(account, model, kind).inc(more)
        self._cost.labels(account, model).inc(nano_usd / NANO_PER_USD)


_columns = attrgetter("cost_nano_usd", *_KINDS.values())
_NOTHING = (0,) * (1 + len(_KINDS))


def _spent(before: Row | None, now: Row) -> tuple[int, ...]:
    """Return nano-dollars and tokens that a change adds; a counter can't take anything back."""
    if before is None:
        return cast(tuple[int, ...], _columns(now))
    return tuple(max(more - less, 0) for more, less in zip(_columns(now), _columns(before), strict=True))
