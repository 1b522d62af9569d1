"""The data directory of a local instance: where everything lies, who may read it, and the lock that keeps it single.

    DATA/lock                 held by the running `up`
    DATA/run/                 Unix sockets, instance.json (a link to a short directory where paths would be too long)
    DATA/journal/             the gateways' journals
    DATA/credentials/         the token-refresher's encrypted grants
    DATA/redis/               the embedded Redis' append-only file
    DATA/ledger/ledger.db     the embedded ledger
    DATA/secrets/             shared secret and encryption key, made once
"""

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from signalbox.core.errors import StartupError

PRIVATE_UMASK = 0o077
_DIRECTORY_MODE = 0o700
_SUBDIRECTORIES = ("journal", "credentials", "redis", "ledger", "secrets")
_LONGEST_SOCKET_NAME = len("token-refresher.telemetry.sock")
# sockaddr_un holds 108 bytes with the final NUL on Linux and 104 on macOS.
_LONGEST_SOCKET_PATH = 103


def default_data() -> Path:
    """Return the data directory where none is named: `$XDG_STATE_HOME/signalbox` or `~/.local/state/signalbox`."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "signalbox"


@dataclass(frozen=True)
class Layout:
    """Paths below one data directory. Nothing is created before `prepare`."""

    data: Path

    @classmethod
    def at(cls, data: Path) -> "Layout":
        """Return the layout of `data`, made absolute and free of links, so that one directory has one name."""
        return cls(Path(os.path.realpath(data.expanduser())))

    @property
    def run(self) -> Path:
        """The directory of the sockets, with the link resolved where paths would be too long."""
        return Path(os.path.realpath(self.data / "run"))

    @property
    def ledger(self) -> Path:
        """The SQLite database."""
        return self.data / "ledger" / "ledger.db"

    @property
    def shared_secret(self) -> Path:
        """The file with the secret that the rooms share."""
        return self.data / "secrets" / "shared-secret"

    @property
    def encryption_key(self) -> Path:
        """The file with the key of the grant store."""
        return self.data / "secrets" / "encryption-key"

    @property
    def instance(self) -> Path:
        """The file that says where the running instance is found."""
        return self.run / "instance.json"

    def socket(self, process: str) -> Path:
        """The Unix socket on which a process serves its neighbours."""
        return self.run / f"{process}.sock"

    def telemetry_socket(self, process: str) -> Path:
        """The Unix socket on which a process serves /metrics, /healthz and /readyz."""
        return self.run / f"{process}.telemetry.sock"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the data directory for this process, with everything in it created, private to this user.

        Raises StartupError that names what is unusable, or the process that holds it already.
        """
        with contextlib.ExitStack() as stack:
            try:
                _private_directory(self.data, parents=True)
                stack.enter_context(_locked(self.data / "lock"))
                for name in _SUBDIRECTORIES:
                    _private_directory(self.data / name)
                self._prepare_run()
                stack.callback(self._leave_run)
                _make_once(self.shared_secret, secrets.token_urlsafe(48))
                _make_once(self.encryption_key, base64.b64encode(secrets.token_bytes(32)).decode())
            except OSError as e:
                raise StartupError(
                    f"data directory {self.data}", f"{e.filename or self.data}: {e.strerror or e}",
                ) from e
            yield

    def next_fence(self) -> int:
        """Return a number that grows with each start, whatever the clock does: it outranks every earlier writer."""
        path = self.data / "fence"
        try:
            last = int(path.read_text())
        except (FileNotFoundError, ValueError):
            last = 0
        fence = max(last + 1, time.time_ns() // 1_000_000)
        write_whole(path, str(fence))
        return fence

    def write_instance(self, description: dict[str, Any]) -> None:
        """Say where the running instance is found."""
        write_whole(self.instance, json.dumps(description, indent=1))

    def read_instance(self) -> dict[str, Any] | None:
        """Return what the running instance (or one that was killed) said, None where there is none."""
        try:
            description: dict[str, Any] = json.loads(self.instance.read_text())
        except (OSError, ValueError):
            return None
        return description

    def _prepare_run(self) -> None:
        """Make DATA/run, or a link of this name to a short directory where socket paths would be too long."""
        run = self.data / "run"
        longest = len(os.fsencode(run)) + 1 + _LONGEST_SOCKET_NAME
        if longest <= _LONGEST_SOCKET_PATH:
            if run.is_symlink():
                run.unlink()
            _private_directory(run)
            return
        short = _short_runtime_directory(self.data)
        if run.is_symlink():
            run.unlink()
        elif run.is_dir():
            shutil.rmtree(run)
        run.symlink_to(short)


    def _leave_run(self) -> None:
        """Take a short runtime directory away again: it lies where others would have to clean up."""
        run = self.data / "run"
        if run.is_symlink():
            shutil.rmtree(self.run, ignore_errors=True)
            run.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Replace a private file in one step that also survives a power cut."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    fresh.replace(path)


def _private_directory(path: Path, *, parents: bool = False) -> None:
    path.mkdir(mode=_DIRECTORY_MODE, parents=parents, exist_ok=True)
    path.chmod(_DIRECTORY_MODE)


def _make_once(path: Path, text: str) -> None:
    if not path.exists():
        write_whole(path, text)
    path.chmod(0o600)


def _short_runtime_directory(data: Path) -> Path:
    """Return a private directory with a short path that belongs to this data directory alone."""
    name = f"signalbox-{hashlib.sha256(os.fsencode(data)).hexdigest()[:12]}"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    base = Path(runtime) if runtime and os.access(runtime, os.W_OK) and len(runtime) < 40 else Path("/tmp")  # noqa: S108
    directory = base / name
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=_DIRECTORY_MODE)
    found = directory.lstat()
    # In a shared /tmp somebody else could have made it first, or put a link there.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise StartupError(f"runtime directory {directory}", "exists and does not belong to this user")
    directory.chmod(_DIRECTORY_MODE)
    return directory


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            holder = os.pread(fd, 32, 0).decode().strip() or "unknown"
            raise StartupError(
                f"data directory {path.parent}", f"another `signalbox up` (pid {holder}) is running on it",
            ) from e
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)
