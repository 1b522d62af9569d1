#!/usr/bin/env python3
"""The Grafana dashboards as code; prints {name: dashboard} as JSON. scripts/gen_chart.py puts them into the chart.

Four questions, a dashboard each: is it well (overview), how much is left (pool and quota), how fast and how faulty is
it (traffic and latency), what does it cost (spend). Every query filters by $namespace and joins replicas that report
the same thing, so that two schedulers do not count an account twice.
"""

import json
import sys
from dataclasses import dataclass

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

FILTER = 'namespace=~"$namespace"'
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
KINDS = {"line": timeseries.Panel, "stat": stat.Panel, "bars": bargauge.Panel, "table": table.Panel}
WIDTH = {"stat": 4, "line": 12, "bars": 12, "table": 12}
HEIGHT = {"stat": 4, "line": 8, "bars": 8, "table": 8}


@dataclass(frozen=True)
class Panel:
    """One panel: `queries` are (PromQL with F for the filter, legend)."""

    title: str
    meaning: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "line"
    unit: str = "short"
    most: float | None = None

    def build(self) -> dashboard.Panel:
        """Return the panel's builder."""
        panel = KINDS[self.kind]().title(self.title).description(self.meaning).unit(self.unit).datasource(SOURCE)
        panel = panel.span(WIDTH[self.kind]).height(HEIGHT[self.kind]).min(0)
        if self.most is not None:
            panel = panel.max(self.most)
        if self.kind == "line":
            panel = panel.fill_opacity(10).line_width(1).legend(
                common.VizLegendOptions().show_legend(True).calcs(["lastNotNull", "max"]),
            )
        for number, (query, legend) in enumerate(self.queries):
            target = prometheus.Dataquery().expr(query.replace("F", FILTER)).legend_format(legend)
            target = target.ref_id(chr(ord("A") + number)).datasource(SOURCE)
            panel = panel.with_target(target.range() if self.kind == "line" else target.instant())
        return panel


def quantiles(metric: str, by: str = "") -> tuple[tuple[str, str], ...]:
    """Return the queries of a histogram's median, 95th and 99th percentile."""
    labels = f"le, {by}" if by else "le"
    legend = f"{{{{{by}}}}} " if by else ""
    buckets = f"sum by ({labels}) (rate({metric}_bucket{{F}}[$__rate_interval]))"
    return tuple((f"histogram_quantile({q}, {buckets})", f"{legend}p{q[2:]}") for q in ("0.50", "0.95", "0.99"))


OVERVIEW = [
    Panel("Requests", "Requests ended in the last five minutes, each second.",
          (("sum(rate(signalbox_requests_total{F}[5m]))", "requests/s"),), "stat", "reqps"),
    Panel("Answered well", "The share of requests that ended well for their caller.",
          (('sum(rate(signalbox_requests_total{F,outcome="ok"}[5m])) / '
            "sum(rate(signalbox_requests_total{F}[5m]))", ""),),
          "stat", "percentunit", 1),
    Panel("In flight", "Requests being answered now.", (("sum(signalbox_in_flight{F})", ""),), "stat"),
    Panel("Accounts ready", "Accounts that can serve now.",
          (('sum(max by (account) (signalbox_account_state{F,state="Ready"}))', ""),), "stat"),
    Panel("Spend, last day", "What the last 24 hours cost.",
          (("sum(increase(signalbox_cost_usd_total{F}[24h]))", ""),), "stat", "currencyUSD"),
    Panel("Not in the ledger yet", "Attempts and denials that wait in journals.",
          (("sum(signalbox_journal_pending{F})", ""),), "stat"),
    Panel("Requests by outcome", "How requests ended for their callers.",
          (("sum by (outcome) (rate(signalbox_requests_total{F}[$__rate_interval]))", "{{outcome}}"),), unit="reqps"),
    Panel("Accounts by state", "Joined over schedulers, which report the same.",
          (("sum by (state) (max by (account, state) (signalbox_account_state{F}))", "{{state}}"),)),
    Panel("Denials by reason", "Requests that were not admitted.",
          (('sum by (reason) (rate(signalbox_admissions_total{F,decision="deny"}[$__rate_interval]))', "{{reason}}"),),
          unit="reqps"),
    Panel("Ledger", "How far the ledger is behind, and what waits for it.",
          (("max(signalbox_ledger_lag_seconds{F})", "lag, seconds"), ("sum(signalbox_journal_pending{F})", "pending"))),
    Panel("Leases nobody renewed", "Each stands for a gateway that died or was cut off.",
          (("sum(increase(signalbox_orphans_total{F}[$__rate_interval]))", "orphans"),)),
    Panel("Ledger's transactions", "What happened to events, and failures that are tried again.",
          (("sum by (result) (rate(signalbox_ledger_events_total{F}[$__rate_interval]))", "{{result}}"),
           ("sum(rate(signalbox_ledger_failures_total{F}[$__rate_interval]))", "failures"))),
]

