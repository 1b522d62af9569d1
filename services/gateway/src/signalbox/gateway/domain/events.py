"""What goes into an attempt and what comes out of it: small values, shared with the sockets and the records."""

from dataclasses import dataclass, field
from enum import Enum, auto

from signalbox.v1.common_pb2 import Outcome, TokenUsage
from signalbox.wire.errors import Verdict

Headers = list[tuple[bytes, bytes]]


class Lost(Enum):
    """How an upstream connection ended without a whole answer."""

    RESET = auto()       # before the answer's head was complete
    CUT = auto()         # inside the answer
    MALFORMED = auto()   # what came was not HTTP


class Trouble(Enum):
    """Why an attempt failed before the commit point; the value is what the ledger shows as the reason."""

    UNREACHABLE = "unreachable"
    PROXY = "proxy_unreachable"     # the account's own, or it opens no tunnel
    STALE = "stale_connection"      # a reused connection died before it answered: the account may be well
    RESET = "reset"
    CUT = "cut"
    SILENT = "timeout"
    BROKEN = "broken_answer"        # not HTTP, not the asked content type, too large
    PROVIDER = "provider_error"     # the provider's own error; the verdict tells what it means
    OVERFLOW = "overloaded"         # this process has no memory for the answer, or no file descriptor to ask with
    STOPPING = "gateway_stopping"
    CREDENTIAL = "credential"       # there is none to send


class Finish(Enum):
    """What the driver does with the caller's side when the attempt is over."""

    WHOLE = auto()   # end the message as HTTP wants it: the answer is complete, or says itself that it is not
    BREAK = auto()   # cut the connection: the answer is not complete and can't say so
    NOTHING = auto() # nothing was forwarded, or nobody is there to forward to


@dataclass(slots=True)
class ResponseHead:
    """A provider's status and headers (lower-case names, in order)."""

    status: int
    headers: Headers
    until_close: bool = False    # the body ends with the connection, so a cut looks like an end
    fields: dict[bytes, bytes] = field(init=False, compare=False, repr=False)    # of repeated ones the last

    def __post_init__(self) -> None:
        self.fields = dict(self.headers)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long each part of an attempt may take, seconds."""

    connect_s: float
    headers_s: float
    headers_unstreamed_s: float
    first_content_s: float
    idle_s: float
    total_s: float
    client_stall_s: float = 120.0


@dataclass(slots=True)
class Step:
    """What one input caused: a head and bytes for the caller, in this order, then perhaps the end."""

    head: ResponseHead | None = None
    data: bytes = b""
    finish: Finish | None = None


@dataclass(slots=True)
class Ending:
    """How an attempt ended, for the request's decision, the scheduler and the ledger."""

    outcome: Outcome
    reason: str = ""
    status: int = 0
    committed: bool = False
    had_content: bool = False
    usage: TokenUsage | None = None
    served_model: str = ""
    stop_reason: str = ""                   # why the model ended, where it said so
    estimated: bool = False
    trouble: Trouble | None = None          # why it failed before the commit point
    verdict: Verdict | None = None
    transient: bool = False                 # of a missing credential: it will heal by itself
    first_content_s: float | None = None    # when, on the monotonic clock
    ttft_ms: int = 0                        # since the attempt began; 0: no content came
    took_s: float = 0.0
    duration_ms: int = 0
    head: ResponseHead | None = None        # as the provider sent it
    answer: ResponseHead | None = None      # the provider's own error, to be passed on where the request says so
    answer_body: bytes = field(default=b"", repr=False)

    @property
    def retry_after_ms(self) -> int:
        """When the provider expects success, milliseconds from then; 0 where it did not say."""
        after_s = self.verdict.retry_after_s if self.verdict is not None else None
        return int(after_s * 1000) if after_s else 0
