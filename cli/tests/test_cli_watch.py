"""The file watcher against a registry and a grant store behind real sockets that can be wiped and restarted."""

import asyncio
import io
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from prometheus_client import REGISTRY
from pydantic import SecretStr

from signalbox.cli.supervisor.logs import LogSink
from signalbox.cli.watch import Watcher
from signalbox.core.rpc import Server
from signalbox.core.settings import RoomSettings
from signalbox.resources import yamltext
from signalbox.rooms.addresses import Addresses
from signalbox.rooms.client import Rooms
from signalbox.v1 import scheduler_pb2 as spb
from signalbox.v1 import token_refresher_pb2 as tpb
from signalbox.v1.scheduler_pb2_grpc import SchedulerServicer, add_SchedulerServicer_to_server
from signalbox.v1.token_refresher_pb2_grpc import TokenRefresherServicer, add_TokenRefresherServicer_to_server
from tests.support.machine import busy

SETTINGS = RoomSettings(shared_secret=SecretStr("s" * 32), telemetry_address="127.0.0.1:0")
FENCE = 7
SLACK_S = 1.0    # what a machine may add that has other work

ACCOUNT = """
apiVersion: v1
kind: Secret
metadata: {name: acme}
stringData: {api-key: sk-test-0123456789abcdef}
---
apiVersion: signalbox.dev/v1alpha1
kind: ClaudeAccount
metadata: {name: acme}
spec:
  provider: Anthropic
  credential: {apiKey: {secretRef: {name: acme, key: api-key}}}
"""


def key(name: str = "ada", **spec: str) -> str:
    extra = "".join(f"\n  {field}: {value}" for field, value in spec.items())
    return f"""
apiVersion: signalbox.dev/v1alpha1
kind: RelayKey
metadata: {{name: {name}}}
spec:
  owner: {name}@example.com
  keyHash: "sha256:{name.encode().hex():0<64}"{extra}
"""


class Registry(SchedulerServicer, TokenRefresherServicer):
    """Keeps what it is told in memory and writes down the order."""

    def __init__(self, directory: Path) -> None:
        self.address = f"unix:{directory}/rooms.sock"
        self.objects: dict[tuple[str, str], spb.Object] = {}
        self.grants: dict[str, str] = {}
        self.calls: list[str] = []
        self.fences: set[int] = set()
        self.watchers: list[asyncio.Queue[spb.ObjectEvent]] = []
        self.server: Server | None = None

    async def start(self) -> None:
        self.server = Server(SETTINGS, self.address, ["signalbox.v1.Scheduler"])
        add_SchedulerServicer_to_server(self, self.server.grpc)
        add_TokenRefresherServicer_to_server(self, self.server.grpc)
        await self.server.start()

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop(0)
            self.server = None

    async def flush(self) -> None:
        self.objects.clear()
        for queue in self.watchers:
            queue.put_nowait(spb.ObjectEvent(type=spb.ObjectEvent.RESYNC))

    async def ListObjects(self, request: Any, context: Any) -> Any:
        return spb.ListObjectsResponse(objects=[spb.ObjectWithStatus(object=o) for o in self.objects.values()])

    async def PutObjects(self, request: Any, context: Any) -> Any:
        self.fences.add(request.fence)
        for item in request.objects:
            self.calls.append(f"put {item.kind} {item.id}")
            self.objects[item.kind, item.id] = item
        return spb.PutObjectsResponse(changed=len(request.objects))

    async def DeleteObjects(self, request: Any, context: Any) -> Any:
        for ref in request.objects:
            self.calls.append(f"delete {ref.kind} {ref.id}")
            self.objects.pop((ref.kind, ref.id), None)
        return spb.DeleteObjectsResponse(changed=len(request.objects))

    async def WatchObjects(self, request: Any, context: Any) -> AsyncIterator[Any]:
        queue: asyncio.Queue[spb.ObjectEvent] = asyncio.Queue()
        self.watchers.append(queue)
        yield spb.ObjectEvent(type=spb.ObjectEvent.SYNCED)
        while True:
            yield await queue.get()

    async def PutGrant(self, request: Any, context: Any) -> Any:
        if self.grants.get("refused") == request.account_id:
            await context.abort(grpc.StatusCode.INTERNAL, "the disk is full")
        self.calls.append(f"grant {request.account_id}")
        self.grants[request.account_id] = request.seed_version
        return tpb.GrantStatus(account_id=request.account_id)

    async def DeleteGrant(self, request: Any, context: Any) -> Any:
        self.calls.append(f"ungrant {request.account_id}")
        self.grants.pop(request.account_id, None)
        return tpb.DeleteGrantResponse()

    async def Status(self, request: Any, context: Any) -> Any:
        return tpb.GrantStatusResponse(
            grants=[tpb.GrantStatus(account_id=a, seed_version=v) for a, v in self.grants.items() if a != "refused"],
        )