POOL = [
    Panel("Ready", "Accounts that can serve now.",
          (('sum(max by (account) (signalbox_account_state{F,state="Ready"}))', ""),), "stat"),
    Panel("Limited or cooling down", "They come back by themselves.",
          (('sum(max by (account) (signalbox_account_state{F,state=~"Limited|CoolingDown"}))', ""),), "stat"),
    Panel("Need a person", "Benched by the provider, or with a credential that no longer works.",
          (('sum(max by (account) (signalbox_account_state{F,state=~"Benched|NotReady"}))', ""),), "stat"),
    Panel("Lowest headroom", "The tightest window of any account.",
          (("min(max by (account, window) (signalbox_account_headroom_ratio{F}))", ""),), "stat", "percentunit", 1),
    Panel("Headroom by account and window", "What is left of each limit window.",
          (("max by (account, window) (signalbox_account_headroom_ratio{F})", "{{account}} {{window}}"),), "bars",
          "percentunit", 1),
    Panel("State by account", "1 for the state that an account is in.",
          (("max by (account, state) (signalbox_account_state{F}) == 1", "{{account}} {{state}}"),), "table"),
    Panel("Headroom over time", "The mean over accounts of each window.",
          (("avg by (window) (max by (account, window) (signalbox_account_headroom_ratio{F}))", "{{window}}"),),
          unit="percentunit", most=1),
    Panel("Attempts by account", "Where requests go.",
          (("sum by (account) (rate(signalbox_attempts_total{F}[$__rate_interval]))", "{{account}}"),), unit="reqps"),
    Panel("Failovers by reason", "Attempts that were made again.",
          (("sum by (reason) (rate(signalbox_failovers_total{F}[$__rate_interval]))", "{{reason}}"),), unit="reqps"),
    Panel("Refreshes", "Credentials renewed, by outcome.",
          (("sum by (outcome) (rate(signalbox_refreshes_total{F}[$__rate_interval]))", "{{outcome}}"),)),
    Panel("Credentials expire in", "For credentials that do.",
          (("min by (account) (signalbox_credential_expiry_seconds{F})", "{{account}}"),), unit="s"),
]

TRAFFIC = [
    Panel("Requests by route", "Requests ended each second.",
          (("sum by (route) (rate(signalbox_requests_total{F}[$__rate_interval]))", "{{route}}"),), unit="reqps"),
    Panel("Share that failed", "Anything but well ended or the caller gone, by outcome.",
          (('sum by (outcome) (rate(signalbox_requests_total{F,outcome!~"ok|client_gone"}[$__rate_interval])) / '
            "ignoring(outcome) group_left sum(rate(signalbox_requests_total{F}[$__rate_interval]))", "{{outcome}}"),),
          unit="percentunit"),
    Panel("Time to first token", "From the request's head to its first content.",
          quantiles("signalbox_time_to_first_token_seconds"), unit="s"),
    Panel("Whole request", "From head to last byte.", quantiles("signalbox_request_duration_seconds"), unit="s"),
    Panel("Signalbox's own part", "A request's time that no provider spent.",
          quantiles("signalbox_gateway_overhead_seconds"), unit="s"),
    Panel("Admission", "From a batch's arrival at a scheduler to its decisions.",
          quantiles("signalbox_admission_duration_seconds"), unit="s"),
    Panel("In flight by gateway", "Requests being answered now.",
          (("sum by (pod) (signalbox_in_flight{F})", "{{pod}}"),)),
    Panel("Buffered by gateway", "Request bodies and withheld answers in memory.",
          (("sum by (pod) (signalbox_gateway_buffered_bytes{F})", "{{pod}}"),), unit="bytes"),
    Panel("Attempts by outcome", "How attempts at providers ended.",
          (("sum by (outcome) (rate(signalbox_attempts_total{F}[$__rate_interval]))", "{{outcome}}"),), unit="reqps"),
    Panel("CPU by room", "Seconds of CPU each second.",
          (("sum by (room) (rate(process_cpu_seconds_total{F,room!=\"\"}[$__rate_interval]))", "{{room}}"),)),
]

