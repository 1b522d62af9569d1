"""The grant store on disk: one encrypted file a grant, replaced atomically, never lost.

Blocking. A file that can't be read is reported and left alone; one that a new grant replaces is set aside rather
than deleted, because the key that opens it may come back, and with it a refresh token that exists nowhere else.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from signalbox.core.errors import StartupError
from signalbox.token_refresher.adapters.sealing import Keyring, Unopened
from signalbox.token_refresher.domain.grants import Grant, Seed

SUFFIX = ".grant"
SET_ASIDE = ".unreadable"
_TEMPORARY = ".tmp"
_LONGEST_NAME = 200
_RECORD_VERSION = 1


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file of the store that can't be opened now."""

    account_id: str
    why: str


class FileStore:
    """Grants in one directory, locked for as long as this process lives."""

    def __init__(self, directory: Path, keyring: Keyring) -> None:
        """Raises StartupError where the directory can't be used."""
        self._directory = directory
        self._keyring = keyring
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(directory, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A process that died while it wrote leaves these; the grant they were to replace is whole.
            for leftover in directory.glob(f".*{_TEMPORARY}"):
                leftover.unlink(missing_ok=True)
            probe = directory / f".probe{_TEMPORARY}"
            probe.touch(0o600)
            probe.unlink()
        except BlockingIOError as e:
            raise StartupError(f"grant store {directory}", "another token-refresher is using it") from e
        except OSError as e:
            raise StartupError(f"grant store {directory}", e.strerror or str(e)) from e

    def load(self) -> tuple[list[Grant], list[Unreadable]]:
        """Return all grants, and what could not be read."""
        grants: list[Grant] = []
        unreadable: list[Unreadable] = []
        for path in sorted(self._directory.glob(f"*{SUFFIX}")):
            try:
                grants.append(self._read(path))
            except OSError as e:
                unreadable.append(Unreadable(_account_of(path), e.strerror or type(e).__name__))
            except Unopened as e:
                unreadable.append(Unreadable(_account_of(path), str(e)))
            except (ValueError, KeyError, TypeError):
                unreadable.append(Unreadable(_account_of(path), "its record has a shape that this version can't read"))
        return grants, unreadable

    def save(self, grant: Grant) -> None:
        """Keep `grant`: once this returns it survives the process and the power. Raises OSError; the old one stays."""
        path = self._path(grant.account_id)
        temporary = self._directory / f".{secrets.token_hex(8)}{_TEMPORARY}"
        sealed = self._keyring.seal(grant.account_id, _record(grant))
        try:
            with open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                file.write(sealed)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        self._sync_directory()

    def delete(self, account_id: str) -> None:
        """Forget a grant. Raises OSError."""
        self._path(account_id).unlink(missing_ok=True)
        self._sync_directory()

    def set_aside(self, account_id: str) -> None:
        """Give a file that can't be read a second name, under which it outlives save and delete. Raises OSError."""
        path = self._path(account_id)
        with contextlib.suppress(FileNotFoundError):
            os.link(path, path.with_name(f"{path.name}.{secrets.token_hex(4)}{SET_ASIDE}"))
        self._sync_directory()

    def _read(self, path: Path) -> Grant:
        account_id, plain = self._keyring.open(path.read_bytes())
        if self._path(account_id) != path:
            raise Unopened(f"the file holds the grant of {account_id}")
        return _grant(account_id, plain)

    def _path(self, account_id: str) -> Path:
        name = quote(account_id, safe="")
        if len(name) > _LONGEST_NAME:
            name = hashlib.sha256(account_id.encode()).hexdigest()
        return self._directory / f"{name}{SUFFIX}"

    def _sync_directory(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _account_of(path: Path) -> str:
    return unquote(path.name.removesuffix(SUFFIX))


def _record(grant: Grant) -> bytes:
    seed = grant.seed
    return json.dumps({
        "record": _RECORD_VERSION, "kind": seed.kind, "material": dict(seed.material), "config": dict(seed.config),
        "seed_version": seed.version, "generation": grant.generation, "seeded_at_ms": grant.seeded_at_ms,
        "rejected": grant.rejected,
    }).encode()


def _grant(account_id: str, plain: bytes) -> Grant:
    record = json.loads(plain)
    if record["record"] != _RECORD_VERSION:
        raise Unopened(f"another version of Signalbox wrote it (record {record['record']})")
    seed = Seed(account_id, record["kind"], record["material"], record["config"], record["seed_version"])
    return Grant(seed, record["generation"], record["seeded_at_ms"], record["rejected"])
