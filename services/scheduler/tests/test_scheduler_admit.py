"""Admit, Retry and Settle over gRPC: grants, idempotence, and each way to be refused."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from signalbox.v1 import scheduler_pb2 as pb

OPUS = "claude-opus-4-6"


def iso(seconds_from_now: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds_from_now)).isoformat().replace("+00:00", "Z")


def rest(reason: str = "Limited", until_ms: int = 0) -> pb.AccountEffect:
    return pb.AccountEffect(kind=pb.AccountEffect.REST, reason=reason, until_ms=until_ms)


def bench(reason: str = "BillingError") -> pb.AccountEffect:
    return pb.AccountEffect(kind=pb.AccountEffect.BENCH, reason=reason)


async def test_a_grant_says_all_that_the_gateway_needs(stage, make):
    stub = await stage.add()
    await stage.put(
        make.account("a", proxied=True, models={"allow": [], "deny": [], "map": {"sonnet": "claude-sonnet-5-5"}}),
        make.pool("default", "a"), make.key("ada"),
    )
    answer = await stub.Admit(make.ask("ada", model="sonnet"), timeout=30)
    g = answer.grant
    assert (g.key_id, g.owner, g.account_id, g.pool_id) == (
        "default/ada", "ada@example.com", "default/a", "default/default",
    )
    assert (g.attempt, g.max_attempts, g.attempts_left, g.send_model, g.has_proxy) == (1, 3, 2, "claude-sonnet-5-5", True)
    assert (g.provider, g.base_url, g.lease_ttl_ms) == ("Anthropic", "http://127.0.0.1/a", 30_000)
    assert (g.timeouts.connect, g.timeouts.headers_unstreamed, g.timeouts.total) == (5_000, 600_000, 3_600_000)
    assert abs(g.admitted_at_ms - time.time() * 1000) < 5_000
    decision = pb.Decision.FromString(answer.decision)
    assert (decision.strategy, decision.chosen, decision.considered) == ("Headroom", "default/a", 1)
    assert [c.account_id for c in decision.candidates] == ["default/a"]


async def test_repeating_an_admit_gives_the_same_lease(stage, make):
    stub = await stage.add()
    await stage.put(make.account("a"), make.pool("default", "a"), make.key("ada", concurrency=1))
    request = make.ask("ada")
    first = await stub.Admit(request, timeout=30)
    again = await stub.Admit(request, timeout=30)
    assert again.grant.lease_token == first.grant.lease_token
    assert again.grant.admitted_at_ms == first.grant.admitted_at_ms
    listed = await stub.ListObjects(pb.ListObjectsRequest(kinds=["RelayKey"], with_status=True), timeout=30)
    assert listed.objects[0].key.in_flight == 1


async def test_settling_twice_frees_one_slot(stage, make):
    stub = await stage.add()
    await stage.put(make.account("a"), make.pool("default", "a"), make.key("ada", concurrency=2))
    first, second = [(await stub.Admit(make.ask("ada"), timeout=30)).grant for _ in range(2)]
    for _ in range(3):
        await stub.Settle(make.ended(first), timeout=30)
    assert (await stub.Admit(make.ask("ada"), timeout=30)).HasField("grant")
    assert (await stub.Admit(make.ask("ada"), timeout=30)).denial.error_code == "key_limit_concurrency"
    await stub.Settle(make.ended(second), timeout=30)
    assert (await stub.Admit(make.ask("ada"), timeout=30)).HasField("grant")


async def test_a_grant_that_nobody_used_is_not_counted(stage, make):
    stub = await stage.add()
    await stage.put(make.account("a"), make.pool("default", "a"), make.key("ada", limits=[make.limit("Total", requests=1)]))
    unused = (await stub.Admit(make.ask("ada"), timeout=30)).grant
    assert (await stub.Admit(make.ask("ada"), timeout=30)).denial.error_code == "key_limit_requests"
    for _ in range(2):
        await stub.Settle(make.ended(unused, unused=True), timeout=30)
    assert (await stub.Admit(make.ask("ada"), timeout=30)).HasField("grant")
    assert (await stub.Admit(make.ask("ada"), timeout=30)).denial.error_code == "key_limit_requests"


async def test_a_grant_that_got_lost_is_given_back_by_its_name(stage, make):
    stub = await stage.add()
    key = make.key("ada", concurrency=1, limits=[make.limit("Total", requests=1)])
    await stage.put(make.account("a"), make.pool("default", "a"), key)
    asked = make.ask("ada")
    lost = pb.SettleRequest(lease_id=f"{asked.request_id}.1", unused=True)
    assert (await stub.Admit(asked, timeout=30)).HasField("grant")
    for _ in range(2):
        await stub.Settle(lost, timeout=30)
    assert (await stub.Admit(asked, timeout=30)).denial.error_code == "scheduler_unavailable"  # nobody asks any more
    assert (await stub.Admit(make.ask("ada"), timeout=30)).HasField("grant")
    assert (await stub.Admit(make.ask("ada"), timeout=30)).HasField("denial")


KEY_DENIALS = [
    ("paused", {"state": "Paused"}, {}, "key_paused"),
    ("expired", {"expiresAt": "2020-01-01T00:00:00Z"}, {}, "key_expired"),
    ("expired by the reconciler", {"ready": False, "reason": "Expired"}, {}, "key_expired"),
    ("model", {"models": {"allow": ["claude-haiku-*"], "deny": []}}, {}, "model_not_allowed"),
    ("model denied", {"models": {"allow": [], "deny": ["*sonnet*"]}}, {}, "model_not_allowed"),
    ("any model named", {"models": {"allow": ["claude-sonnet-*"], "deny": []}}, {"models": ["claude-opus-4"]},
     "model_not_allowed"),
    ("client", {"clients": ["ClaudeCode"]}, {"client": "Codex"}, "client_not_allowed"),
    ("client unknown", {"clients": ["ClaudeCode"]}, {"client": ""}, "client_not_allowed"),
    ("source", {"sourceCIDRs": ["10.0.0.0/8"]}, {"source_address": "192.0.2.1"}, "source_not_allowed"),
    ("source unreadable", {"sourceCIDRs": ["10.0.0.0/8"]}, {"source_address": ""}, "source_not_allowed"),
    ("pool not allowed", {"ready": False, "reason": "PoolNotAllowed"}, {}, "pool_not_allowed"),
    ("no pool", {"pools": []}, {}, "pool_empty"),
    ("no such pool", {"pools": ["default/nowhere"]}, {}, "pool_empty"),
    ("empty pool", {"pools": ["default/empty"]}, {}, "pool_empty"),
    ("faulty pool", {"pools": ["default/faulty"]}, {}, "pool_unavailable"),
    ("no account for the model", {"pools": ["default/picky"]}, {}, "no_account_for_model"),
    ("never fits", {"limits": [{"name": "m", "per": "Minute", "models": [], "admission": "Strict", "tokens": 10}]}, {},
     "key_limit_tokens"),
    ("cost never fits", {"limits": [
        {"name": "m", "per": "Day", "models": [], "admission": "Strict", "costUSD": "0.000001"}]}, {}, "key_limit_cost"),
    ("no requests", {"limits": [{"name": "m", "per": "Minute", "models": [], "admission": "Estimated", "requests": 0}]},
     {}, "key_limit_requests"),
]


@pytest.mark.parametrize(("spec", "request_fields", "code"), [c[1:] for c in KEY_DENIALS], ids=[c[0] for c in KEY_DENIALS])
async def test_each_denial_has_its_code(stage, make, spec, request_fields, code):
    stub = await stage.add()
    await stage.put(
        make.account("a"), make.account("off", state="Paused"), make.account("new", ready=False, reason="NotImplemented"),
        make.account("haiku", models={"allow": ["claude-haiku-*"], "deny": [], "map": {}}),
        make.pool("default", "a"), make.pool("empty"), make.pool("faulty", "off", "new"), make.pool("picky", "haiku"),
        make.key("ada", **spec),
    )
    answer = await stub.Admit(make.ask("ada", **request_fields), timeout=30)
    assert answer.denial.error_code == code
    assert answer.denial.message
    assert answer.denial.key_id == "default/ada"
    assert answer.denial.never_fits == code.startswith("key_limit_")
    assert pb.Decision.FromString(answer.decision).reason == code


async def test_an_unknown_key_is_invalid_and_stays_unnamed(stage, make):
    stub = await stage.add()
    answer = await stub.Admit(make.ask("nobody"), timeout=30)
    assert (answer.denial.error_code, answer.denial.key_id) == ("key_invalid", "")


async def test_a_mapped_ipv4_address_counts_as_ipv4(stage, make):
    stub = await stage.add()
    await stage.put(make.account("a"), make.pool("default", "a"), make.key("ada", sourceCIDRs=["10.0.0.0/8"]))
    assert (await stub.Admit(make.ask("ada", source_address="::ffff:10.1.2.3"), timeout=30)).HasField("grant")


async def test_a_former_hash_works_until_its_time(stage, make):
    stub = await stage.add()
    hashes = [
        {"hash": "sha256:" + make.digest("new").hex()},
        {"hash": "sha256:" + make.digest("old").hex(), "until": iso(60)},
        {"hash": "sha256:" + make.digest("older").hex(), "until": iso(-1)},
    ]
    await stage.put(make.account("a"), make.pool("default", "a"), make.key("ada", keyHashes=hashes))
    codes = [(await stub.Admit(make.ask(t), timeout=30)).denial.error_code for t in ("new", "old", "older")]
    assert codes == ["", "", "key_invalid"]


@pytest.mark.slow
async def test_a_lifetime_counts_from_first_use(stage, make):
    stub = await stage.add()
    await stage.put(make.account("a"), make.pool("default", "a"), make.key("ada", lifetime={"duration": "300ms"}))
    await asyncio.sleep(0.4)
    assert (await stub.Admit(make.ask("ada"), timeout=30)).HasField("grant")
    await asyncio.sleep(0.4)
    assert (await stub.Admit(make.ask("ada"), timeout=30)).denial.error_code == "key_expired"
    looked = await stub.Inspect(pb.InspectRequest(key_hash=make.digest("ada")), timeout=30)
    assert (looked.state, looked.denial.error_code) == ("Expired", "key_expired")
    [fact] = stage.ledger.facts.values()
    assert (fact.key_id, fact.at_ms) == ("default/ada", looked.first_used_at_ms)


async def test_count_tokens_meets_key_checks_and_concurrency_only(stage, make):
    stub = await stage.add()
    await stage.put(
        make.account("a"), make.pool("default", "a"),
        make.key("ada", concurrency=1, limits=[make.limit("Minute", requests=1, tokens=1)]),
    )
    for _ in range(3):
        grant = (await stub.Admit(make.ask("ada", route="count_tokens"), timeout=30)).grant
        assert grant.account_id
        refused = await stub.Admit(make.ask("ada", route="count_tokens"), timeout=30)
        assert refused.denial.error_code == "key_limit_concurrency"
        await stub.Settle(make.ended(grant, usage={"input_tokens": 100}), timeout=30)
    looked = await stub.Inspect(pb.InspectRequest(key_hash=make.digest("ada"), with_limits=True), timeout=30)
    assert (looked.limits[0].requests.used, looked.limits[0].tokens.used) == (0, 0)


async def test_a_gateway_may_have_the_keys_limits_as_lines_of_a_head(stage, make):
    """A denial says the limits all the same, and so does a grant to a gateway that does not know of lines."""
    stub = await stage.add()
    limits = [
        make.limit("Day", requests=3), make.limit("Total", requests=2, tokens=10_000), make.limit("Week", costUSD="9"),
    ]
    await stage.put(make.account("a"), make.pool("default", "a"), make.key("ada", limits=limits))
    granted = await stub.Admit(make.ask("ada", wants_limit_lines=True), timeout=5)
    lines = dict(line.split(b": ") for line in granted.limit_lines.splitlines())
    assert granted.limit_lines.endswith(b"\r\n")
    assert 0 < int(lines.pop(b"anthropic-ratelimit-tokens-remaining")) < 10_000
    assert lines == {
        b"anthropic-ratelimit-requests-limit": b"2", b"anthropic-ratelimit-requests-remaining": b"1",
        b"anthropic-ratelimit-tokens-limit": b"10000",
    }
    assert not granted.limits
    plain = await stub.Admit(make.ask("ada"), timeout=5)
    assert ([x.per for x in plain.limits], plain.limit_lines) == (["Day", "Total", "Week"], b"")
    denied = await stub.Admit(make.ask("ada", wants_limit_lines=True), timeout=5)
    assert denied.denial.error_code == "key_limit_requests"
    assert ([x.per for x in denied.limits], denied.limit_lines) == (["Day", "Total", "Week"], b"")


async def test_a_full_pool_is_limited_with_a_second_to_wait(stage, make):
    stub = await stage.add()
    await stage.put(make.account("a", maxConcurrency=1), make.pool("default", "a"), make.key("ada"))
    first = (await stub.Admit(make.ask("ada"), timeout=30)).grant
    denied = (await stub.Admit(make.ask("ada"), timeout=30)).denial
    assert (denied.error_code, denied.retry_after_ms) == ("pool_limited", 1000)
    await stub.Settle(make.ended(first), timeout=30)
    assert (await stub.Admit(make.ask("ada"), timeout=30)).HasField("grant")


async def test_resting_accounts_limit_the_pool_until_the_soonest_wakes(stage, make):
    stub = await stage.add()
    await stage.put(make.account("a"), make.account("b"), make.pool("default", "a", "b"), make.key("ada"))
    now_ms = time.time_ns() // 1_000_000
    for seconds in (60, 20):
        grant = (await stub.Admit(make.ask("ada"), timeout=30)).grant
        await stub.Settle(
            make.ended(grant, outcome="OUTCOME_UPSTREAM_ERROR", effect=rest(until_ms=now_ms + seconds * 1000)), timeout=5,
        )
    denied = (await stub.Admit(make.ask("ada"), timeout=30)).denial
    assert denied.error_code == "pool_limited"
    assert 18_000 < denied.retry_after_ms <= 20_000


async def test_a_rest_for_one_class_of_models_leaves_the_others(stage, make):
    stub = await stage.add()
    await stage.put(make.account("a"), make.pool("default", "a"), make.key("ada"))
    grant = (await stub.Admit(make.ask("ada", model="claude-opus-4-6"), timeout=30)).grant
    effect = rest(until_ms=time.time_ns() // 1_000_000 + 60_000)
    effect.model_class = "claude-opus-4-6"
    await stub.Settle(make.ended(grant, effect=effect), timeout=30)
    assert (await stub.Admit(make.ask("ada", model="claude-opus-4-1"), timeout=30)).denial.error_code == "pool_limited"
    assert (await stub.Admit(make.ask("ada", model="claude-sonnet-4-5"), timeout=30)).HasField("grant")


async def test_accounts_of_one_limit_group_rest_together(stage, make):
    stub = await stage.add()
    await stage.put(
        make.account("a", limitGroup="default/org"), make.account("b", limitGroup="default/org"),
        make.pool("default", "a", "b"), make.key("ada"),
    )
    grant = (await stub.Admit(make.ask("ada"), timeout=30)).grant
    await stub.Settle(make.ended(grant, effect=rest(until_ms=time.time_ns() // 1_000_000 + 60_000)), timeout=30)
    assert (await stub.Admit(make.ask("ada"), timeout=30)).denial.error_code == "pool_limited"


EFFECTS = {
    "limited": (rest(until_ms=60_000), ("", "")),
    "limited for a class": (pb.AccountEffect(kind=pb.AccountEffect.REST, reason="Limited", until_ms=60_000, model_class=OPUS), ("", "a")),
    "overloaded": (pb.AccountEffect(kind=pb.AccountEffect.COOL, reason="Overloaded", until_ms=60_000), ("", "")),
    "unreachable": (pb.AccountEffect(kind=pb.AccountEffect.COOL, reason="Unreachable", until_ms=60_000, account_only=True), ("b", "b")),
    "benched": (pb.AccountEffect(kind=pb.AccountEffect.BENCH, reason="BillingError", until_ms=60_000), ("b", "b")),
    "caller's own": (pb.AccountEffect(), ("a", "a")),
}


@pytest.mark.parametrize("name", EFFECTS)
async def test_whom_a_failure_keeps_out(stage, make, name):
    """What belongs to the limit group keeps out all its accounts, what is the account's own only this one."""
    stub = await stage.add()
    group = {"limitGroup": "default/org"}
    await stage.put(
        make.account("a", **group), make.account("b", priority=1, **group), make.pool("default", "a", "b"), make.key("ada"),
    )
    effect, served_by = EFFECTS[name]
    grant = (await stub.Admit(make.ask("ada", model=OPUS), timeout=30)).grant
    assert grant.account_id == "default/a"
    if effect.until_ms:
        effect.until_ms = time.time_ns() // 1_000_000 + 60_000
    await stub.Settle(make.ended(grant, outcome="OUTCOME_UPSTREAM_ERROR", effect=effect), timeout=30)
    for model, account in zip((OPUS, "claude-sonnet-4-5"), served_by, strict=True):
        answer = await stub.Admit(make.ask("ada", model=model), timeout=30)
        assert answer.grant.account_id == (f"default/{account}" if account else "")
        if not account:
            assert answer.denial.error_code == "pool_limited"
            assert 55_000 < answer.denial.retry_after_ms <= 60_000


