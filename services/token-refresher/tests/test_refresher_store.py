"""The encrypted store: what is kept is read back, what is damaged or foreign is shown and left alone."""

import asyncio
import base64
import os
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signalbox.core.errors import StartupError
from signalbox.token_refresher.adapters.file_store import LEASES, SET_ASIDE, SUFFIX, FileStore
from signalbox.token_refresher.adapters.records import opened, sealed
from signalbox.token_refresher.adapters.sealing import Keyring, Unopened
from signalbox.token_refresher.domain.grants import Fault, Grant, Reason, Seed
from signalbox.token_refresher.domain.ports import Conflict, LeaseBusy, Stored, Unreadable
from tests.support.machine import busy

SECRET = "sk-ant-api03-very-secret-value"


def keyring(*numbers: int) -> Keyring:
    return Keyring.read(",".join(base64.b64encode(bytes([n]) * 32).decode() for n in numbers))


def grant(account_id: str = "default/acme", secret: str = SECRET, generation: int = 1) -> Grant:
    seed = Seed(account_id, "apiKey", {"apiKey": secret}, {"baseURL": "https://api.example"}, "digest")
    return Grant(seed, generation, 1_795_219_200_000)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "credentials"


def reopened(directory: Path, *keys: int) -> FileStore:
    return FileStore(directory, keyring(*keys or (1,)))


async def saved(store: FileStore, kept: Grant) -> Stored:
    there = await store.read(kept.account_id)
    return await store.write(kept, there.revision if isinstance(there, Stored) else "")


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if not path.name.startswith(".")]


@given(text=st.text(min_size=1), generation=st.integers(1, 2**40), rejected=st.booleans(), fault=st.booleans())
def test_a_record_survives_sealing(text: str, generation: int, rejected: bool, fault: bool) -> None:
    kept = Grant(
        Seed(text, "oauth", {text: text}, {text: text}, text), generation, 5, rejected, text, text, 6, 7, 8, 9, 10,
        text, Fault(Reason.NEEDS_AUTHORIZATION, text) if fault else None, (text,), 11,
    )
    ring = keyring(1)
    assert opened(sealed(kept, 3, ring), ring) == (kept, 3)


def test_a_record_of_the_first_version_is_read() -> None:
    ring = keyring(1)
    old = (b'{"record": 1, "kind": "apiKey", "material": {"apiKey": "k"}, "config": {}, "seed_version": "s", '
           b'"generation": 4, "seeded_at_ms": 5, "rejected": true}')
    kept, revision = opened(ring.seal("default/acme", old), ring)
    assert (kept.generation, kept.rejected, kept.seed.material, revision) == (4, True, {"apiKey": "k"}, 0)


def test_what_a_later_release_notes_besides_is_left_out() -> None:
    ring = keyring(1)
    later = (b'{"record": 2, "revision": 7, "kind": "apiKey", "material": {"apiKey": "k"}, "config": {}, '
             b'"seed_version": "s", "generation": 4, "seeded_at_ms": 5, "weather": {"is": "fine"}}')
    kept, revision = opened(ring.seal("default/acme", later), ring)
    assert (kept.generation, kept.seed.material, revision) == (4, {"apiKey": "k"}, 7)


def test_a_record_of_a_later_version_is_left_alone() -> None:
    ring = keyring(1)
    with pytest.raises(Unopened, match="another version"):
        opened(ring.seal("default/acme", b'{"record": 3}'), ring)


async def test_grants_are_read_back_and_hidden(directory: Path) -> None:
    store = reopened(directory)
    kept = [grant("default/acme"), grant("team-b/x", "another-secret"), grant("n" * 60 + "/" + "m" * 250)]
    for each in kept:
        await saved(store, each)
    again = [found.grant for found in await reopened(directory).everything() if isinstance(found, Stored)]
    assert sorted(again, key=str) == sorted(kept, key=str)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert len(names(directory)) == 3
    for name in names(directory):
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600
        assert SECRET.encode() not in (directory / name).read_bytes()
        assert "secret" not in name


async def test_of_many_writers_of_one_revision_one_wins(directory: Path) -> None:
    first, second = reopened(directory), reopened(directory)
    begun = await saved(first, grant())
    attempts = [(first, second)[n % 2].write(grant(generation=n + 2), begun.revision) for n in range(20)]
    ended = await asyncio.gather(*attempts, return_exceptions=True)
    won = [each for each in ended if isinstance(each, Stored)]
    assert len(won) == 1
    assert all(isinstance(each, Conflict) for each in ended if not isinstance(each, Stored))
    assert await second.read("default/acme") == won[0]


async def test_a_deleted_and_recreated_grant_is_not_taken_for_the_old_one(directory: Path) -> None:
    store = reopened(directory)
    old = await saved(store, grant())
    await store.delete("default/acme", old.revision)
    assert await store.read("default/acme") is None
    await saved(store, grant())
    with pytest.raises(Conflict):
        await store.write(grant(generation=2), old.revision)


async def test_a_lease_keeps_others_out_until_it_ends(directory: Path) -> None:
    first, second = reopened(directory), reopened(directory)
    async with first.lease("default/acme", 0):
        with pytest.raises(LeaseBusy):
            async with second.lease("default/acme", 0.1):
                pass
        async with second.lease("default/other", 0):
            pass
        waiting = asyncio.ensure_future(_take(second))
        await asyncio.sleep(0.05)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 30)


