"""Compares what the provider really received with what the ledger, the counters and the callers say about it.

Its arithmetic is its own: prices from the providers' lists, the contract's rule for cut replies. It shares no code
with the product, and joins by the model name that each request has for itself (load.py), so that requests whose
gateway died before it learned the provider's request id are matched one to one as well.
"""

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from tests.support.instance import Instance
from tests.support.load import Seen, data_lines
from tests.support.machine import busy
from tests.support.sim import Simulator

Row = dict[str, Any]

# Nano-dollars per token: input, output, write for 5 minutes, write for an hour, read.
PRICES = {
    "claude-sonnet-5-5": (2_000, 10_000, 2_500, 4_000, 100),
    "claude-opus-5-5": (4_000, 20_000, 5_000, 8_000, 200),
    "claude-haiku-4-5": (1_000, 5_000, 1_250, 2_000, 100),
}
TOKENS = ("input_tokens", "output_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "cache_read_tokens")
# Between the end of the last lease and the last row: a reaper's round, its delivery, and a busy machine.
LAST_ROWS_S = 10.0
NOTHING = dict.fromkeys(TOKENS, 0)

# Outcomes of an attempt that may never have reached the provider, and then must have cost nothing.
UNSENT = {"upstream_error", "orphaned", "client_gone", "timeout"}
UNAUTHORIZED = 401


@dataclass
class Findings:
    """What does not agree, and how much was compared. `lies` are those problems that a caller was told."""

    problems: list[str] = field(default_factory=list)
    lies: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def note(self, problem: str, *rows: object) -> None:
        """Add one disagreement."""
        self.problems.append(" | ".join([problem, *map(str, rows)]))


def compare(truth: Sequence[Row], ledger: Sequence[Row], seen: Iterable[Seen]) -> Findings:
    """Hold the provider's rows against the ledger's attempts and both against what the callers saw."""
    found = Findings()
    attempts = [row for row in ledger if row["attempt"] > 0]
    for key, times in Counter((row["request_id"], row["attempt"]) for row in attempts).items():
        if times > 1:
            found.note(f"{times} rows for attempt {key}")
    received, recorded = _by_model(truth), _by_model(attempts)
    seen_by_model = {s.model: s for s in seen}
    for model in received.keys() | recorded.keys():
        caller = seen_by_model.get(model)
        _compare_request(found, received[model], recorded[model], caller)
    for caller in seen_by_model.values():
        _compare_caller(found, caller, received[caller.model], recorded[caller.model])
    found.counts.update({"received": len(truth), "attempts": len(attempts)})
    found.counts.update(Counter(f"ledger {row['outcome']}" for row in attempts))
    return found


def _by_model(rows: Iterable[Row]) -> defaultdict[str, list[Row]]:
    grouped: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row["model"]].append(row)
    return grouped


# ---------------------------------------------------------------------------------------------- one request


def _compare_request(found: Findings, truth: list[Row], rows: list[Row], caller: Seen | None) -> None:
    if len({row["request_id"] for row in rows}) > 1:
        found.note("one caller's request under several ids", *_brief(rows))
    by_upstream_id = {row["upstream_request_id"]: row for row in rows if row["upstream_request_id"]}
    left = [row for row in rows if not row["upstream_request_id"]]
    pairs, unmatched = [], []
    for received in sorted(truth, key=lambda r: int(r["seq"])):
        row = by_upstream_id.pop(received["request_id"], None)
        if row is None:
            unmatched.append(received)
        else:
            pairs.append((received, row))
    for row in by_upstream_id.values():
        found.note("a row for a request that the provider does not know", _row(row))
    left.sort(key=lambda r: int(r["attempt"]))
    for received in unmatched:
        row = next((r for r in left if _is_of(r, received)), None)
        if row is None:
            found.note("no row for a request that the provider received", _truth(received))
            continue
        left.remove(row)
        pairs.append((received, row))
    for row in left:
        if row["outcome"] not in UNSENT or any(row[name] for name in TOKENS):
            found.note("a charge for a request that the provider never received", _row(row))
        found.counts["unsent"] += 1
    for received, row in pairs:
        _compare_attempt(found, received, row, caller)


def _is_of(row: Row, truth: Row) -> bool:
    """Whether a row names the provider's account, which does not know whose a token was that ran out on its way."""
    return row["account"] == f"default/{truth['account']}" or (truth["account"] is None and truth["status"] == UNAUTHORIZED)


