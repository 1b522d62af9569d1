"""The Redis functions' counters against a plain model, at times that the test decides.

The functions are the product's own, with only the server's clock replaced by a key that the test sets.
"""

import calendar
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from signalbox.scheduler.adapters.store import library
from signalbox.scheduler.domain.operations import Candidate, Limit, Retake, Settle, Take, encode

START = datetime(2032, 2, 28, 22, 59, 30, tzinfo=UTC)  # ahead of the real clock, by which the server expires keys
LIMITS = ["Minute", "Hour", "Day", "Week", "Month", "Total"]


def ms(when: datetime) -> int:
    return int(when.timestamp() * 1000)


class Functions:
    """The functions of one server, called directly."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        source, self.name = library()
        real = "local time = redis.call('TIME')"
        assert real in source
        source = source.replace(real, "local ms = redis.call('GET', 'test:now'); local time = {ms / 1000, 0}")
        client.function_load(source, replace=True)
        self.now = ms(START)
        self.count = 0
        self.begin()

    def begin(self) -> None:
        self.call({"op": "begin", "id": "e1"}, epoch="")
        self.call({"op": "finish", "id": "e1"})

    def call(self, operation: Any, first: bytes = b"", second: bytes = b"", epoch: str = "e1") -> Any:
        self.client.set("test:now", self.now)
        answer = self.client.fcall(self.name, 0, epoch, encode(operation), first, second)[1]
        assert answer[0] != b"error", answer
        return answer

    def take(self, limits: list[Limit], **fields: Any) -> Any:
        return self.call(Take(**self.asked(limits, **fields)), b"request")

    def retake(self, failed: Settle, token: bytes, **fields: Any) -> Any:
        return self.call(Retake(**self.asked([], **fields), failed=failed, last=0), token, b"request")

    def asked(
        self, limits: list[Limit], counts: int = 1, tokens: int = 0, cost: int = 0, **fields: Any,
    ) -> dict[str, Any]:
        self.count += 1
        return {
            "id": f"r{self.count}.1", "key": "ns/ada", "owner": "", "attempt": 1, "tried": (), "version": "0",
            "names": [], "versions": [], "life": 0, "most": 0, "counts": counts, "limits": tuple(limits),
            "usual": (tokens, cost), "worst": (tokens, cost), "sizes": (0, 0),
            "cands": [Candidate("ns/a", "ns/a", 0, 1, "m", "m", (), (), 0)], "pools": [("ns/p", 0, 0)], "session": "",
            "pin_ttl": 0, "hint": "", "hint_state": "gone", "refuse": 0, "bound": 0, **fields,
        }

    def used(self, limit: Limit) -> list[int]:
        return list(self.call({"op": "peek", "key": "ns/ada", "limits": [limit]})[2][0])


@pytest.fixture(scope="module")
def client(module_server: Any) -> Iterator[redis.Redis]:
    with redis.Redis(unix_socket_path=str(module_server.socket)) as client:
        yield client


@pytest.fixture
def functions(client: redis.Redis) -> Functions:
    client.flushall()
    return Functions(client)


def requests(per: str, number: int) -> Limit:
    return Limit("limit", per, number, -1, -1, 0)


def period(per: str, now_ms: int) -> tuple[int, int]:
    """Return the calendar period around a time, from Python's own calendar."""
    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if per == "Day":
        return ms(day), ms(day + timedelta(days=1))
    if per == "Week":
        monday = day - timedelta(days=day.weekday())
        return ms(monday), ms(monday + timedelta(days=7))
    first = day.replace(day=1)
    return ms(first), ms(first + timedelta(days=calendar.monthrange(now.year, now.month)[1]))


