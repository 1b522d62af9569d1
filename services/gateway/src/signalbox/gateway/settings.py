"""What an operator may set on a gateway. Shared settings (secret, logs, telemetry, grace) are core's."""

from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from signalbox.core.settings import Address
from signalbox.core.trace_settings import TracedSettings

MIB = 1 << 20
_MAX_PORT = 65535


def _listen(value: str) -> str:
    kind, _, rest = value.rpartition(":")
    if not kind or not rest.isdigit() or (kind != "fd" and int(rest) > _MAX_PORT):
        raise ValueError("must be HOST:PORT or fd:NUMBER")
    return value


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _networks(value: object) -> object:
    parts = _split(value)
    if not isinstance(parts, tuple | list):
        return parts
    return tuple(ip_network(part) if isinstance(part, str) else part for part in parts)


Addresses = Annotated[tuple[Address, ...], NoDecode, BeforeValidator(_split)]
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_networks)]


class GatewaySettings(TracedSettings):
    """Times in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="SIGNALBOX_GATEWAY_")

    listen: Annotated[str, AfterValidator(_listen)] = Field(
        "127.0.0.1:8080",
        description="Where callers connect: HOST:PORT, or fd:N for a listening socket handed down by a supervisor "
        "so that several gateways share one port.",
    )
    scheduler_address: Addresses = Field(
        ..., validation_alias="SIGNALBOX_SCHEDULER_ADDRESS", min_length=1,
        description="Where the schedulers are; several, separated by commas, let the gateway survive the loss of one.",
    )
    scheduler_session_address: Addresses = Field(
        (), validation_alias="SIGNALBOX_SCHEDULER_SESSION_ADDRESS",
        description="Where the same schedulers, in the same order, answer the Session stream by itself, which is "
        "cheaper; where one does not, its address above serves.",
    )
    token_refresher_address: Address = Field(
        ..., validation_alias="SIGNALBOX_TOKEN_REFRESHER_ADDRESS",
        description="Where the accounts' credentials are fetched.",
    )
    usage_address: Address = Field(
        ..., validation_alias="SIGNALBOX_USAGE_ADDRESS",
        description="Where the journal is delivered and callers' own usage is asked.",
    )
    journal_dir: Path = Field(
        ...,
        description="The directory of this gateway's journal. It must survive a restart of the process, and only one "
        "gateway may use it at a time.",
    )
    max_buffered_bytes: int = Field(
        512 * MIB, ge=MIB,
        description="Request bodies and withheld answers that this process keeps in memory; beyond it new requests "
        "get `overloaded`, and bodies that come at less than 16 KiB a second make room. A quarter as much may wait "
        "for callers who are slow to read; beyond it who has been behind for longest is cut off. Set it to half of the "
        "memory limit of the process at most.",
    )
    max_strangers: int = Field(
        1000, ge=1,
        description="Connections on which no valid key has been presented yet. Beyond it the one that has been there "
        "for longest is closed to make room. Each may hold up to 128 KiB of a request. Raise it where very many "
        "callers connect at one moment, or health checks keep connections.",
    )
    max_body_bytes: int = Field(
        32 * MIB, ge=1024,
        description="The largest request body. The provider refuses more than 32 MiB anyway; lower it to protect "
        "memory.",
    )
    trusted_proxies: Networks = Field(
        (),
        description="Networks of reverse proxies whose X-Forwarded-For is believed when a key's sourceCIDRs are "
        "checked. Empty: the connection's own address counts.",
    )
    head_timeout_s: float = Field(
        15.0, gt=0, validation_alias="SIGNALBOX_GATEWAY_HEAD_TIMEOUT_SECONDS",
        description="How long a caller may take to send a request's head once it began. Raise it for very slow "
        "networks only: it is what bounds idle half-open requests.",
    )
    body_timeout_s: float = Field(
        30.0, gt=0, validation_alias="SIGNALBOX_GATEWAY_BODY_TIMEOUT_SECONDS",
        description="How long a caller's request body may stand still before the request is dropped.",
    )
    keep_alive_s: float = Field(
        75.0, gt=0, validation_alias="SIGNALBOX_GATEWAY_KEEP_ALIVE_SECONDS",
        description="How long an idle client connection is kept. Keep it above the idle time of load balancers in "
        "front, so that they never reuse a connection that is being closed.",
    )
    client_stall_s: float = Field(
        120.0, gt=0, validation_alias="SIGNALBOX_GATEWAY_CLIENT_STALL_SECONDS",
        description="How long a caller may stop reading its answer before it counts as gone.",
    )
    upstream_idle_s: float = Field(
        30.0, gt=0, validation_alias="SIGNALBOX_GATEWAY_UPSTREAM_IDLE_SECONDS",
        description="How long an idle connection to a provider is kept for the next request. Keep it below the "
        "provider's own idle time: a connection that the provider closes just then costs an attempt.",
    )
    upstream_idle_per_account: int = Field(
        64, ge=0,
        description="Idle provider connections kept for one account. More save handshakes after bursts, and cost file "
        "descriptors.",
    )
    @model_validator(mode="after")
    def _paired(self) -> Self:
        if self.scheduler_session_address and len(self.scheduler_session_address) != len(self.scheduler_address):
            raise ValueError(
                "SIGNALBOX_SCHEDULER_SESSION_ADDRESS must name one address for each of SIGNALBOX_SCHEDULER_ADDRESS",
            )
        return self
