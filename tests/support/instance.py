"""A whole Signalbox on this machine, started as a user starts it: `signalbox up` in a process of its own.

Tests talk to it by HTTP and by the command line only; it imports nothing of the product.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.support import commands, processes

SIGNALBOX = str(Path(sys.executable).parent / "signalbox")
START_LIMIT_S = 150.0
STOP_LIMIT_S = 90.0


class Instance:
    """One running `up`. `documents` are written as one YAML file each; `log` collects what it says on stderr."""

    def __init__(self, directory: Path, documents: list[dict[str, Any]], *, workers: int = 1, schedulers: int = 1,
                 environment: Mapping[str, str] | None = None) -> None:
        self.manifests = directory / "manifests"
        self.data = directory / "data"
        self.manifests.mkdir(parents=True)
        for document in documents:
            self.write(document)
        self._arguments = ["--workers", str(workers), "--schedulers", str(schedulers)]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SIGNALBOX_")}
        self._environment = {**clean, **(environment or {})}
        self._telemetry_url = ""
        self.log: list[str] = []
        self.url = ""

    def write(self, document: dict[str, Any]) -> None:
        """Write or replace one document."""
        name = f"{document['kind'].lower()}-{document['metadata']['name']}.yaml"
        temporary = self.manifests / f".{name}"
        temporary.write_text(yaml.safe_dump(document))
        temporary.rename(self.manifests / name)

    def remove(self, kind: str, name: str) -> None:
        """Delete one document."""
        (self.manifests / f"{kind.lower()}-{name}.yaml").unlink()

    def start(self) -> "Instance":
        """Start and wait until it says that it is ready."""
        command = [SIGNALBOX, "up", "--manifests", str(self.manifests), "--data", str(self.data), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, *self._arguments], env=self._environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        )
        threading.Thread(target=self._collect, args=(self.process.stderr,), daemon=True).start()
        ready = threading.Event()
        threading.Thread(target=self._await_ready, args=(self.process.stdout, ready), daemon=True).start()
        end_s = time.monotonic() + START_LIMIT_S
        while not ready.wait(0.05):
            if self.process.poll() is not None or time.monotonic() > end_s:
                self.process.kill()
                raise AssertionError("up did not become ready:\n" + "".join(self.log[-50:]))
        return self

    def stop(self) -> int:
        """Ask it to stop and return its exit status."""
        return processes.stop(self.process, STOP_LIMIT_S)

    def __enter__(self) -> "Instance":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ------------------------------------------------------------------ command line

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run another command against this instance."""
        result = commands.run([*arguments, "--data", str(self.data)], self._environment, 90)
        if check and result.returncode != 0:
            raise AssertionError(f"signalbox {' '.join(arguments)} exited {result.returncode}: {result.stderr}")
        return result

    def json(self, *arguments: str) -> Any:
        """Run a command with `-o json` and return what it printed."""
        return json.loads(self.run(*arguments, "-o", "json").stdout)

    def requests(self, last: int = 100_000) -> list[dict[str, Any]]:
        """Return the ledger's rows."""
        return self.json("requests", "--last", str(last))

    # ------------------------------------------------------------------ pages

    def status(self) -> dict[str, Any]:
        """Return what `signalbox status -o json` prints, asked of the telemetry port: quicker than a process."""
        if not self._telemetry_url:
            self._telemetry_url = self.json("status")["telemetry_url"]
        return dict(json.loads(_get(f"{self._telemetry_url}/status")))

    def metrics(self) -> str:
        """Return the metrics page of the whole instance."""
        self.status()
        return _get(f"{self._telemetry_url}/metrics").decode()

    def metric(self, name: str) -> float:
        """Return the sum of a metric's samples over all rooms and labels."""
        samples = [line for line in self.metrics().splitlines() if line.startswith((f"{name}{{", f"{name} "))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in samples)

    def key_info(self, key: str) -> dict[str, Any]:
        """Return `/v1/key-info` of a relay key."""
        return dict(json.loads(_get(f"{self.url}/v1/key-info", {"x-api-key": key})))

    # ------------------------------------------------------------------ processes

    def room_pids(self, room: str) -> list[int]:
        """Return the pids of a room's processes that run now."""
        return [r["pid"] for r in self.status()["rooms"] if r["room"] == room and r["pid"]]

    def kill(self, room: str, sig: signal.Signals = signal.SIGKILL) -> list[int]:
        """Send a signal to every process of a room and return their pids."""
        pids = self.room_pids(room)
        for pid in pids:
            os.kill(pid, sig)
        return pids

    # ------------------------------------------------------------------ inside

    def _collect(self, stream: Any) -> None:
        for line in stream:
            self.log.append(line)

    def _await_ready(self, stream: Any, ready: threading.Event) -> None:
        for line in stream:
            if line.startswith("ready "):
                self.url = line.split()[1]
                ready.set()


def _get(url: str, headers: Mapping[str, str] | None = None) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers=dict(headers or {})), timeout=60) as response:
        return bytes(response.read())


def secret(name: str, **values: str) -> dict[str, Any]:
    """Return a Secret document."""
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values}


def account(name: str, base_url: str, **spec: Any) -> dict[str, Any]:
    """Return a ClaudeAccount whose API key lies in the Secret `NAME`, key `api-key`."""
    return {
        "apiVersion": "signalbox.dev/v1alpha1", "kind": "ClaudeAccount", "metadata": {"name": name},
        "spec": {
            "provider": "Anthropic", "baseURL": base_url,
            "credential": {"apiKey": {"secretRef": {"name": name, "key": "api-key"}}}, **spec,
        },
    }


def pool(name: str, accounts: list[str], **spec: Any) -> dict[str, Any]:
    """Return an AccountPool of named accounts."""
    return {
        "apiVersion": "signalbox.dev/v1alpha1", "kind": "AccountPool", "metadata": {"name": name},
        "spec": {"members": {"accounts": accounts}, **spec},
    }


def relay_key(name: str, owner: str = "ada@example.com", **spec: Any) -> dict[str, Any]:
    """Return a RelayKey whose text lies in the Secret `NAME`, key `relay-key`."""
    return {
        "apiVersion": "signalbox.dev/v1alpha1", "kind": "RelayKey", "metadata": {"name": name},
        "spec": {"owner": owner, "secretRef": {"name": name, "key": "relay-key"}, **spec},
    }
