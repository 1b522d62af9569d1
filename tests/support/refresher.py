"""Token-refresher processes without the other rooms, any number of them on one store."""

import base64
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SECRET = "0123456789abcdef0123456789abcdef"
ENCRYPTION_KEY = base64.b64encode(bytes(range(32))).decode()


class Process:
    """One token-refresher; `name` tells those of one directory apart."""

    def __init__(self, directory: Path, name: str = "refresher", **environment: str) -> None:
        self.address = f"unix:{directory}/{name}.sock"
        self.log = directory / f"{name}.log"
        self._environment = {
            **os.environ, "SIGNALBOX_SHARED_SECRET": SECRET, "SIGNALBOX_LOG_LEVEL": "debug",
            "SIGNALBOX_TOKEN_REFRESHER_LISTEN": self.address,
            "SIGNALBOX_TELEMETRY_ADDRESS": f"unix:{directory}/{name}.telemetry.sock",
            "SIGNALBOX_TOKEN_REFRESHER_STORE_DIR": str(directory / "credentials"),
            "SIGNALBOX_TOKEN_REFRESHER_ENCRYPTION_KEY": ENCRYPTION_KEY, **environment,
        }
        self.start()

    def start(self) -> None:
        """Start it (again)."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "signalbox.token_refresher"],
                                            env=self._environment, stdout=log, stderr=log)

    def kill(self) -> None:
        """Kill it without warning."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def process(directory: Path, name: str = "refresher", **environment: str) -> Iterator[Process]:
    """Run one for a while."""
    running = Process(directory, name, **environment)
    try:
        yield running
    finally:
        running.kill()
