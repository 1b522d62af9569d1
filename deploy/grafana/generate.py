#!/usr/bin/env python3
"""The Grafana dashboards as code; prints {name: dashboard} as JSON. scripts/gen_chart.py puts them into the chart.

Four questions, a dashboard each: is it well (overview), how much is left (pool and quota), how fast and how faulty is
it (traffic and latency), what does it cost (spend). Every metric is filtered by $namespace, and replicas that report
the same thing are joined, so that two schedulers do not count an account twice. Owners and keys stand in no metric:
the spend dashboard asks the ledger for them, in a row that is closed until somebody opens it.
"""

import json
import sys

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models
from panels import METRICS, POSTGRESQL, Panel, laid_out, quantiles

FEW_IS_BAD = ((0, "red"), (1, "green"))
# As in the alert SignalboxErrorRatioHigh.
FAILURES = (
    "upstream_.*|truncated|timeout|defect|"
    "scheduler_unavailable|ledger_unavailable|overloaded|pool_unavailable|pool_empty"
)
ANY_IS_BAD = ((0, "green"), (1, "orange"))

OVERVIEW = [
    Panel("Requests", "Requests ended in the last five minutes, each second.",
          (("sum(rate(signalbox_requests_total{F}[5m]))", "requests/s"),), "stat", "reqps"),
    Panel("Did not fail", "Of all requests. Limits of a caller's own and wrong keys are no failures.",
          ((f'1 - (sum(rate(signalbox_requests_total{{F,outcome=~"{FAILURES}"}}[5m])) or vector(0)) / '
            "sum(rate(signalbox_requests_total{F}[5m]))", ""),),
          "stat", "percentunit", 1, ((0, "red"), (0.95, "orange"), (0.99, "green"))),
    Panel("In flight", "Requests being answered now.", (("sum(signalbox_in_flight{F})", ""),), "stat"),
    Panel("Accounts ready", "Accounts that can serve now.",
          (('sum(max by (account) (signalbox_account_state{F,state="Ready"}))', ""),), "stat", steps=FEW_IS_BAD),
    Panel("Spend, last day", "What the last 24 hours cost.",
          (("sum(increase(signalbox_cost_usd_total{F}[24h]))", ""),), "stat", "currencyUSD"),
    Panel("Not in the ledger yet", "Attempts and denials that wait in journals.",
          (("sum(signalbox_journal_pending{F})", ""),), "stat"),
    Panel("Requests by outcome", "How requests ended for their callers.",
          (("sum by (outcome) (rate(signalbox_requests_total{F}[$__rate_interval]))", "{{outcome}}"),),
          unit="reqps", stacked=True),
    Panel("Accounts by state", "Joined over schedulers, which report the same.",
          (("sum by (state) (max by (account, state) (signalbox_account_state{F}))", "{{state}}"),), stacked=True),
    Panel("Denials by reason", "Requests that were not admitted.",
          (('sum by (reason) (rate(signalbox_admissions_total{F,decision="deny"}[$__rate_interval]))', "{{reason}}"),),
          unit="reqps", stacked=True),
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
          (('sum(max by (account) (signalbox_account_state{F,state="Ready"}))', ""),), "stat", steps=FEW_IS_BAD),
    Panel("Limited or cooling down", "They come back by themselves.",
          (('sum(max by (account) (signalbox_account_state{F,state=~"Limited|CoolingDown"}))', ""),), "stat"),
    Panel("Need a person", "Benched by the provider, or with a credential that no longer works.",
          (('sum(max by (account) (signalbox_account_state{F,state=~"Benched|NotReady"}))', ""),), "stat",
          steps=ANY_IS_BAD),
    Panel("Lowest headroom", "The tightest window of any account.",
          (("min(max by (account, window) (signalbox_account_headroom_ratio{F}))", ""),), "stat", "percentunit", 1,
          ((0, "red"), (0.1, "orange"), (0.3, "green"))),
    Panel("Headroom by account and window", "What is left of each limit window.",
          (("max by (account, window) (signalbox_account_headroom_ratio{F})", "{{account}} {{window}}"),), "bars",
          "percentunit", 1, ((0, "red"), (0.1, "orange"), (0.3, "green"))),
    Panel("State by account", "The state that each account is in.",
          (("max by (account, state) (signalbox_account_state{F}) == 1", ""),), "table",
          columns=(("account", "Account", "string"), ("state", "State", "string"))),
    Panel("Headroom over time", "The mean over accounts of each window.",
          (("avg by (window) (max by (account, window) (signalbox_account_headroom_ratio{F}))", "{{window}}"),),
          unit="percentunit", most=1),
    Panel("Attempts by account", "Where requests go.",
          (("sum by (account) (rate(signalbox_attempts_total{F}[$__rate_interval]))", "{{account}}"),),
          unit="reqps", stacked=True),
    Panel("Failovers by reason", "Attempts that were made again.",
          (("sum by (reason) (rate(signalbox_failovers_total{F}[$__rate_interval]))", "{{reason}}"),), unit="reqps"),
    Panel("Refreshes", "Credentials renewed, by outcome.",
          (("sum by (outcome) (rate(signalbox_refreshes_total{F}[$__rate_interval]))", "{{outcome}}"),)),
    Panel("Credentials expire in", "For credentials that do.",
          (("min by (account) (signalbox_credential_expiry_seconds{F})", "{{account}}"),), unit="s"),
    Panel("Relay keys near their limits", "Keys that have used 80 % or more of a limit, by its period and what it"
          " counts. Which ones: `signalbox keys list`.",
          (('sum by (per, dimension) (max by (per, dimension, used) (signalbox_keys{F,used!="some"}))',
            "{{per}} {{dimension}}"),)),
]

