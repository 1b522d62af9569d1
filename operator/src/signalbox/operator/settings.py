"""What may be set on the operator. Shared settings (secret, logs, telemetry) are core's."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode, SettingsConfigDict

from signalbox.core.settings import Address, RoomSettings

EVERYWHERE = "*"


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Addresses = Annotated[tuple[Address, ...], NoDecode, BeforeValidator(_split)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


class OperatorSettings(RoomSettings):
    """Times in seconds."""

    model_config = SettingsConfigDict(env_prefix="SIGNALBOX_OPERATOR_")

    scheduler_address: Addresses = Field(
        ..., validation_alias="SIGNALBOX_SCHEDULER_ADDRESS", min_length=1,
        description="Where the schedulers are; several, separated by commas.",
    )
    token_refresher_address: Address = Field(
        ..., validation_alias="SIGNALBOX_TOKEN_REFRESHER_ADDRESS", description="Where grants are put.",
    )
    watch_namespaces: Names = Field(
        (), validation_alias="SIGNALBOX_WATCH_NAMESPACES",
        description="Namespaces whose accounts, pools, keys and Secrets are watched, separated by commas; * for all."
        " Default: the operator's own.",
    )
    allowed_upstream_hosts: Names = Field(
        (), validation_alias="SIGNALBOX_ALLOWED_UPSTREAM_HOSTS",
        description="Hosts that credentials may go to, as exact names or *.suffix, separated by commas. Replaces the"
        " default: the providers' domains and Services of the account's own namespace.",
    )
    namespace: str = Field(
        "", description="The operator's own namespace. Default: the pod's, or the kubeconfig's.",
    )
    name: str = Field(
        "signalbox-operator",
        description="Name of the Lease that counts the operator's starts, and of the writer of statuses and Events."
        " Two releases in one namespace need two names.",
    )
    kubeconfig: Path | None = Field(
        None, description="The cluster, where it is not the pod's own. Default: KUBECONFIG, ~/.kube/config.",
    )
    drain_limit_s: float = Field(
        600.0, ge=0,
        description="How long a deleted account is waited for before it goes although requests may still run, or"
        " although no scheduler can say whether they do.",
    )
    resync_s: float = Field(
        300.0, gt=0, description="How often everything is listed and compared anew, whatever the watches say.",
    )
    numbers_every_s: float = Field(
        60.0, ge=1, le=120,
        description="How often the numbers in an object's status are written at most, and one again that was undone.",
    )
    status_writers: int = Field(
        4, ge=1, le=64, description="How many statuses are written at once.",
    )
