"""Settings of the usage service: where it listens, which database holds the ledger, which prices apply.

What all rooms share (secret, logs, telemetry, TLS) is declared in signalbox.core.settings.
"""

from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from signalbox.core.settings import Address, RoomSettings
from signalbox.usage.adapters.urls import read_database_url


class UsageSettings(RoomSettings):
    """Everything the usage service reads at start."""

    model_config = SettingsConfigDict(env_prefix="SIGNALBOX_USAGE_")

    listen: Address = Field(
        "127.0.0.1:7003", description="Where the other rooms find this one: unix:/PATH or HOST:PORT.",
    )
    database_url: SecretStr = Field(
        validation_alias="SIGNALBOX_DATABASE_URL",
        description="The ledger: sqlite:///PATH on one machine, postgresql://USER:PASSWORD@HOST/DB for more than one "
        "usage replica. PostgreSQL's own URL parameters (sslmode, sslrootcert, ...) are passed on.",
    )
    prices_file: Path | None = Field(
        None, validation_alias="SIGNALBOX_PRICES_FILE",
        description="A price file that overrides the built-in one, for negotiated prices or newer models.",
    )
    readers: int = Field(
        2, ge=1, le=32,
        description="Database connections for queries: how many reports run at once. Writing uses one of its own.",
    )
    max_transaction_rows: int = Field(
        1000, ge=1, le=10_000,
        description="Attempts committed together at most. Larger is cheaper a row, smaller is sooner acknowledged.",
    )

    attempts_kept_days: int = Field(
        400, ge=7, le=100_000,
        description="Attempts older than this are removed, a few at a time. Sums by hour and day are kept for ever, so "
        "reports stay complete; `requests` and `explain` know only what is kept.",
    )
    denials_kept_days: int = Field(
        30, ge=1, le=100_000, description="The same for denials, which cost nothing and can be many.",
    )

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: SecretStr) -> SecretStr:
        read_database_url(value.get_secret_value())
        return value
