"""Settings of the token-refresher: where it listens, where the grants lie, which keys encrypt them.

What all rooms share (secret, logs, telemetry, TLS) is declared in signalbox.core.settings.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from signalbox.core.settings import Address
from signalbox.core.trace_settings import TracedSettings
from signalbox.token_refresher.adapters.sealing import Keyring


class TokenRefresherSettings(TracedSettings):
    """Everything the token-refresher reads at start."""

    model_config = SettingsConfigDict(env_prefix="SIGNALBOX_TOKEN_REFRESHER_")

    listen: Address = Field(
        "127.0.0.1:7002", description="Where the other rooms find this one: unix:/PATH or HOST:PORT.",
    )
    store: Literal["files", "secrets"] = Field(
        "files",
        description="Where the grants lie: files in STORE_DIR, or Secrets of the pod's own namespace, which several "
        "replicas share.",
    )
    store_owner: str = Field(
        "signalbox", pattern=r"^[a-z0-9]([-a-z0-9]{0,62}[a-z0-9])?$",
        description="Begins the names of these Secrets: the release's name, so that releases do not share grants.",
    )
    store_dir: Path | None = Field(
        None,
        description="Directory of the encrypted grants. Lose it and OAuth accounts must be authorised again.",
    )
    encryption_key: SecretStr = Field(
        SecretStr(""),
        description="Encrypts the grants: 32 bytes in base64 or hexadecimal. Several, separated by commas or white "
        "space, while keys are rotated: the first encrypts, all decrypt.",
    )
    encryption_key_file: Path | None = Field(
        None, description="File to read the encryption keys from, instead of the variable.",
    )
    probe_limit_s: float = Field(
        10.0, gt=0, validation_alias="SIGNALBOX_TOKEN_REFRESHER_PROBE_SECONDS",
        description="How long one test of an account may take.",
    )

    request_limit_s: float = Field(
        10.0, gt=0, le=60, validation_alias="SIGNALBOX_TOKEN_REFRESHER_REQUEST_SECONDS",
        description="How long one request to a token endpoint may take.",
    )
    refresh_ahead_s: float = Field(
        300.0, gt=0, validation_alias="SIGNALBOX_TOKEN_REFRESHER_AHEAD_SECONDS",
        description="How long before its end a token is renewed, at most a fifth of its life; jitter makes it up to "
        "half as much again.",
    )
    lease_patience_s: float = Field(
        30.0, gt=0, validation_alias="SIGNALBOX_TOKEN_REFRESHER_LEASE_SECONDS",
        description="How long to wait for another token-refresher that is renewing the same grant.",
    )
    identity_token_root: Path | None = Field(
        None,
        description="Directory below which identity token files must lie once links are resolved; anywhere if unset. "
        "In a cluster: /var/run/secrets/signalbox/tokens.",
    )

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if self.store == "files" and self.store_dir is None:
            raise ValueError("SIGNALBOX_TOKEN_REFRESHER_STORE_DIR is required")
        return self

    @model_validator(mode="after")
    def _readable_keys(self) -> Self:
        if self.encryption_key_file is not None:
            object.__setattr__(self, "encryption_key", SecretStr(self.encryption_key_file.read_text()))
        try:
            self.keyring()
        except ValueError as e:
            raise ValueError(
                f"SIGNALBOX_TOKEN_REFRESHER_ENCRYPTION_KEY (or the file in SIGNALBOX_TOKEN_REFRESHER_"
                f"ENCRYPTION_KEY_FILE) {e}",
            ) from None
        return self

    def keyring(self) -> Keyring:
        """Return the encryption keys, the one that encrypts first."""
        return Keyring.read(self.encryption_key.get_secret_value())
