"""The operator's metrics, beside `signalbox_reconcile_total` of the actions carried out."""

import time

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge


class Metrics:
    """What the operator does, and when each of its loops last turned."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.statuses = Counter(
            "signalbox_status_writes_total", "Statuses written, or not: done, refused (by the schema), failed.",
            ["kind", "result"], registry=registry,
        )
        self.events = Counter(
            "signalbox_events_total", "Kubernetes Events, by reason.", ["reason"], registry=registry,
        )
        self.objects = Gauge(
            "signalbox_watched_objects", "Objects that are watched, by kind.", ["kind"], registry=registry,
        )
        self.pass_s = Gauge(
            "signalbox_reconcile_pass_seconds", "How long the last whole pass took.", registry=registry,
        )
        self._beats = Gauge(
            "signalbox_heartbeat_timestamp_seconds", "When each loop last turned, Unix seconds. Alert when it is old.",
            ["loop"], registry=registry,
        )
        self._turned_s: dict[str, float] = {}

    def beat(self, loop: str) -> None:
        """Note that a loop turned."""
        self._turned_s[loop] = time.monotonic()
        self._beats.labels(loop).set_to_current_time()

    def rest(self) -> None:
        """Note that the loops have ended, and are not to turn until they begin again."""
        self._turned_s.clear()
        self._beats.clear()

    def stuck(self, limit_s: float) -> str:
        """Name a loop that has not turned for that long, "" where all have."""
        now_s = time.monotonic()
        return next((loop for loop, turned_s in self._turned_s.items() if now_s - turned_s > limit_s), "")
