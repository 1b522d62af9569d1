"""Rules and dashboards: every alert is tried by promtool, every metric that is asked for exists, and every panel's queries
are run on a real instance's traffic, by a real Prometheus and by the ledger's PostgreSQL, and have data.
"""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from tests.support import workplace
from tests.support.caller import Caller, eventually
from tests.support.dashboards import BOARDS, FILES, ROOT, Range, answers, board, panels
from tests.support.workplace import Workplace, key_of

METRIC = re.compile(r"\b(signalbox_\w+)")
SUFFIXES = ("_bucket", "_sum", "_count")


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FILES / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def everything() -> list[tuple[str, dict[str, Any]]]:
    """Every panel of every dashboard, with the dashboard's name."""
    return [(path.stem, panel) for path in BOARDS for panel in panels(board(path.stem))]


def documented() -> set[str]:
    page = (ROOT / "docs/metrics.md").read_text()
    kinds = re.findall(r"^\| `(signalbox_\w+)` \| (\w+) \|", page, re.MULTILINE)
    return {name + s for name, kind in kinds for s in (SUFFIXES if kind == "histogram" else ("",))}


def test_every_metric_that_rules_and_dashboards_ask_for_exists() -> None:
    asked = {m for rule in alerts() for m in METRIC.findall(rule["expr"])}
    asked |= {m for _, p in everything() for t in p["targets"] for m in METRIC.findall(t.get("expr", ""))}
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


def test_panels_fill_the_grid_and_lie_beside_one_another() -> None:
    for path in BOARDS:
        taken: set[tuple[int, int]] = set()
        whole = board(path.stem)
        for panel in (*whole["panels"], *(p for row in whole["panels"] for p in row.get("panels", ()))):
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24, (path.stem, panel["title"])
            cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
            assert not cells & taken, (path.stem, panel["title"])
            taken |= cells
        rows = sorted({y for _, y in taken})
        assert all(below - above == 1 for above, below in pairwise(rows)), f"{path.stem} has a gap"


# ---------------------------------------------------------------- a real Prometheus, a real ledger

DATA_LIMIT_S = 60.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """A workplace whose dashboards have something to show."""
    if not shutil.which("prometheus"):
        pytest.skip("needs prometheus (Debian: prometheus)")
    with workplace.running(tmp_path_factory.mktemp("workplace")) as running:
        yield running


def traffic(place: Workplace) -> None:
    """A little of everything: answers, streams, a cached prompt, refusals, failovers, a key at its limit, an unknown key."""
    url = place.instance.url
    ada, nightly = Caller(url, key_of("ada")), Caller(url, key_of("nightly"))
    system = [{"type": "text", "text": "word " * 4000, "cache_control": {"type": "ephemeral"}}]
    assert ada.send(system=system).status == 200
    assert ada.send(stream=True).status == 200
    assert ada.send("[[sim once status=529]] hello").status == 200
    assert ada.send("[[sim status=400]] hello").status == 400
    assert ada.send(model="gpt-5").status in (400, 404)
    assert nightly.send("Tell me everything", max_tokens=2000).status == 200
    assert Caller(url, "not a relay key at all").send().status == 401


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_query_of_every_dashboard_has_data(place: Workplace) -> None:
    wanted = [(name, panel) for name, panel in everything() if place.ledger or "rawSql" not in panel["targets"][0]]
    assert len(wanted) > 40
    began, until_s = time.time(), time.monotonic() + DATA_LIMIT_S
    while True:
        traffic(place)
        shown = Range(began, time.time(), 1)
        empty = [
            (name, panel["title"]) for name, panel in wanted
            if not all(answers(panel, shown, place.prometheus, place.ledger))
        ]
        if not empty:
            break
        assert time.monotonic() < until_s, empty
        time.sleep(1)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_spend_by_owner_is_the_ledgers(place: Workplace) -> None:
    if place.ledger is None:
        pytest.skip(f"PostgreSQL can't run here: {place.why_no_ledger}")
    began = time.time()
    traffic(place)
    [owners] = [p for p in panels(board("spend")) if p["title"] == "Owners"]
    # Minutes for a range within the last three hours, hours for a longer one: both are whole.
    for since in (began - 3600, began - 4 * 3600):
        def agree(since: float = since) -> bool:
            told = {row["owner"]: float(row["cost_usd"]) for row in place.instance.json("usage", "--by", "owner")}
            [rows] = answers(owners, Range(since, time.time()), place.prometheus, place.ledger)
            return len(told) == 2 and {row["owner"]: row["cost"] for row in rows} == pytest.approx(told)

        eventually(agree, within_s=DATA_LIMIT_S)


@pytest.mark.slow
def test_the_dashboards_data_source_reads_sums_and_nothing_else(place: Workplace) -> None:
    if place.ledger is None:
        pytest.skip(f"PostgreSQL can't run here: {place.why_no_ledger}")
    for statement in ("SELECT * FROM attempts", "SELECT * FROM facts", "DELETE FROM rollups"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            place.ledger.rows(statement)