async def test_a_benched_account_serves_again_when_its_document_changes(stage, make):
    stub = await stage.add()
    await stage.put(make.account("a"), make.pool("default", "a"), make.key("ada"))
    grant = (await stub.Admit(make.ask("ada"), timeout=30)).grant
    await stub.Settle(make.ended(grant, effect=bench()), timeout=30)
    assert (await stub.Admit(make.ask("ada"), timeout=30)).denial.error_code == "pool_unavailable"
    listed = await stub.ListObjects(pb.ListObjectsRequest(kinds=["ClaudeAccount"], with_status=True), timeout=30)
    assert (listed.objects[0].account.available, listed.objects[0].account.reason) == (False, "BillingError")
    await stage.put(make.account("a", weight=50))
    await asyncio.sleep(0.3)
    assert (await stub.Admit(make.ask("ada"), timeout=30)).HasField("grant")


@pytest.mark.slow
async def test_a_cooled_account_is_probed_by_one_request_and_healed_by_its_success(stage, make):
    stub = await stage.add()
    await stage.put(make.account("a"), make.pool("default", "a"), make.key("ada"))
    grant = (await stub.Admit(make.ask("ada"), timeout=30)).grant
    cool = pb.AccountEffect(kind=pb.AccountEffect.COOL, reason="Failing")
    await stub.Settle(make.ended(grant, outcome="OUTCOME_UPSTREAM_ERROR", effect=cool), timeout=30)
    denied = (await stub.Admit(make.ask("ada"), timeout=30)).denial
    assert (denied.error_code, denied.retry_after_ms) == ("pool_limited", 1000)
    await asyncio.sleep(1.1)
    probe = (await stub.Admit(make.ask("ada"), timeout=30)).grant
    assert probe.account_id
    assert (await stub.Admit(make.ask("ada"), timeout=30)).denial.error_code == "pool_limited"
    await stub.Settle(make.ended(probe), timeout=30)
    both = [(await stub.Admit(make.ask("ada"), timeout=30)).HasField("grant") for _ in range(2)]
    assert both == [True, True]


