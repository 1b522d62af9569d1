"""Invariant 3 for real: refreshers on one store are killed at random instants under load, over and over.

The simulator rotates at every refresh. Strict, it revokes a family whose spent token comes again; then a kill between
an answer and its keeping may cost a grant, visibly. With a grace it repeats its last answer; then nothing may be lost.
`REFRESHER_KILLS` (12) and `REFRESHER_SEEDS` (numbers separated by commas; 1) make runs longer. What a run did is printed.
"""

import asyncio
import os
import random
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import grpc
import pytest

from signalbox.core import rpc
from signalbox.core.settings import RoomSettings
from signalbox.v1 import token_refresher_pb2 as pb
from signalbox.v1.token_refresher_pb2_grpc import TokenRefresherStub
from tests.support.caller import Caller
from tests.support.refresher import SECRET, Process, process
from tests.support.sim import Simulator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KILLS = int(os.environ.get("REFRESHER_KILLS", "12"))
SEEDS = [int(seed) for seed in os.environ.get("REFRESHER_SEEDS", "1").split(",")]
ACCOUNTS = [f"default/a{n}" for n in range(6)]
TOKEN_PATH = "/v1/oauth/token"
SLACK_S = 0.25     # between a process's end and the moment at which its peer's socket is known to be closed
GRACE_S = 600


def provider(grace_s: float) -> Simulator:
    names = [account.removeprefix("default/") for account in ACCOUNTS]
    return Simulator({
        "accounts": [{"name": name} for name in names],
        "oauth": {"expires_in": 2, "reuse_grace_s": grace_s, "grants": [
            {"account": name, "client_id": "c", "refresh_token": f"seed-{name}"} for name in names]},
    })


def seed(account: str, url: str) -> pb.PutGrantRequest:
    token = f"seed-{account.removeprefix('default/')}"
    config = {"tokenURL": url + TOKEN_PATH, "clientID": "c", "baseURL": url}
    return pb.PutGrantRequest(account_id=account, kind="oauth", material={"refreshToken": token}, config=config,
                              seed_version=f"seed of {account}")


class Load:
    """Asks both refreshers for credentials all the time, now and then for another one than was just given."""

    def __init__(self, processes: list[Process], chance: random.Random) -> None:
        self._processes, self._chance = processes, chance
        self.outcomes: Counter[str] = Counter()

    async def run(self) -> None:
        await asyncio.gather(*(self._ask(each) for each in self._processes for _ in range(8)))

    async def _ask(self, each: Process) -> None:
        while True:
            async with rpc.connect(RoomSettings(shared_secret=SECRET), each.address) as channel:
                stub: Any = TokenRefresherStub(channel)
                version = ""
                for _ in range(50):
                    rejected = version if self._chance.random() < 0.2 else ""
                    account = self._chance.choice(ACCOUNTS)
                    request = pb.GetCredentialRequest(account_id=account, rejected_version=rejected)
                    try:
                        version = (await stub.GetCredential(request, timeout=30)).version
                        self.outcomes["given"] += 1
                    except grpc.aio.AioRpcError as e:
                        self.outcomes[e.details() if e.code() is grpc.StatusCode.FAILED_PRECONDITION else "away"] += 1
                    await asyncio.sleep(self._chance.uniform(0, 0.05))


@pytest.mark.parametrize("number", SEEDS)
@pytest.mark.parametrize("grace_s", [0, GRACE_S], ids=["strict", "grace"])
async def test_no_grant_is_lost_however_refreshers_are_killed(tmp_path: Path, number: int, grace_s: float) -> None:
    chance = random.Random(number)
    with provider(grace_s) as sim, process(tmp_path, "one") as one, process(tmp_path, "two") as two:
        # Effects come at once and answers late, so that kills fall between the two.
        sim.script(standing={"first_delay_s": 0.03}, match={"path": TOKEN_PATH})
        await asyncio.gather(*(call(one, "PutGrant", seed(account, sim.url)) for account in ACCOUNTS))
        load = Load([one, two], chance)
        loading = asyncio.create_task(load.run())
        await asyncio.sleep(1)
        for _ in range(KILLS):
            victim = chance.choice([one, two])
            if chance.random() < 0.8:     # else it may be killed while it starts
                await call(victim, "Status", pb.GrantStatusRequest())
            await asyncio.sleep(chance.uniform(0, 0.8))
            await asyncio.to_thread(victim.kill)
            if chance.random() < 0.7:     # else the other one is alone for a while
                await asyncio.sleep(chance.uniform(0, 0.3))
            victim.start()
        await asyncio.sleep(2)
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        sim.oauth({"expires_in": 600})
        standing = {account: await settled(account, [one, two], sim) for account in ACCOUNTS}
        rows = [row for row in sim.truth(path=TOKEN_PATH) if row["request_complete"]]
        print(f"{KILLS} kills, seed {number}, grace {grace_s}: {len(rows)} token requests, {dict(load.outcomes)}, "
              f"{Counter(standing.values())}, reuses {sum(g['reuses'] for g in sim.grants())}")
        family = {token: g["account"] for g in sim.grants() for token in (*g["spent"], g["current"])}
        sent = [(family[parse_qs(row["request_body"])["refresh_token"][0]], row) for row in rows]
        check_order(sent)
        check_alone(sent)
        assert load.outcomes["given"] > 100
        assert set(standing.values()) <= {"Valid", "NeedsAuthorization"}
        if grace_s:
            assert set(standing.values()) == {"Valid"}, "the same token once more had the same answer"


