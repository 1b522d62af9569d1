"""The Redis functions against a sequential model in Python, on random histories with crashes between any two steps.

After every step what a key's owner is told (in flight, used, reserved) must be what the model says, for all keys. A
history repeats calls whose answers were lost, forgets grants whose reader died, lets leases expire, jumps in time over
the ends of periods, and flushes everything: then counters are rebuilt from the ledger and leases from heartbeats.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis

from signalbox.scheduler.adapters.store import library
from signalbox.scheduler.domain.operations import Candidate, Cap, Limit, Reap, Retake, Settle, Take, encode

pytestmark = pytest.mark.slow

START_MS = 1_962_000_000_123
LEASE_MS = 30_000
WIDTHS = {"Minute": 1_000, "Hour": 60_000}
DAY_MS = 86_400_000
KEYS = {
    "ns/ada": (3, (Limit("minute", "Minute", 9, 1_500, -1, 0), Limit("day", "Day", 30, -1, 9_000, 1))),
    "ns/bob": (0, (Limit("hour", "Hour", -1, 4_000, -1, 1), Limit("total", "Total", 60, -1, -1, 0))),
}
CAP = Cap("Minute", 6, -1, 400)
CANDIDATES = [
    Candidate("ns/a", "ns/a", 2, 1, "m", "m", (), (CAP,), 0), Candidate("ns/b", "ns/b", 3, 1, "m", "m", (), (), 0),
]
USUAL, WORST, SIZES = (100, 70), (200, 300), (40, 60)
COVERED: Counter[str] = Counter()
ALL_DAY = (0, 0, 0, 1, 5, 700, 1_000, 3_000, 20_000, 31_000, 61_000, 3_700_000, 26 * 3_600_000)


def why(passed: list[Any]) -> list[str]:
    """Return the reasons of an answer's passed candidates, which come with times."""
    return [reason.decode() for reason in passed[::2]]


@dataclass
class Lease:
    """What the model keeps of one: `charges` are (counter, slot, counted, reserved 2, reserved 3), -1 not limited."""

    key: str
    account: str
    charges: list[tuple[str, int, int, int, int]]
    ends_ms: int
    epoch: int


