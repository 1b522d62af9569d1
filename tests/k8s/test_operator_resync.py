"""The operator's full resync, by itself: what a room loses behind its back, and no event tells of, comes back."""

import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from signalbox.v1 import scheduler_pb2, token_refresher_pb2
from signalbox.v1.scheduler_pb2_grpc import SchedulerStub
from signalbox.v1.token_refresher_pb2_grpc import TokenRefresherStub
from tests.support.kube import SOON_S, Api, within
from tests.support.release import SHARED_SECRET, Release
from tests.support.sim import Simulator
from tests.support.tenant import account_key, apply_key, at_provider, served, tenant

RESYNC_S = 2
NEVER_S = 3600
# What a start compares once more for other reasons, such as a watch that has just begun, is over by then.
ROUNDS = 3


class Rooms:
    """The scheduler and the token-refresher, as another caller with the shared secret."""

    def __init__(self, release: Release) -> None:
        self._channels = [
            grpc.insecure_channel(f"unix:{release.directory}/{room}.sock") for room in ("scheduler", "token_refresher")
        ]
        self._scheduler: Any = SchedulerStub(self._channels[0])
        self._refresher: Any = TokenRefresherStub(self._channels[1])
        self._options: dict[str, Any] = {"metadata": [("authorization", f"Bearer {SHARED_SECRET}")], "timeout": 10}

    def close(self) -> None:
        for channel in self._channels:
            channel.close()

    def lose_key(self, key: str) -> None:
        """Delete a key from the registry, as a writer that the operator does not know."""
        refs = [scheduler_pb2.ObjectRef(kind="RelayKey", id=key)]
        self._scheduler.DeleteObjects(scheduler_pb2.DeleteObjectsRequest(writer="test", fence=1, objects=refs), **self._options)

    def has_key(self, key: str) -> bool:
        listed = scheduler_pb2.ListObjectsRequest(kinds=["RelayKey"], ids=[key])
        return bool(self._scheduler.ListObjects(listed, **self._options).objects)

    def spoil_grant(self, account: str, api_key: str) -> None:
        """Put another credential in the place of an account's own; it is as valid, so nothing tells of it."""
        self._refresher.PutGrant(token_refresher_pb2.PutGrantRequest(
            account_id=account, kind="apiKey", material={"apiKey": api_key}, seed_version=f"of-a-test-{time.time_ns()}",
        ), **self._options)

    def seed(self, account: str) -> str:
        """Return what an account's credential was made from."""
        asked = token_refresher_pb2.GrantStatusRequest(account_ids=[account])
        return str(self._refresher.Status(asked, **self._options).grants[0].seed_version)


@pytest.fixture
def rooms(alone: Release) -> Iterator[Rooms]:
    found = Rooms(alone)
    yield found
    found.close()


def test_what_the_rooms_lose_unnoticed_comes_back_by_the_resync_and_by_nothing_else(
    api: Api, alone: Release, sim: Simulator, ns: str, rooms: Rooms,
) -> None:
    tenant(api, alone, ns, sim.url)
    key = apply_key(api, ns, "bob")
    served(alone, key)
    account, lost, seed, wrong = f"{ns}/acme", f"{ns}/bob", rooms.seed(f"{ns}/acme"), account_key(ns, "wrong")

    def take_away() -> None:
        rooms.lose_key(lost)
        rooms.spoil_grant(account, wrong)

    def is_back() -> bool:
        return rooms.has_key(lost) and rooms.seed(account) == seed

    def is_away() -> bool:
        return not rooms.has_key(lost) and rooms.seed(account) != seed and alone.call(key)[0] == 401

    def stays_away() -> bool:
        """Whether all is still lost after the time in which a resync brought it back."""
        take_away()
        time.sleep(max(took_s))
        return is_away()

    took_s: list[float] = []
    try:
        alone.restart("operator", SIGNALBOX_OPERATOR_RESYNC_S=str(RESYNC_S))
        for _ in range(ROUNDS):
            began_s = time.monotonic()
            take_away()
            within(SOON_S, is_back)
            took_s.append(time.monotonic() - began_s)
        served(alone, key)
        sim.clear_truth()
        assert alone.call(key)[0] == 200
        assert {row["account"] for row in sim.truth()} == {at_provider(account_key(ns))}
        alone.restart("operator", SIGNALBOX_OPERATOR_RESYNC_S=str(NEVER_S))
        within(SOON_S, stays_away)
    finally:
        alone.restart("operator")
    within(SOON_S, is_back)
    print(f"\nlost to back, with a resync every {RESYNC_S} s: {', '.join(f'{s:.1f}' for s in took_s)} s")
