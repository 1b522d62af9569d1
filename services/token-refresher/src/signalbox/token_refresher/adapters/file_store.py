"""The grant store on disk: one encrypted file a grant, replaced atomically, shared by any number of processes.

    STORE/NAME.grant         the grant
    STORE/NAME.grant.*.unreadable   what could not be opened when a new grant took its place
    STORE/.leases/NAME       locked while a process renews the grant
    STORE/.writing           locked while a process compares and replaces; never for longer than a write takes

Locks are the kernel's (flock): they end with their process, however it ends. A file that can't be read is reported and
left alone; one that a new grant replaces is set aside rather than deleted, because the key that opens it may come back,
and with it a refresh token that exists nowhere else.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

from signalbox.core.errors import StartupError
from signalbox.token_refresher.adapters.records import opened, sealed
from signalbox.token_refresher.adapters.sealing import Keyring, Unopened
from signalbox.token_refresher.domain.grants import Grant
from signalbox.token_refresher.domain.ports import Conflict, Found, LeaseBusy, Stored, StoreUnavailable, Unreadable

SUFFIX = ".grant"
SET_ASIDE = ".unreadable"
LEASES = ".leases"
WRITING = ".writing"
POLL_S = 0.5
_TEMPORARY = ".tmp"
_LEFTOVER_AGE_S = 60.0
_LONGEST_NAME = 200
_LEASE_POLL_S = 0.02
_TICK_NS = 1_000_000_000

T = TypeVar("T")


class FileStore:
    """Implements ports.GrantStore in one directory."""

    def __init__(self, directory: Path, keyring: Keyring) -> None:
        """Raises StartupError where the directory can't be used."""
        self._directory = directory
        self._keyring = keyring
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            (directory / LEASES).mkdir(mode=0o700, exist_ok=True)
            self._sweep()
            probe = self._temporary()
            probe.touch(0o600)
            probe.unlink()
            os.close(os.open(directory / WRITING, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as e:
            raise StartupError(f"grant store {directory}", e.strerror or str(e)) from e

    # ------------------------------------------------------------------ ports.GrantStore

    async def everything(self) -> list[Stored | Unreadable]:
        """Return everything that is there."""
        return await _in_thread(lambda: [found for path in self._paths() if (found := self._read(path)) is not None])

    async def read(self, account_id: str) -> Found:
        """Return what is stored for one account."""
        return await _in_thread(lambda: self._read(self._path(account_id)))

    async def write(self, grant: Grant, expected: str) -> Stored:
        """Replace the state of that revision by `grant`; see ports."""
        return await _in_thread(lambda: self._write(grant, expected))

    async def delete(self, account_id: str, expected: str) -> None:
        """Forget the state of that revision; see ports."""
        await _in_thread(lambda: self._delete(account_id, expected))

    @contextlib.asynccontextmanager
    async def lease(self, account_id: str, patience_s: float) -> AsyncIterator[Callable[[], bool]]:
        """Hold the account's lease; see ports."""
        end_s = time.monotonic() + patience_s
        path = self._directory / LEASES / self._name(account_id)
        while (held := self._try_lease(path)) is None:
            if time.monotonic() >= end_s:
                raise LeaseBusy(f"another token-refresher is renewing the grant of {account_id}")
            await asyncio.sleep(_LEASE_POLL_S)
        try:
            yield lambda: True
        finally:
            os.close(held)

    async def changes(self) -> AsyncIterator[str]:
        """Yield accounts whose files changed, by looking every half second: that works on every file system."""
        known: dict[Path, tuple[int, int]] = {}
        looked_at_ns = 0
        while True:
            with contextlib.suppress(StoreUnavailable):
                moved_ns = await _in_thread(lambda: self._directory.stat().st_mtime_ns)
                # Every replacement moves the directory's time, but two within one tick of it look like one.
                if moved_ns + _TICK_NS >= looked_at_ns:
                    looked_at_ns = time.time_ns()
                    now = await _in_thread(self._glance)
                    for path in [p for p in {*known, *now} if known.get(p) != now.get(p)]:
                        yield await _in_thread(partial(self._account_in, path))
                    known = now
            await asyncio.sleep(POLL_S)

    async def reseal(self) -> int:
        """Encrypt with the newest key what an older one encrypts."""
        return await _in_thread(lambda: sum(self._reseal(path) for path in self._paths()))

    # ------------------------------------------------------------------ blocking

    def _read(self, path: Path) -> Found:
        try:
            grant, revision = opened(path.read_bytes(), self._keyring)
            if self._path(grant.account_id) != path:
                raise Unopened(f"the file holds the grant of {grant.account_id}")
            return Stored(grant, str(revision))
        except FileNotFoundError:
            return None
        except Unopened as e:
            return Unreadable(_account_of(path), str(e))

    def _write(self, grant: Grant, expected: str) -> Stored:
        path = self._path(grant.account_id)
        with self._writing():
            there = self._read(path)
            revision = self._compare(there, expected)
            if isinstance(there, Unreadable):
                self._set_aside(path)
            self._replace(path, sealed(grant, revision + 1, self._keyring))
        return Stored(grant, str(revision + 1))

    def _delete(self, account_id: str, expected: str) -> None:
        path = self._path(account_id)
        with self._writing():
            there = self._read(path)
            self._compare(there, expected)
            if isinstance(there, Unreadable):
                self._set_aside(path)
            path.unlink(missing_ok=True)
            _sync(self._directory)
            self._drop_lease_file(account_id)

    def _compare(self, there: Found, expected: str) -> int:
        """Return the revision that is there, or raise Conflict where it is not the expected one."""
        found = there.revision if isinstance(there, Stored) else ""
        if found != expected:
            raise Conflict("the grant was changed by somebody else")
        # A grant that comes back begins where no earlier one of this name can have been.
        return int(found) if found else time.time_ns() // 1000

    def _reseal(self, path: Path) -> bool:
        with self._writing():
            try:
                data = path.read_bytes()
                if self._keyring.is_newest(data):
                    return False
                grant, revision = opened(data, self._keyring)
            except (FileNotFoundError, Unopened):
                return False
            # The revision stays: nothing that anybody could have read changes.
            self._replace(path, sealed(grant, revision, self._keyring))
        return True

    def _replace(self, path: Path, data: bytes) -> None:
        temporary = self._temporary()
        try:
            with open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync(self._directory)

    def _set_aside(self, path: Path) -> None:
        """Give a file that can't be read a second name, under which it outlives what takes its place."""
        with contextlib.suppress(FileNotFoundError):
            os.link(path, path.with_name(f"{path.name}.{secrets.token_hex(4)}{SET_ASIDE}"))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        lock = os.open(self._directory / WRITING, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _try_lease(self, path: Path) -> int | None:
        """Return the locked lease file, None where another process has it. Raises StoreUnavailable."""
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as e:
            raise _away(e) from e
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(path).st_ino == os.fstat(lock).st_ino:
                return lock
        except (BlockingIOError, FileNotFoundError):
            pass    # held, or deleted between the opening and the locking: another file may stand there now
        except OSError as e:
            os.close(lock)
            raise _away(e) from e
        os.close(lock)
        return None

    def _drop_lease_file(self, account_id: str) -> None:
        """Tidy up, unless the lease is held: its holder's lock must stay the one that others meet."""
        path = self._directory / LEASES / self._name(account_id)
        with contextlib.suppress(StoreUnavailable, FileNotFoundError):
            if path.exists() and (held := self._try_lease(path)) is not None:
                path.unlink()
                os.close(held)

    def _sweep(self) -> None:
        """Remove what processes left that died while they wrote; the grants they were to replace are whole."""
        for leftover in self._directory.glob(f".*{_TEMPORARY}"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - leftover.stat().st_mtime > _LEFTOVER_AGE_S:
                    leftover.unlink()

    def _glance(self) -> dict[Path, tuple[int, int]]:
        seen = {}
        with os.scandir(self._directory) as entries:
            for entry in entries:
                if entry.name.endswith(SUFFIX):
                    with contextlib.suppress(FileNotFoundError):
                        stat = entry.stat()
                        seen[self._directory / entry.name] = (stat.st_ino, stat.st_mtime_ns)
        return seen

    def _account_in(self, path: Path) -> str:
        found = self._read(path)
        return found.grant.account_id if isinstance(found, Stored) else _account_of(path)

    def _paths(self) -> list[Path]:
        return sorted(self._directory.glob(f"*{SUFFIX}"))

    def _path(self, account_id: str) -> Path:
        return self._directory / f"{self._name(account_id)}{SUFFIX}"

    def _name(self, account_id: str) -> str:
        name = quote(account_id, safe="")
        return name if len(name) <= _LONGEST_NAME else hashlib.sha256(account_id.encode()).hexdigest()

    def _temporary(self) -> Path:
        return self._directory / f".{secrets.token_hex(8)}{_TEMPORARY}"


async def _in_thread(work: Callable[[], T]) -> T:
    try:
        return await asyncio.to_thread(work)
    except OSError as e:
        raise _away(e) from e


def _away(error: OSError) -> StoreUnavailable:
    return StoreUnavailable(error.strerror or type(error).__name__)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _account_of(path: Path) -> str:
    return unquote(path.name.removesuffix(SUFFIX))
