"""The simulated provider as a process, and what tests say to it and ask of it. Imports nothing of the product."""

import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.support import processes
from tests.support.machine import busy

SIMULATOR = str(Path(sys.executable).parent / "signalbox-simulator")
STOP_LIMIT_S = 60.0


class Simulator:
    """One simulator. `config` is a configuration file's content; without accounts in it any key is accepted.

    Use it as a context manager, or call `start` and `stop`. `url` is what an account's base URL should be.
    """

    def __init__(self, config: dict[str, Any] | None = None, *, port: int = 0) -> None:
        self._config = config if config is not None else {"open": True}
        self._port = port
        self.url = ""

    def start(self) -> "Simulator":
        """Start the process on a free port (or the given one) and wait until it listens."""
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 lives as long as the process
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(self._config, file)
            file.flush()
            self.process = subprocess.Popen(
                [SIMULATOR, "--port", str(self._port), "--config", file.name], text=True, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=self._stderr,
            )
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
        if not line.startswith("ready "):
            self.process.kill()
            raise AssertionError(f"the simulator did not start: {self.errors()}")
        self.url = line.split()[1]
        return self

    def stop(self) -> int:
        """Ask it to stop and return its exit status."""
        try:
            return processes.stop(self.process, STOP_LIMIT_S)
        finally:
            assert self.process.stdout is not None
            self.process.stdout.close()

    def errors(self) -> str:
        """Return what it said on stderr: nothing, unless it has a fault of its own."""
        self._stderr.seek(0)
        return self._stderr.read()

    def __enter__(self) -> "Simulator":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ------------------------------------------------------------------ set up

    def accounts(self, *accounts: dict[str, Any], add: bool = False, open: bool = False) -> None:
        """Set (or add) accounts: `{name, key, organization?, limits?: {requests, input_tokens, output_tokens}, per_s?, …}`."""
        self.call("POST" if add else "PUT", "accounts", {"accounts": list(accounts), "open": open})

    def script(self, *behaviours: dict[str, Any], standing: dict[str, Any] | None = None, **rule: Any) -> int:
        """Let the next matching requests meet these behaviours, one each, and all later ones the standing one.

        `rule` takes `account`, `match`, `flap` and `lasts_s`; see the simulator's README.
        """
        return int(self.call("POST", "script", {"behaviours": list(behaviours), "standing": standing, **rule})["id"])

    def clear_script(self, account: str | None = None) -> None:
        """Make the provider (or one account) well again."""
        self.call("DELETE", "script", **({"account": account} if account else {}))

    def cut_connections(self) -> int:
        """Reset every connection and return how many there were."""
        return int(self.call("DELETE", "connections")["connections"])

    def default(self, behaviour: dict[str, Any]) -> None:
        """Set what every request meets, under whatever is scripted."""
        self.call("PUT", "default", behaviour)

    def oauth(self, document: dict[str, Any]) -> None:
        """Add clients, grants and federation rules."""
        self.call("POST", "oauth", document)

    def clear_oauth(self) -> None:
        """Forget clients, grants, rules and every token that was issued."""
        self.call("DELETE", "oauth")

    def revoke(self, account: str, *, family: bool = False) -> None:
        """Take back an account's access tokens, and its refresh tokens with `family`."""
        self.call("POST", "oauth/revoke", {"account": account, "family": family})

    # ------------------------------------------------------------------ ask

    def truth(self, *, since: int = 0, path: str | None = "/v1/messages", **query: Any) -> list[dict[str, Any]]:
        """Return the recorded rows in order of arrival, of one path (None: of all)."""
        rows: list[dict[str, Any]] = self.call("GET", "truth", since=since, **query)
        return [r for r in rows if path is None or r["path"] == path]

    def clear_truth(self) -> None:
        """Forget what was recorded."""
        self.call("DELETE", "truth")

    def summary(self) -> dict[str, Any]:
        """Return counts, and tokens per account and model."""
        return dict(self.call("GET", "summary"))

    def concurrent(self) -> dict[str, dict[str, int]]:
        """Return requests in flight per account, now and at most."""
        return dict(self.call("GET", "concurrent"))

    def grants(self) -> list[dict[str, Any]]:
        """Return the families of refresh tokens."""
        return list(self.call("GET", "oauth")["grants"])

    def wait_quiet(self, limit_s: float = 10.0) -> list[dict[str, Any]]:
        """Wait until nothing is in flight and return all rows."""
        began_s = time.monotonic()
        while self.summary()["in_flight"]:
            if time.monotonic() > began_s + limit_s * busy():
                raise AssertionError(f"still in flight after {limit_s} s: {self.concurrent()}")
            time.sleep(0.02)
        return self.truth(path=None)

    def call(self, method: str, name: str, document: Any = None, **query: Any) -> Any:
        """Make one control call and return its answer. Raises AssertionError with what the simulator says is wrong."""
        url = f"{self.url}/_sim/{name}" + (f"?{urlencode(query)}" if query else "")
        data = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(url, data=data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.load(response)
        except urllib.error.HTTPError as e:
            raise AssertionError(f"{method} {url}: {e.code} {e.read().decode()}") from e
