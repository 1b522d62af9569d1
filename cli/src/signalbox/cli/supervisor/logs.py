"""The children's output on the supervisor's stderr, marked with its room.

A reader of the logs that stops reading must never stop the relay: writing is a thread's business, and lines that
find the queue full are dropped and counted.
"""

import json
import queue
import sys
import threading
from typing import TextIO

_QUEUE_LINES = 10_000
_FLUSH_LIMIT_S = 2.0


_LEVELS = ("debug", "info", "warning", "error")


class LogSink:
    """Takes lines from anywhere in the supervisor; writes them in order.

    `fmt` is `text` or `json`; own events below `level` are left out, the children's have their own measure.
    """

    def __init__(self, fmt: str, level: str = "info", stream: TextIO | None = None) -> None:
        self._json = fmt == "json"
        self._level = _LEVELS.index(level)
        self._stream = stream or sys.stderr
        self._lines: queue.Queue[str | None] = queue.Queue(_QUEUE_LINES)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="log-sink", daemon=True)
        self._thread.start()

    def child_line(self, process: str, line: str) -> None:
        """Take one line of a child's output. JSON events pass as they are: they say their room themselves."""
        if not self._json:
            self._put(f"{process:<16} {line}")
        elif line.startswith("{"):
            self._put(line)
        else:
            self._put(json.dumps({"event": "output", "room": process, "level": "info", "line": line}))

    def event(self, event: str, *, level: str = "info", **fields: object) -> None:
        """Take an event of the supervisor's own. `fields` are ids and numbers, never secrets."""
        if _LEVELS.index(level) < self._level:
            return
        if self._json:
            self._put(json.dumps({"event": event, "room": "supervisor", "level": level, **fields}, default=str))
        else:
            details = " ".join(f"{k}={v}" for k, v in fields.items())
            self._put(f"{'supervisor':<16} {event} {details}".rstrip())

    def plain(self, line: str) -> None:
        """Take a line for people that other programs may look for, such as a refused document."""
        self._put(line)

    def close(self) -> None:
        """Write what was taken, waiting a little for a slow reader."""
        self._put(None)
        self._thread.join(_FLUSH_LIMIT_S)

    def _put(self, line: str | None) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line + "\n")
                if self._lines.empty():
                    self._tell_dropped()
                    self._stream.flush()
            except (OSError, ValueError):
                continue  # nobody reads any more; the relay goes on

    def _tell_dropped(self) -> None:
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self._stream.write(f"supervisor: {dropped} log lines dropped: stderr was not read fast enough\n")
