"""One row of the ledger: what an event becomes once it is cleaned, billed and priced.

Pure. Which of several events of one attempt is believed is decided in settling.py.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol, cast

from signalbox.v1.common_pb2 import (
    OUTCOME_ORPHANED,
    OUTCOME_UNSPECIFIED,
    Outcome,
)
from signalbox.v1.usage_pb2 import AttemptEvent
from signalbox.wire.usage import Usage, told_usage

MESSAGES_ROUTE = "messages"
FREE_ROUTES = frozenset({"count_tokens"})

# A sender's mistake must never jam the ledger: what no database column or sum could hold is cut down to these.
MAX_TEXT = 256
MAX_BYTES = 64 << 10
MAX_TOKENS = 10**10
MAX_NANO_USD = 10**15
MAX_MS = 253_402_300_799_999  # the end of the year 9999
MAX_ATTEMPT = 2**31 - 1

OUTCOME_NAMES: dict[int, str] = {
    value: name.removeprefix("OUTCOME_").lower() for name, value in Outcome.items() if value != OUTCOME_UNSPECIFIED
}
OUTCOME_BY_NAME = {name: value for value, name in OUTCOME_NAMES.items()}


class Price(NamedTuple):
    """What an attempt costs, in nano-dollars; `assumed`: some model had no price of its own."""

    nano_usd: int
    assumed: bool


FREE = Price(0, False)


class Prices(Protocol):
    """The price book as the ledger uses it."""

    def price(self, usage: Usage, model: str, at_ms: int) -> Price:
        """Return what `usage`, other models' iterations included, cost when `model` served it at `at_ms`."""
        ...

    def known(self, model: str) -> bool:
        """Whether `model` has a price of its own."""
        ...


class Row(NamedTuple):
    """The columns of table `attempts`, in its order. Attempt 0 is a denial. Times in Unix milliseconds."""

    request_id: str
    attempt: int
    admitted_at_ms: int      # the period that is charged, and the ledger's order
    started_at_ms: int
    key_id: str
    owner: str
    account_id: str
    pool_id: str
    route: str
    client: str
    model: str               # asked for
    sent_model: str
    served_model: str
    streamed: bool
    outcome: str
    status: int
    reason: str
    estimated: bool
    input_tokens: int
    output_tokens: int
    cache_write_5m_tokens: int
    cache_write_1h_tokens: int
    cache_read_tokens: int
    web_search_requests: int
    service_tier: str
    inference_geo: str
    speed: str
    cost_nano_usd: int
    price_assumed: bool
    duration_ms: int
    ttft_ms: int
    retry_after_ms: int
    upstream_request_id: str
    gateway_id: str
    lease_id: str
    decision: bytes
    orphan_event: bytes | None  # an orphan's event, kept so that what is learned later can be merged into it

    @property
    def key(self) -> tuple[str, int]:
        """What makes an attempt one: its request and number."""
        return self.request_id, self.attempt

    @property
    def billed_model(self) -> str:
        """The model that the price follows: the one that served, else the one that was asked to."""
        return self.served_model or self.sent_model or self.model


def row_of(event: AttemptEvent, prices: Prices) -> Row:
    """Return the row of a normalised event (see settling.normalise)."""
    billed = is_billed(event)
    usage = told_usage(event.usage) if billed else Usage()
    (
        key_id, owner, account_id, pool_id, route, client, model, sent_model, served_model,
        reason, service_tier, inference_geo, speed, upstream_request_id, gateway_id, lease_id,
    ) = _clean((
        event.key_id, event.owner, event.account_id, event.pool_id, event.route, event.client, event.model,
        event.sent_model, event.served_model, event.reason, usage.service_tier, usage.inference_geo, usage.speed,
        event.upstream_request_id, event.gateway_id, event.lease_id,
    ))
    priced = prices.price(usage, served_model or sent_model or model, event.admitted_at_ms) if billed else FREE
    orphan = event.outcome == OUTCOME_ORPHANED
    return Row(
        event.request_id, event.attempt, event.admitted_at_ms, event.started_at_ms,
        key_id, owner, account_id, pool_id, route, client, model, sent_model, served_model, event.streamed,
        OUTCOME_NAMES[event.outcome], event.status, reason, event.estimated,
        *_folded(usage), service_tier, inference_geo, speed,
        min(priced.nano_usd, MAX_NANO_USD), priced.assumed and priced.nano_usd > 0,
        event.duration_ms, event.ttft_ms, event.retry_after_ms, upstream_request_id, gateway_id, lease_id,
        event.decision[:MAX_BYTES], event.SerializeToString(deterministic=True) if orphan else None,
    )


def outcome_of(row: Row) -> Outcome:
    """Return the contract's value of a row's outcome."""
    return cast(Outcome, OUTCOME_BY_NAME[row.outcome])


def is_billed(event: AttemptEvent) -> bool:
    """Whether the attempt costs what its usage says.

    Counting tokens is free, and an attempt that ended without content costs nothing. Of an orphan nobody saw the
    end: it is billed what was last reported of it, so a reply that had not begun costs nothing.
    """
    if event.route in FREE_ROUTES:
        return False
    if event.outcome == OUTCOME_ORPHANED:
        return event.HasField("usage")
    return event.had_content


def _folded(usage: Usage) -> tuple[int, int, int, int, int, int]:
    """Return input, output, 5-minute writes, 1-hour writes, reads and web searches, all models together."""
    own = usage[:6]
    if not usage.other_models:
        return own
    parts = (own, *(_folded(other) for _, other in usage.other_models))
    sums = [min(sum(column), MAX_TOKENS) for column in zip(*parts, strict=True)]
    return sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]


def _clean(texts: tuple[str, ...]) -> Iterable[str]:
    """PostgreSQL takes no NUL in text, and a caller's model name may be a book."""
    if "\0" not in "".join(texts) and max(map(len, texts)) <= MAX_TEXT:
        return texts
    return [text.replace("\0", "")[:MAX_TEXT] for text in texts]
