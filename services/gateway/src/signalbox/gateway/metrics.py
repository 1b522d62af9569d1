"""The gateway's metrics. Labels are bounded: routes, outcomes, account ids from grants; never what callers send."""

from prometheus_client import Counter, Gauge, Histogram

from signalbox.gateway.domain.events import Ending
from signalbox.gateway.domain.order import Order
from signalbox.v1.common_pb2 import Outcome

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_OVERHEAD_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1, 10)

REQUESTS = Counter("signalbox_requests", "Requests by how they ended for the caller.", ["route", "outcome"])
DURATION = Histogram("signalbox_request_duration_seconds", "From head to last byte.", ["route"], buckets=_SECONDS)
FIRST_CONTENT = Histogram(
    "signalbox_time_to_first_token_seconds", "From the request's head to its first content.", ["route"],
    buckets=_SECONDS,
)
OVERHEAD = Histogram(
    "signalbox_gateway_overhead_seconds", "A request's time that no provider spent: checks, admission, retries.",
    ["route"], buckets=_OVERHEAD_SECONDS,
)
IN_FLIGHT = Gauge("signalbox_in_flight", "Requests being answered now.")
ATTEMPTS = Counter("signalbox_attempts", "Attempts by account and how they ended.", ["account", "outcome"])
FAILOVERS = Counter("signalbox_failovers", "Attempts that were made again, by why.", ["reason"])
BUFFERED = Gauge("signalbox_gateway_buffered_bytes", "Request bodies and withheld answers in memory.")

OUTCOME_NAMES = {value: name.removeprefix("OUTCOME_").lower() for name, value in Outcome.items()}


class RouteMetrics:
    """One route's children, bound once."""

    def __init__(self, route: str) -> None:
        self.route = route
        self.duration = DURATION.labels(route)
        self.first_content = FIRST_CONTENT.labels(route)
        self.overhead = OVERHEAD.labels(route)
        self.ok = REQUESTS.labels(route, "ok")


class Metrics:
    """What the relay reports; children are looked up once."""

    def __init__(self) -> None:
        self._routes: dict[str, RouteMetrics] = {}
        self._attempts: dict[tuple[str, int], Counter] = {}
        self._in_flight = 0
        IN_FLIGHT.set_function(lambda: self._in_flight)

    def request_began(self) -> None:
        """Count a request whose answer is not over."""
        self._in_flight += 1

    def request_ended(self, order: Order, took_s: float) -> None:
        """Count a request that is over for its caller."""
        self._in_flight -= 1
        bound = self._routes.get(order.route)
        if bound is None:
            bound = self._routes.setdefault(order.route, RouteMetrics(order.route))
        if order.outcome == "ok":
            bound.ok.inc()
        else:
            REQUESTS.labels(order.route, order.outcome).inc()
        bound.duration.observe(took_s)
        if order.first_content_s is not None:
            bound.first_content.observe(order.first_content_s)
        if order.provider_s:
            bound.overhead.observe(max(0.0, took_s - order.provider_s))

    def attempt_ended(self, account_id: str, ending: Ending) -> None:
        """Count one attempt."""
        child = self._attempts.get((account_id, ending.outcome))
        if child is None:
            child = ATTEMPTS.labels(account_id, OUTCOME_NAMES[ending.outcome])
            self._attempts[account_id, ending.outcome] = child
        child.inc()

    def failover(self, ending: Ending) -> None:
        """Count an attempt that is made again."""
        reason = ending.verdict.error_class.value if ending.verdict is not None else ""
        FAILOVERS.labels(reason or (ending.trouble.value if ending.trouble is not None else "other")).inc()
