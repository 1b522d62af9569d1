"""Whose turn it is among the keys that wait, in one scheduler or in several."""

import asyncio
import time
from dataclasses import dataclass

import pytest

from signalbox.scheduler.domain.vacancies import GRACE_MS, Vacancies
from signalbox.scheduler.domain.waiting import WaitingRoom

NOW = 1_800_000_000_000


@dataclass(eq=False)
class Waiter:
    id: str
    key_id: str
    uses: tuple[str, ...] = ("a",)
    lanes: tuple[str, ...] = ()

    def could_use(self, account_id: str) -> bool:
        return account_id in self.uses


def room(*waiters: Waiter) -> WaitingRoom[Waiter]:
    made: WaitingRoom[Waiter] = WaitingRoom()
    for waiter in waiters:
        made.enter(waiter, NOW)
    return made


def vacancies(**may_use: str) -> Vacancies[Waiter]:
    """Vacancies where keys may use the accounts that are named, one letter each."""
    return Vacancies(lambda key, account: account in may_use.get(key, ""))


def assigned(found: list[tuple[Waiter, str]]) -> list[tuple[str, str]]:
    return [(waiter.id, account) for waiter, account in found]


def test_the_key_whose_turn_it_is_goes_first_wherever_it_entered() -> None:
    here = room(Waiter("ada1", "ada"), Waiter("bob1", "bob"))
    free = vacancies(ada="a", bob="a")
    free.add("a", ("bob", "ada"))
    assert assigned(free.assign(here, NOW, 10)) == [("bob1", "a")]
    assert free.assign(here, NOW, 10) == []     # one room, one request


def test_rooms_that_come_together_go_round_the_keys() -> None:
    """Redis knows of no turn yet that is being taken."""
    here = room(Waiter("ada1", "ada"), Waiter("ada2", "ada"), Waiter("bob1", "bob"))
    free = vacancies(ada="a", bob="a")
    for _ in range(4):
        free.add("a", ("ada", "bob"))
    assert assigned(free.assign(here, NOW, 10)) == [("ada1", "a"), ("bob1", "a"), ("ada2", "a")]


def test_who_waits_elsewhere_and_goes_first_is_left_a_moment() -> None:
    here = room(Waiter("ada1", "ada"))
    free = vacancies(ada="a", bob="a")
    free.add("a", ("bob", "ada"))
    assert free.assign(here, NOW, 10) == []
    assert free.next_due_ms() == NOW + GRACE_MS
    assert free.assign(here, NOW + GRACE_MS - 1, 10) == []
    assert assigned(free.assign(here, NOW + GRACE_MS, 10)) == [("ada1", "a")]
    assert free.next_due_ms() == 0


@pytest.mark.parametrize("line", [("bob", "ada"), ("gone", "ada"), ("ada", "bob"), ()])
def test_who_may_not_use_the_account_holds_nobody_up(line: tuple[str, ...]) -> None:
    here = room(Waiter("bob1", "bob", uses=("b",)), Waiter("ada1", "ada"))
    free = vacancies(ada="a", bob="b")
    free.add("a", line)
    assert assigned(free.assign(here, NOW, 10)) == [("ada1", "a")]


def test_an_account_that_nobody_here_may_use_is_forgotten() -> None:
    here = room(Waiter("ada1", "ada", uses=("b",)))
    free = vacancies(ada="b", bob="a")
    free.add("a", ("bob", "ada"))
    assert free.assign(here, NOW, 10) == []
    assert free.next_due_ms() == 0


def test_no_more_are_assigned_than_are_wanted_and_the_rest_is_kept() -> None:
    here = room(*(Waiter(f"ada{n}", "ada") for n in range(5)))
    free = vacancies(ada="a")
    for _ in range(5):
        free.add("a", ("ada",))
    assert len(free.assign(here, NOW, 2)) == 2
    here.leave("ada0")
    here.leave("ada1")
    assert len(free.assign(here, NOW, 10)) == 3


# ---------------------------------------------------------------------------------------------------- two schedulers


async def until_waiting(stage, at, count):
    end_s = time.monotonic() + 30
    while stage.rooms[at].dispatcher.queue.depths.total() != count:
        assert time.monotonic() < end_s
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("many_at", [0, 1])
async def test_keys_take_turns_over_two_schedulers(stage, make, many_at):
    """Whichever of them hears first of an account with room, a key with many requests does not shut out one with few."""
    stubs = [await stage.add()]
    pool = make.pool("default", "a", queue={"maxWait": "60s", "maxDepth": 200})
    await stage.put(make.account("a", maxConcurrency=1), pool, make.key("ada"), make.key("bob"))
    stubs.append(await stage.add())
    running = (await stubs[0].Admit(make.ask("ada"), timeout=30)).grant

    def ask(at, key):
        return asyncio.create_task(_admit(stubs[at], make, key))

    keys = {ask(many_at, "ada"): "a" for _ in range(20)}
    await until_waiting(stage, many_at, 20)
    keys |= {ask(1 - many_at, "bob"): "b" for _ in range(6)}
    await until_waiting(stage, 1 - many_at, 6)
    order = ""
    while keys:
        await stubs[0].Settle(make.ended(running), timeout=30)
        [done], _ = await asyncio.wait(keys, return_when=asyncio.FIRST_COMPLETED, timeout=60)
        running = done.result().grant
        order += keys.pop(done)
    # One of each in turn, but for turns that are lost on a busy machine, where a moment is soon over.
    assert order[:20].count("b") >= 3, order


async def _admit(stub, make, key):
    return await stub.Admit(make.ask(key), timeout=90)


async def test_a_short_wait_does_not_end_a_longer_ones_place(stage, make):
    """What is kept of those that wait lives as long as the longest wait, not as the latest."""
    stub = await stage.add()
    await stage.put(
        make.account("a", maxConcurrency=1), make.key("ada"), make.key("bob", pools=["default/brief"]),
        make.pool("default", "a", queue={"maxWait": "60s", "maxDepth": 5}),
        make.pool("brief", "a", queue={"maxWait": "1s", "maxDepth": 5}),
    )
    await stub.Admit(make.ask("ada"), timeout=30)
    long = asyncio.create_task(_admit(stub, make, "ada"))
    await until_waiting(stage, 0, 1)
    brief = asyncio.create_task(_admit(stub, make, "bob"))
    assert (await brief).denial.error_code == "pool_limited"
    room = stage.rooms[0]
    left_ms = await room.store.command("PTTL", f"sb:{room.store.epoch}:line")
    assert left_ms > 30_000
    assert await room.store.command("ZRANGE", f"sb:{room.store.epoch}:line", 0, -1) == [b"default/ada", b"default/bob"]
    long.cancel()
