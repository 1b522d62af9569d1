"""Rules and dashboards: every alert is tried by promtool, every metric that is asked for exists, and every dashboard's
queries are run by a real Prometheus on a real instance's traffic and have data.
"""

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.instance import Instance, account, relay_key, secret
from tests.support.sim import Simulator

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "deploy/helm/signalbox/files"
BOARDS = sorted((FILES / "dashboards").glob("*.json"))
METRIC = re.compile(r"\b(signalbox_\w+)")
SUFFIXES = ("_bucket", "_sum", "_count")


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FILES / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries(board: Path) -> list[tuple[str, str]]:
    """(panel's title, PromQL) of a dashboard."""
    return [(p["title"], t["expr"]) for p in json.loads(board.read_text())["panels"] for t in p["targets"]]


def documented() -> set[str]:
    page = (ROOT / "docs/metrics.md").read_text()
    kinds = re.findall(r"^\| `(signalbox_\w+)` \| (\w+) \|", page, re.MULTILINE)
    return {name + s for name, kind in kinds for s in (SUFFIXES if kind == "histogram" else ("",))}


def test_every_metric_that_rules_and_dashboards_ask_for_exists() -> None:
    asked = {m for rule in alerts() for m in METRIC.findall(rule["expr"])}
    asked |= {m for board in BOARDS for _, expr in queries(board) for m in METRIC.findall(expr)}
    assert len(asked) > 15
    assert asked <= documented(), asked - documented()


def test_every_alert_has_a_runbook_and_a_test() -> None:
    headings = {h.lower() for h in re.findall(r"^## (\w+)$", (ROOT / "docs/runbooks.md").read_text(), re.MULTILINE)}
    tried = (Path(__file__).parent / "rules_test.yaml").read_text()
    for rule in alerts():
        assert rule["annotations"]["runbook_url"] == "RUNBOOKS" + rule["alert"].lower()
        assert rule["alert"].lower() in headings, f"docs/runbooks.md says nothing about {rule['alert']}"
        assert tried.count(f"alertname: {rule['alert']},") == 2, f"rules_test.yaml does not try {rule['alert']}"


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool (Debian: prometheus)")
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    groups = yaml.safe_load((FILES / "rules.yaml").read_text())
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(groups))
    shutil.copy(Path(__file__).parent / "rules_test.yaml", tmp_path)
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "rules_test.yaml"]):
        ran = subprocess.run(["promtool", *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr


# ---------------------------------------------------------------- a real Prometheus

KEY = "a relay key for dashboards"
# Grafana's own variables, as Grafana would fill them in for a short range.
GRAFANA = {"$__rate_interval": "20s", "$__range": "10m", "$namespace": ".*"}
# What this instance has none of: no credential here ends.
WITHOUT_DATA = {"Credentials expire in"}
DATA_LIMIT_S = 60.0


class Prometheus:
    """A real Prometheus that reads one telemetry page every second."""

    def __init__(self, directory: Path, target: str) -> None:
        config = {
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [{
                "job_name": "signalbox", "honor_labels": True,
                "static_configs": [{"targets": [target], "labels": {"namespace": "relay", "pod": "signalbox"}}],
            }],
        }
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._log = open(directory / "log", "w+")  # noqa: SIM115 lives as long as the process
        self._process = subprocess.Popen(
            ["prometheus", f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data",
             "--web.listen-address=127.0.0.1:0"], stdout=self._log, stderr=subprocess.STDOUT,
        )
        self.url = ""
        until_s = time.monotonic() + DATA_LIMIT_S
        while not self.url:
            assert self._process.poll() is None, self._said()
            assert time.monotonic() < until_s, self._said()
            found = re.search(r'Listening on" address=(127\.0\.0\.1:\d+)', self._said())
            self.url = f"http://{found[1]}" if found else ""
            time.sleep(0.1)

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The samples of an instant query. Raises urllib.error.HTTPError where the query is wrong."""
        url = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expr})}"
        with urllib.request.urlopen(url, timeout=15) as reply:
            return list(json.loads(reply.read())["data"]["result"])

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(15)
        self._log.close()


def message(url: str, key: str, **fields: Any) -> int:
    body = {"model": "claude-sonnet-5-5", "max_tokens": 64, "messages": [{"role": "user", "content": "hello"}], **fields}
    request = urllib.request.Request(
        f"{url}/v1/messages", data=json.dumps(body).encode(),
        headers={"x-api-key": key, "content-type": "application/json", "anthropic-version": "2023-06-01"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            reply.read()
            return int(reply.status)
    except urllib.error.HTTPError as e:
        return e.code


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Instance, Prometheus]]:
    """An instance in which everything that dashboards show has happened at least twice, and its Prometheus."""
    if not shutil.which("prometheus"):
        pytest.skip("needs prometheus (Debian: prometheus)")
    directory = tmp_path_factory.mktemp("observed")
    names = ("left", "middle", "right")
    provider = {
        "accounts": [
            {"name": n, "key": f"sk-ant-{n}-0123456789", "unified": {"5h-utilization": "0.4", "5h-reset": "+3600", "5h-status": "allowed"}}
            for n in names
        ],
    }
    with Simulator(provider) as sim:
        documents = [
            *(secret(n, **{"api-key": f"sk-ant-{n}-0123456789"}) for n in names), *(account(n, sim.url) for n in names),
            secret("ada", **{"relay-key": KEY}), relay_key("ada", limits=[{"per": "Day", "requests": 10_000}]),
        ]
        with Instance(directory, documents) as instance:
            instance.status()
            prometheus = Prometheus(directory, instance._telemetry_url.removeprefix("http://"))
            try:
                yield instance, prometheus
            finally:
                prometheus.stop()


def traffic(instance: Instance) -> None:
    """A little of everything: answers, streams, a cached prompt, refusals, failovers, an unknown key."""
    system = [{"type": "text", "text": "word " * 4000, "cache_control": {"type": "ephemeral"}}]
    assert message(instance.url, KEY, system=system) == 200
    assert message(instance.url, KEY, stream=True) == 200
    assert message(instance.url, KEY, messages=[{"role": "user", "content": "[[sim once status=529]] hello"}]) == 200
    assert message(instance.url, KEY, messages=[{"role": "user", "content": "[[sim status=400]] hello"}]) == 400
    assert message(instance.url, KEY, model="gpt-5") in (400, 404)
    assert message(instance.url, "not a relay key at all") == 401


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_query_of_every_dashboard_has_data(observed: tuple[Instance, Prometheus]) -> None:
    instance, prometheus = observed
    wanted = []
    for board in BOARDS:
        for title, expr in queries(board):
            for variable, value in GRAFANA.items():
                expr = expr.replace(variable, value)
            wanted.append((f"{board.stem}: {title}", expr))
    assert len(wanted) > 40
    until_s = time.monotonic() + DATA_LIMIT_S
    # One of the three accounts loses its credential; the other two go on.
    assert message(instance.url, KEY, messages=[{"role": "user", "content": "[[sim once status=401]] hello"}]) == 200
    while True:
        traffic(instance)
        empty = [w for w in wanted if w[0].split(": ")[1] not in WITHOUT_DATA and not prometheus.query(w[1])]
        if not empty:
            return
        assert time.monotonic() < until_s, empty
        time.sleep(1)
