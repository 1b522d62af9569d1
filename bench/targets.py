"""What is measured: the mock by itself, Signalbox as `signalbox up` runs it, and Portkey; started here, stopped by pid.

All of them listen on loopback only. What to send and what to read off them is `measure.py`'s business.
"""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from peers import portkey

BUILD = Path(__file__).parent / "build"
SIGNALBOX = Path(sys.executable).parent / "signalbox"  # not resolved: a venv's python is a link
RELAY_KEY = "bench-relay-key-for-loopback-only"

# Two accounts of one provider and a key whose limits are checked and charged at every request, but never reached.
DOCUMENTS = """\
apiVersion: v1
kind: Secret
metadata: {{name: bench}}
stringData: {{api-key: sk-ant-bench, relay-key: {key}}}
---
apiVersion: signalbox.dev/v1alpha1
kind: ClaudeAccount
metadata: {{name: first}}
spec:
  provider: Anthropic
  baseURL: {upstream}
  credential: {{apiKey: {{secretRef: {{name: bench, key: api-key}}}}}}
---
apiVersion: signalbox.dev/v1alpha1
kind: ClaudeAccount
metadata: {{name: second}}
spec:
  provider: Anthropic
  baseURL: {upstream}
  credential: {{apiKey: {{secretRef: {{name: bench, key: api-key}}}}}}
---
apiVersion: signalbox.dev/v1alpha1
kind: RelayKey
metadata: {{name: bench}}
spec:
  owner: bench@example.com
  secretRef: {{name: bench, key: relay-key}}
  concurrency: 1000
  limits:
  - {{per: Minute, requests: 10000000, tokens: 1000000000}}
  - {{per: Day, costUSD: "1000000"}}
"""


class StartError(RuntimeError):
    """A program did not come up; the message ends with what it last wrote."""


@dataclass(frozen=True)
class Count:
    """Requests and tokens, as the mock reports having answered them or as a ledger has them."""

    requests: int
    input_tokens: int
    output_tokens: int

    def __sub__(self, earlier: "Count") -> "Count":
        return Count(
            self.requests - earlier.requests,
            self.input_tokens - earlier.input_tokens,
            self.output_tokens - earlier.output_tokens,
        )


@dataclass(frozen=True)
class Target:
    """Something to send requests to. `root` is the pid whose tree is charged, None for the mock by itself."""

    name: str
    version: str
    url: str
    headers: Sequence[str]
    root: int | None = None
    data: Path | None = None
    crowded: bool = False

    def ledger(self) -> Count:
        """What the ledger holds by now. Only Signalbox keeps one."""
        command = [str(SIGNALBOX), "usage", "-o", "json", "--data", str(self.data)]
        rows = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=30).stdout)
        return Count(*(sum(row[field] for row in rows) for field in ("requests", "input_tokens", "output_tokens")))


@dataclass(frozen=True)
class Mock:
    """The running mock upstream."""

    url: str
    pid: int

    def count(self) -> Count:
        """What it has received, and the tokens it has reported, since it was started."""
        with urllib.request.urlopen(f"{self.url}/stats", timeout=5) as answer:
            stats = json.load(answer)
        return Count(stats["requests"], stats["input_tokens"], stats["output_tokens"])

    def direct(self) -> Target:
        """The mock as a target: the latencies that the others add to."""
        return Target("direct", "-", f"{self.url}/v1/messages", [])


def build() -> None:
    """Compiles mock and load generator. Raises CalledProcessError, after make has said why."""
    subprocess.run(["make", "--silent", "-C", str(Path(__file__).parent)], check=True)


def free_port() -> int:
    """A port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _environment() -> dict[str, str]:
    """Ours without proxies, which have no place between programs on one machine, and without Signalbox's settings."""
    return {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and not k.startswith("SIGNALBOX_")}


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


