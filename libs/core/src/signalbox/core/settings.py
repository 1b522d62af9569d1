"""The base of every room's settings: one typed object a room, read once, from the environment and a file.

A room subclasses RoomSettings with its own `SIGNALBOX_<ROOM>_` prefix; what all rooms share is declared here
under plain `SIGNALBOX_` names. docs/settings.md is generated from the descriptions.
"""

import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from dotenv import dotenv_values
from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from signalbox.core.errors import StartupError

ENV_FILE_VARIABLE = "SIGNALBOX_ENV_FILE"
MIN_SECRET_CHARS = 32
# Other names with a room's prefix: where other rooms find it, and what Kubernetes tells pods of a Service so called.
_NOT_A_ROOMS_OWN = re.compile(r"_ADDRESS$|_SERVICE_(HOST|PORT)|_PORT(_\d+_|$)")


def _address(value: str) -> str:
    if value.startswith("unix:") and len(value) > len("unix:"):
        return value
    host, _, port = value.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError("must be unix:/PATH or HOST:PORT")
    return value


Address = Annotated[str, AfterValidator(_address)]
"""Where a room listens or is found: `unix:/path` or `host:port`."""


def _shared(name: str, default: Any, description: str, **bounds: Any) -> Any:
    return Field(default, validation_alias=f"SIGNALBOX_{name}", description=description, **bounds)


class RoomSettings(BaseSettings):
    """What every room reads. Times in seconds, sizes in bytes."""

    # Built when first used: of this class and the rooms' own, a process uses one.
    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", populate_by_name=True, defer_build=True, allow_inf_nan=False,
    )

    shared_secret: SecretStr = _shared(
        "SHARED_SECRET", SecretStr(""),
        "Proves to one room that a caller is another one; also keys the session digests. At least 32 characters.",
    )
    shared_secret_file: Path | None = _shared(
        "SHARED_SECRET_FILE", None, "File to read the shared secret from, instead of the variable.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = _shared(
        "LOG_LEVEL", "info", "The least severe log events that are written.",
    )
    log_format: Literal["json", "text"] = _shared(
        "LOG_FORMAT", "json", "json for machines, text for people.",
    )
    telemetry_address: Address = _shared(
        "TELEMETRY_ADDRESS", "127.0.0.1:9090",
        "Where /metrics, /healthz and /readyz are served. No caller's service should lead there.",
    )
    tls_cert_file: Path | None = _shared("TLS_CERT_FILE", None, "This room's certificate for mTLS between rooms (PEM).")
    tls_key_file: Path | None = _shared("TLS_KEY_FILE", None, "The key of that certificate (PEM).")
    tls_ca_file: Path | None = _shared("TLS_CA_FILE", None, "The authority behind other rooms' certificates (PEM).")
    start_patience_s: float = _shared(
        "START_PATIENCE_SECONDS", 0.0,
        "How long a starting room waits for its Redis or database to appear before it gives up. In a cluster, where "
        "everything starts at once, waiting is quicker than being restarted.", ge=0,
    )
    stop_grace_s: float = _shared(
        "STOP_GRACE_SECONDS", 30.0, "How long a stopping room lets running work finish before it cuts it.", ge=0,
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.shared_secret_file is not None:
            text = self.shared_secret_file.read_text().strip()
            object.__setattr__(self, "shared_secret", SecretStr(text))
        if len(self.shared_secret.get_secret_value()) < MIN_SECRET_CHARS:
            raise ValueError(
                f"SIGNALBOX_SHARED_SECRET (or the file in SIGNALBOX_SHARED_SECRET_FILE) must hold at least "
                f"{MIN_SECRET_CHARS} characters",
            )
        tls = (self.tls_cert_file, self.tls_key_file, self.tls_ca_file)
        if any(tls) and not all(tls):
            raise ValueError("SIGNALBOX_TLS_CERT_FILE, _KEY_FILE and _CA_FILE go together")
        return self

    @property
    def secret(self) -> bytes:
        """The shared secret's bytes."""
        return self.shared_secret.get_secret_value().encode()

    def announce(self, log: Any) -> None:
        """Begin a room's log: its settings, secrets as stars, and mistyped names, which nobody reads."""
        log.info("starting", **{name: str(getattr(self, name)) for name in type(self).model_fields})
        for name, meant in self.unread().items():
            log.warning("setting_unknown", name=name, meant=meant)

    def unread(self) -> dict[str, str]:
        """Return variables called like this room's that are none, each with the setting it is most like, or ""."""
        prefix = str(self.model_config.get("env_prefix", ""))
        known = {variable_name(type(self), field) for field in type(self).model_fields}
        endings = {name.removeprefix(prefix).removeprefix("SIGNALBOX_"): name for name in known}
        env_file = os.environ.get(ENV_FILE_VARIABLE)
        named = {name.upper() for name in (*os.environ, *(dotenv_values(env_file) if env_file else ()))}
        found: dict[str, str] = {}
        for name in sorted(named - known):
            if prefix and name.startswith(prefix) and not _NOT_A_ROOMS_OWN.search(name):
                like = get_close_matches(name.removeprefix(prefix), endings, 1, 0.8)
                found[name] = endings[like[0]] if like else ""
        return found


S = TypeVar("S", bound=RoomSettings)


def load(cls: type[S], **overrides: Any) -> S:
    """Read `cls` from `overrides`, the environment and the file in SIGNALBOX_ENV_FILE, in this order.

    Raises StartupError that names the variable and what is wrong with it.
    """
    env_file = os.environ.get(ENV_FILE_VARIABLE)
    if env_file and not Path(env_file).is_file():
        raise StartupError(ENV_FILE_VARIABLE, f"{env_file} is not a file")
    try:
        values: dict[str, Any] = {"_env_file": env_file, **overrides}
        return cls(**values)
    except OSError as e:
        raise StartupError(str(e.filename), e.strerror or str(e)) from e
    except UnicodeDecodeError:
        raise StartupError(ENV_FILE_VARIABLE, f"{env_file} is not UTF-8 text") from None
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False, include_context=False)[0]
        what = variable_name(cls, str(first["loc"][0])) if first["loc"] else "settings"
        raise StartupError(what, first["msg"].removeprefix("Value error, ")) from None


def variable_name(cls: type[RoomSettings], field: str) -> str:
    """Return the environment variable that sets `field` of `cls` (which may already be a variable's name)."""
    info = cls.model_fields.get(field)
    if info is None:
        return field
    if isinstance(info.validation_alias, str):
        return info.validation_alias
    return f"{cls.model_config.get('env_prefix', '')}{field}".upper()