class World:
    def __init__(self, directory: Path) -> None:
        self.manifests = directory / "m"
        self.manifests.mkdir()
        self.registry = Registry(directory)
        self.said = io.StringIO()
        self.logs = LogSink("text", stream=self.said)
        addresses = Addresses((self.registry.address,), self.registry.address, self.registry.address)
        self.rooms = Rooms(addresses, SETTINGS)
        self.watcher = Watcher(self.manifests, self.rooms, FENCE, self.logs)

    def write(self, name: str, text: str) -> None:
        (self.manifests / name).write_text(text)

    def has(self, kind: str, name: str) -> bool:
        return (kind, f"default/{name}") in self.registry.objects

    async def within(self, limit_s: float, condition: Callable[[], bool]) -> None:
        end_s = time.monotonic() + limit_s + SLACK_S * busy()
        while not condition():
            assert time.monotonic() < end_s, f"not within {limit_s} s; {self.registry.calls} {self.said.getvalue()}"
            await asyncio.sleep(0.02)


@pytest.fixture
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    made = World(tmp_path_factory.mktemp("w"))
    await made.registry.start()
    yield made
    await made.watcher.stop()
    await made.rooms.__aexit__(None, None, None)
    await made.registry.stop()
    made.logs.close()


async def test_documents_come_into_force_in_an_order_that_is_always_safe(world: World) -> None:
    world.write("a.yaml", ACCOUNT)
    world.write("k.yaml", key())
    world.watcher.start()
    await world.within(2.0, lambda: world.watcher.in_force)
    assert world.registry.calls == [
        "grant default/acme", "put ClaudeAccount default/acme", "put AccountPool default/default",
        "put RelayKey default/ada",
    ]
    assert world.registry.fences == {FENCE}
    assert world.registry.objects["RelayKey", "default/ada"].source.endswith("k.yaml:2")


async def test_changes_and_deletions_are_in_force_within_two_seconds(world: World) -> None:
    world.write("a.yaml", ACCOUNT)
    world.write("k.yaml", key())
    world.watcher.start()
    await world.within(2.0, lambda: world.watcher.in_force)
    world.write("k.yaml", key(state="Paused"))
    await world.within(2.0, lambda: b"Paused" in world.registry.objects["RelayKey", "default/ada"].spec_json)
    (world.manifests / "k.yaml").unlink()
    await world.within(2.0, lambda: not world.has("RelayKey", "ada"))
    (world.manifests / "a.yaml").unlink()
    await world.within(2.0, lambda: not world.has("ClaudeAccount", "acme") and not world.registry.grants)


async def test_a_bad_document_is_reported_once_and_disturbs_nothing(world: World) -> None:
    world.write("k.yaml", key())
    world.watcher.start()
    await world.within(2.0, lambda: world.has("RelayKey", "ada"))
    before = world.registry.objects["RelayKey", "default/ada"].revision
    world.write("k.yaml", key(concurrency="-1"))
    world.write("other.yaml", key("bob"))
    await world.within(2.0, lambda: world.has("RelayKey", "bob"))
    assert b'"concurrency"' not in world.registry.objects["RelayKey", "default/ada"].spec_json
    world.watcher.trigger()
    await asyncio.sleep(0.3)
    told = [line for line in world.said.getvalue().splitlines() if "spec.concurrency" in line]
    assert len(told) == 1
    assert f"{world.manifests}/k.yaml:8: spec.concurrency: " in told[0]
    assert world.watcher.all_problems() == [told[0]]
    assert world.registry.objects["RelayKey", "default/ada"].revision != before
    world.write("k.yaml", key())
    await world.within(2.0, lambda: world.registry.objects["RelayKey", "default/ada"].revision == before)
    assert not world.watcher.all_problems()


@pytest.mark.slow
async def test_a_file_that_is_being_written_deletes_nothing(world: World) -> None:
    world.watcher = Watcher(world.manifests, world.rooms, FENCE, world.logs, settled_s=1.0)
    world.write("k.yaml", key() + "---" + key("bob"))
    world.watcher.start()
    await world.within(4.0, lambda: world.has("RelayKey", "ada") and world.has("RelayKey", "bob"))
    with (world.manifests / "k.yaml").open("w") as half_written:
        half_written.write(key(state="Paused"))
        half_written.flush()
        world.watcher.trigger()
        await asyncio.sleep(0.2)
        half_written.write("---" + key("bob"))
    await world.within(4.0, lambda: b"Paused" in world.registry.objects["RelayKey", "default/ada"].spec_json)
    assert "delete RelayKey default/bob" not in world.registry.calls


async def test_a_flushed_registry_is_filled_again_within_two_seconds(world: World) -> None:
    world.write("k.yaml", key())
    world.watcher.start()
    await world.within(2.0, lambda: world.has("RelayKey", "ada") and bool(world.registry.watchers))
    await world.registry.flush()
    await world.within(2.0, lambda: world.has("RelayKey", "ada"))