@pytest.mark.slow
async def test_what_is_an_accounts_own_fault_spares_its_limit_group(stage, make):
    stub = await stage.add()
    await stage.put(
        *(make.account(n, limitGroup="acme", proxied=n == "a") for n in "ab"),
        make.pool("default", "a", "b", strategy="Priority"), make.key("ada"),
    )
    granted = [(await stub.Admit(make.ask("ada"), timeout=30)).grant for _ in range(8)]
    failed = next(g for g in granted if g.account_id == "default/a")
    effect = pb.AccountEffect(kind=pb.AccountEffect.COOL, reason="ProxyUnreachable", account_only=True)
    await stub.Settle(make.ended(failed, outcome="OUTCOME_UPSTREAM_ERROR", had_content=False, effect=effect), timeout=30)
    listed = await stub.ListObjects(pb.ListObjectsRequest(kinds=["ClaudeAccount"], with_status=True), timeout=30)
    statuses = {o.object.id: o.account for o in listed.objects}
    assert (statuses["default/a"].available, statuses["default/a"].reason) == (False, "ProxyUnreachable")
    assert statuses["default/a"].limited_until_ms > 0
    assert statuses["default/b"].available
    assert {(await stub.Admit(make.ask("ada"), timeout=30)).grant.account_id for _ in range(8)} == {"default/b"}
    await asyncio.sleep(1.1)    # the first cool-down is a second at most
    seen = set()
    for _ in range(20):
        grant = (await stub.Admit(make.ask("ada"), timeout=30)).grant
        seen.add(grant.account_id)
        await stub.Settle(make.ended(grant), timeout=30)
    assert seen == {"default/a", "default/b"}, "one request probes it, and its success heals it"


