"""What the gateway's domain and handlers may ask of the world: scheduler, credentials, journal.

Adapters implement these; tests give real ones over sockets. Errors are part of the contract stated here.
"""

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from signalbox.core.errors import SignalboxError
from signalbox.gateway.domain.events import Ending
from signalbox.gateway.domain.usage import token_usage
from signalbox.v1.common_pb2 import TokenUsage
from signalbox.v1.scheduler_pb2 import (
    AdmitRequest,
    AdmitResponse,
    Grant,
    InspectRequest,
    InspectResponse,
    RetryRequest,
    SettleRequest,
)
from signalbox.v1.usage_pb2 import AttemptEvent
from signalbox.wire.sse import StreamReader
from signalbox.wire.usage import BYTES_PER_ESTIMATED_TOKEN


class SchedulerUnavailable(SignalboxError):
    """No scheduler answered in time; callers see `scheduler_unavailable`."""


class JournalUnwritable(SignalboxError):
    """An intent could not be written, so nothing may be sent; callers see `ledger_unavailable`."""


class CredentialUnusable(SignalboxError):
    """The account's credential cannot be had now: `reason` as in conditions; `transient`: it may heal by itself."""

    def __init__(self, reason: str, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.reason = reason
        self.transient = transient


@dataclass(slots=True)
class OpenLease:
    """A lease that heartbeats keep alive. What it has used so far is read off its stream when a heartbeat is due."""

    lease_id: str
    lease_token: bytes
    reader: StreamReader | None = None

    @property
    def usage(self) -> TokenUsage | None:
        """What `message_start` has reported; None before it."""
        reader = self.reader
        return token_usage(reader.usage) if reader is not None and reader.message_start_seen else None

    @property
    def output_tokens(self) -> int:
        """Tokens so far, by the rule of estimates."""
        return 0 if self.reader is None else -(-self.reader.delta_bytes // BYTES_PER_ESTIMATED_TOKEN)

    @property
    def served_model(self) -> str:
        """The model that serves, once it has said so."""
        return "" if self.reader is None else self.reader.model


@dataclass(frozen=True, slots=True)
class Credential:
    """What an upstream request needs to speak for its account. Header names are lower-case."""

    account_id: str
    version: str
    headers: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    proxy_url: str = field(default="", repr=False)


class Scheduler(Protocol):
    """The batched session with a scheduler."""

    def inspect(self, request: InspectRequest) -> Awaitable[InspectResponse]:
        """Raise SchedulerUnavailable."""
        ...

    def admit(self, request: AdmitRequest) -> Awaitable[AdmitResponse]:
        """Raise SchedulerUnavailable. A granted lease is the caller's to settle; one that comes after the wait was
        cancelled is given back.
        """
        ...

    def retry(self, request: RetryRequest) -> Awaitable[AdmitResponse]:
        """Settle the failed attempt and take another account. Raise SchedulerUnavailable."""
        ...

    def settle(self, request: SettleRequest) -> None:
        """Hand in the end of a lease; delivered in the background until acknowledged. Never blocks, never raises."""
        ...

    def track(self, lease: OpenLease) -> None:
        """Renew this lease by heartbeats until it is settled or retried."""
        ...


class Credentials(Protocol):
    """Credentials by account, cached by version and pushed by the token-refresher."""

    def cached(self, account_id: str) -> Credential | None:
        """Return a usable credential without waiting, if one is here."""
        ...

    async def get(self, account_id: str, rejected_version: str = "") -> Credential:
        """Return a usable credential; `rejected_version` got a 401 just now. Raise CredentialUnusable."""
        ...


class Journal(Protocol):
    """The gateway's own record of attempts, delivered to the ledger in the background."""

    def begin(self, event: AttemptEvent) -> None:
        """Write the intent before the attempt's first byte leaves. Raise JournalUnwritable. Keeps `event`."""
        ...

    def note(self, event: AttemptEvent, partial: AttemptEvent) -> None:
        """Write what `partial` (ids included) adds to a begun event: that bytes leave now, message_start's usage.

        On disk when it returns, so before the bytes that it tells of go on. Never raises.
        """
        ...

    def end(self, event: AttemptEvent) -> None:
        """Write a begun event that holds its outcome by now, and deliver it. On disk when it returns. Never raises."""
        ...

    def deny(self, event: AttemptEvent) -> None:
        """Record a refusal (attempt 0), bounded in rate for callers without a key. Never raises."""
        ...


class Trace(Protocol):
    """One request's trace. Never raises, never blocks."""

    def asking(self) -> str:
        """Begin to ask the scheduler for an account; return what tells it so (`traceparent`), "" where nobody looks."""
        ...

    def asked(self, answer: AdmitResponse | None) -> None:
        """Note what asking the scheduler came to; None: no answer came."""
        ...

    def attempted(self, grant: Grant, ending: Ending) -> None:
        """Add an attempt that has ended."""
        ...

    def end(self, outcome: str, status: int, attempts: int) -> None:
        """Note that the request is over for its caller, who got `status`, 0 for none."""
        ...


class Traces(Protocol):
    """Where traces go, if an operator wants them."""

    def begin(self, request_id: str, route: str, fields: Mapping[bytes, bytes]) -> Trace:
        """Begin a request's trace; `fields` are its headers."""
        ...