@pytest.mark.slow
async def test_a_registry_that_restarts_empty_is_filled_again(world: World) -> None:
    world.write("k.yaml", key())
    world.watcher.start()
    await world.within(2.0, lambda: world.has("RelayKey", "ada") and bool(world.registry.watchers))
    await world.registry.stop()
    world.registry.objects.clear()
    world.write("b.yaml", key("bob"))
    await asyncio.sleep(0.5)
    await world.registry.start()
    await world.within(4.0, lambda: world.has("RelayKey", "ada") and world.has("RelayKey", "bob"))


async def test_rooms_that_come_late_are_waited_for(world: World) -> None:
    await world.registry.stop()
    world.write("k.yaml", key())
    world.watcher.start()
    await asyncio.sleep(0.5)
    assert not world.watcher.in_force
    await world.registry.start()
    await world.within(4.0, lambda: world.watcher.in_force and world.has("RelayKey", "ada"))


async def test_a_refused_action_is_tried_again_until_it_is_done(world: World) -> None:
    world.registry.grants["refused"] = "default/acme"
    world.write("a.yaml", ACCOUNT)
    world.watcher.start()
    await world.within(3.0, lambda: "the disk is full" in world.watcher.failure)
    assert not world.has("ClaudeAccount", "acme"), "an account must not come before its grant"
    del world.registry.grants["refused"]
    await world.within(5.0, lambda: world.has("ClaudeAccount", "acme") and not world.watcher.failure)


@pytest.mark.slow
async def test_an_expiry_takes_effect_without_a_change_of_files(world: World) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=1.2)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    world.write("k.yaml", key(expiresAt=soon))
    world.watcher.start()
    await world.within(1.1, lambda: world.has("RelayKey", "ada"))
    await world.within(
        3.0, lambda: any(c.reason == "Expired" for c in world.registry.objects["RelayKey", "default/ada"].conditions),
    )


async def test_a_directory_that_vanishes_deletes_nothing(world: World) -> None:
    world.write("k.yaml", key())
    world.watcher.start()
    await world.within(2.0, lambda: world.has("RelayKey", "ada"))
    moved = world.manifests.rename(world.manifests.with_name("moved"))
    world.watcher.trigger()
    await world.within(2.0, lambda: str(world.manifests) in world.watcher.failure)
    assert world.has("RelayKey", "ada")
    moved.rename(world.manifests)
    world.write("k2.yaml", key("bob"))
    await world.within(5.0, lambda: world.has("RelayKey", "bob"))


async def test_of_many_files_only_those_that_changed_are_parsed_again(
    world: World, monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsed: list[str] = []
    parse = yamltext.parse

    def counting(text: str) -> list[yamltext.Parsed]:
        parsed.append(text)
        return parse(text)

    monkeypatch.setattr(yamltext, "parse", counting)
    world.write("k.yaml", key())
    world.watcher.start()
    await world.within(2.0, lambda: world.has("RelayKey", "ada"))
    world.write("k2.yaml", key("bob"))
    await world.within(2.0, lambda: world.has("RelayKey", "bob"))
    assert parsed.count(key()) == 1


@pytest.mark.parametrize("mounted", ["the files are links", "the directory is a link"])
async def test_links_that_are_swapped_as_a_whole_are_noticed_as_soon_as_changes(world: World, mounted: str) -> None:
    for revision, state in (("..1", "Active"), ("..2", "Paused")):
        (world.manifests / revision).mkdir()
        world.write(f"{revision}/k.yaml", key(state=state))
    if mounted == "the directory is a link":
        where = world.manifests.rename(world.manifests.with_name("all"))
        link = world.manifests
        link.symlink_to(where / "..1")
    else:
        where = world.manifests
        link = where / "..data"
        link.symlink_to("..1")
        (where / "k.yaml").symlink_to("..data/k.yaml")
    world.watcher.start()
    await world.within(2.0, lambda: world.has("RelayKey", "ada"))
    await asyncio.sleep(0.3)    # the watch stands, and what it asked for at once is done
    former = world.registry.objects["RelayKey", "default/ada"].revision
    swapped = link.with_name("..next")
    swapped.symlink_to(where / "..2")
    swapped.rename(link)
    await world.within(5.0, lambda: world.registry.objects["RelayKey", "default/ada"].revision != former)


async def test_no_secret_is_ever_said(world: World) -> None:
    world.write("a.yaml", ACCOUNT.replace("provider: Anthropic", "provider: Nobody"))
    world.watcher.start()
    await world.within(2.0, lambda: bool(world.watcher.problems))
    await asyncio.sleep(0.2)
    assert "sk-test" not in world.said.getvalue()


async def test_reconciling_is_counted_by_kind(world: World) -> None:
    def count(kind: str, result: str) -> float:
        return REGISTRY.get_sample_value("signalbox_reconcile_total", {"kind": kind, "result": result}) or 0.0

    before = {kind: count(kind, "done") for kind in ("ClaudeAccount", "Grant")}
    world.write("a.yaml", ACCOUNT)
    world.watcher.start()
    await world.within(2.0, lambda: world.watcher.in_force)
    assert {kind: count(kind, "done") - n for kind, n in before.items()} == {"ClaudeAccount": 1, "Grant": 1}