@dataclass
class Model:
    """The truth, kept as plainly as can be: counters are sums over all that was ever charged."""

    now_ms: int = START_MS
    epoch: int = 1
    leases: dict[str, Lease] = field(default_factory=dict)
    held: dict[str, tuple[str, int]] = field(default_factory=dict)
    rests: dict[str, int] = field(default_factory=dict)
    pins: dict[str, str] = field(default_factory=dict)
    sums: dict[tuple[str, int, int, str], int] = field(default_factory=dict)
    """Used ("u") and reserved ("r") amounts by counter, slot and dimension."""
    buried: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)

    # -------------------------------------------------------------------------------------------- counters

    def slot(self, per: str) -> int:
        if per in WIDTHS:
            return self.now_ms // WIDTHS[per]
        return self.now_ms // DAY_MS * DAY_MS if per == "Day" else 0

    def held_by(self, counter: str, per: str, dim: int, kind: str) -> int:
        slot = self.slot(per)
        return sum(
            amount for (name, at, of, what), amount in self.sums.items()
            if (name, of, what) == (counter, dim, kind) and (slot - 60 <= at if per in WIDTHS else at == slot)
        )

    def add(self, counter: str, slot: int, dim: int, used: int, reserved: int) -> None:
        for kind, amount in (("u", used), ("r", reserved)):
            self.sums[counter, slot, dim, kind] = self.sums.get((counter, slot, dim, kind), 0) + amount

    def overrun(self, counter: str, per: str, bounds: tuple[int, ...], need: tuple[int, ...]) -> int:
        for dim, (bound, amount) in enumerate(zip(bounds, need, strict=True), 1):
            held = self.held_by(counter, per, dim, "u") + self.held_by(counter, per, dim, "r")
            if bound >= 0 and amount > 0 and held + amount > bound:
                return dim
        return 0

    def charge(self, lease: Lease, facts: tuple[int, int, int, int], *, counted: int, give_back: bool) -> None:
        for counter, slot, count, *held in lease.charges:
            fact = facts[:2] if counter.startswith("k:") else facts[2:]
            self.add(counter, slot, 1, counted * count, 0)
            for dim in (2, 3):
                if held[dim - 2] >= 0:
                    self.add(counter, slot, dim, fact[dim - 2], -held[dim - 2] if give_back else 0)

    # --------------------------------------------------------------------------------------------- numbers

    def running(self, key: str) -> int:
        return sum(x.key == key for x in self.leases.values()) + sum(k == key for k, _ in self.held.values())

    def in_flight(self, account: str) -> int:
        return sum(x.account == account for x in self.leases.values())

    # ------------------------------------------------------------------------------------------ operations

    def unusable(self, cand: Candidate) -> str:
        if self.now_ms < self.rests.get(cand.group, 0):
            return "limited"
        if self.in_flight(cand.account) >= cand.max_concurrency:
            return "full"
        for cap in cand.caps:
            bounds = (cap.requests, cap.input_tokens, cap.output_tokens)
            if self.overrun(f"a:{cand.group}:{cap.per}", cap.per, bounds, (1, *SIZES)):
                return "capped"
        return ""

    def admit(self, take: Take, *, kept: bool) -> tuple[str, ...]:
        """Return the kind of answer, with the account and the pin's note for a grant."""
        most, limits = KEYS[take.key]
        if take.id in self.leases:
            return ("again",)
        if most and not kept and self.running(take.key) >= most:
            return "deny", "concurrency"
        for limit in limits:
            need = (take.counts, *(WORST if limit.strict else USUAL))
            bounds = (limit.requests, limit.tokens, limit.cost)
            if self.overrun(f"k:{take.key}:{limit.name}", limit.per, bounds, need):
                return "deny", "limit"
        usable = {c.account: self.unusable(c) for c in take.cands}
        note, pinned = ("new" if take.session else ""), self.pins.get(take.session, "") if take.session else ""
        if pinned:
            if not usable[pinned]:
                return self.grant(take, pinned, "hit")
            if usable[pinned] != "limited":
                if not take.hurry:
                    return ("patience",)
                note = "full"
            else:
                note = "moved"
        passed = []
        for account, reason in usable.items():
            if not reason:
                return self.grant(take, account, note, passed)
            passed.append(reason)
        return "none", *passed

    def grant(self, take: Take, account: str, note: str, passed: Sequence[str] = ()) -> tuple[str, ...]:
        charges = []
        for limit in KEYS[take.key][1]:
            amount = WORST if limit.strict else USUAL
            charges.append(self.reserve(
                f"k:{take.key}:{limit.name}", limit.per, (limit.requests, limit.tokens, limit.cost),
                (take.counts, *amount),
            ))
        cand = next(c for c in take.cands if c.account == account)
        for cap in cand.caps:
            bounds = (cap.requests, cap.input_tokens, cap.output_tokens)
            charges.append(self.reserve(f"a:{cand.group}:{cap.per}", cap.per, bounds, (1, *SIZES)))
        self.leases[take.id] = Lease(take.key, account, charges, self.now_ms + LEASE_MS, self.epoch)
        if note in ("new", "moved"):
            self.pins[take.session] = account
        return "grant", account, note, *passed

    def reserve(
        self, counter: str, per: str, bounds: tuple[int, ...], need: tuple[int, ...],
    ) -> tuple[str, int, int, int, int]:
        slot, counted = self.slot(per), need[0] if bounds[0] >= 0 else 0
        self.add(counter, slot, 1, counted, 0)
        held = [need[dim] if bounds[dim] >= 0 else -1 for dim in (1, 2)]
        for dim in (1, 2):
            if bounds[dim] >= 0:
                self.add(counter, slot, dim + 1, 0, need[dim])
        return counter, slot, counted, held[0], held[1]

    def settle(self, settle: Settle, former: Lease) -> str:
        """End a lease; `former` is what its token says."""
        facts = (settle.tokens, settle.cost, settle.input, settle.output)
        lease = self.leases.pop(settle.id, None)
        if lease is None:
            before = self.buried.get(settle.id)
            if before is not None:
                self.charge(former, tuple(f - b for f, b in zip(facts, before, strict=True)), counted=0, give_back=False)  # type: ignore[arg-type]
            elif former.epoch != self.epoch:
                if not settle.unused:
                    self.charge(former, facts, counted=1, give_back=False)
            else:
                return "known"
            self.buried[settle.id] = facts
            return "late"
        before = self.buried.get(settle.id) if lease.epoch != self.epoch else None
        if settle.unused:
            self.charge(lease, (0, 0, 0, 0), counted=-1, give_back=True)
        elif before is not None:
            self.charge(lease, tuple(f - b for f, b in zip(facts, before, strict=True)), counted=-1, give_back=True)  # type: ignore[arg-type]
        else:
            self.charge(lease, facts, counted=0, give_back=True)
        if lease.epoch != self.epoch:
            self.buried[settle.id] = facts
        if settle.effect[0] == "rest":
            self.rests[lease.account] = max(self.rests.get(lease.account, 0), settle.effect[2])
        return "settled"

    def retry(self, take: Retake, former: Lease) -> tuple[str, ...]:
        failed = take.failed.id
        kept = failed in self.held
        if not kept and self.settle(take.failed, former) == "settled":
            kept = True
            self.held[failed] = take.key, 0  # its slot stays taken meanwhile
        answer = self.admit(take, kept=kept)
        if kept and not take.last and answer[0] not in ("grant", "again", "deny"):
            self.held[failed] = take.key, self.now_ms + LEASE_MS
        elif kept:
            del self.held[failed]
        return answer

    def beat(self, lease_id: str, former: Lease) -> str:
        lease = self.leases.get(lease_id)
        if lease is None:
            if former.epoch == self.epoch or lease_id in self.buried:
                return "gone"
            lease = self.leases[lease_id] = former
            for counter, slot, counted, *held in former.charges:
                self.add(counter, slot, 1, counted, 0)
                for dim in (2, 3):
                    self.add(counter, slot, dim, 0, max(0, held[dim - 2]))
        lease.ends_ms = self.now_ms + LEASE_MS
        return "kept"

    def free_held(self) -> None:
        self.held = {k: (key, ends) for k, (key, ends) in self.held.items() if ends > self.now_ms}

    def flush(self) -> None:
        """Everything is lost but what the ledger knows: the facts of attempts that have ended."""
        for lease in self.leases.values():
            self.charge(lease, (0, 0, 0, 0), counted=-1, give_back=True)
        self.epoch += 1
        self.leases, self.held, self.rests, self.pins, self.buried = {}, {}, {}, {}, {}
        self.sums = {k: v for k, v in self.sums.items() if k[3] == "u"}

    def told(self, lease: str, former: Lease, facts: tuple[int, int, int, int]) -> None:
        """The ledger has the row of an attempt that may be settled yet."""
        self.charge(former, facts, counted=1, give_back=False)
        self.buried[lease] = facts


