"""Panels of the dashboards: what one says, and how it becomes Grafana's JSON.

Two sources: Prometheus, and the ledger in PostgreSQL for what no metric may carry, such as owners and keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FILTER = 'namespace=~"$namespace"'
POSTGRESQL = "grafana-postgresql-datasource"
METRICS = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
LEDGER = models.DataSourceRef(type_val=POSTGRESQL, uid="${ledger}")
KINDS = {"line": timeseries.Panel, "stat": stat.Panel, "bars": bargauge.Panel, "table": table.Panel}
HEIGHT = {"stat": 4, "line": 8, "bars": 8, "table": 8}
GRID = 24


@dataclass(frozen=True)
class Panel:
    """One panel: `queries` are (PromQL with F for the filter, legend), or with `sql` one statement for the ledger.

    `steps` colours values: (from this value on, colour), the first one from the least value. A table shows `columns`
    as (field, heading, its unit).
    """

    title: str
    meaning: str
    queries: tuple[tuple[str, str], ...] = ()
    kind: str = "line"
    unit: str = "short"
    most: float | None = None
    steps: tuple[tuple[float, str], ...] = ()
    columns: tuple[tuple[str, str, str], ...] = ()
    stacked: bool = False
    sql: str = ""

    def build(self, width: int) -> dashboard.Panel:
        """Return the builder of the panel, `width` columns of the grid wide."""
        panel = KINDS[self.kind]().title(self.title).description(self.meaning).unit(self.unit)
        panel = panel.datasource(LEDGER if self.sql else METRICS).span(width).height(HEIGHT[self.kind]).min(0)
        if self.most is not None:
            panel = panel.max(self.most)
        if self.steps:
            first, *others = self.steps
            steps = [models.Threshold(None, first[1]), *(models.Threshold(value, colour) for value, colour in others)]
            panel = panel.thresholds(dashboard.ThresholdsConfig().steps(steps))
        for target in self._targets():
            panel = panel.with_target(target)
        return self._drawn(panel)

    def _targets(self) -> list[Builder[Dataquery]]:
        if self.sql:
            return [Statement(self.sql, "time_series" if self.kind == "line" else "table")]
        targets: list[Builder[Dataquery]] = []
        for number, (query, legend) in enumerate(self.queries):
            target = prometheus.Dataquery().expr(query.replace("F", FILTER)).legend_format(legend)
            target = target.ref_id(chr(ord("A") + number)).datasource(METRICS)
            if self.kind == "table":
                target = target.format(PromQueryFormat.TABLE)
            targets.append(target.range() if self.kind == "line" else target.instant())
        return targets

    def _drawn(self, panel: dashboard.Panel) -> dashboard.Panel:
        if self.kind == "line":
            legend = common.VizLegendOptions().show_legend(True).calcs(["lastNotNull", "max"])
            panel = panel.legend(legend).line_width(1).fill_opacity(10).show_points(options.VisibilityMode.NEVER)
            if self.stacked:
                stacking = common.StackingConfig().mode(options.StackingMode.NORMAL).group("A")
                panel = panel.stacking(stacking).fill_opacity(60)
        if self.kind == "bars":
            panel = panel.orientation(options.VizOrientation.HORIZONTAL).display_mode(options.BarGaugeDisplayMode.BASIC)
            panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(bool(self.sql)))
        if self.kind == "table":
            panel = panel.with_transformation(self._only_columns())
            for _, heading, unit in self.columns:
                panel = panel.override_by_name(heading, [models.DynamicConfigValue("unit", unit)])
        return panel

    def _only_columns(self) -> models.DataTransformerConfig:
        fields = [field for field, _, _ in self.columns]
        return models.DataTransformerConfig(id_val="organize", options={
            "includeByName": dict.fromkeys(fields, True),
            "indexByName": {field: i for i, field in enumerate(fields)},
            "renameByName": {field: heading for field, heading, _ in self.columns},
        })


class Statement(Builder[Dataquery], Dataquery):
    """A query of Grafana's PostgreSQL data source, for which the SDK has no class."""

    def __init__(self, sql: str, form: str) -> None:
        self._said = {
            "datasource": LEDGER, "refId": "A", "rawQuery": True, "rawSql": sql, "format": form, "editorMode": "code",
        }

    def build(self) -> Dataquery:
        """Return itself: it is its own description."""
        return self

    def to_json(self) -> dict[str, object]:
        """Return what Grafana keeps of it."""
        return self._said


def laid_out(panels: Sequence[Panel]) -> list[dashboard.Panel]:
    """Return builders that fill the grid's rows: neighbouring figures share one, anything else stands in pairs."""
    built = []
    for is_stat, run in groupby(panels, lambda p: p.kind == "stat"):
        row = list(run)
        width = GRID // len(row) if is_stat else GRID // 2
        last = len(row) - 1
        built += [p.build(GRID if not is_stat and i == last and i % 2 == 0 else width) for i, p in enumerate(row)]
    return built


def quantiles(metric: str, by: str = "") -> tuple[tuple[str, str], ...]:
    """Return the queries of a histogram's median, 95th and 99th percentile."""
    labels = f"le, {by}" if by else "le"
    legend = f"{{{{{by}}}}} " if by else ""
    buckets = f"sum by ({labels}) (rate({metric}_bucket{{F}}[$__rate_interval]))"
    return tuple((f"histogram_quantile({q}, {buckets})", f"{legend}p{q[2:]}") for q in ("0.50", "0.95", "0.99"))
