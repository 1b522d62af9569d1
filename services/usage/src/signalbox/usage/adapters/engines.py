"""Opens the ledger's database: one engine to write, one to read, each with the settings it needs spelled out.

SQLite: write-ahead log, so that readers never wait for the writer; synchronous=FULL, because the gateway drops its
journal when a commit is acknowledged: what is acknowledged then survives a power cut too, at one sync a transaction
that many attempts share. What had not been acknowledged is still in the journals, which survive the process but,
being unsynced, not the power. PostgreSQL: its own defaults, with limits on connecting and on waiting for locks.
"""

import os
import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event

CONNECT_LIMIT_S = 4
LOCK_WAIT_MS = 1_000
READ_LIMIT_MS = 30_000


def open_writer(url: URL) -> Engine:
    """Return an engine with one connection whose transactions are the only ones that write from this process."""
    if url.get_backend_name() == "sqlite":
        return _sqlite(url, 1, "BEGIN IMMEDIATE", ("journal_mode=WAL", "synchronous=FULL"))
    return _postgresql(url, 1, f"-c lock_timeout={LOCK_WAIT_MS} -c synchronous_commit=on")


def open_reader(url: URL, connections: int) -> Engine:
    """Return an engine that can't write."""
    if url.get_backend_name() == "sqlite":
        return _sqlite(url, connections, "BEGIN", ("query_only=ON",))
    options = f"-c default_transaction_read_only=on -c statement_timeout={READ_LIMIT_MS}"
    return _postgresql(url, connections, options)


def _sqlite(url: URL, connections: int, begin: str, pragmas: tuple[str, ...]) -> Engine:
    _create_private(Path(url.database or ""))
    arguments = {"timeout": LOCK_WAIT_MS / 1000, "check_same_thread": False, "isolation_level": None}
    engine = create_engine(url, connect_args=arguments, pool_size=connections, max_overflow=0)

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _: Any) -> None:
        for pragma in (*pragmas, "foreign_keys=ON", "trusted_schema=OFF"):
            _set(connection, pragma)

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        # The driver would begin lazily and as a reader; a writer that starts as one can't wait for the lock.
        connection.exec_driver_sql(begin)

    return engine


def _set(connection: Any, pragma: str) -> None:
    """Set a pragma. SQLite does not wait by itself for others that turn the same new file into a write-ahead one."""
    end_s = time.monotonic() + LOCK_WAIT_MS / 1000
    while True:
        try:
            connection.execute(f"PRAGMA {pragma}")
        except sqlite3.OperationalError:
            if time.monotonic() > end_s:
                raise
            time.sleep(0.01)
        else:
            return


def _create_private(path: Path) -> None:
    """SQLite gives its log files the mode of the database, so that has to be right from the start."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


def _postgresql(url: URL, connections: int, options: str) -> Engine:
    arguments: dict[str, Any] = {
        "connect_timeout": CONNECT_LIMIT_S, "application_name": "signalbox-usage",
        "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 10_000,
        **url.query,
    }
    theirs = arguments.get("options", "")
    arguments["options"] = f"{options} {theirs}".strip()
    return create_engine(
        url.set(query={}), connect_args=arguments, pool_size=connections, max_overflow=0, pool_pre_ping=True,
        paramstyle="format",
    )
