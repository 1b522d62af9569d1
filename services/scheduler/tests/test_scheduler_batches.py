"""A batch of operations means what the same operations mean one by one: the functions write at a call's end only.

What single operations mean is the other files' business.
"""

import random
from typing import Any

import pytest
import redis

from signalbox.scheduler.adapters.store import library
from signalbox.scheduler.domain.operations import Candidate, Limit, Retake, Settle, Take, encode

NOW = 1_962_000_000_123
LIMITS = (Limit("minute", "Minute", 6, 900, -1, 0), Limit("day", "Day", 8, -1, 5000, 1))
CANDIDATES = [
    Candidate("ns/a", "ns/a", 2, 1, "m", "m", (), (), 0), Candidate("ns/b", "ns/b", 3, 1, "m", "m", (), (), 0),
]
Call = tuple[Any, bytes]


def take(number: int) -> dict[str, Any]:
    return {
        "id": f"r{number}.1", "key": "ns/ada", "owner": "", "attempt": 1, "version": "0", "most": 4, "counts": 1,
        "limits": LIMITS, "usual": (100, 70), "worst": (200, 300), "cands": CANDIDATES, "pools": [("ns/p", 60_000, 0)],
        "session": f"s{number % 3}", "pin_ttl": 60_000, "hint_state": "gone",
    }


class Server:
    """The functions of one server at one instant."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        source, self.name = library()
        source = source.replace(
            "local time = redis.call('TIME')", f"local time = {{{NOW // 1000}, {NOW % 1000 * 1000}}}",
        )
        client.flushall()
        client.function_load(source, replace=True)
        for op in ("begin", "finish"):
            client.fcall(self.name, 0, "e1" if op == "finish" else "", encode({"op": op, "id": "e1"}), b"", b"")

    def call(self, calls: list[Call]) -> list[Any]:
        args = [part for operation, token in calls for part in (encode(operation), token, b"request")]
        return list(self.client.fcall(self.name, 0, "e1", *args)[1:])

    def state(self) -> dict[bytes, Any]:
        """All that Redis holds, but for fields that are 0, which mean the same as none."""
        found: dict[bytes, Any] = {}
        for key in self.client.scan_iter():
            kind = self.client.type(key)
            if kind == b"hash":
                found[key] = {k: v for k, v in self.client.hgetall(key).items() if v != b"0" and k != b"run"}
            elif kind == b"zset":
                found[key] = self.client.zrange(key, 0, -1, withscores=True)
            else:
                found[key] = self.client.get(key)
        return {k: v for k, v in found.items() if v}


def history(server: Server, chance: random.Random) -> tuple[list[Call], list[Any]]:
    """Play a random history one by one; return its calls and their answers."""
    calls: list[Call] = []
    answers: list[Any] = []
    tokens: dict[str, bytes] = {}
    for number in range(60):
        known = chance.choice(sorted(tokens)) if tokens else ""
        what = chance.choice(["take", "take", "take", "settle", "settle", "again", "retry", "beat", "peek", "expired"])
        call: Call = Take(**take(number)), b""
        if what == "settle" and known:
            call = Settle(id=known, tokens=50, cost=90, ok=1, unused=int(chance.random() < 0.3)), tokens[known]
        elif what == "again" and known:
            call = Take(**take(int(known[1:].partition(".")[0]))), b""
        elif what == "retry" and known:
            fields = {**take(number), "attempt": 2, "counts": 0}
            call = Retake(**fields, failed=Settle(id=known), last=chance.randint(0, 1)), tokens[known]
        elif what == "beat" and known:
            call = {"op": "beat", "id": known}, tokens[known]
        elif what == "peek":
            call = {"op": "peek", "key": "ns/ada", "limits": LIMITS}, b""
        elif what == "expired":
            call = {"op": "expired", "most": 10}, b""
        [answer] = server.call([call])
        if answer and answer[0] == b"grant":
            tokens[call[0].id] = answer[3]
        calls.append(call)
        answers.append(answer)
    return calls, answers


@pytest.mark.parametrize("seed", range(25))
def test_a_batch_means_what_its_operations_mean_one_by_one(module_server, seed):
    with redis.Redis(unix_socket_path=str(module_server.socket)) as client:
        server = Server(client)
        calls, answers = history(server, random.Random(seed))
        assert {a[0] for a in answers if a} >= {b"grant", b"settled"}
        assert not [a for a in answers if a and a[0] == b"error"]
        left = server.state()
        together = Server(client)
        assert together.call(calls) == answers
        assert together.state() == left
