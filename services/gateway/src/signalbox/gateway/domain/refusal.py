"""An answer of Signalbox's own in place of a provider's: which code of the error table, and what the caller may do."""

from collections.abc import Sequence

from signalbox.v1.common_pb2 import LimitState
from signalbox.v1.scheduler_pb2 import AdmitResponse, Denial


class Refusal(Exception):
    """Ends a request with an error of the contract's table. `message` is shown to the caller.

    `retry_after_ms` of 0 says nothing about when; `limits` are the key's, for its ratelimit headers.
    """

    def __init__(
        self, code: str, message: str, *, retry_after_ms: int = 0, never_fits: bool = False, key_id: str = "",
        owner: str = "", limits: Sequence[LimitState] = (), decision: bytes = b"",
    ) -> None:
        super().__init__(code)
        self.code = code
        self.message = message
        self.retry_after_ms = retry_after_ms
        self.never_fits = never_fits
        self.key_id = key_id
        self.owner = owner
        self.limits = limits
        self.decision = decision


def from_denial(denial: Denial) -> Refusal:
    """Say what the scheduler said."""
    return Refusal(
        denial.error_code, denial.message, retry_after_ms=denial.retry_after_ms, never_fits=denial.never_fits,
        key_id=denial.key_id, owner=denial.owner,
    )


def from_answer(answer: AdmitResponse) -> Refusal:
    """Say what the scheduler said, with the decision and the key's limits."""
    refusal = from_denial(answer.denial)
    refusal.limits = answer.limits
    refusal.decision = answer.decision
    return refusal


def scheduler_unavailable() -> Refusal:
    """No scheduler answered."""
    return Refusal(
        "scheduler_unavailable", "Signalbox can't decide on requests at the moment; try again shortly.",
        retry_after_ms=1000,
    )


def overloaded() -> Refusal:
    """This process holds as many bytes as it may."""
    return Refusal(
        "overloaded", "This gateway holds as many bytes as it may; try again shortly.", retry_after_ms=1000,
    )