async def settled(account: str, processes: list[Process], sim: Simulator) -> str:
    """Return the account's reason once both agree; what is valid must open the API."""
    end_s = time.monotonic() + 30
    while True:
        reasons = []
        for each in processes:
            found = (await call(each, "Status", pb.GrantStatusRequest(account_ids=[account]))).grants
            reasons += [status.reason for status in found] or ["unknown"]
        if len(set(reasons)) == 1 and reasons[0] in ("Valid", "NeedsAuthorization"):
            break
        assert time.monotonic() < end_s, (account, reasons)
        await asyncio.sleep(0.1)
    if reasons[0] == "Valid":
        for each in processes:
            # The first token may be one of two seconds still, which a busy machine can let run out.
            while True:
                headers = await headers_of(each, account)
                answer = await asyncio.to_thread(Caller(sim.url).send, headers=headers)
                if answer.status == 200:
                    break
                assert time.monotonic() < end_s + 30, answer
                await asyncio.sleep(0.2)
    return reasons[0]


async def headers_of(each: Process, account: str) -> dict[str, str]:
    given = await call(each, "GetCredential", pb.GetCredentialRequest(account_id=account))
    return {h.name: h.value for h in given.headers}


async def call(each: Process, method: str, request: Any) -> Any:
    """Call over a channel of its own: an old one may not have noticed that its process was replaced."""
    async with rpc.connect(RoomSettings(shared_secret=SECRET), each.address) as channel:
        try:
            return await getattr(TokenRefresherStub(channel), method)(request, wait_for_ready=True, timeout=60)
        except grpc.aio.AioRpcError as e:
            state = each.process.poll()
            last = each.log.read_text().splitlines()[-5:]
            raise AssertionError(f"{method}: {e.code()}, {e.details()}; process {state}: {last}") from e


def check_order(rows: list[tuple[str, dict[str, Any]]]) -> None:
    """Once a successor was sent, somebody had read it: what it succeeded must not be sent again."""
    courses: dict[str, list[str]] = defaultdict(list)
    for account, row in rows:
        course, body = courses[account], row["request_sha256"]
        if not course or course[-1] != body:
            assert body not in course, f"a refresh token of {account} came again after its successor"
            course.append(body)


def check_alone(rows: list[tuple[str, dict[str, Any]]]) -> None:
    """Never two refreshes of one grant at once; a dead process's request ends with it."""
    last: dict[str, float] = {}
    for family, row in rows:
        gone = row["client_gone_at"] is not None
        end = row["client_gone_at"] - SLACK_S if gone else row["ended_at"]
        assert row["received_at"] >= last.get(family, 0.0), f"{family}: two refreshes at once"
        last[family] = max(last.get(family, 0.0), end)


async def test_a_thousand_waiters_on_two_refreshers_cause_one_refresh(tmp_path: Path) -> None:
    with provider(0) as sim, process(tmp_path, "one") as one, process(tmp_path, "two") as two:
        sim.oauth({"expires_in": 3600})
        account = ACCOUNTS[0]
        await call(one, "PutGrant", seed(account, sim.url))
        await settled(account, [one, two], sim)
        given = await call(one, "GetCredential", pb.GetCredentialRequest(account_id=account))
        sim.script(standing={"first_delay_s": 0.3}, match={"path": TOKEN_PATH})
        before = len(sim.truth(path=TOKEN_PATH))
        request = pb.GetCredentialRequest(account_id=account, rejected_version=given.version)
        async with (
            rpc.connect(RoomSettings(shared_secret=SECRET), one.address) as first,
            rpc.connect(RoomSettings(shared_secret=SECRET), two.address) as second,
        ):
            stubs: list[Any] = [TokenRefresherStub(first), TokenRefresherStub(second)]
            answers = await asyncio.gather(*(stubs[n % 2].GetCredential(request, timeout=100) for n in range(1000)))
        assert len({answer.version for answer in answers} - {given.version}) == 1
        assert given.version not in {answer.version for answer in answers}
        assert len(sim.truth(path=TOKEN_PATH)) - before == 1
        assert sim.grants()[0]["reuses"] == 0


async def test_what_one_refresher_renews_the_other_one_pushes(tmp_path: Path) -> None:
    with provider(0) as sim, process(tmp_path, "one") as one, process(tmp_path, "two") as two:
        sim.oauth({"expires_in": 3600})
        account = ACCOUNTS[0]
        async with rpc.connect(RoomSettings(shared_secret=SECRET), two.address) as channel:
            stub: Any = TokenRefresherStub(channel)
            watch = stub.Watch(pb.WatchCredentialsRequest(), wait_for_ready=True, timeout=30)
            assert (await watch.read()).type == pb.CredentialEvent.SYNCED
            await call(one, "PutGrant", seed(account, sim.url))
            event = await watch.read()
            assert (event.type, event.account_id) == (pb.CredentialEvent.PUT, account)
            sim.revoke("a0", family=True)
            with pytest.raises(AssertionError, match="NeedsAuthorization"):
                await call(one, "GetCredential", pb.GetCredentialRequest(
                    account_id=account, rejected_version=event.credential.version))
            event = await watch.read()
            assert (event.type, event.account_id) == (pb.CredentialEvent.REMOVED, account)
