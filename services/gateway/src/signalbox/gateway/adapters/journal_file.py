"""The journal's format on disk: segments of checksummed frames, each frame a partial AttemptEvent.

A record of a whole attempt is the protobuf merge of its frames. What is written survives the process, not a power
cut (no fsync). Who writes when, and who delivers, is journal.py's and journal_delivery.py's business.
"""

import contextlib
import errno
import fcntl
import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from signalbox.v1.usage_pb2 import AttemptEvent

_FRAME = struct.Struct("<II")  # length of the payload, its CRC-32
SUFFIX = ".journal"
MAX_FRAME_BYTES = 16 << 20
BEGIN_LIMIT_S = 5.0


class Segment:
    """One append-only file, and how many attempts still need it.

    `open` counts begun attempts whose outcome is not written yet, `undelivered` those whose outcome is written but
    not yet acknowledged by the ledger, `spilled` says that outcomes are to be read back from the file.
    """

    __slots__ = ("_fd", "open", "path", "size", "spilled", "undelivered")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.size = os.fstat(self._fd).st_size
        self.open = 0
        self.undelivered = 0
        self.spilled = False

    def append(self, payload: bytes) -> None:
        """Write a frame, an AttemptEvent, whole or not at all. Raises OSError; what a failed write left is cut off."""
        frame = _FRAME.pack(len(payload), zlib.crc32(payload)) + payload
        written = 0
        try:
            written = os.write(self._fd, frame)
        finally:
            if written != len(frame):
                os.ftruncate(self._fd, self.size)
        if written != len(frame):
            raise OSError(f"only {written} of {len(frame)} bytes were written")
        self.size += written

    @property
    def needed(self) -> bool:
        """Whether anything in the file has not reached the ledger."""
        return bool(self.open or self.undelivered or self.spilled)

    def empty(self) -> None:
        """Forget the content; the file stays in use."""
        os.ftruncate(self._fd, 0)
        self.size = 0

    def close(self) -> None:
        """Close the file; its content stays."""
        os.close(self._fd)

    def remove(self) -> None:
        """Close and delete the file."""
        self.close()
        self.path.unlink(missing_ok=True)


def read_frames(path: Path) -> Iterator[AttemptEvent]:
    """Yield the frames of a segment in order, ending at the first torn or damaged one."""
    with path.open("rb") as file:
        while True:
            head = file.read(_FRAME.size)
            if len(head) < _FRAME.size:
                return
            length, checksum = _FRAME.unpack(head)
            payload = file.read(length) if length <= MAX_FRAME_BYTES else b""
            if len(payload) < length or zlib.crc32(payload) != checksum:
                return
            yield AttemptEvent.FromString(payload)


def read_attempts(path: Path) -> list[AttemptEvent]:
    """Return the attempts and denials of a segment, each merged from its frames."""
    merged: dict[tuple[str, int], AttemptEvent] = {}
    for frame in read_frames(path):
        known = merged.setdefault((frame.request_id, frame.attempt), frame)
        if known is not frame:
            if frame.HasField("usage"):
                known.ClearField("usage")    # told anew each time: its lists must not add up
            known.MergeFrom(frame)
    return list(merged.values())


class DirectoryLock:
    """Says which process a journal directory belongs to; free as soon as that process is gone."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "lock"
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self) -> bool:
        """Take the lock if nobody holds it and its directory was not cleared away meanwhile."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.samestat(os.fstat(self._fd), os.stat(self._path))
        except (BlockingIOError, FileNotFoundError):
            return False

    def release(self) -> None:
        """Give the lock up."""
        os.close(self._fd)


def begin_directory(directory: Path) -> DirectoryLock:
    """Make a directory and take its lock. Raises OSError.

    Until it is locked, another gateway may take it for a dead one's and clear it away; then it is made once more.
    """
    end_s = time.monotonic() + BEGIN_LIMIT_S
    while True:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileNotFoundError):
            lock = DirectoryLock(directory)
            if lock.take():
                return lock
            lock.release()
        if time.monotonic() > end_s:
            raise BlockingIOError(errno.EAGAIN, "is in use")
        time.sleep(0.001)
