"""Once all is quiet: truth, ledger, counters, key-info and what callers saw, held together. Violations by invariant.

1 exactly one row per attempt, to the token and the nano-dollar; 2 no limit overrun, nothing reserved for ever; 3 no
grant lost; 4 no lie on the wire, and no failure that a caller need not have seen; 5 no secret written down. The
arithmetic is the tests' own (tests/support/compare.py).
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from tests.chaos.storm import (
    API_KEY,
    CLIENT_SECRET,
    MAX_ATTEMPTS,
    MAX_TOKENS,
    PROMPT,
    REFRESH_TOKEN,
    SLOTS,
    Call,
    Key,
    Storm,
    Struck,
)
from tests.support import compare
from tests.support.load import Seen
from tests.support.rig import OUTAGE, SERVICE_LIMIT_S

QUIET_LIMIT_S = 75.0        # leases, the reaper, the last delivery (60 s) and a busy machine
OWN_LIMITS = {"key_limit_requests", "key_limit_tokens", "key_limit_cost", "key_limit_concurrency"}
# What ends a stream that was under way when its provider broke; and what no account could serve in as many attempts.
BROKEN = {"upstream_truncated"}
GIVEN_UP = {"upstream_failed", "upstream_timeout", "api_error", "overloaded_error"}
# How long after a gateway was killed a caller may still learn that its connection is gone.
BREAK_S = 2.0
# An in-flight request ends at the provider a little after its slot was freed: the FIN has to arrive.
END_SLACK_S = 0.25

Row = dict[str, Any]


@dataclass
class Verdict:
    """What was found, and how much was looked at."""

    violations: dict[int, list[str]] = field(default_factory=lambda: {number: [] for number in range(1, 6)})
    counts: Counter[str] = field(default_factory=Counter)
    recoveries: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    quiet_s: float = 0.0

    @property
    def total(self) -> int:
        """How many violations there are."""
        return sum(map(len, self.violations.values()))

    def note(self, invariant: int, what: str) -> None:
        """Add a violation."""
        self.violations[invariant].append(what)


def judge(storm: Storm) -> Verdict:
    """Wait until nothing goes on any more and look at everything."""
    verdict = Verdict()
    ended_s = time.monotonic()
    for problem in _wait_quiet(storm, ended_s + QUIET_LIMIT_S):
        verdict.note(2 if "in flight" in problem or "reserved" in problem else 1, f"not quiet in time: {problem}")
    verdict.quiet_s = time.monotonic() - ended_s
    truth = [row for row in storm.sim.truth(path=None) if row["path"].startswith("/v1/messages")]
    ledger = storm.instance.requests(last=1_000_000)
    seen = [call.seen for call in storm.calls]
    _accounting(verdict, storm, truth, ledger, seen)
    _limits(verdict, storm, truth, ledger)
    _grants(verdict, storm)
    for call in storm.calls:
        _told(verdict, storm, call)
    _secrets(verdict, storm)
    _recoveries(verdict, storm)
    return verdict


def _wait_quiet(storm: Storm, by_s: float) -> list[str]:
    while True:
        left = [problem for key in storm.keys if (problem := _going_on(storm, key))]
        if not left:
            time.sleep(1.0)     # the last row is delivered
            left = [problem for key in storm.keys if (problem := _going_on(storm, key))]
        if not left or time.monotonic() > by_s:
            return left
        time.sleep(0.5)


def _going_on(storm: Storm, key: Key) -> str:
    try:
        problem = compare.still_going_on(storm.instance, key.text)
    except OSError as e:
        problem = f"no answer: {e}"
    return f"{key.name}: {problem}" if problem else ""


# ---------------------------------------------------------------------------------------------- 1


def _accounting(verdict: Verdict, storm: Storm, truth: list[Row], ledger: list[Row], seen: list[Seen]) -> None:
    found = compare.compare(truth, ledger, seen)
    for problem in found.problems:
        verdict.note(4 if problem in found.lies else 1, problem)
    verdict.counts.update(found.counts)
    for key in storm.keys:
        own = [row for row in ledger if row["key"] == f"default/{key.name}"]
        spent = {"Total": _spent(own), "Day": _spent(_todays(own))}
        for limit, number, amount in _limits_of(storm, key):
            if (of := spent.get(limit["per"])) and Decimal(amount["used"]) != of[number]:
                verdict.note(1, f"{key.name}: key-info says {amount['used']} {number} per {limit['per']}, the ledger {of[number]}")


def _todays(rows: Iterable[Row]) -> list[Row]:
    """Return what counts today: a run may go over midnight."""
    today = datetime.now(UTC).date()
    return [row for row in rows if datetime.fromisoformat(row["admitted_at"]).date() == today]


def _spent(rows: Iterable[Row]) -> dict[str, Decimal]:
    counted = [row for row in rows if row["attempt"] > 0 and row["route"] != "count_tokens"]
    return {
        "requests": Decimal(len({row["request_id"] for row in counted})),
        "tokens": Decimal(sum(row[name] for row in counted for name in compare.TOKENS if name != "cache_read_tokens")),
        "cost_usd": sum((Decimal(row["cost_usd"]) for row in counted), Decimal(0)),
    }


def _limits_of(storm: Storm, key: Key) -> Iterator[tuple[Row, str, Row]]:
    """Yield a key's limits: the limit, which number of it, and that number's limit, used and reserved."""
    for limit in storm.instance.key_info(key.text)["limits"]:
        for number in ("requests", "tokens", "cost_usd"):
            if number in limit:
                yield limit, number, limit[number]


# ---------------------------------------------------------------------------------------------- 2


def _limits(verdict: Verdict, storm: Storm, truth: list[Row], ledger: list[Row]) -> None:
    for key in storm.keys:
        own = [row for row in ledger if row["key"] == f"default/{key.name}" and row["attempt"] > 0]
        spent = {"Total": _spent(own), "Day": _spent(_todays(own))}
        info = storm.instance.key_info(key.text)
        if info["concurrency"]["in_flight"]:
            verdict.note(2, f"{key.name}: {info['concurrency']['in_flight']} in flight for ever")
        for limit, number, amount in _limits_of(storm, key):
            most = Decimal(amount["limit"]) + _allowed_error(key, number)
            of = spent.get(limit["per"])
            if of and of[number] > most:
                verdict.note(2, f"{key.name}: {of[number]} {number} spent per {limit['per']}, {amount['limit']} allowed")
            if of and of[number] >= Decimal(amount["limit"]) * Decimal("0.8"):
                verdict.counts["limits nearly or wholly used"] += 1
            if Decimal(amount["reserved"]):
                verdict.note(2, f"{key.name}: {amount['reserved']} {number} reserved for ever")
            if limit["per"] == "Minute" and (most_seen := _most_per_minute(own)) > limit[number]["limit"]:
                verdict.note(2, f"{key.name}: {most_seen} requests within a minute, {limit[number]['limit']} allowed")
    models = {call.seen.model for call in storm.calls if call.key == "slots"}
    if (at_once := _most_at_once([row for row in truth if row["model"] in models])) > SLOTS:
        verdict.note(2, f"slots: {at_once} at once at the provider, {SLOTS} allowed")
    for account in storm.instance.json("accounts", "list"):
        if account["in_flight"]:
            verdict.note(2, f"account {account['name']}: {account['in_flight']} in flight for ever")


def _allowed_error(key: Key, number: str) -> Decimal:
    """Return by how much an Estimated limit may be overrun: the error of the estimates of what was in flight."""
    if key.name != "estimated" or number != "cost_usd":
        return Decimal(0)
    dearest_output = max(prices[1] for prices in compare.PRICES.values())
    return Decimal(key.spec["concurrency"]) * MAX_TOKENS * dearest_output / 10**9


def _most_per_minute(rows: list[Row]) -> int:
    """Return how many requests were admitted at most within 59 seconds: a minute's window may begin a second late.

    By Redis's clock, as they are counted. What stands still may send what it was granted seconds ago.
    """
    began = sorted(_unix_s(row["admitted_at"]) for row in rows if row["attempt"] == 1 and row["route"] != "count_tokens")
    most = first = 0
    for last, at in enumerate(began):
        while began[first] < at - 59.0:
            first += 1
        most = max(most, last - first + 1)
    return most


def _unix_s(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _most_at_once(rows: list[Row]) -> int:
    edges = [(row["received_at"], 1) for row in rows]
    edges += [(max(row["received_at"], (row["ended_at"] or row["received_at"]) - END_SLACK_S), -1) for row in rows]
    most = now = 0
    for _, step in sorted(edges):
        now += step
        most = max(most, now)
    return most


# ---------------------------------------------------------------------------------------------- 3


def _grants(verdict: Verdict, storm: Storm) -> None:
    """A grant is usable, and a spent token was sent again at most once for each refresher that died or stood still."""
    for account in storm.instance.json("accounts", "list"):
        valid = next((c for c in account["conditions"] if c["type"] == "CredentialValid"), {"status": "missing"})
        if valid["status"] != "True":
            verdict.note(3, f"account {account['name']}: credential {valid}")
    lost = sum("token-refresher" in struck.blow.kind or "connections to the provider" in struck.blow.kind for struck in storm.struck)
    for grant in storm.sim.grants():
        verdict.counts["refreshes"] += grant["refreshes"]
        if grant["revoked"] or grant["reuses"] > lost:
            verdict.note(3, f"{grant['reuses']} spent tokens were sent again, {lost} answers may have been lost: {grant['revoked']}")


# ---------------------------------------------------------------------------------------------- 4


def _told(verdict: Verdict, storm: Storm, call: Call) -> None:
    """Note what a caller was told that it need not have been, or that is not so."""
    seen = call.seen
    kind = seen.kind
    if seen.status == 200 and "not whole" in kind:
        verdict.note(4, f"ended as if whole: {seen} {seen.body[-300:]!r}")
        return
    if kind in OUTAGE and not seen.retry_after:
        verdict.note(4, f"refused without retry-after: {seen}")
    if kind in ("whole", "hung up") or kind in OWN_LIMITS | OUTAGE | BROKEN or seen.troubled:
        return      # whether a stream was broken compare.py knows: the ledger must not say ok
    if seen.failed:
        if not any("gateway" in s.blow.kind and _overlaps(seen, s, BREAK_S) for s in storm.struck):
            verdict.note(4, f"a connection broke for no reason: {seen}")
        return
    if kind in GIVEN_UP and seen.attempts >= MAX_ATTEMPTS:
        verdict.counts["given up when all attempts were used"] += 1
        return
    verdict.note(4, f"{kind} ({seen.status}) after {seen.attempts} attempts: {seen} {seen.body[-300:]!r}")


def _overlaps(seen: Seen, struck: Struck, slack_s: float) -> bool:
    return seen.began_s <= struck.ended_s + slack_s and seen.ended_s >= struck.began_s


# ---------------------------------------------------------------------------------------------- 5


def _secrets(verdict: Verdict, storm: Storm) -> None:
    secrets = [API_KEY, PROMPT, REFRESH_TOKEN, CLIENT_SECRET, *(key.text for key in storm.keys)]
    secrets += [token for grant in storm.sim.grants() for token in (grant["current"], *grant["spent"])]
    secrets += storm.sim.call("GET", "oauth")["access_tokens"]
    places = {"the logs": "".join(storm.instance.log).encode(), "the metrics": storm.instance.metrics().encode()}
    for path in storm.instance.data.rglob("*"):
        if path.is_file() and not path.is_socket():
            places[str(path.relative_to(storm.instance.data))] = path.read_bytes()
    for place, content in places.items():
        for number, secret in enumerate(secrets):
            if secret.encode() in content:
                verdict.note(5, f"secret {number} in {place}")
    verdict.counts["places searched for secrets"] = len(places)


# ---------------------------------------------------------------------------------------------- recovery


def _recoveries(verdict: Verdict, storm: Storm) -> None:
    """Measure how long after each blow, and before the next, callers were still refused or cut off by it."""
    for number, struck in enumerate(storm.struck):
        until_s = storm.struck[number + 1].began_s if number + 1 < len(storm.struck) else float("inf")
        ended = [
            min(call.seen.ended_s, until_s) for call in storm.calls
            if struck.began_s <= call.seen.began_s < until_s and (call.seen.failed or call.seen.kind in OUTAGE - {"pool_limited"})
        ]
        took_s = max(0.0, max(ended, default=struck.ended_s) - struck.ended_s)
        verdict.recoveries[struck.blow.kind].append(took_s)
        if took_s > SERVICE_LIMIT_S:
            verdict.note(4, f"not served for {took_s:.1f} s after {struck.blow}")
        served = any(call.seen.whole for call in storm.calls if struck.ended_s + took_s <= call.seen.began_s < until_s)
        if not served:
            verdict.counts["blows after which nobody was served before the next"] += 1
