"""The record of what really happened: a row per request, in order of arrival, and sums that outlive the rows.

Recording is a few assignments; reading is done in batches by the caller, so that it never holds up an answer.
Rows lie in a ring of fixed size, and captured headers and bodies within a budget of bytes.
"""

import base64
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from signalbox_simulator.behaviour import NOTHING, Behaviour, as_json

TOKEN_FIELDS = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


@dataclass(slots=True)
class Row:
    """One request and its answer. Times are Unix seconds; `usage` is what the frames or the body really sent have said."""

    seq: int
    request_id: str
    connection: int
    ordinal: int
    connected_at: float
    received_at: float
    method: str
    path: str
    query: str
    headers: list[tuple[str, str]] | None
    account: str | None
    credential: str
    body_at: float | None = None
    ended_at: float | None = None
    request_complete: bool = False
    request_bytes: int = 0
    request_sha256: bytes = b""
    request_body: bytes | None = None
    connection_bytes: int = 0
    model: str | None = None
    stream: bool | None = None
    behaviour: Behaviour = NOTHING
    message_id: str | None = None
    served_model: str | None = None
    status: int = 0
    response_headers: list[tuple[str, str]] | None = None
    usage: dict[str, Any] | None = None
    usage_final: bool = False
    frames_sent: int = 0
    delta_bytes: int = 0
    foreign_thinking: int = 0
    sent_bytes: int = 0
    sent_sha256: bytes = b""
    outcome: str = "open"
    client_gone_at: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the row for the control API; a body is text where it is UTF-8, else base64 under another name."""
        row = {name: getattr(self, name) for name in self.__slots__ if name != "request_body"}
        row["behaviour"] = as_json(self.behaviour)
        row["request_sha256"] = self.request_sha256.hex()
        row["sent_sha256"] = self.sent_sha256.hex()
        if self.request_body is not None:
            try:
                row["request_body"] = self.request_body.decode()
            except UnicodeDecodeError:
                row["request_body_base64"] = base64.b64encode(self.request_body).decode()
        return row

    def captured_bytes(self) -> int:
        """Return roughly what the captured headers and body take."""
        pairs = [*(self.headers or []), *(self.response_headers or [])]
        return len(self.request_body or b"") + sum(len(n) + len(v) + 120 for n, v in pairs)


class Truth:
    """All rows still held, sums over all rows since the last clearing, and who is in flight."""

    def __init__(self, rows: int, capture_budget_bytes: int) -> None:
        self._size = rows
        self._budget = capture_budget_bytes
        self._ring: list[Row] = []
        self._base = self._first = self._next = 0
        self._captured: deque[tuple[Row, int]] = deque()
        self._captured_bytes = 0
        self._in_flight: Counter[str] = Counter()
        self._max_in_flight: Counter[str] = Counter()
        self._sums: dict[tuple[str, str], Counter[str]] = {}
        self._totals: Counter[str] = Counter()
        self.connections = 0
        self.open_connections = 0

    @property
    def next_seq(self) -> int:
        """The number that the next row will bear."""
        return self._next

    def open(self, row: Row) -> None:
        """Keep a new row."""
        self._next = row.seq + 1
        if len(self._ring) < self._size:
            self._ring.append(row)
        else:
            self._ring[(row.seq - self._base) % self._size] = row
            self._first = max(self._first, self._next - self._size)
        name = row.account or ""
        self._in_flight[name] += 1
        self._max_in_flight[name] = max(self._max_in_flight[name], self._in_flight[name])

    def close(self, row: Row, outcome: str, ended_at: float) -> None:
        """End a row and add it to the sums."""
        row.outcome = outcome
        row.ended_at = ended_at
        self._in_flight[row.account or ""] -= 1
        if row.seq < self._first:
            return  # cleared or overtaken while it was open
        self._keep(row)
        self._totals["requests"] += 1
        self._totals[f"outcome:{outcome}"] += 1
        self._totals[f"status:{row.status}"] += 1
        sums = self._sums.setdefault((row.account or "", row.served_model or row.model or ""), Counter())
        sums["requests"] += 1
        if row.usage is not None:
            sums["billed"] += 1
            sums.update({name: row.usage.get(name) or 0 for name in TOKEN_FIELDS})

    def _keep(self, row: Row) -> None:
        size = row.captured_bytes()
        self._captured.append((row, size))
        self._captured_bytes += size
        while self._captured_bytes > self._budget and self._captured:
            old, freed = self._captured.popleft()
            self._captured_bytes -= freed
            old.headers = old.response_headers = old.request_body = None

    def clear(self) -> None:
        """Forget all rows and sums; requests in flight stay in flight but will not be counted."""
        self._base = self._first = self._next
        self._ring.clear()
        self._captured.clear()
        self._captured_bytes = 0
        self._sums.clear()
        self._totals.clear()
        self._max_in_flight = Counter({name: n for name, n in self._in_flight.items() if n})

    def rows(self, since: int) -> Iterator[Row]:
        """Yield rows from number `since` on; safe to go on with after other rows were added or dropped."""
        seq = max(since, self._first)
        while self._first <= seq < self._next:
            yield self._ring[(seq - self._base) % self._size]
            seq = max(seq + 1, self._first)

    def summary(self) -> dict[str, Any]:
        """Return counts and tokens, per account and model."""
        totals = self._totals
        return {
            "requests": totals["requests"],
            "in_flight": sum(self._in_flight.values()),
            "connections": self.connections,
            "open_connections": self.open_connections,
            "by_outcome": _prefixed(totals, "outcome:"),
            "by_status": _prefixed(totals, "status:"),
            "accounts": [
                {"account": account, "model": model, **sums} for (account, model), sums in sorted(self._sums.items())
            ],
        }

    def concurrent(self) -> dict[str, dict[str, int]]:
        """Return per account how many requests are in flight and how many were at once at most."""
        return {
            name: {"current": self._in_flight[name], "max": most}
            for name, most in sorted(self._max_in_flight.items())
        }


def _prefixed(counts: Counter[str], prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): n for name, n in sorted(counts.items()) if name.startswith(prefix)}
