"""What a decision tells of the accounts that were looked at, and what people see of those that are used up."""

import asyncio

from signalbox.v1 import scheduler_pb2 as pb


async def decided(stub, make, **fields):
    answer = await stub.Admit(make.ask("ada", **fields), timeout=30)
    return pb.Decision.FromString(answer.decision)


def notes(decision):
    return [(c.account_id, c.note) for c in decision.candidates]


async def statuses(stub):
    listed = await stub.ListObjects(pb.ListObjectsRequest(kinds=["ClaudeAccount"], with_status=True), timeout=30)
    return {o.object.id: o.account for o in listed.objects}


async def status_once(stub, account, wanted):
    """Return an account's status once it is as wanted; the scheduler looks twice a second."""
    async with asyncio.timeout(15):
        while not wanted(status := (await statuses(stub))[account]):
            await asyncio.sleep(0.05)
        return status


async def test_who_was_passed_over_and_why_is_told_at_once(stage, make):
    """Caps are known to Redis alone, when it is asked: the decision has it from there."""
    stub = await stage.add()
    await stage.put(
        make.account("a", limits=[{"per": "Day", "requests": 1}]), make.account("b", priority=1), make.account("c", priority=2),
        make.pool("default", "a", "b", "c"), make.key("ada"),
    )
    first, second = await decided(stub, make), await decided(stub, make)
    assert (first.chosen, dict(first.excluded)) == ("default/a", {})
    assert notes(first)[0] == ("default/a", "")
    assert (second.chosen, second.reason) == ("default/b", "the first with room")
    assert notes(second) == [("default/a", "capped"), ("default/b", ""), ("default/c", "")]
    assert dict(second.excluded) == {"capped": 1}


async def test_a_limit_that_only_the_sent_model_falls_under_is_named(stage, make):
    stub = await stage.add()
    await stage.put(
        make.account("a", models={"allow": [], "deny": [], "map": {"big": "claude-opus-4"}}), make.pool("default", "a"),
        make.key("ada", limits=[make.limit("Day", requests=1, models=["claude-opus-*"], name="opus a day")]),
    )
    assert (await decided(stub, make, model="big")).chosen == "default/a"
    answer = await stub.Admit(make.ask("ada", model="big"), timeout=30)
    assert answer.denial.error_code == "key_limit_requests"
    assert "'opus a day'" in answer.denial.message
    assert notes(pb.Decision.FromString(answer.decision)) == [("default/a", "key_limit_requests opus a day")]


async def test_another_schedulers_requests_fill_an_account(stage, make):
    """Whether this scheduler knows that already or Redis tells it, the decision says so."""
    one = await stage.add()
    await stage.put(
        make.account("a", maxConcurrency=1), make.account("b", priority=1), make.pool("default", "a", "b"), make.key("ada"),
    )
    two = await stage.add()
    assert (await decided(one, make)).chosen == "default/a"
    assert ("default/a", "full") in notes(await decided(two, make))
    await status_once(two, "default/a", lambda status: status.in_flight == 1)
    assert ("default/a", "full") in notes(await decided(two, make))


async def test_an_account_that_used_up_its_own_limits_shows_it(stage, make):
    """A group's accounts share what they used; each counts it against limits of its own."""
    stub = await stage.add()
    await stage.put(
        make.account("a", limits=[{"per": "Day", "requests": 2}], limitGroup="g"),
        make.account("b", limits=[{"per": "Day", "requests": 3}], limitGroup="g", priority=1),
        make.pool("default", "a", "b"), make.key("ada"),
    )
    two = await stage.add()
    assert (await statuses(two))["default/a"].available
    for _ in range(2):
        await decided(stub, make)
    for each in (stub, two):
        status = await status_once(each, "default/a", lambda status: not status.available)
        assert (status.reason, status.state) == ("Capped", "Active")
        assert status.limited_until_ms % 86_400_000 == 0    # when the day ends
        assert (await statuses(each))["default/b"].available
    await stage.put(make.account("a", limits=[{"per": "Day", "requests": 5}], limitGroup="g"))
    assert (await status_once(stub, "default/a", lambda status: status.available)).limited_until_ms == 0


async def test_a_request_that_is_larger_than_an_accounts_own_limits(stage, make):
    """It goes to another account, which leaves the pin where it is; where there is none, asking again is no use."""
    stub = await stage.add()
    small = make.account("a", limits=[{"per": "Minute", "inputTokens": 1_000}])
    await stage.put(small, make.account("b", priority=1), make.pool("default", "a", "b"), make.key("ada"))
    talk = {"session": b"conversation-001"}
    assert (await decided(stub, make, input_bytes=400, **talk)).chosen == "default/a"
    large = await decided(stub, make, input_bytes=8_000, **talk)
    assert (large.chosen, large.pin, large.pin_reason) == ("default/b", "full", "too_large")
    assert (await decided(stub, make, input_bytes=400, **talk)).chosen == "default/a"
    await stage.put(make.pool("default", "a"))
    denial = (await stub.Admit(make.ask("ada", input_bytes=8_000), timeout=30)).denial
    assert (denial.error_code, denial.retry_after_ms, denial.never_fits) == ("pool_limited", 0, True)
    denial = (await stub.Admit(make.ask("ada", input_bytes=3_600), timeout=30)).denial
    assert (denial.error_code, denial.never_fits) == ("pool_limited", False)     # once the minute is over it fits
    assert denial.retry_after_ms > 1_000
