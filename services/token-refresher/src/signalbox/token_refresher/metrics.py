"""The token-refresher's metrics. The label `account` is bounded by the documents, `reason` and `outcome` by enums."""

from prometheus_client import REGISTRY, CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from signalbox.core.clock import Clock
from signalbox.token_refresher.domain.credentials import standing
from signalbox.token_refresher.domain.grants import Grant


class Metrics:
    """What happens to credentials."""

    def __init__(self, clock: Clock, registry: CollectorRegistry = REGISTRY) -> None:
        self.refreshes = Counter(
            "signalbox_refreshes_total",
            "Attempts to renew a credential by how they ended; an API key, which can't be renewed, ends as rejected.",
            ["account", "outcome"], registry=registry,
        )
        self._grants = _Grants(clock)
        registry.register(self._grants)

    def observe(self, account_id: str, grant: Grant | None) -> None:
        """Note the account's grant; None: there is none any more."""
        self._grants.note(account_id, grant)


class _Grants(Collector):
    """Computes from the grants when it is asked, rather than keeping gauges moving."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._grants: dict[str, Grant] = {}

    def note(self, account_id: str, grant: Grant | None) -> None:
        if grant is not None:
            self._grants[account_id] = grant
        else:
            self._grants.pop(account_id, None)

    def collect(self) -> list[GaugeMetricFamily]:
        expiry = GaugeMetricFamily(
            "signalbox_credential_expiry_seconds", "Time until the credential expires; absent where it does not.",
            labels=["account"],
        )
        valid = GaugeMetricFamily(
            "signalbox_credential_valid",
            "1 where the account's credential can serve, else 0; `reason` as in its condition CredentialValid.",
            labels=["account", "reason"],
        )
        now_ms = self._clock.now_ms()
        for account_id, grant in self._grants.items():
            now = standing(grant, now_ms)
            valid.add_metric([account_id, now.reason.value], float(now.valid))
            if grant.expires_at_ms:
                expiry.add_metric([account_id], (grant.expires_at_ms - now_ms) / 1000)
        return [expiry, valid]
