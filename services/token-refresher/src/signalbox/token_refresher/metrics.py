"""The token-refresher's metrics. The label `account` is bounded by the documents."""

from prometheus_client import REGISTRY, CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from signalbox.core.clock import Clock


class Metrics:
    """What happens to credentials."""

    def __init__(self, clock: Clock, registry: CollectorRegistry = REGISTRY) -> None:
        self.refreshes = Counter(
            "signalbox_refreshes_total",
            "Attempts to renew a credential; an API key, which can't be renewed, ends as rejected.",
            ["account", "outcome"], registry=registry,
        )
        self._expiry = _Expiry(clock)
        registry.register(self._expiry)

    def observe_expiry(self, account_id: str, expires_at_ms: int) -> None:
        """Note when the account's credential expires, Unix milliseconds; 0: never, or there is none."""
        self._expiry.note(account_id, expires_at_ms)


class _Expiry(Collector):
    """Computes what is left when it is asked, rather than keeping a gauge moving."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._expires_at_ms: dict[str, int] = {}

    def note(self, account_id: str, expires_at_ms: int) -> None:
        if expires_at_ms:
            self._expires_at_ms[account_id] = expires_at_ms
        else:
            self._expires_at_ms.pop(account_id, None)

    def collect(self) -> list[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "signalbox_credential_expiry_seconds", "Time until the credential expires; absent where it does not.",
            labels=["account"],
        )
        now_ms = self._clock.now_ms()
        for account_id, expires_at_ms in self._expires_at_ms.items():
            family.add_metric([account_id], (expires_at_ms - now_ms) / 1000)
        return [family]
