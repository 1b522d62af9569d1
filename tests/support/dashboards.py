"""The chart's dashboards as Grafana would run them: every panel's queries with Grafana's variables filled in, asked of
a real Prometheus or of the ledger's own PostgreSQL. Imports nothing of the product.
"""

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "deploy/helm/signalbox/files"
BOARDS = sorted((FILES / "dashboards").glob("*.json"))
START_LIMIT_S = 60.0
GRAFANA = "grafana"
_PASSWORD = "of-the-dashboards-alone"
# What docs/dashboards.md tells people to give the data source: the sums, and nothing else of the ledger.
GRANTS = (f"CREATE ROLE {GRAFANA} LOGIN PASSWORD '{_PASSWORD}'", f"GRANT SELECT ON rollups TO {GRAFANA}")


@dataclass(frozen=True)
class Range:
    """The time that a dashboard shows, in Unix seconds, and the step between two points."""

    since: float
    until: float
    step_s: int = 5

    def promql(self, expr: str) -> str:
        """Return the query with Grafana's variables filled in; Prometheus is asked every second, so four make a rate."""
        rate_s = max(20, 4 * self.step_s)
        values = {
            "$__rate_interval": f"{rate_s}s", "$__range": f"{max(1, round(self.until - self.since))}s", "$namespace": ".*",
        }
        for name, value in values.items():
            expr = expr.replace(name, value)
        return expr

    def sql(self, statement: str) -> str:
        """Return the statement with the macros of Grafana's PostgreSQL data source filled in."""
        for name, value in (("From", self.since), ("To", self.until)):
            statement = statement.replace(f"$__unixEpoch{name}()", str(int(value)))
        assert "$" not in statement, statement
        return statement


def board(name: str) -> dict[str, Any]:
    """Return a dashboard by its file's name."""
    return dict(json.loads((FILES / "dashboards" / f"{name}.json").read_text()))


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a dashboard's panels, those in closed rows too, without the rows themselves."""
    found = []
    for panel in dashboard["panels"]:
        found += panel.get("panels", []) if panel["type"] == "row" else [panel]
    return found


class Prometheus:
    """A real Prometheus that reads one telemetry page every second. Use it as a context manager."""

    def __init__(self, directory: Path, target: str) -> None:
        config = {
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [{
                "job_name": "signalbox", "honor_labels": True,
                "static_configs": [{"targets": [target], "labels": {"namespace": "relay", "pod": "signalbox"}}],
            }],
        }
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._log = open(directory / "prometheus.log", "w+")  # noqa: SIM115 lives as long as the process
        self._process = subprocess.Popen(
            ["prometheus", f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/prometheus",
             "--web.listen-address=127.0.0.1:0"], stdout=self._log, stderr=subprocess.STDOUT,
        )
        self.url = ""

    def __enter__(self) -> "Prometheus":
        until_s = time.monotonic() + START_LIMIT_S
        while not self.url:
            assert self._process.poll() is None, self._said()
            assert time.monotonic() < until_s, self._said()
            found = re.search(r'Listening on" address=(127\.0\.0\.1:\d+)', self._said())
            self.url = f"http://{found[1]}" if found else ""
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(15)
        self._log.close()

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Return the samples of an instant query. Raises urllib.error.HTTPError where the query is wrong."""
        return self._ask("query", query=expr)

    def series(self, expr: str, shown: Range) -> list[dict[str, Any]]:
        """Return the series of a range query. Raises urllib.error.HTTPError where the query is wrong."""
        return self._ask("query_range", query=expr, start=shown.since, end=shown.until, step=shown.step_s)

    def _ask(self, what: str, **arguments: Any) -> list[dict[str, Any]]:
        url = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(arguments)}"
        with urllib.request.urlopen(url, timeout=15) as reply:
            return list(json.loads(reply.read())["data"]["result"])


class Ledger:
    """The ledger's database, as the data source of a dashboard may see it."""

    def __init__(self, url: str) -> None:
        with psycopg.connect(url, autocommit=True) as owner:
            for statement in GRANTS:
                owner.execute(statement)  # type: ignore[arg-type]
        self._url = url

    def rows(self, statement: str) -> list[dict[str, Any]]:
        """Return a statement's rows. Raises psycopg.Error where it is wrong or not allowed."""
        with psycopg.connect(self._url, user=GRAFANA, password=_PASSWORD, row_factory=psycopg.rows.dict_row) as reader:
            return reader.execute(statement).fetchall()  # type: ignore[arg-type]


def answers(panel: dict[str, Any], shown: Range, prometheus: Prometheus, ledger: Ledger | None) -> list[list[Any]]:
    """Return what each of a panel's queries finds: series, samples or rows; None of the ledger's without a ledger."""
    found: list[list[Any]] = []
    for target in panel["targets"]:
        if "rawSql" in target:
            found.append(ledger.rows(shown.sql(target["rawSql"])) if ledger else [])
        elif target.get("range"):
            found.append(prometheus.series(shown.promql(target["expr"]), shown))
        else:
            found.append(prometheus.query(shown.promql(target["expr"])))
    return found
