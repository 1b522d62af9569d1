"""`usage`, `requests` and `explain`: what the ledger knows, for people and programs."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from signalbox.cli.commands.common import object_id
from signalbox.cli.errors import BadUsage, CommandFailed
from signalbox.cli.locate import Target
from signalbox.cli.output import Format, ReportFormat, print_csv, print_json, print_lines, print_table, progress
from signalbox.cli.shapes import OUTCOMES, explained_row, request_row
from signalbox.cli.times import parse_when
from signalbox.core.clock import to_ms
from signalbox.core.rows import TOKEN_FIELDS, USAGE_GROUPS, Row, usage_row
from signalbox.v1 import usage_pb2


@dataclass(frozen=True)
class Span:
    """A stretch of time as it was typed; None is open."""

    since: str | None
    until: str | None

    def as_ms(self) -> tuple[int, int]:
        """Return both ends in Unix milliseconds, 0 where open. Raises BadUsage."""
        now = datetime.now(UTC)
        since_ms = to_ms(parse_when(self.since, "--since", now)) if self.since else 0
        until_ms = to_ms(parse_when(self.until, "--until", now)) if self.until else 0
        if until_ms and since_ms >= until_ms:
            raise BadUsage(f"--since {self.since}: must be earlier than --until {self.until}")
        return since_ms, until_ms


@dataclass(frozen=True)
class UsageFilter:
    """What `usage` adds up: `by` is a comma-separated list of groups."""

    by: str
    key: str | None
    account: str | None
    span: Span


def show_usage(target: Target, wanted: UsageFilter, output: ReportFormat) -> None:
    """Print sums by group. Raises BadUsage for an unknown one."""
    groups = [group.strip() for group in wanted.by.split(",") if group.strip()]
    unknown = [group for group in groups if group not in USAGE_GROUPS]
    repeated = next((group for i, group in enumerate(groups) if group in groups[:i]), None)
    if repeated:
        raise BadUsage(f"--by {repeated}: is named twice")
    if unknown:
        raise BadUsage(f"--by {unknown[0]}: must be one or more of {', '.join(USAGE_GROUPS)}, separated by commas")
    since_ms, until_ms = wanted.span.as_ms()
    query = usage_pb2.UsageQuery(
        by=groups,
        since_ms=since_ms,
        until_ms=until_ms,
        key_id=_optional_id(wanted.key),
        account_id=_optional_id(wanted.account),
    )
    with progress("Adding up"):
        answer = _ask(target, usage_pb2.QueryRequest(usage=query))
    rows = [usage_row(row, *groups) for row in answer.usage]
    columns = [*groups, "requests", *TOKEN_FIELDS, "cost_usd"]
    if output is ReportFormat.JSON:
        print_json(rows)
    elif output is ReportFormat.CSV:
        print_csv(columns, rows)
    else:
        cells = [[str(row[column]) for column in columns] for row in rows]
        titles = [column.upper().replace("_", " ") for column in columns]
        print_table(titles, cells, right=titles[len(groups) :], empty="Nothing was used in this time.")


@dataclass(frozen=True)
class RequestsFilter:
    """Which rows of the ledger `requests` shows."""

    key: str | None
    account: str | None
    outcome: str | None
    span: Span
    last: int
    denials: bool


PAGE_ROWS = 5_000
_REQUEST_TITLES = (
    "STARTED", "REQUEST", "#", "KEY", "ACCOUNT", "MODEL", "OUTCOME", "STATUS", "IN", "OUT", "CACHE", "USD", "MS",
)


def show_requests(target: Target, wanted: RequestsFilter, output: Format) -> None:
    """Print the newest attempts, newest first. Raises BadUsage for an unknown outcome."""
    if wanted.outcome and wanted.outcome not in OUTCOMES:
        raise BadUsage(f"--outcome {wanted.outcome}: must be one of {', '.join(OUTCOMES)}")
    since_ms, until_ms = wanted.span.as_ms()
    query = usage_pb2.RequestsQuery(
        key_id=_optional_id(wanted.key),
        account_id=_optional_id(wanted.account),
        since_ms=since_ms,
        until_ms=until_ms,
        with_denials=wanted.denials,
        outcome=wanted.outcome or "",
    )
    with progress("Reading the ledger"):
        rows = list(map(request_row, newest(partial(_ask, target), query, wanted.last)))
    if output is Format.JSON:
        print_json(rows)
        return
    print_table(
        _REQUEST_TITLES, [_request_cells(row) for row in rows], right=_REQUEST_TITLES[7:],
        empty="The ledger has no such request.",
    )


def newest(
    ask: Callable[[usage_pb2.QueryRequest], usage_pb2.QueryResponse], query: usage_pb2.RequestsQuery, last: int,
    page: int = PAGE_ROWS,
) -> list[usage_pb2.LedgerRow]:
    """Return at most `last` rows of a query, newest first, asked for page by page."""
    rows: list[usage_pb2.LedgerRow] = []
    while last > len(rows):
        query.last = min(last - len(rows), page)
        found = ask(usage_pb2.QueryRequest(requests=query)).rows
        rows += found
        if len(found) < query.last:
            break
        final = found[-1]
        query.before.CopyFrom(usage_pb2.RowPlace(
            admitted_at_ms=final.admitted_at_ms, request_id=final.request_id, attempt=final.attempt,
        ))
    return rows


def explain(target: Target, request_id: str, output: Format) -> None:
    """Print why a request went where it went. Raises CommandFailed for an id that the ledger does not know."""
    query = usage_pb2.QueryRequest(explain=usage_pb2.ExplainQuery(request_id=request_id))
    rows = [explained_row(row) for row in _ask(target, query).rows]
    if not rows:
        raise CommandFailed(
            f"the ledger has no request {request_id}: `signalbox requests --denials` shows the newest; "
            "a request that runs is there when it has ended",
        )
    if output is Format.JSON:
        print_json(rows)
        return
    print_lines(story(rows))


def story(rows: Sequence[Row]) -> list[str]:
    """Return the life of one request as lines for people: who asked for what, each attempt and why, what it cost."""
    first = rows[0]
    lines = [
        f"request   {first['request_id']}",
        f"asked     {first['model'] or 'no model'} on {first['route'] or 'an unknown route'}"
        + (", streamed" if first["streamed"] else "") + (f", by {first['client']}" if first["client"] else ""),
        f"key       {first['key'] or 'unknown'}" + (f" of {first['owner']}" if first["owner"] else ""),
        f"started   {first['started_at'] or '-'}",
    ]
    attempts = sorted((row for row in rows if row["attempt"] > 0), key=lambda row: row["attempt"])
    for row in attempts:
        lines += ["", *_attempt_lines(row), *_decision_lines(row)]
    for row in rows:  # what was refused comes last
        if row["attempt"] == 0:
            lines += ["", *_denial_lines(row, after_attempts=bool(attempts)), *_decision_lines(row)]
    if len(attempts) > 1:
        lines += ["", f"{len(attempts)} attempts; each row says what it cost, failed ones without content cost nothing"]
    return lines


def _attempt_lines(row: Row) -> list[str]:
    took = f"after {row['duration_ms']} ms" + (f", first content at {row['ttft_ms']} ms" if row["ttft_ms"] else "")
    why = f" ({row['reason']})" if row["reason"] else ""
    served = row["served_model"] or row["model"]
    marks = [mark for mark, set_ in (("estimated", row["estimated"]), ("price assumed", row["price_assumed"])) if set_]
    tokens = ", ".join(f"{row[f]} {f.removesuffix('_tokens').replace('_', ' ')}" for f in TOKEN_FIELDS if row[f])
    return [
        f"attempt {row['attempt']} {row['account']} of pool {row['pool']}: {row['outcome']}{why}, "
        f"status {row['status'] or '-'}, {took}",
        f"  cost    {row['cost_usd']} USD" + (f" for {tokens} by {served}" if tokens else "")
        + (f" ({', '.join(marks)})" if marks else ""),
    ]


def _denial_lines(row: Row, *, after_attempts: bool) -> list[str]:
    retry = f"; may be tried again after {row['retry_after_ms']} ms" if row["retry_after_ms"] else ""
    if after_attempts:  # what the caller got may be the last attempt's own error: no status is claimed
        return [f"ended     no further attempt: {row['reason']}{retry}"]
    return [f"refused   {row['reason']} with status {row['status']}{retry}"]


_PIN_NOTES = {
    "hit": "the conversation stays where it is pinned",
    "new": "the conversation is pinned here from now on",
    "moved": "the conversation moves here from {pinned}, which was {pin_reason}",
    "full": "served here once; the conversation stays pinned to {pinned}, which was {pin_reason}",
    "refused": "the conversation may not leave {pinned}, which was {pin_reason}",
}


def _decision_lines(row: Row) -> list[str]:
    decision = row["decision"]
    if decision is None:
        return []
    chosen = "by {strategy}: {reason}" if decision["chosen"] else "none: {reason}"
    lines = ["  chosen  " + chosen.format(strategy=decision["strategy"] or "-", reason=decision["reason"] or "-")]
    if decision["pin"]:
        lines.append("  pin     " + _PIN_NOTES.get(decision["pin"], decision["pin"]).format(**decision))
    if decision["waited_for"]:
        lines.append(f"  waited  {decision['waited_ms']} ms: {decision['waited_for']}")
    lines += [
        f"  {_standing(c, decision['chosen'])}  {c['account']}, score {c['score']}"
        + (f": {c['note']}" if c["note"] else "")
        for c in decision["candidates"]
    ]
    if decision["excluded"]:
        left_out = ", ".join(f"{reason} {n}" for reason, n in decision["excluded"].items())
        lines.append(f"  left out  {left_out}; {decision['considered']} could serve the model")
    return lines


def _standing(candidate: Row, chosen: str) -> str:
    if candidate["account"] == chosen:
        return "taken "
    return "passed" if candidate["note"] else "behind"


def _request_cells(row: Row) -> list[str]:
    cache = row["cache_write_5m_tokens"] + row["cache_write_1h_tokens"] + row["cache_read_tokens"]
    return [
        str(row["started_at"] or "-"), row["request_id"], str(row["attempt"]), row["key"] or "-", row["account"] or "-",
        row["served_model"] or row["model"] or "-",
        row["outcome"] + (f" {row['reason']}" if row["reason"] and row["outcome"] != "ok" else ""),
        str(row["status"] or "-"), str(row["input_tokens"]), str(row["output_tokens"]), str(cache), row["cost_usd"],
        str(row["duration_ms"]),
    ]


def _optional_id(name: str | None) -> str:
    return object_id(name) if name else ""


def _ask(target: Target, query: usage_pb2.QueryRequest) -> usage_pb2.QueryResponse:
    async def ask() -> usage_pb2.QueryResponse:
        async with target.rooms() as rooms:
            return await rooms.query(query)

    return asyncio.run(ask())
