"""The scheduler's metrics. Labels are bounded: accounts are documents, reasons are error codes."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from signalbox.scheduler.adapters.census import Census
from signalbox.scheduler.adapters.queue import Queue
from signalbox.scheduler.adapters.store import Store
from signalbox.scheduler.domain.limits import USES
from signalbox.scheduler.domain.status import availability
from signalbox.scheduler.domain.view import View
from signalbox.v1.scheduler_pb2 import AdmitResponse

_STATES = ("Ready", "Limited", "CoolingDown", "Benched", "Paused", "Draining", "NotReady")
_OF_KIND = {"limited": "Limited", "cooling": "CoolingDown", "benched": "Benched"}


class Metrics:
    """What this scheduler decided and how long it took."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._admissions = Counter(
            "signalbox_admissions_total", "Decisions, by decision (grant, deny) and reason.", ["decision", "reason"],
            registry=registry,
        )
        self._durations = _Durations()
        registry.register(self._durations)
        self.orphans = Counter(
            "signalbox_orphans_total", "Leases that expired because no gateway renewed them.", registry=registry,
        )
        self._waits = Histogram(
            "signalbox_queue_wait_seconds", "How long requests waited for an account, by outcome"
            " (granted, denied, cancelled).", ["outcome"],
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60), registry=registry,
        )
        self._granted = self._admissions.labels("grant", "")

    def decided(self, responses: Sequence[AdmitResponse], took_s: float) -> None:
        """Count decisions that were made together and took equally long."""
        denied = [r for r in responses if r.HasField("denial")]
        self._granted.inc(len(responses) - len(denied))
        for response in denied:
            self._admissions.labels("deny", response.denial.error_code).inc()
        self._durations.observe(took_s, len(responses))

    def waited(self, outcome: str, waited_s: float) -> None:
        """Count the end of one wait for an account."""
        self._waits.labels(outcome).observe(waited_s)


class _Durations(Collector):
    """A histogram that takes several equal values at once: a batch's decisions take as long as the batch."""

    _BOUNDS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5)

    def __init__(self) -> None:
        self._counts = [0] * (len(self._BOUNDS_S) + 1)
        self._sum_s = 0.0

    def observe(self, took_s: float, times: int) -> None:
        """Count `times` decisions that took `took_s` each."""
        self._counts[bisect_left(self._BOUNDS_S, took_s)] += times
        self._sum_s += took_s * times

    def collect(self) -> Iterator[Metric]:
        """Yield the histogram."""
        yield HistogramMetricFamily(
            "signalbox_admission_duration_seconds", "From a batch's arrival to its decisions.",
            buckets=list(zip((*map(floatToGoString, self._BOUNDS_S), "+Inf"), accumulate(self._counts), strict=True)),
            sum_value=self._sum_s,
        )


class StateCollector(Collector):
    """Gauges of accounts, keys and the queue, made when they are asked for."""

    def __init__(self, view: View, store: Store, queue: Queue, census: Census) -> None:
        self._view = view
        self._store = store
        self._queue = queue
        self._census = census

    def collect(self) -> Iterator[Metric]:
        """Yield account_state, account_headroom_ratio, queue_depth and keys."""
        states = GaugeMetricFamily(
            "signalbox_account_state", "1 for the state that an account is in.", labels=["account", "state"],
        )
        headroom = GaugeMetricFamily(
            "signalbox_account_headroom_ratio", "What is left of a limit window, 0 to 1.", labels=["account", "window"],
        )
        now_ms = self._store.now_ms()
        for account in list(self._view.snapshot.accounts.values()):
            reason, out = availability(self._view, account, now_ms)
            if account.state != "Active":
                current = account.state
            elif out is not None:
                current = _OF_KIND[out.kind]
            else:
                current = "NotReady" if reason else "Ready"
            for state in _STATES:
                states.add_metric([account.id, state], float(state == current))
            group = self._view.live.groups.get(account.group)
            for window in group.by_name().values() if group else ():
                used = window.utilization
                if window.limit > 0 and window.remaining >= 0:
                    used = 1 - window.remaining / window.limit
                headroom.add_metric([account.id, window.name], max(0.0, 1.0 - used))
        depth = GaugeMetricFamily(
            "signalbox_queue_depth", "Requests that wait for an account of a pool in this scheduler.", labels=["pool"],
        )
        for pool_id in list(self._view.snapshot.pools):
            depth.add_metric([pool_id], self._queue.depths[pool_id])
        keys = GaugeMetricFamily(
            "signalbox_keys", "Relay keys with a limit on this dimension (requests, tokens, cost) and period, by how"
            " much of it is used: some, near (80 % and more), all.",
            labels=["dimension", "per", "used"],
        )
        counts = self._census.counts
        for dimension, per in sorted({kind[:2] for kind in counts}):
            for use in USES:
                keys.add_metric([dimension, per, use], counts[dimension, per, use])
        yield states
        yield headroom
        yield depth
        yield keys
