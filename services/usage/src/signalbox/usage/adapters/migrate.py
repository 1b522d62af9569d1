"""Brings the ledger's schema up to date at start, once, however many replicas start together.

Alembic is loaded only where there is something to do: a service that runs for months need not carry it.
"""

from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

HEAD = "0002"
"""The newest revision in migrations/versions; a test holds it to what Alembic finds there."""

_LOCK = 0x5342_4C45_4447  # "SBLEDG": the advisory lock's number on PostgreSQL
LOCK_WAIT_MS = 5_000
SCRIPTS = Path(__file__).parent.parent / "migrations"


def migrate(engine: Engine) -> bool:
    """Migrate to HEAD in one transaction; return whether anything was to be done.

    Raises sqlalchemy.exc.SQLAlchemyError; NewerLedger where a later Signalbox has been here.
    """
    with engine.begin() as connection:
        if _is_current(connection):
            return False
    from alembic import command  # noqa: PLC0415 -- see the module's docstring
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    with engine.begin() as connection:
        # SQLite's transactions begin with the write lock, so this is needed on PostgreSQL only.
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_WAIT_MS}"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK})
        if _is_current(connection):
            return False
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return True


class NewerLedger(Exception):
    """The ledger's schema is from a later version, which this one must not write to."""

    def __init__(self, revision: str) -> None:
        super().__init__(f"its schema {revision} is newer than {HEAD}, which this version knows; upgrade Signalbox")


def _is_current(connection: Connection) -> bool:
    if not inspect(connection).has_table("alembic_version"):
        return False
    revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if revision is not None and revision > HEAD:
        raise NewerLedger(revision)
    return revision == HEAD
