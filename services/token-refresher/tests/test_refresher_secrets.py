"""The grant store in Secrets, at a real API server: compare-and-swap, leases that run out, what is sealed and set aside."""

import asyncio
import base64
import itertools
import os
from collections.abc import AsyncIterator, Iterator

import pytest

from signalbox.kube import connect
from signalbox.token_refresher.adapters.sealing import Keyring
from signalbox.token_refresher.adapters.secret_store import LEASE, SecretStore
from signalbox.token_refresher.domain.grants import Grant, Seed
from signalbox.token_refresher.domain.ports import Conflict, LeaseBusy, Stored, StoreUnavailable, Unreadable
from tests.support.control_plane import CannotRun, ControlPlane
from tests.support.kube import Api
from tests.support.refresher import SECRET, process
from tests.support.sim import Simulator

pytestmark = [pytest.mark.slow, pytest.mark.k8s, pytest.mark.timeout(300)]

REFRESH_TOKEN = "the-refresh-token-nobody-may-see"
_count = itertools.count(1)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    try:
        running = ControlPlane(tmp_path_factory.mktemp("control-plane"))
    except CannotRun as e:
        pytest.skip(str(e))
    with running:
        yield running


@pytest.fixture
def api(plane: ControlPlane) -> Api:
    return Api(plane.kubeconfig)


def keyring(*numbers: int) -> Keyring:
    return Keyring.read(",".join(base64.b64encode(bytes([n]) * 32).decode() for n in numbers))


class Stores:
    """Stores of one release, each over a connection of its own, as replicas have them."""

    def __init__(self, plane: ControlPlane) -> None:
        self.owner = f"release-{next(_count)}"
        self._plane = plane
        self._open: list[object] = []

    async def one(self, *keys: int, lease_s: float = 30.0) -> SecretStore:
        cluster = await connect("test", kubeconfig=self._plane.kubeconfig).__aenter__()
        self._open.append(cluster)
        return SecretStore(cluster, keyring(*keys or (1,)), self.owner, lease_s=lease_s, margin_s=0.5)

    async def close(self) -> None:
        for cluster in self._open:
            await cluster.__aexit__(None, None, None)  # type: ignore[attr-defined]


@pytest.fixture
async def stores(plane: ControlPlane) -> AsyncIterator[Stores]:
    made = Stores(plane)
    yield made
    await made.close()


def grant(account_id: str = "default/acme", generation: int = 1) -> Grant:
    seed = Seed(account_id, "oauth", {"refreshToken": REFRESH_TOKEN}, {"tokenURL": "https://x"}, "digest")
    return Grant(seed, generation, 5, refresh_token=REFRESH_TOKEN)


def grants_of(api: Api, stores: Stores) -> list[dict[str, object]]:
    return [s for s in api.list("Secret") if s["metadata"]["name"].startswith(f"{stores.owner}-grant-")]


async def test_grants_are_read_back_sealed_and_apart_from_other_releases(stores: Stores, api: Api) -> None:
    first, second = await stores.one(), await stores.one()
    kept = [await first.write(grant(name), "") for name in ("default/acme", "team-b/" + "m" * 250)]
    assert sorted(await second.everything(), key=str) == sorted(kept, key=str)
    assert await second.read("default/acme") == kept[0]
    assert await second.read("default/none") is None
    for secret in grants_of(api, stores):
        assert REFRESH_TOKEN not in str(secret)
        assert REFRESH_TOKEN.encode() not in base64.b64decode(secret["data"]["grant"])  # type: ignore[index]
    stores.owner = "another"
    assert await (await stores.one()).everything() == []


async def test_of_many_writers_of_one_revision_one_wins(stores: Stores) -> None:
    first, second = await stores.one(), await stores.one()
    begun = await first.write(grant(), "")
    with pytest.raises(Conflict):
        await second.write(grant(), "")
    attempts = [(first, second)[n % 2].write(grant(generation=n + 2), begun.revision) for n in range(8)]
    ended = await asyncio.gather(*attempts, return_exceptions=True)
    (won,) = [each for each in ended if isinstance(each, Stored)]
    assert all(isinstance(each, Conflict) for each in ended if each is not won)
    assert await second.read("default/acme") == won


async def test_deleting_compares_too_and_leaves_nothing(stores: Stores, api: Api) -> None:
    store = await stores.one()
    old = await store.write(grant(), "")
    new = await store.write(grant(generation=2), old.revision)
    with pytest.raises(Conflict):
        await store.delete("default/acme", old.revision)
    await store.delete("default/acme", new.revision)
    assert await store.read("default/acme") is None
    assert grants_of(api, stores) == []
    await store.write(grant(), "")
    with pytest.raises(Conflict):
        await store.write(grant(generation=3), new.revision)


async def test_a_lease_keeps_others_out_and_writes_go_on_under_it(stores: Stores, api: Api) -> None:
    first, second = await stores.one(), await stores.one()
    await first.write(grant(), "")
    async with first.lease("default/acme", 0) as lasts:
        assert lasts()
        with pytest.raises(LeaseBusy):
            async with second.lease("default/acme", 0.5):
                pass
        there = await first.read("default/acme")
        assert isinstance(there, Stored)
        kept = await first.write(grant(generation=2), there.revision)
        # A reconciler writes without the lease, and does not take it away.
        await second.write(grant(generation=3), kept.revision)
        with pytest.raises(LeaseBusy):
            async with second.lease("default/acme", 0):
                pass
    async with second.lease("default/acme", 5):
        pass
    (secret,) = grants_of(api, stores)
    assert LEASE not in (secret["metadata"].get("annotations") or {})  # type: ignore[attr-defined]


