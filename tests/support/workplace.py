"""A small company on one machine, for whoever looks at dashboards: five accounts, five people with keys and budgets, the
ledger in PostgreSQL where it can be had, and a Prometheus that reads all of it. Imports nothing of the product.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import postgres
from tests.support.dashboards import Ledger, Prometheus
from tests.support.instance import Instance, account, pool, relay_key, secret
from tests.support.sim import Simulator

# By account: what the provider lets it do in a minute.
LIMITS: dict[str, dict[str, int]] = {
    "acme-1": {"requests": 220, "input_tokens": 40_000, "output_tokens": 10_000},
    "acme-2": {"requests": 180, "input_tokens": 35_000, "output_tokens": 8_000},
    "research": {"requests": 140, "input_tokens": 30_000, "output_tokens": 6_000},
    "former": {},
}
OAUTH = "labs"
GONE = "former"
PEOPLE: dict[str, list[dict[str, Any]]] = {
    "ada": [{"per": "Day", "costUSD": "40"}],
    "grace": [{"per": "Month", "costUSD": "400"}, {"per": "Minute", "requests": 600}],
    "linus": [{"per": "Hour", "tokens": 20_000_000}],
    "kim": [{"per": "Minute", "requests": 20}],
    "nightly": [{"per": "Day", "costUSD": "0.12"}],
}
_TOKENS = "/v1/oauth/token"
_CLIENT = "the-client-of-this-company"
_SEED = "sk-ant-ort01-labs-first"


def key_of(person: str) -> str:
    """Return a person's relay key."""
    return f"the relay key of {person}, and nobody else's"


@dataclass
class Workplace:
    """All of it, running. `ledger` is None where PostgreSQL can't run; `why_no_ledger` says why."""

    instance: Instance
    sim: Simulator
    prometheus: Prometheus
    ledger: Ledger | None
    why_no_ledger: str = ""


@contextmanager
def running(directory: Path) -> Iterator[Workplace]:
    """Yield a running workplace whose account `former` the provider has shut out."""
    try:
        with postgres.running() as server:
            url = server.create_database("ledger")
            with _on(directory, {"SIGNALBOX_DATABASE_URL": url}) as place:
                place.ledger = Ledger(url)
                yield place
    except postgres.CannotRun as e:
        with _on(directory, {}) as place:
            place.why_no_ledger = str(e)
            yield place


@contextmanager
def _on(directory: Path, environment: dict[str, str]) -> Iterator[Workplace]:
    with Simulator(_provider()) as sim:
        sim.script(standing={"status": 401}, account=GONE)
        with Instance(directory / "instance", _documents(sim.url), environment={
            "SIGNALBOX_SCHEDULER_CENSUS_S": "1", **environment,
        }) as instance:
            target = instance.status()["telemetry_url"].removeprefix("http://")
            with Prometheus(directory, target) as prometheus:
                yield Workplace(instance, sim, prometheus, None)


def _provider() -> dict[str, Any]:
    accounts: list[dict[str, Any]] = [
        {"name": name, "key": f"sk-ant-{name}-0123456789", "limits": limits} for name, limits in LIMITS.items()
    ]
    accounts.append({"name": OAUTH, "unified": {
        "5h-utilization": "0.62", "5h-reset": "+7200", "5h-status": "allowed",
        "7d-utilization": "0.31", "7d-reset": "+302400", "7d-status": "allowed",
    }})
    return {"accounts": accounts, "oauth": {
        "clients": [{"id": "signalbox", "secret": _CLIENT, "account": OAUTH}], "expires_in": 120,
        "grants": [{"account": OAUTH, "client_id": "signalbox", "refresh_token": _SEED}],
    }}


def _documents(url: str) -> list[dict[str, Any]]:
    documents = [pool("default", [*LIMITS, OAUTH])]
    for name in LIMITS:
        documents += [secret(name, **{"api-key": f"sk-ant-{name}-0123456789"}), account(name, url)]
    documents += [
        secret(OAUTH, **{"refresh-token": _SEED, "client-secret": _CLIENT}),
        account(OAUTH, url, credential={"oauth": {
            "tokenURL": url + _TOKENS, "clientID": "signalbox",
            "clientSecretRef": {"name": OAUTH, "key": "client-secret"},
            "refreshTokenRef": {"name": OAUTH, "key": "refresh-token"},
        }}),
    ]
    for person, limits in PEOPLE.items():
        documents += [
            secret(person, **{"relay-key": key_of(person)}),
            relay_key(person, owner=f"{person}@example.com", limits=limits),
        ]
    return documents