TRAFFIC = [
    Panel("Requests by route", "Requests ended each second.",
          (("sum by (route) (rate(signalbox_requests_total{F}[$__rate_interval]))", "{{route}}"),),
          unit="reqps", stacked=True),
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
          (("sum by (room) (rate(process_cpu_seconds_total{F,room!=\"\"}[$__rate_interval]))", "{{room}}"),),
          stacked=True),
]

SPEND = [
    Panel("Last day", "What the last 24 hours cost.",
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
          unit="currencyUSD", stacked=True),
    Panel("Spend by account over time", "USD an hour.",
          (("sum by (account) (rate(signalbox_cost_usd_total{F}[$__rate_interval])) * 3600", "{{account}}"),),
          unit="currencyUSD", stacked=True),
    Panel("Tokens by kind", "Billed tokens each second.",
          (("sum by (kind) (rate(signalbox_tokens_total{F}[$__rate_interval]))", "{{kind}}"),), stacked=True),
    Panel("Tokens by model", "Billed tokens each second.",
          (("sum by (model) (rate(signalbox_tokens_total{F}[$__rate_interval]))", "{{model}}"),), stacked=True),
]

# A range within the last three hours is summed by the ledger's minutes, which are kept that long; others by hours.
WIDTH_MS = "CASE WHEN $__unixEpochFrom() > extract(epoch FROM now()) - 10800 THEN 60000 ELSE 3600000 END"
IN_RANGE = (
    f"width_ms = {WIDTH_MS} AND start_ms > $__unixEpochFrom()::bigint * 1000 - width_ms"
    " AND start_ms <= $__unixEpochTo()::bigint * 1000"
)
COST = "(sum(cost_nano_usd) / 1e9)::float8"
TOKENS = "input_tokens + cache_write_5m_tokens + cache_write_1h_tokens + cache_read_tokens + output_tokens"
SUMS = (
    "sum(requests) AS requests, sum(input_tokens + cache_write_5m_tokens + cache_write_1h_tokens) AS input,"
    f" sum(cache_read_tokens) AS cached, sum(output_tokens) AS output, {COST} AS cost"
)
SUMMED = (
    ("requests", "Requests", "short"), ("input", "Input tokens", "short"), ("cached", "Cache reads", "short"),
    ("output", "Output tokens", "short"), ("cost", "Cost", "currencyUSD"),
)