async def _take(store: FileStore) -> None:
    async with store.lease("default/acme", 5):
        pass


async def test_deleting_a_grant_does_not_give_its_lease_away(directory: Path) -> None:
    first, second = reopened(directory), reopened(directory)
    kept = await saved(first, grant())
    async with first.lease("default/acme", 0):
        await second.delete("default/acme", kept.revision)
        with pytest.raises(LeaseBusy):
            async with second.lease("default/acme", 0.05):
                pass
    kept = await saved(first, grant())
    await second.delete("default/acme", kept.revision)
    assert list((directory / LEASES).iterdir()) == []


@pytest.mark.slow
async def test_changes_of_others_are_noticed(directory: Path) -> None:
    first, second = reopened(directory), reopened(directory)
    kept = await saved(first, grant("default/old"))
    changes = second.changes()
    assert await asyncio.wait_for(anext(changes), 30) == "default/old"
    for change in (saved(first, grant("n" * 60 + "/" + "m" * 250)), first.delete("default/old", kept.revision)):
        began_s = time.monotonic()
        await change
        assert await asyncio.wait_for(anext(changes), 30) in ("default/old", "n" * 60 + "/" + "m" * 250)
        assert time.monotonic() - began_s < 3 * busy()


async def test_a_new_key_seals_everything_anew_and_the_old_one_can_go(directory: Path) -> None:
    kept = await saved(reopened(directory, 1), grant())
    both = reopened(directory, 2, 1)
    assert await both.reseal() == 1
    assert await both.reseal() == 0
    assert await reopened(directory, 2).read("default/acme") == kept, "and nobody's revision is outdated by it"
    assert isinstance(await reopened(directory, 1).read("default/acme"), Unreadable)


def test_each_seal_is_new() -> None:
    ring = keyring(1)
    assert ring.seal("a", b"x") != ring.seal("a", b"x")


def test_keys_rotate_first_seals_all_open() -> None:
    old, both, new = keyring(1), keyring(2, 1), keyring(2)
    assert both.open(old.seal("a", b"x")) == ("a", b"x")
    assert new.open(both.seal("a", b"y")) == ("a", b"y")
    with pytest.raises(Unopened, match="not among the configured"):
        new.open(old.seal("a", b"x"))


@given(position=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_any_changed_byte_is_noticed(position: int, flip: int) -> None:
    ring = keyring(1)
    sealed = bytearray(ring.seal("default/acme", b"plain"))
    sealed[position % len(sealed)] ^= flip
    with pytest.raises(Unopened):
        ring.open(bytes(sealed))


@given(length=st.integers(0, 60))
def test_a_cut_file_is_noticed(length: int) -> None:
    ring = keyring(1)
    sealed = ring.seal("default/acme", b"plain")
    with pytest.raises(Unopened):
        ring.open(sealed[: min(length, len(sealed) - 1)])


async def test_what_cannot_be_read_is_shown_and_others_go_on(directory: Path) -> None:
    store = reopened(directory)
    for name in ("a", "b", "c", "d"):
        await saved(store, grant(f"default/{name}"))
    files = {name: directory / f"default%2F{name}{SUFFIX}" for name in "abcd"}
    files["a"].write_bytes(b"")
    files["b"].write_bytes(files["c"].read_bytes())
    foreign = keyring(9).seal("default/d", b"{}")
    files["d"].write_bytes(foreign)
    found = await store.everything()
    assert [each.grant.account_id for each in found if isinstance(each, Stored)] == ["default/c"]
    unreadable = [each for each in found if isinstance(each, Unreadable)]
    assert [broken.account_id for broken in unreadable] == ["default/a", "default/b", "default/d"]
    assert "holds the grant of default/c" in unreadable[1].why
    await store.write(grant("default/d"), "")
    assert isinstance(await store.read("default/d"), Stored)
    (aside,) = directory.glob(f"*{SET_ASIDE}")
    assert aside.read_bytes() == foreign


async def test_leftovers_of_a_killed_process_go(directory: Path) -> None:
    await saved(reopened(directory), grant())
    half = directory / ".abc.tmp"
    half.write_bytes(b"half")
    reopened(directory)
    assert half.exists(), "somebody may be writing it"
    os.utime(half, (time.time() - 3600,) * 2)
    reopened(directory)
    assert not half.exists()
    assert names(directory) == [f"default%2Facme{SUFFIX}"]


def test_an_unusable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="grant store"):
        reopened(tmp_path / "file" / "credentials")


@pytest.mark.parametrize("text", ["", " , ", "c2hvcnQ=", "zz" * 32, "!!!", base64.b64encode(b"x" * 33).decode()])
def test_a_key_that_is_none_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(ValueError, match="must") as refused:
        Keyring.read(text)
    assert not text.strip(" ,") or text not in str(refused.value)


@pytest.mark.parametrize("write", [bytes.hex, lambda k: base64.b64encode(k).decode(),
                                   lambda k: base64.urlsafe_b64encode(k).decode().rstrip("=")])
def test_keys_are_read_in_each_spelling(write: object) -> None:
    key = bytes(range(220, 252))
    assert Keyring.read(f" {write(key)}\n").keys == (key,)  # type: ignore[operator]