def _compare_attempt(found: Findings, truth: Row, row: Row, caller: Seen | None) -> None:
    if not _is_of(row, truth):
        found.note("charged to another account", _truth(truth), _row(row))
    if row["cost_usd"] is None or _nano(row["cost_usd"]) != price(row):
        found.note(f"priced wrongly, {price(row)} nano-dollars is right", _row(row))
    low, high = bounds(truth, row, caller)
    billed = {name: row[name] for name in TOKENS}
    if any(not low[name] <= billed[name] <= high[name] for name in TOKENS):
        found.note(f"tokens are not between {_tokens(low)} and {_tokens(high)}", _truth(truth), _row(row))
    if row["outcome"] == "ok" and truth["outcome"] != "complete" and not truth["usage_final"]:
        found.note("ok in the ledger, but not whole at the provider", _truth(truth), _row(row))
    if row["outcome"] == "ok" and row["estimated"]:
        found.note("ok, but estimated", _row(row))
    if low == high:
        found.counts["exact"] += 1
    else:
        found.counts["within bounds"] += 1


def bounds(truth: Row, row: Row, caller: Seen | None) -> tuple[Row, Row]:
    """Return the least and the most tokens that the row may bill.

    Both are the same wherever the relay saw the reply's end or its break. They differ only where the provider's side
    can't tell how much of it arrived: a caller that hung up, a connection that was reset (the kernel drops what it had
    not delivered) and an attempt whose gateway died. Then at least what the caller itself got is billed, and at most
    what the provider sent; an orphan bills the usage of message_start, and of the output what its last heartbeat told.
    """
    if truth["usage"] is None or truth["status"] != 200:
        return NOTHING, NOTHING
    if caller is not None and caller.status and (caller.status, caller.upstream_request_id) != (200, truth["request_id"]):
        return NOTHING, NOTHING  # it failed before its first content: the caller got another answer
    sent = _billed_tokens(truth["usage"])
    final = truth["usage_final"] and not row["estimated"]  # sent, and also read before the caller hung up
    sent["output_tokens"] = _output(truth["usage"], truth["delta_bytes"], final=final)
    outcome = row["outcome"]
    if outcome == "ok":
        return sent, sent
    if outcome == "truncated" and (truth["behaviour"].get("cut") or {}).get("how") == "fin":
        return sent, sent
    if outcome == "upstream_error" and (error := truth["behaviour"].get("error_event")):
        before_content = error["at"] in ("start", "message_start")
        return (NOTHING, NOTHING) if before_content else (sent, sent)
    if not truth["stream"]:
        return NOTHING, NOTHING  # only a whole answer is an answer
    got = data_lines(caller.body) if caller is not None and caller.status == 200 else []
    start = next((d["message"]["usage"] for d in got if d.get("type") == "message_start"), None)
    content = any(d.get("type") not in ("message_start", "ping", "error") for d in got)
    if start is None or not content:
        return NOTHING, sent
    least = _billed_tokens(start)
    report = next((d["usage"] for d in got if d.get("type") == "message_delta"), None)
    if outcome != "orphaned":
        seen = _output(report or start, sum(map(_delta_bytes, got)), final=report is not None)
        # What was reported at the end may be less than a third of the bytes that the caller had until then.
        least["output_tokens"] = min(seen, sent["output_tokens"])
    return least, sent


def price(row: Row) -> int:
    """Return what the row's tokens cost, in nano-dollars."""
    base = (row["served_model"] or row["model"]).partition("-20")[0]
    inp, out, short, long, read = PRICES[base]
    return int(
        row["input_tokens"] * inp + row["output_tokens"] * out + row["cache_write_5m_tokens"] * short
        + row["cache_write_1h_tokens"] * long + row["cache_read_tokens"] * read
    )