@pytest.mark.parametrize("per", ["Day", "Week", "Month"])
@given(second=st.integers(0, 4_102_444_800))
@settings(max_examples=settings.default.max_examples * 3 // 2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_calendar_periods_are_pythons(functions, per, second):
    functions.now = second * 1000
    functions.client.delete("sb:e1:c:k:ns/ada:limit")
    assert functions.used(requests(per, 1))[6] == period(per, functions.now)[1]


@pytest.mark.parametrize("per", ["Day", "Week", "Month"])
def test_a_calendar_limit_is_whole_again_with_its_period(functions, per):
    limit = requests(per, 2)
    assert [functions.take([limit])[0] for _ in range(3)] == [b"grant", b"grant", b"deny"]
    denied = functions.take([limit])
    end = period(per, functions.now)[1]
    assert (denied[1], denied[3]) == (b"limit_1", end)
    functions.now = end - 1
    assert functions.take([limit])[0] == b"deny"
    functions.now = end
    assert functions.take([limit])[0] == b"grant"
    assert functions.used(limit)[0] == 1


@pytest.mark.parametrize(("per", "width"), [("Minute", 1_000), ("Hour", 60_000)])
def test_a_sliding_limit_lets_in_when_the_oldest_bucket_has_wholly_left(functions, per, width):
    limit = requests(per, 2)
    start = functions.now - functions.now % width
    functions.now = start + width - 1
    functions.take([limit])
    functions.now = start + 10 * width
    functions.take([limit])
    denied = functions.take([limit])
    assert denied[3] == start + 61 * width
    functions.now = denied[3] - 1
    assert functions.take([limit])[0] == b"deny"
    functions.now += 1
    assert functions.take([limit])[0] == b"grant"


@pytest.mark.parametrize(("per", "width"), [("Minute", 1_000), ("Hour", 60_000)])
@given(steps=st.lists(st.tuples(st.integers(0, 40_000), st.booleans()), max_size=40), number=st.integers(1, 6))
@settings(max_examples=settings.default.max_examples * 2 // 5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_sliding_window_never_holds_more_than_its_limit(functions, per, width, steps, number):
    """Against a list of all grants: no window of 60 buckets' length ever held more, and every promise is kept."""
    functions.client.delete("sb:e1:c:k:ns/ada:limit")
    scale = width // 1_000
    limit, granted = requests(per, number), []
    functions.now = ms(START)
    for step, follow in steps:
        functions.now += step * scale
        bucket = functions.now // width
        held = sum(1 for at in granted if at // width >= bucket - 60)
        answer = functions.take([limit])
        assert (answer[0] == b"grant") == (held < number)
        if answer[0] == b"grant":
            granted.append(functions.now)
        elif follow:
            functions.now = answer[3] - 1
            assert functions.take([limit])[0] == b"deny"
            functions.now += 1
            assert functions.take([limit])[0] == b"grant"
            granted.append(functions.now)
    for at in granted:
        assert sum(1 for other in granted if at <= other < at + 60 * width) <= number


def test_total_never_comes_back(functions):
    limit = requests("Total", 1)
    functions.take([limit])
    functions.now += 400 * 86_400_000
    assert functions.take([limit])[3] == 0


def test_nine_million_dollars_are_exact_to_the_nano(functions):
    most = 9_000_000 * 10**9
    limit = Limit("limit", "Total", -1, -1, most, 1)
    first = functions.take([limit], cost=most - 1)
    assert first[0] == b"grant"
    assert functions.take([limit], cost=2)[0] == b"deny"
    last = functions.take([limit], cost=1)
    assert last[0] == b"grant"
    assert functions.used(limit)[5] == most
    for i, (taken, cost) in enumerate(((first, most - 2), (last, 1))):
        functions.call(Settle(id=f"r{1 + 2 * i}.1", cost=cost), taken[3])
    assert functions.used(limit)[4:6] == [most - 1, 0]


@pytest.mark.parametrize("names", [sorted, lambda names: sorted(names, reverse=True), lambda names: [*names, "more"]])
def test_a_lease_of_another_version_is_settled_whatever_the_order_of_its_head(functions, names):
    """Schedulers of two versions share a Redis during an upgrade; a head is a map, and maps have no order."""
    limit = Limit("minute", "Minute", 10, 1000, -1, 0)
    token = functions.take([limit], tokens=100)[3]
    length = int.from_bytes(token[:2], "big")
    head = msgspec.msgpack.decode(token[2 : 2 + length])
    assert list(head) == [
        "e", "t", "key", "owner", "attempt", "tried", "probe", "pool", "account", "group", "model", "class", "charges",
    ]
    packed = msgspec.msgpack.encode({name: head.get(name, 1) for name in names(list(head))})
    other = len(packed).to_bytes(2, "big") + packed + token[2 + length :]
    functions.client.hset("sb:e1:leases", "r1.1", other)
    assert functions.call(Settle(id="r1.1", tokens=70), other) == [b"settled", b"ns/a", 0]
    assert functions.used(limit)[:4] == [1, 0, 70, 0]
    assert functions.client.hlen("sb:e1:leases") == 0


def test_equal_limits_of_two_keys_are_counted_apart(functions):
    """What operations repeat is remembered by its text, which says nothing of the key."""
    limit = Limit("minute", "Minute", 2, -1, -1, 0)
    kinds = [functions.take([limit], key=key)[0] for key in ("ns/ada", "ns/bob", "ns/ada", "ns/bob", "ns/ada")]
    assert kinds == [b"grant"] * 4 + [b"deny"]
    assert functions.used(limit)[:2] == [2, 0]


def test_what_a_request_used_counts_where_it_was_admitted(functions):
    day, minute = Limit("day", "Day", -1, 1000, -1, 0), Limit("minute", "Minute", -1, 1000, -1, 0)
    functions.now = period("Day", functions.now)[1] - 1_000
    taken = functions.take([day, minute], tokens=100)
    functions.now += 2_000
    second = functions.take([day, minute], tokens=100)
    functions.call(Settle(id="r1.1", tokens=300), taken[3])
    assert functions.used(day)[2:4] == [0, 100]
    assert functions.used(minute)[2:4] == [300, 100]
    functions.call(Settle(id="r2.1", tokens=50), second[3])
    assert functions.used(day)[2:4] == [50, 0]
    functions.now += 61_000
    assert functions.used(minute)[2:4] == [0, 0]


def test_all_limits_hold_at_once_and_a_denial_reserves_nothing(functions):
    wide, narrow = requests("Hour", 10), Limit("narrow", "Minute", 1, -1, -1, 0)
    assert functions.take([wide, narrow])[0] == b"grant"
    for _ in range(5):
        assert functions.take([wide, narrow])[0] == b"deny"
    assert functions.used(wide)[0] == 1


def test_the_longest_wait_is_named(functions):
    minute, day = Limit("minute", "Minute", 1, -1, -1, 0), Limit("day", "Day", 1, -1, -1, 0)
    functions.take([minute, day])
    denied = functions.take([minute, day])
    assert (denied[2], denied[3]) == (2, period("Day", functions.now)[1])


def test_a_clock_that_steps_back_frees_nothing(functions):
    limit = requests("Minute", 1)
    functions.take([limit])
    functions.now -= 30_000
    assert functions.take([limit])[0] == b"deny"


def test_repeating_any_call_changes_nothing_twice(functions):
    limit = Limit("limit", "Day", 10, 1000, -1, 0)
    taken = functions.take([limit], tokens=100)
    for _ in range(3):
        functions.call(Settle(id="r1.1", tokens=40), taken[3])
        assert functions.used(limit)[:4] == [1, 0, 40, 0]


def test_a_lease_that_was_given_back_is_not_granted_later(functions):
    """A scheduler hung with the question in hand, and its gateway has given up and told another one."""
    limit = requests("Day", 5)
    assert functions.call(Settle(id="r1.1", unused=1), b"") == [b"known"]
    assert functions.take([limit]) == [b"forgone"]
    assert functions.used(limit)[:2] == [0, 0]
    functions.now += 600_001
    assert functions.take([limit])[0] == b"grant"


def test_a_retry_that_was_given_back_frees_the_keys_slot(functions):
    taken = functions.take([], most=1)
    functions.call(Settle(id="r1.2", unused=1), b"")
    assert functions.retake(Settle(id="r1.1"), taken[3], id="r1.2", attempt=2, most=1) == [b"forgone"]
    assert functions.take([], id="r2.1", most=1)[0] == b"grant"


@pytest.mark.parametrize(("refuse", "bound", "outcome"), [(0, 0, b"moved"), (1, 0, b"refused"), (0, 1, b"refused")])
def test_a_pin_that_the_scheduler_did_not_know_of_is_obeyed(functions, refuse, bound, outcome):
    """The pinned account rests, is among the candidates, and nobody told the scheduler either."""
    both = [Candidate(f"ns/{n}", f"ns/{n}", 0, 1, "m", "m", (), (), 0) for n in "ab"]
    fields = {"session": "ns/ada|00", "pin_ttl": 60_000, "pools": [("ns/p", 60_000, refuse)], "cands": both}
    first = functions.take([], **fields)
    assert (first[0], first[1], first[2]) == (b"grant", 1, b"new")
    until = functions.now + 5_000
    functions.call(Settle(id="r1.1", effect=("rest", "Limited", until, "", 0.0)), first[3])
    again = functions.take([], **fields, bound=bound)
    assert again[2 if outcome == b"moved" else 0] == outcome
    if outcome == b"refused":
        assert again[1:] == [b"limited", until]


def test_no_key_lies_outside_the_prefix(functions):
    functions.take([requests("Minute", 5)], session="ns/ada|00")
    assert [k for k in functions.client.scan_iter() if not k.startswith((b"sb:", b"test:"))] == []