@contextmanager
def _running(command: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a program in a session of its own, writing to `log`; ends it with SIGTERM, its whole session after 30 s."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment() | environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(process: subprocess.Popen[bytes], log: Path, url: str, says: str = "", at_most_s: float = 60) -> None:
    """Returns once `url` answers and the program has written `says`."""
    deadline = time.monotonic() + at_most_s
    while time.monotonic() < deadline and process.poll() is None:
        if says in log.read_text(errors="replace") and _answers(url):
            return
        time.sleep(0.1)
    raise StartError(f"{log.stem} did not come up:\n{log.read_text(errors='replace')[-2000:]}")


@contextmanager
def mock(directory: Path) -> Iterator[Mock]:
    """The mock upstream on a free port."""
    port, log = free_port(), directory / "mock.log"
    url = f"http://127.0.0.1:{port}"
    with _running([str(BUILD / "mock"), str(port)], log) as process:
        _wait_for(process, log, f"{url}/stats")
        yield Mock(url, process.pid)


def _crowd(upstream: str, keys: int, accounts: int) -> str:
    """The documents of those that are only there: keys that nobody uses, and accounts beside the two."""
    head = "---\napiVersion: signalbox.dev/v1alpha1\n"
    parts = [
        f"{head}kind: ClaudeAccount\nmetadata: {{name: crowd-{n}}}\nspec:\n  provider: Anthropic\n"
        f"  baseURL: {upstream}\n  credential: {{apiKey: {{secretRef: {{name: bench, key: api-key}}}}}}\n"
        for n in range(accounts)
    ]
    parts += [
        f"{head}kind: RelayKey\nmetadata: {{name: crowd-{n}}}\nspec:\n  owner: crowd-{n}@example.com\n"
        f'  keyHash: "sha256:{hashlib.sha256(b"%d" % n).hexdigest()}"\n'
        "  limits: [{per: Day, requests: 1000}]\n"
        for n in range(keys)
    ]
    return "".join(parts)


@contextmanager
def signalbox(
    upstream: str, directory: Path, workers: int | None, *, crowd: tuple[int, int] | None = None,
) -> Iterator[Target]:
    """`signalbox up` with the documents above, and a crowd of (keys, accounts) beside them where one is wanted.

    `workers` None leaves their number to Signalbox.
    """
    name = "crowded" if crowd else "signalbox"
    manifests, log, port = directory / f"{name}-manifests", directory / f"{name}.log", free_port()
    data = Path(tempfile.mkdtemp(prefix="sbx-bench-"))  # its sockets' paths must stay short
    manifests.mkdir()
    (manifests / "bench.yaml").write_text(DOCUMENTS.format(key=RELAY_KEY, upstream=upstream))
    if crowd:
        (manifests / "crowd.yaml").write_text(_crowd(upstream, *crowd))
    command = [str(SIGNALBOX), "up", "--manifests", str(manifests), "--data", str(data), "--port", str(port)]
    command += ["--telemetry-port", str(free_port())]
    command += ["--workers", str(workers)] if workers else []
    url = f"http://127.0.0.1:{port}"
    try:
        with _running(command, log) as process:
            _wait_for(process, log, f"{url}/readyz", says=f"ready {url}", at_most_s=900 if crowd else 60)
            yield Target(
                "signalbox",
                version("signalbox-cli"),
                f"{url}/v1/messages",
                [f"x-api-key: {RELAY_KEY}", "anthropic-version: 2023-06-01"],
                process.pid,
                data,
                crowded=bool(crowd),
            )
    finally:
        shutil.rmtree(data, ignore_errors=True)


@contextmanager
def peer(upstream: str, directory: Path) -> Iterator[Target]:
    """Portkey, installed when it is not yet."""
    portkey.install()
    port, log = free_port(), directory / "portkey.log"
    url = f"http://127.0.0.1:{port}"
    with _running(portkey.command(port), log, NODE_ENV="production") as process:
        _wait_for(process, log, url)
        headers = [*portkey.headers(upstream), "anthropic-version: 2023-06-01"]
        release = f"{portkey.VERSION}, Node {portkey.node_version()}"
        yield Target("portkey", release, f"{url}/v1/messages", headers, process.pid)