def _output(usage: Row, delta_bytes: int, *, final: bool) -> int:
    reported = int(usage.get("output_tokens") or 0)
    return reported if final else max(reported, -(-delta_bytes // 3))


def _delta_bytes(frame: Row) -> int:
    delta = frame.get("delta") or {}
    if frame.get("type") != "content_block_delta":
        return 0
    return sum(len(delta.get(name, "").encode()) for name in ("text", "thinking", "partial_json"))


def _billed_tokens(usage: Row) -> Row:
    written = usage.get("cache_creation_input_tokens") or 0
    long = (usage.get("cache_creation") or {}).get("ephemeral_1h_input_tokens") or 0
    return {
        "input_tokens": usage.get("input_tokens") or 0, "output_tokens": usage.get("output_tokens") or 0,
        "cache_write_5m_tokens": written - long, "cache_write_1h_tokens": long,
        "cache_read_tokens": usage.get("cache_read_input_tokens") or 0,
    }


# ---------------------------------------------------------------------------------------------- one caller


def _compare_caller(found: Findings, caller: Seen, truth: list[Row], rows: list[Row]) -> None:
    found.counts[f"saw {caller.kind}"] += 1
    if not caller.whole:
        return
    last = max(rows, key=lambda r: int(r["attempt"]), default=None)
    if last is None or last["outcome"] != "ok":
        found.note("whole for its caller, not ok in the ledger", caller, _row(last) if last else "")
        return
    if last["request_id"] != caller.request_id or last["attempt"] != caller.attempts:
        found.note("the caller was told another id or number of attempts", caller, _row(last))
    sent = next((t for t in truth if t["request_id"] == caller.upstream_request_id), None)
    if sent is None or sent["sent_sha256"] != hashlib.sha256(caller.body).hexdigest():
        found.note("not byte for byte what the provider sent", caller, _truth(sent) if sent else "")
        found.lies.append(found.problems[-1])


# ---------------------------------------------------------------------------------------------- a whole instance


def still_going_on(instance: Instance, key: str) -> str:
    """Return what is still going on, an empty string once nothing is."""
    info = instance.key_info(key)
    if info["concurrency"]["in_flight"]:
        return f"the key has {info['concurrency']['in_flight']} in flight"
    reserved = {limit["name"]: amount["reserved"] for limit in info["limits"] for amount in _amounts(limit)}
    if any(Decimal(value) for value in reserved.values()):
        return f"reserved: {reserved}"
    if waiting := instance.metric("signalbox_journal_pending"):
        return f"{waiting} journalled, not in the ledger"
    workers = len(instance.room_pids("gateway"))
    journals = [d.name for d in (instance.data / "journal").iterdir() if d.is_dir()]
    if len(journals) > workers:
        return f"journals of gateways that are gone: {journals}"
    return ""


def settled(
    instance: Instance, sim: Simulator, seen: Sequence[Seen], key: str, *, by_s: float, since: int = 0,
) -> Findings:
    """Wait until nothing goes on any more and everything agrees, at the latest `by_s` (monotonic); raise what does not.

    On a busy machine all that takes as many times longer. `since` is the provider's row from which to compare; it must
    be a moment at which nothing was in flight.
    """
    by_s += max(0.0, by_s - time.monotonic()) * (busy() - 1.0)
    sim.wait_quiet(max(5.0, by_s - time.monotonic()))
    while going_on := still_going_on(instance, key):
        if time.monotonic() > by_s:
            raise AssertionError(f"not quiet in time: {going_on}")
        time.sleep(0.3)
    quiet_s = time.monotonic()
    while True:
        found = check(instance, sim, seen, key, since=since)
        if not found.problems:
            return found
        if time.monotonic() > min(by_s, quiet_s + LAST_ROWS_S * busy()):
            listed = "\n".join(found.problems[:15])
            raise AssertionError(f"{len(found.problems)} disagreements; {found.counts}\n{listed}")
        time.sleep(0.3)


def check(instance: Instance, sim: Simulator, seen: Sequence[Seen], key: str, *, since: int = 0) -> Findings:
    """Compare once, counters and slots included. Only the key's own requests are looked at."""
    everything = instance.requests()
    truth = sim.truth(since=since)
    known = {row["model"] for row in truth} | {s.model for s in seen}
    found = compare(truth, [row for row in everything if row["model"] in known], seen)
    info = instance.key_info(key)
    admitted = len({row["request_id"] for row in everything if row["attempt"] > 0 and row["key"] == info["key"]})
    for limit in info["limits"]:
        if "requests" in limit and limit["per"] == "Total" and limit["requests"]["used"] != admitted:
            found.note(f"limit {limit['name']} counts {limit['requests']['used']} requests, {admitted} were admitted")
    for account in instance.json("accounts", "list"):
        if account["in_flight"]:
            found.note(f"account {account['name']} has {account['in_flight']} in flight")
    return found


def _amounts(limit: Row) -> list[Row]:
    return [limit[name] for name in ("requests", "tokens", "cost_usd") if name in limit]


def _nano(usd: str) -> int:
    return int(Decimal(usd) * 10**9)


def _tokens(tokens: Row) -> str:
    return "/".join(str(tokens[name]) for name in TOKENS)


def _row(row: Row) -> str:
    return (
        f"row {row['request_id']}#{row['attempt']} {row['model']} on {row['account']} {row['outcome']} {row['reason']} "
        f"tokens {_tokens(row)} usd {row['cost_usd']} estimated {row['estimated']}"
    )


def _truth(row: Row) -> str:
    shown = {name: row[name] for name in ("seq", "account", "model", "status", "outcome", "usage_final", "delta_bytes", "usage")}
    return f"provider {shown} behaviour {row['behaviour']}"


def _brief(rows: Iterable[Row]) -> list[str]:
    return [_row(row) for row in rows]