OWNERS = [
    Panel("By owner", "USD in the shown time; the twenty who spent most.", kind="bars", unit="currencyUSD",
          sql=f"SELECT owner, {COST} AS cost FROM rollups WHERE {IN_RANGE} GROUP BY owner ORDER BY cost DESC LIMIT 20"),
    Panel("Spend by owner over time", "USD an hour; the ten who spent most.", unit="currencyUSD", stacked=True,
          sql="SELECT to_timestamp(start_ms / 1000) AS time, owner AS metric,"
          " (sum(cost_nano_usd) / 1e9 * 3600000 / width_ms)::float8 AS value"
          f" FROM rollups WHERE {IN_RANGE} AND owner IN (SELECT owner FROM rollups WHERE {IN_RANGE}"
          " GROUP BY owner ORDER BY sum(cost_nano_usd) DESC LIMIT 10)"
          " GROUP BY start_ms, width_ms, owner ORDER BY start_ms"),
    Panel("Owners", "What each owner used in the shown time.", kind="table",
          columns=(("owner", "Owner", "string"), *SUMMED),
          sql=f"SELECT owner, {SUMS} FROM rollups WHERE {IN_RANGE} GROUP BY owner ORDER BY cost DESC LIMIT 200"),
    Panel("Keys", "What each relay key used in the shown time.", kind="table",
          columns=(
              ("key", "Key", "string"), ("owner", "Owner", "string"), ("requests", "Requests", "short"),
              ("tokens", "Tokens", "short"), ("cost", "Cost", "currencyUSD"),
          ),
          sql=f"SELECT key_id AS key, owner, sum(requests) AS requests, sum({TOKENS}) AS tokens, {COST} AS cost"
          f" FROM rollups WHERE {IN_RANGE} GROUP BY key_id, owner ORDER BY cost DESC LIMIT 200"),
]

BOARDS = {
    "overview": ("Signalbox: overview", OVERVIEW, {}),
    "pool": ("Signalbox: pool and quota", POOL, {}),
    "traffic": ("Signalbox: traffic and latency", TRAFFIC, {}),
    "spend": ("Signalbox: spend", SPEND, {"Owners and keys, from the ledger (data source: PostgreSQL)": OWNERS}),
}


def build(name: str, title: str, panels: list[Panel], ledger: dict[str, list[Panel]]) -> dashboard.Dashboard:
    """Return one dashboard's builder. `ledger` are closed rows of panels that ask the ledger."""
    board = dashboard.Dashboard(title).uid(f"signalbox-{name}").tags(["signalbox"]).readonly()
    board = board.time("now-6h", "now").refresh("30s").timezone("browser")
    board = board.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    board = board.with_variable(
        dashboard.QueryVariable("namespace").label("Namespace").datasource(METRICS)
        .query("label_values(signalbox_in_flight, namespace)").include_all(True).all_value(".*").multi(False)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED),
    )
    if ledger:
        board = board.with_variable(dashboard.DatasourceVariable("ledger").label("Ledger").type(POSTGRESQL))
    for panel in laid_out(panels):
        board = board.with_panel(panel)
    for heading, inside in ledger.items():
        row = dashboard.Row(heading)
        for panel in laid_out(inside):
            row = row.with_panel(panel)
        board = board.with_row(row)
    return board


def main() -> None:
    """Print all dashboards."""
    boards = {name: build(name, *board).build() for name, board in BOARDS.items()}
    json.dump(boards, sys.stdout, cls=JSONEncoder, indent=1)


if __name__ == "__main__":
    main()
