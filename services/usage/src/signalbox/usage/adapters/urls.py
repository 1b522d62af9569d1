"""Reads the ledger's database URL: which driver it means, and how it may be shown to people.

Opening the database is adapters/engines.py's business.
"""

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

_DRIVERS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}


def read_database_url(text: str) -> URL:
    """Return `text` as a URL with its driver chosen. Raises ValueError, without the URL in it, where it is none."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError("must be sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE") from None
    driver = _DRIVERS.get(url.drivername)
    if driver is None:
        raise ValueError(f"{url.drivername} is not a supported database; use sqlite or postgresql")
    if driver == _DRIVERS["sqlite"] and url.database in (None, "", ":memory:"):
        raise ValueError("the ledger needs a file: sqlite:///PATH")
    return url.set(drivername=driver)


def shown(url: URL) -> str:
    """Return `url` for messages: no password, no parameters (which may hold one)."""
    plain = url.set(drivername=url.get_backend_name(), query={})
    return plain.render_as_string(hide_password=True)