class Stage:
    """The functions on a server whose clock is the model's, and the model beside them."""

    def __init__(self, client: redis.Redis, seed: int) -> None:
        self.client = client
        source, self.name = library()
        client.flushall()
        client.function_load(source.replace("redis.call('TIME')", "{redis.call('GET', 'clock'), 0}").replace(
            "local now = time[1] * 1000 + math.floor(time[2] / 1000)", "local now = tonumber(time[1])",
        ), replace=True)
        self.model = Model()
        self.chance = random.Random(seed)
        self.tokens: dict[str, bytes] = {}
        self.former: dict[str, Lease] = {}
        self.told: set[str] = set()
        self.done: list[tuple[Any, str]] = []
        self.counts: dict[str, int] = {}
        self._number = 0
        self._begin()

    def _begin(self) -> None:
        self.client.set("clock", self.model.now_ms)
        self.client.fcall(self.name, 0, "", encode({"op": "begin", "id": f"e{self.model.epoch}"}), b"", b"")

    def _finish(self) -> None:
        assert self.call({"op": "finish", "id": f"e{self.model.epoch}"})[0] == b"open"

    def call(self, operation: Any, first: bytes = b"", second: bytes = b"") -> Any:
        self.client.set("clock", self.model.now_ms)
        answer = self.client.fcall(self.name, 0, f"e{self.model.epoch}", encode(operation), first, second)[1]
        assert not answer or answer[0] != b"error", answer
        return answer

    # ------------------------------------------------------------------------------------------------ steps

    def take(self, attempt: int = 1, request: str = "") -> dict[str, Any]:
        self._number += 1
        key = self.chance.choice(sorted(KEYS))
        return {
            "id": f"{request or f'r{self._number}'}.{attempt}", "key": key, "owner": "", "attempt": attempt,
            "version": "0", "most": KEYS[key][0], "counts": int(attempt == 1), "limits": KEYS[key][1],
            "usual": USUAL, "worst": WORST, "sizes": SIZES, "cands": CANDIDATES, "pools": [("ns/p", 60_000, 0)],
            "session": self.chance.choice(["", "s1", "s2"]), "pin_ttl": 60_000, "hint_state": "gone",
            "hurry": self.chance.randint(0, 1),
        }

    def admit(self, take: Take) -> None:
        self.admitted(take, self.model.admit(take, kept=False), self.call(take, b"request"))

    def admitted(self, take: Take, expected: tuple[str, ...], answer: Any) -> None:
        self.counts[expected[0]] = self.counts.get(expected[0], 0) + 1
        said = [answer[0].decode()]
        if said[0] == "grant":
            said += [take.cands[answer[1] - 1].account, answer[2].decode(), *why(answer[8])]
            self.former[take.id] = self.model.leases[take.id]
            self.tokens[take.id] = answer[3]
        elif said[0] == "deny":
            said.append(answer[1].decode().partition("_")[0])
        elif said[0] == "none":
            said += why(answer[1])
        assert tuple(said) == expected

    def settlement(self, lease: str) -> Settle:
        effect = ("", "", 0, "", 0.0)
        if self.chance.random() < 0.15:
            effect = ("rest", "Limited", self.model.now_ms + self.chance.choice([500, 5_000, 70_000]), "", 0.0)
        return Settle(
            id=lease, tokens=self.chance.randrange(250), cost=self.chance.randrange(300), input=self.chance.randrange(50),
            output=self.chance.randrange(70), effect=effect, ok=1, unused=int(self.chance.random() < 0.15 and lease not in self.told),
            ended=self.model.now_ms, gateway="g",
        )

    def settle(self, settle: Settle) -> None:
        expected = self.model.settle(settle, self.former[settle.id])
        assert self.call(settle, self.tokens[settle.id])[0].decode() == expected
        self.counts[expected] = self.counts.get(expected, 0) + 1

    def retry(self, take: Retake) -> None:
        expected = self.model.retry(take, self.former[take.failed.id])
        self.admitted(take, expected, self.call(take, self.tokens[take.failed.id], b"request"))

    def beat(self, lease: str) -> None:
        expected = self.model.beat(lease, self.former[lease])
        assert self.call({"op": "beat", "id": lease}, self.tokens[lease])[0].decode() == expected

    def reap(self) -> None:
        """What a reaper does: look, then settle each with what is known, unless it is renewed in between."""
        found = sorted(i.decode() for i, *_ in self.call({"op": "expired", "most": 100}))
        self.model.free_held()
        assert found == sorted(i for i, x in self.model.leases.items() if x.ends_ms <= self.model.now_ms)
        for lease in found:
            if self.chance.random() < 0.2:
                continue  # the reaper died here
            facts = self.chance.randrange(30)
            self.call(Reap(id=lease, tokens=facts, cost=0, input=facts, output=0), b"event")
            self.model.settle(Settle(id=lease, tokens=facts, cost=0, input=facts, output=0), self.former[lease])
            self.model.buried[lease] = facts, 0, facts, 0
            self.counts["reaped"] = self.counts.get("reaped", 0) + 1

    def flush(self) -> None:
        """Lose everything, begin a new epoch, rebuild from the ledger and from the heartbeats of what still runs."""
        model = self.model
        known = [i for i in model.leases if i in self.tokens]
        running = [i for i in known if self.chance.random() < 0.7]
        ended_unsettled = [i for i in known if i not in running]
        model.flush()
        self.client.flushall()
        self._begin()
        early = [i for i in running if self.chance.random() < 0.5]
        for lease in early:
            self.beat(lease)
        self._rebuild(early, [i for i in [*early, *ended_unsettled] if self.chance.random() < 0.4])
        model.now_ms += 10
        self.client.hset("sb:epoch", "asked", model.now_ms - 5)
        self.client.sadd(f"sb:e{model.epoch}:heard", "g")
        self._finish()
        for lease in running:
            if lease not in early:
                self.beat(lease)
        # What ended without anybody settling it is settled late, or never: its gateway is gone.
        for lease in ended_unsettled:
            if self.chance.random() < 0.5:
                self.settle(self.settlement(lease))
            else:
                self.tokens.pop(lease)
        for lease in [i for i in self.tokens if i not in model.leases and i not in model.buried]:
            self.tokens.pop(lease)
        self.done.clear()
        self.counts["flush"] = self.counts.get("flush", 0) + 1

    def _rebuild(self, early: list[str], told: list[str]) -> None:
        """Give the functions what the ledger holds: all that is used but what the heartbeats have put there again.

        The ledger has the rows of `told` too, whose settlements are still to come, or never will.
        """
        facts = {}
        for lease in told:
            facts[lease] = self.chance.randrange(250), self.chance.randrange(300), 30, 40
            self.model.told(lease, self.former[lease], facts[lease])
            self.counts["told"] = self.counts.get("told", 0) + 1
        self.told.update(told)
        self.call({"op": "told", "rows": [(lease, *amounts) for lease, amounts in facts.items()]})
        beaten: dict[tuple[str, int], int] = {}
        for lease in early:
            for counter, slot, counted, *_ in self.former[lease].charges:
                beaten[counter, slot] = beaten.get((counter, slot), 0) + counted
        counters = {f"k:{key}:{limit.name}": limit.per for key, (_, limits) in KEYS.items() for limit in limits}
        counters |= {f"a:{cand.group}:{cap.per}": cap.per for cand in CANDIDATES for cap in cand.caps}
        for counter, per in counters.items():
            sums: dict[int, list[int]] = {}
            for (name, slot, dim, kind), amount in self.model.sums.items():
                if name == counter and kind == "u":
                    sums.setdefault(slot, [0, 0, 0])[dim - 1] += amount
            rows = []
            for slot, (requests, tokens, cost) in sums.items():
                start = slot * WIDTHS[per] if per in WIDTHS else slot
                rows.append((start, requests - beaten.get((counter, slot), 0), tokens, cost))
            self.call({"op": "rebuild", "name": counter, "per": per, "rows": rows})

    # ---------------------------------------------------------------------------------------------- checking

    def check(self) -> None:
        model = self.model
        for key, (_, limits) in KEYS.items():
            in_flight, _, reports = self.call({"op": "peek", "key": key, "limits": limits})
            assert in_flight == model.running(key)
            for limit, report in zip(limits, reports, strict=True):
                told = [
                    model.held_by(f"k:{key}:{limit.name}", limit.per, dim, kind) for dim in (1, 2, 3) for kind in "ur"
                ]
                assert report[:6] == told, (key, limit.name)
        for cand in CANDIDATES:
            running = int(self.client.hget(f"sb:e{model.epoch}:n", f"a:{cand.account}") or 0)
            assert running == model.in_flight(cand.account)

    def step(self) -> None:
        chance = self.chance
        self.model.now_ms += chance.choice(ALL_DAY)
        known = chance.choice(sorted(self.tokens)) if self.tokens else ""
        what = chance.choice(["admit"] * 6 + ["settle"] * 5 + ["retry", "retry", "beat", "beat", "repeat", "repeat", "reap", "forget"])
        if chance.random() < 0.02:
            what = "flush"
        if what == "admit":
            take = Take(**self.take())
            self.admit(take)
            self.done.append((take, ""))
        elif what == "settle" and known:
            settle = self.settlement(known)
            self.settle(settle)
            self.done.append((settle, known))
        elif what == "retry" and known:
            request, _, attempt = known.partition(".")
            failed = Settle(id=known, effect=("", "", 0, "", 0.0))
            fields = {**self.take(int(attempt) + 1, request), "key": self.former[known].key}
            fields |= {"limits": KEYS[fields["key"]][1], "most": KEYS[fields["key"]][0]}
            retake = Retake(**fields, failed=failed, last=chance.randint(0, 1))
            self.retry(retake)
            self.done.append((retake, known))
        elif what == "beat" and known:
            self.beat(known)
        elif what == "repeat" and self.done:  # the answer was lost: the same call once more
            operation, lease = chance.choice(self.done)
            if isinstance(operation, Retake):
                if lease in self.tokens:
                    self.retry(operation)
            elif isinstance(operation, Take):
                self.admit(operation)
            elif lease in self.tokens:
                self.settle(operation)
        elif what == "reap":
            self.reap()
        elif what == "forget" and known:  # whoever had this grant died; only the reaper ends it
            del self.tokens[known]
        elif what == "flush":
            self.flush()


@pytest.mark.parametrize("seed", range(30))
def test_any_history_leaves_what_the_model_says(module_server, seed):
    with redis.Redis(unix_socket_path=str(module_server.socket)) as client:
        stage = Stage(client, seed)
        stage._finish()
        for _ in range(150):
            stage.step()
            stage.check()
        # In the end everybody is gone: nothing is in flight, and nothing stays reserved.
        stage.model.now_ms += LEASE_MS + 1
        for _ in range(20):
            stage.reap()
        assert not stage.model.leases
        assert not stage.model.held
        stage.check()
        for key, (_, limits) in KEYS.items():
            in_flight, _, reports = stage.call({"op": "peek", "key": key, "limits": limits})
            assert in_flight == 0
            assert all(report[1] == report[3] == report[5] == 0 for report in reports)
        COVERED.update(stage.counts)


def test_the_histories_covered_what_they_are_for():
    assert set(COVERED) >= {
        "grant", "deny", "none", "patience", "again", "settled", "known", "late", "reaped", "flush", "told",
    }, COVERED