async def test_a_lease_of_a_dead_holder_runs_out_and_its_late_write_is_refused(stores: Stores) -> None:
    first, second = await stores.one(lease_s=1.5), await stores.one(lease_s=1.5)
    await first.write(grant(), "")
    sleeping = first.lease("default/acme", 0)
    lasts = await sleeping.__aenter__()
    there = await first.read("default/acme")
    assert isinstance(there, Stored)
    async with second.lease("default/acme", 20):
        assert not lasts(), "its holder knows that it must not send any more"
        with pytest.raises(Conflict):
            await first.write(grant(generation=2), there.revision)
        await sleeping.__aexit__(None, None, None)
        with pytest.raises(LeaseBusy):
            async with first.lease("default/acme", 0):
                pass    # giving back a lost lease does not give the other one's away


async def test_a_lease_of_nothing_leaves_nothing(stores: Stores, api: Api) -> None:
    first, second = await stores.one(), await stores.one()
    async with first.lease("default/acme", 0):
        assert await first.read("default/acme") is None
        assert await first.everything() == []
        await second.write(grant(), "")
        with pytest.raises(LeaseBusy):
            async with second.lease("default/acme", 0):
                pass
    there = await first.read("default/acme")
    assert isinstance(there, Stored)
    async with first.lease("default/acme", 0):
        there = await second.read("default/acme")
        assert isinstance(there, Stored)
        await second.delete("default/acme", there.revision)
    assert grants_of(api, stores) == []


async def test_changes_of_others_are_noticed(stores: Stores) -> None:
    first, second = await stores.one(), await stores.one()
    kept = await first.write(grant(), "")
    changes = second.changes()
    assert await asyncio.wait_for(anext(changes), 20) == "default/acme"
    await first.delete("default/acme", kept.revision)
    assert await asyncio.wait_for(anext(changes), 20) == "default/acme"


async def test_keys_change_and_what_cannot_be_read_is_set_aside(stores: Stores, api: Api) -> None:
    kept = await (await stores.one(1)).write(grant(), "")
    both = await stores.one(2, 1)
    assert (await both.reseal(), await both.reseal()) == (1, 0)
    again = await (await stores.one(2)).read("default/acme")
    assert isinstance(again, Stored)
    assert again.grant == kept.grant
    old = await stores.one(1)
    (broken,) = await old.everything()
    assert isinstance(broken, Unreadable)
    assert broken.account_id == "default/acme"
    await old.write(grant(generation=9), "")
    assert [f.grant.generation for f in await old.everything() if isinstance(f, Stored)] == [9]
    assert len(grants_of(api, stores)) == 2, "the old one is kept under another name"


async def test_an_api_server_that_is_away_is_a_store_that_is_away(plane: ControlPlane, tmp_path: object) -> None:
    text = plane.kubeconfig.read_text().replace(plane.url, "https://127.0.0.1:1")
    elsewhere = plane.kubeconfig.with_name("nowhere.kubeconfig")
    elsewhere.write_text(text)
    async with connect("test", kubeconfig=elsewhere) as cluster:
        store = SecretStore(cluster, keyring(1), "release", lease_s=30, margin_s=1)
        with pytest.raises(StoreUnavailable):
            await store.everything()
        with pytest.raises(StoreUnavailable):
            async with store.lease("default/acme", 0):
                pass


async def test_two_replicas_renew_from_secrets(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two processes, no directory between them."""
    from signalbox.core import rpc
    from signalbox.core.settings import RoomSettings
    from signalbox.v1 import token_refresher_pb2 as pb
    from signalbox.v1.token_refresher_pb2_grpc import TokenRefresherStub

    environment = {
        "KUBECONFIG": str(plane.kubeconfig), "SIGNALBOX_TOKEN_REFRESHER_STORE": "secrets",
        "SIGNALBOX_TOKEN_REFRESHER_STORE_OWNER": f"pair-{os.getpid()}",
    }
    directories = [tmp_path_factory.mktemp("replica") for _ in range(2)]
    with Simulator({
        "accounts": [{"name": "web"}],
        "oauth": {"expires_in": 4, "grants": [{"account": "web", "client_id": "c", "refresh_token": "seed"}]},
    }) as sim, process(directories[0], **environment) as one, process(directories[1], **environment) as two:
        settings = RoomSettings(shared_secret=SECRET)
        async with rpc.connect(settings, one.address) as first, rpc.connect(settings, two.address) as second:
            stubs = [TokenRefresherStub(channel) for channel in (first, second)]
            config = {"tokenURL": sim.url + "/v1/oauth/token", "clientID": "c", "baseURL": sim.url}
            await stubs[0].PutGrant(pb.PutGrantRequest(
                account_id="default/web", kind="oauth", material={"refreshToken": "seed"}, config=config,
                seed_version="1"), wait_for_ready=True, timeout=60)
            request = pb.GetCredentialRequest(account_id="default/web")
            await stubs[1].Status(pb.GrantStatusRequest(), wait_for_ready=True, timeout=60)
            end_s = asyncio.get_running_loop().time() + 12
            given = 0
            while asyncio.get_running_loop().time() < end_s:
                for stub in stubs:
                    given += bool((await stub.GetCredential(request, timeout=20)).version)
                await asyncio.sleep(0.2)
        (family,) = sim.grants()
        assert given > 10
        assert family["refreshes"] >= 2
        assert family["reuses"] == 0
        assert not family["revoked"]
