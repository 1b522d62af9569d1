"""The gateway's metrics. Labels are bounded: routes, outcomes, account ids from grants; never what callers send.

What every request counts are plain numbers, turned into metrics when somebody asks: the client library's own
counters lock, which costs more than reading the request.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

from prometheus_client import Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from signalbox.gateway.domain.events import Ending
from signalbox.gateway.domain.order import Order
from signalbox.v1.common_pb2 import Outcome

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_OVERHEAD_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1, 10)

BUFFERED = Gauge("signalbox_gateway_buffered_bytes", "Request bodies and withheld answers in memory.")

OUTCOME_NAMES = {value: name.removeprefix("OUTCOME_").lower() for name, value in Outcome.items()}


class Spread:
    """A histogram of one event loop's own."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def tell(self, family: HistogramMetricFamily, *labels: str) -> None:
        """Add what was counted to `family`; buckets are cumulative there."""
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append((floatToGoString(bound), total))  # type: ignore[no-untyped-call]
        family.add_metric(labels, buckets, self._sum)


class _Route:
    """What one route's requests have come to."""

    __slots__ = ("duration", "first_content", "outcomes", "overhead")

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.duration = Spread(_SECONDS)
        self.first_content = Spread(_SECONDS)
        self.overhead = Spread(_OVERHEAD_SECONDS)


class Metrics(Collector):
    """What the relay reports."""

    def __init__(self) -> None:
        self._in_flight = 0
        self._routes: dict[str, _Route] = {}
        self._attempts: Counter[tuple[str, int]] = Counter()
        self._failovers: Counter[str] = Counter()

    def request_began(self) -> None:
        """Count a request whose answer is not over."""
        self._in_flight += 1

    def request_ended(self, order: Order, took_s: float) -> None:
        """Count a request that is over for its caller."""
        self._in_flight -= 1
        route = self._routes.get(order.route)
        if route is None:
            route = self._routes[order.route] = _Route()
        route.outcomes[order.outcome] += 1
        route.duration.add(took_s)
        if order.first_content_s is not None:
            route.first_content.add(order.first_content_s)
        if order.provider_s:
            route.overhead.add(max(0.0, took_s - order.provider_s))

    def attempt_ended(self, account_id: str, ending: Ending) -> None:
        """Count one attempt."""
        self._attempts[account_id, ending.outcome] += 1

    def failover(self, ending: Ending) -> None:
        """Count an attempt that is made again."""
        reason = ending.verdict.error_class.value if ending.verdict is not None else ""
        self._failovers[reason or (ending.trouble.value if ending.trouble is not None else "other")] += 1

    def collect(self) -> Iterator[Metric]:
        """Yield what was counted, for a scrape."""
        requests = CounterMetricFamily(
            "signalbox_requests", "Requests by how they ended for the caller.", labels=["route", "outcome"],
        )
        duration = HistogramMetricFamily(
            "signalbox_request_duration_seconds", "From head to last byte.", labels=["route"],
        )
        first_content = HistogramMetricFamily(
            "signalbox_time_to_first_token_seconds", "From the request's head to its first content.", labels=["route"],
        )
        overhead = HistogramMetricFamily(
            "signalbox_gateway_overhead_seconds",
            "A request's time that no provider spent: checks, admission, retries.", labels=["route"],
        )
        for name, route in self._routes.items():
            for outcome, count in route.outcomes.items():
                requests.add_metric([name, outcome], count)
            route.duration.tell(duration, name)
            route.first_content.tell(first_content, name)
            route.overhead.tell(overhead, name)
        attempts = CounterMetricFamily(
            "signalbox_attempts", "Attempts by account and how they ended.", labels=["account", "outcome"],
        )
        for (account, ended), count in self._attempts.items():
            attempts.add_metric([account, OUTCOME_NAMES[ended]], count)
        failovers = CounterMetricFamily(
            "signalbox_failovers", "Attempts that were made again, by why.", labels=["reason"],
        )
        for reason, count in self._failovers.items():
            failovers.add_metric([reason], count)
        in_flight = GaugeMetricFamily("signalbox_in_flight", "Requests being answered now.", value=self._in_flight)
        yield from (requests, duration, first_content, overhead, attempts, failovers, in_flight)