@pytest.mark.slow
async def test_failures_in_a_row_cool_for_longer(stage, make):
    stub = await stage.add()
    await stage.put(make.account("a"), make.pool("default", "a"), make.key("ada"))
    cool = pb.AccountEffect(kind=pb.AccountEffect.COOL, reason="Failing")
    waits = []
    for _ in range(2):
        grant = (await stub.Admit(make.ask("ada"), timeout=30)).grant
        await stub.Settle(make.ended(grant, outcome="OUTCOME_UPSTREAM_ERROR", effect=cool), timeout=30)
        await asyncio.sleep(0.3)
        listed = await stub.ListObjects(pb.ListObjectsRequest(kinds=["ClaudeAccount"], with_status=True), timeout=30)
        status = listed.objects[0].account
        assert status.reason == "Failing"
        waits.append(status.limited_until_ms - time.time_ns() // 1_000_000)
        await asyncio.sleep(max(0, waits[-1]) / 1000 + 0.05)
    assert waits[0] < 1_000 < waits[1] < 2_000


async def test_retry_takes_another_account_and_counts_the_request_once(stage, make):
    stub = await stage.add()
    await stage.put(
        make.account("a"), make.account("b"), make.pool("default", "a", "b"),
        make.key("ada", concurrency=1, limits=[make.limit("Minute", requests=2)]),
    )
    first = (await stub.Admit(make.ask("ada"), timeout=30)).grant
    failed = make.ended(first, outcome="OUTCOME_UPSTREAM_ERROR", had_content=False, more_attempts=True)
    retried = await stub.Retry(pb.RetryRequest(failed=failed), timeout=30)
    assert retried.grant.account_id != first.account_id
    assert (retried.grant.attempt, retried.grant.attempts_left) == (2, 1)
    assert retried.limits[0].requests.used == 1
    again = await stub.Retry(pb.RetryRequest(failed=failed), timeout=30)
    assert again.grant.lease_token == retried.grant.lease_token
    assert (await stub.Admit(make.ask("ada"), timeout=30)).denial.error_code == "key_limit_concurrency"
    await stub.Settle(make.ended(retried.grant), timeout=30)
    looked = await stub.Inspect(pb.InspectRequest(key_hash=make.digest("ada"), with_limits=True), timeout=30)
    assert (looked.in_flight, looked.limits[0].requests.used) == (0, 1)


async def test_retry_in_place_asks_the_same_account(stage, make):
    stub = await stage.add()
    await stage.put(*(make.account(n) for n in "abc"), make.pool("default", *"abc"), make.key("ada"))
    first = (await stub.Admit(make.ask("ada", session=b"s" * 16), timeout=30)).grant
    failed = make.ended(first, outcome="OUTCOME_UPSTREAM_ERROR", had_content=False)
    retried = await stub.Retry(pb.RetryRequest(failed=failed, same_account=True), timeout=30)
    assert (retried.grant.account_id, retried.grant.repinned) == (first.account_id, False)


async def test_retry_without_another_account_frees_the_slot(stage, make):
    stub = await stage.add()
    await stage.put(make.account("a"), make.pool("default", "a"), make.key("ada", concurrency=1))
    first = (await stub.Admit(make.ask("ada"), timeout=30)).grant
    effect = rest(until_ms=time.time_ns() // 1_000_000 + 120_000)
    failed = make.ended(first, outcome="OUTCOME_UPSTREAM_ERROR", had_content=False, effect=effect)
    refused = (await stub.Retry(pb.RetryRequest(failed=failed), timeout=30)).denial
    assert refused.error_code == "pool_limited"
    assert 60_000 < refused.retry_after_ms <= 120_000    # a busy machine may take its time
    looked = await stub.Inspect(pb.InspectRequest(key_hash=make.digest("ada"), with_limits=True), timeout=30)
    assert looked.in_flight == 0


async def test_attempts_are_bounded_by_the_pool(stage, make):
    stub = await stage.add()
    failover = {"maxAttempts": 2, "fallbackPools": []}
    await stage.put(*(make.account(n) for n in "abc"), make.pool("default", *"abc", failover=failover), make.key("ada"))
    grant = (await stub.Admit(make.ask("ada"), timeout=30)).grant
    second = (await stub.Retry(pb.RetryRequest(failed=make.ended(grant, had_content=False)), timeout=30)).grant
    assert (second.attempt, second.attempts_left) == (2, 0)
    third = await stub.Retry(pb.RetryRequest(failed=make.ended(second, had_content=False)), timeout=30)
    assert third.denial.error_code == "pool_unavailable"


async def test_known_caps_of_an_account_send_requests_elsewhere(stage, make):
    stub = await stage.add()
    await stage.put(
        make.account("a", limits=[{"per": "Minute", "requests": 2}]), make.account("b", priority=1),
        make.pool("default", "a", "b"), make.key("ada"),
    )
    chosen = [(await stub.Admit(make.ask("ada"), timeout=30)).grant.account_id for _ in range(4)]
    assert chosen == ["default/a"] * 2 + ["default/b"] * 2


async def test_pools_are_tried_in_order_then_their_fallbacks(stage, make):
    stub = await stage.add()
    await stage.put(
        make.account("a", maxConcurrency=1), make.account("b", maxConcurrency=1), make.account("c"),
        make.pool("one", "a"), make.pool("two", "b"), make.pool("three", "c"),
        make.key("ada", pools=["default/one", "default/two"], fallbackPools=["default/three"]),
    )
    got = [(g.account_id, g.pool_id) for g in [(await stub.Admit(make.ask("ada"), timeout=30)).grant for _ in range(3)]]
    assert got == [("default/a", "default/one"), ("default/b", "default/two"), ("default/c", "default/three")]


async def test_more_full_accounts_than_are_offered_at_once_do_not_hide_a_free_one(stage, make):
    stub = await stage.add()
    names = [f"a{i:03d}" for i in range(100)]
    await stage.put(*(make.account(n, maxConcurrency=1) for n in names), make.pool("default", *names), make.key("ada"))
    grants = [(await stub.Admit(make.ask("ada"), timeout=30)).grant.account_id for _ in range(100)]
    assert sorted(grants) == [f"default/{n}" for n in names]
    assert (await stub.Admit(make.ask("ada"), timeout=30)).denial.error_code == "pool_limited"


async def test_asking_again_is_no_use_once_a_total_limit_is_used_up(stage, make):
    """While what is in flight may give some of it back, it is."""
    stub = await stage.add()
    total = make.limit("Total", admission="Strict", tokens=1_000)
    await stage.put(make.account("a"), make.pool("default", "a"), make.key("ada", limits=[total]))
    running = (await stub.Admit(make.ask("ada", input_bytes=400, max_tokens=800), timeout=30)).grant
    denied = (await stub.Admit(make.ask("ada", input_bytes=400, max_tokens=800), timeout=30)).denial
    assert (denied.error_code, denied.retry_after_ms, denied.never_fits) == ("key_limit_tokens", 1_000, False)
    await stub.Settle(make.ended(running, usage={"input_tokens": 100, "output_tokens": 800}), timeout=30)
    denied = (await stub.Admit(make.ask("ada", input_bytes=400, max_tokens=800), timeout=30)).denial
    assert (denied.error_code, denied.retry_after_ms, denied.never_fits) == ("key_limit_tokens", 0, True)
    assert "ask its administrator for more" in denied.message


async def test_limits_by_model_match_the_name_asked_for_and_the_name_sent(stage, make):
    stub = await stage.add()
    by_model = {"per": "Day", "models": ["claude-opus-*"], "admission": "Estimated", "name": "opus", "requests": 2}
    await stage.put(
        make.account("a", models={"allow": [], "deny": [], "map": {"big": "claude-opus-4"}}), make.pool("default", "a"),
        make.key("ada", limits=[by_model]),
    )
    codes = [
        (await stub.Admit(make.ask("ada", model=m), timeout=30)).denial.error_code
        for m in ("claude-opus-4", "claude-sonnet-4-5", "big", "claude-opus-4", "big", "claude-sonnet-4-5")
    ]
    assert codes == ["", "", "", "key_limit_requests", "key_limit_requests", ""]
