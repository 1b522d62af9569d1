"""The encrypted store: what is kept is read back, what is damaged or foreign is shown and left alone."""

import base64
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signalbox.core.errors import StartupError
from signalbox.token_refresher.adapters.sealing import Keyring, Unopened
from signalbox.token_refresher.adapters.store import SET_ASIDE, SUFFIX, FileStore
from signalbox.token_refresher.domain.grants import Grant, Seed

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


def close(store: FileStore) -> None:
    os.close(store._lock)


@given(text=st.text(min_size=1), generation=st.integers(1, 2**40), rejected=st.booleans())
def test_a_record_survives_sealing(text: str, generation: int, rejected: bool) -> None:
    from signalbox.token_refresher.adapters.store import _grant, _record

    kept = Grant(Seed(text, "oauth", {text: text}, {text: text}, text), generation, 5, rejected)
    ring = keyring(1)
    account_id, plain = ring.open(ring.seal(text, _record(kept)))
    assert _grant(account_id, plain) == kept


def test_grants_are_read_back_and_hidden(directory: Path) -> None:
    store = reopened(directory)
    kept = [grant("default/acme"), grant("team-b/x", "another-secret"), grant("n" * 60 + "/" + "m" * 250)]
    for each in kept:
        store.save(each)
    close(store)
    again, unreadable = reopened(directory).load()
    assert sorted(again, key=str) == sorted(kept, key=str)
    assert not unreadable
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for path in directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert SECRET.encode() not in path.read_bytes()
        assert "secret" not in path.name


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


def test_what_cannot_be_read_is_shown_and_others_go_on(directory: Path) -> None:
    store = reopened(directory)
    for name in ("a", "b", "c", "d"):
        store.save(grant(f"default/{name}"))
    close(store)
    files = {name: directory / f"default%2F{name}{SUFFIX}" for name in "abcd"}
    files["a"].write_bytes(b"")
    files["b"].write_bytes(files["c"].read_bytes())
    foreign = keyring(9).seal("default/d", b"{}")
    files["d"].write_bytes(foreign)
    store = reopened(directory)
    grants, unreadable = store.load()
    assert [each.account_id for each in grants] == ["default/c"]
    assert [broken.account_id for broken in unreadable] == ["default/a", "default/b", "default/d"]
    assert "holds the grant of default/c" in unreadable[1].why
    store.set_aside("default/d")
    store.save(grant("default/d"))
    assert "default/d" in [each.account_id for each in store.load()[0]]
    (aside,) = directory.glob(f"*{SET_ASIDE}")
    assert aside.read_bytes() == foreign


def test_leftovers_of_a_killed_process_go(directory: Path) -> None:
    store = reopened(directory)
    store.save(grant())
    close(store)
    (directory / ".abc.tmp").write_bytes(b"half")
    reopened(directory)
    assert [path.name for path in directory.iterdir()] == [f"default%2Facme{SUFFIX}"]


def test_a_directory_has_one_owner(directory: Path) -> None:
    store = reopened(directory)
    with pytest.raises(StartupError, match="another token-refresher"):
        reopened(directory)
    close(store)
    reopened(directory)


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
