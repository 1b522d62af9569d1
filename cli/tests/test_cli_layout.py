"""The data directory: who may read it, that it is held once, and what happens where it cannot be used."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from signalbox.cli.supervisor.layout import Layout, write_whole
from signalbox.core.errors import StartupError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_everything_is_private_to_the_user(tmp_path: Path) -> None:
    layout = Layout.at(tmp_path / "data")
    old = os.umask(0)
    try:
        with layout.held():
            layout.write_instance({"url": "http://127.0.0.1:1"})
    finally:
        os.umask(old)
    # a long path makes DATA/run a link; then what it leads to counts
    for path in [layout.data, *(p.resolve() for p in layout.data.rglob("*"))]:
        assert mode(path) == (0o700 if path.is_dir() else 0o600), path


def test_secrets_are_made_once(tmp_path: Path) -> None:
    layout = Layout.at(tmp_path / "data")
    with layout.held():
        before = layout.shared_secret.read_text(), layout.encryption_key.read_text()
    with layout.held():
        assert (layout.shared_secret.read_text(), layout.encryption_key.read_text()) == before
    other = Layout.at(tmp_path / "other")
    with other.held():
        assert other.shared_secret.read_text() != before[0]
        assert other.encryption_key.read_text() != before[1]


def test_a_second_holder_is_refused_and_told_the_first_ones_pid(tmp_path: Path) -> None:
    with Layout.at(tmp_path).held():
        second = subprocess.run(
            [sys.executable, "-c",
             "from pathlib import Path; from signalbox.cli.supervisor.layout import Layout\n"
             f"with Layout.at(Path({str(tmp_path)!r})).held(): pass"],
            capture_output=True, text=True, check=False,
        )
        assert second.returncode != 0
        assert f"(pid {os.getpid()}) is running on it" in second.stderr
    with Layout.at(tmp_path).held():
        pass


def test_a_link_to_a_held_directory_is_the_same_directory(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with Layout.at(tmp_path / "data").held(), pytest.raises(StartupError, match="another `signalbox up`"):
        with Layout.at(tmp_path / "link").held():
            pass


@pytest.mark.parametrize("data", ["file", "file/below", "/proc/nowhere"])
def test_an_unusable_directory_is_named(tmp_path: Path, data: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError) as caught, Layout.at(tmp_path / data).held():
        pass
    assert str(tmp_path / data) in caught.value.what
    assert caught.value.why


def test_long_paths_get_a_short_runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = tmp_path / "r"
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime) if len(str(runtime)) < 40 else "")
    layout = Layout.at(tmp_path / ("d" * 90))
    with layout.held():
        assert (layout.data / "run").is_symlink()
        assert len(os.fsencode(layout.telemetry_socket("token-refresher"))) <= 103
        assert mode(layout.run) == 0o700
        layout.write_instance({"url": "x"})
        assert Layout.at(layout.data).read_instance() == {"url": "x"}
        short = layout.run
        (short / "left-by-a-room-that-was-killed.sock").write_text("")
    assert not short.exists(), "nothing is left where others would have to clean up"
    assert Layout.at(layout.data).read_instance() is None
    (layout.data / "run").symlink_to(short)  # as a killed `up` leaves it
    with layout.held():
        assert layout.run == short
        assert short.is_dir()


def test_short_paths_keep_sockets_in_the_data_directory(tmp_path: Path) -> None:
    layout = Layout.at(Path("/tmp") / f"sbx-{os.getpid()}")
    with layout.held():
        assert layout.socket("redis") == layout.data / "run" / "redis.sock"
    subprocess.run(["rm", "-r", str(layout.data)], check=True)


def test_fences_grow_even_when_the_clock_goes_back(tmp_path: Path) -> None:
    layout = Layout.at(tmp_path)
    with layout.held():
        first = layout.next_fence()
        assert layout.next_fence() > first
        write_whole(layout.data / "fence", str(first + 10**12))
        assert layout.next_fence() == first + 10**12 + 1
        write_whole(layout.data / "fence", "not a number")
        assert layout.next_fence() >= first