SPEND = [
    Panel("Last day", "What the last 24 hours cost. Bills by owner and key: `signalbox usage --by owner,key`.",
          (("sum(increase(signalbox_cost_usd_total{F}[24h]))", ""),), "stat", "currencyUSD"),
    Panel("In the range", "What the shown time cost.",
          (("sum(increase(signalbox_cost_usd_total{F}[$__range]))", ""),), "stat", "currencyUSD"),
    Panel("An hour, at this rate", "The last five minutes, taken for an hour.",
          (("sum(rate(signalbox_cost_usd_total{F}[5m])) * 3600", ""),), "stat", "currencyUSD"),
    Panel("Cache reads of input", "The share of input tokens that prompt caches served.",
          (('sum(rate(signalbox_tokens_total{F,kind="cache_read"}[5m])) / '
            'sum(rate(signalbox_tokens_total{F,kind!="output"}[5m]))', ""),), "stat", "percentunit", 1),
    Panel("By model", "USD in the shown time.",
          (("sum by (model) (increase(signalbox_cost_usd_total{F}[$__range]))", "{{model}}"),), "bars", "currencyUSD"),
    Panel("By account", "USD in the shown time.",
          (("sum by (account) (increase(signalbox_cost_usd_total{F}[$__range]))", "{{account}}"),), "bars",
          "currencyUSD"),
    Panel("Spend by model over time", "USD an hour.",
          (("sum by (model) (rate(signalbox_cost_usd_total{F}[$__rate_interval])) * 3600", "{{model}}"),),
          unit="currencyUSD"),
    Panel("Spend by account over time", "USD an hour.",
          (("sum by (account) (rate(signalbox_cost_usd_total{F}[$__rate_interval])) * 3600", "{{account}}"),),
          unit="currencyUSD"),
    Panel("Tokens by kind", "Billed tokens each second.",
          (("sum by (kind) (rate(signalbox_tokens_total{F}[$__rate_interval]))", "{{kind}}"),)),
    Panel("Tokens by model", "Billed tokens each second.",
          (("sum by (model) (rate(signalbox_tokens_total{F}[$__rate_interval]))", "{{model}}"),)),
]

BOARDS = {
    "overview": ("Signalbox: overview", OVERVIEW),
    "pool": ("Signalbox: pool and quota", POOL),
    "traffic": ("Signalbox: traffic and latency", TRAFFIC),
    "spend": ("Signalbox: spend", SPEND),
}


def build(name: str, title: str, panels: list[Panel]) -> dashboard.Dashboard:
    """Return one dashboard's builder."""
    board = dashboard.Dashboard(title).uid(f"signalbox-{name}").tags(["signalbox"]).readonly()
    board = board.time("now-6h", "now").refresh("30s").timezone("browser")
    board = board.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    board = board.with_variable(
        dashboard.QueryVariable("namespace").label("Namespace").datasource(SOURCE)
        .query("label_values(signalbox_in_flight, namespace)").include_all(True).all_value(".*").multi(False)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED),
    )
    for panel in panels:
        board = board.with_panel(panel.build())
    return board


def main() -> None:
    """Print all dashboards."""
    boards = {name: build(name, *board).build() for name, board in BOARDS.items()}
    json.dump(boards, sys.stdout, cls=JSONEncoder, indent=1)


if __name__ == "__main__":
    main()
