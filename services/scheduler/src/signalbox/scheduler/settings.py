"""The scheduler's settings. Where it listens, where Redis and the usage room are, which prices reservations use."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import SettingsConfigDict

from signalbox.core.settings import Address
from signalbox.core.trace_settings import TracedSettings

_SCHEMES = ("unix://", "redis://", "rediss://", "redis+sentinel://", "rediss+sentinel://")


def _redis_url(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().startswith(_SCHEMES):
        raise ValueError("must begin with unix://, redis://, rediss://, redis+sentinel:// or rediss+sentinel://")
    return value


def _there(value: Path | None) -> Path | None:
    if value is not None and not value.is_file():
        raise ValueError(f"{value} is not a file")
    return value


ExistingFile = Annotated[Path | None, AfterValidator(_there)]


class SchedulerSettings(TracedSettings):
    """What the scheduler reads at its start. Times in seconds."""

    model_config = SettingsConfigDict(env_prefix="SIGNALBOX_SCHEDULER_")

    listen: Address = Field("127.0.0.1:7001", description="Where the scheduler answers other rooms.")
    session_listen: Address | None = Field(
        None,
        description="Where it answers the gateways' Session stream by itself, which costs a fraction of what it does at"
        " the address above; it is answered there too. The gateways are told by SIGNALBOX_SCHEDULER_SESSION_ADDRESS.",
    )
    redis_url: Annotated[SecretStr, AfterValidator(_redis_url)] = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        validation_alias="SIGNALBOX_REDIS_URL",
        description="Redis 7 or newer (or Valkey): unix:///PATH, redis:// or rediss://, with user and password where"
        " needed. Its maxmemory-policy must be noeviction. With Sentinels:"
        " redis+sentinel://USER:PASSWORD@HOST:26379,HOST:26379/SERVICE/DB (or rediss+sentinel://).",
    )
    redis_sentinel_password: SecretStr = Field(
        SecretStr(""), validation_alias="SIGNALBOX_REDIS_SENTINEL_PASSWORD",
        description="What the Sentinels themselves ask for, where they do; the URL's password is for Redis.",
    )
    redis_ca_file: ExistingFile = Field(
        None, validation_alias="SIGNALBOX_REDIS_CA_FILE",
        description="The authority behind Redis's certificate (PEM), for rediss:// with a private one.",
    )
    redis_cert_file: ExistingFile = Field(
        None, validation_alias="SIGNALBOX_REDIS_CERT_FILE",
        description="Certificate to show to Redis (PEM), where it asks for one.",
    )
    redis_key_file: ExistingFile = Field(
        None, validation_alias="SIGNALBOX_REDIS_KEY_FILE", description="The key of that certificate (PEM).",
    )
    redis_timeout_s: float = Field(
        2.0, gt=0, description="How long one Redis call may take before Redis counts as unreachable.",
    )
    usage_address: Address = Field(
        "127.0.0.1:7003", validation_alias="SIGNALBOX_USAGE_ADDRESS",
        description="The usage room: counters after a loss of Redis, first uses, orphaned attempts.",
    )
    prices_file: Path | None = Field(
        None, validation_alias="SIGNALBOX_PRICES_FILE",
        description="Prices that add to or replace the built-in ones, in the shape of the built-in file.",
    )
    journal_wait_s: float = Field(
        5.0, ge=0,
        description="After a loss of Redis, how long to wait for the gateways' journals before admission resumes.",
    )
    refresh_s: float = Field(
        0.5, gt=0, le=1.0,
        description="How often changes of documents and accounts are looked for when no notification came.",
    )
    reap_s: float = Field(
        2.0, gt=0, le=15.0, description="How often leases are looked for that no gateway renews any more.",
    )
    census_s: float = Field(
        30.0, gt=0, description="How often relay keys are counted by how much of their limits is used, for metrics.",
    )
