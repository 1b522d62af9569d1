"""What the way an attempt ended means: for the request (where to try next), the account, and the caller.

One table for what went wrong on the way, one for what a provider said; sources are the contract's error paragraph
and the table of faults. How long an account rests without a stated time is the scheduler's decision.
"""

from dataclasses import dataclass
from enum import Enum, auto

from signalbox.gateway.domain.events import Ending, Trouble
from signalbox.v1.scheduler_pb2 import AccountEffect, Grant
from signalbox.wire.errors import ErrorClass, Verdict


class Direction(Enum):
    """Where a request may be tried again."""

    NOWHERE = auto()
    IN_PLACE = auto()    # once more on the same account, then elsewhere
    ELSEWHERE = auto()
    REFRESH = auto()     # once more with a new credential, then elsewhere


@dataclass(frozen=True, slots=True)
class Meaning:
    """`accounts_own`: the error is about the account and not shown to callers; `limited`: shown as pool_limited."""

    direction: Direction
    effect: AccountEffect | None
    accounts_own: bool = False
    limited: bool = False


def _cool(reason: str) -> AccountEffect:
    return AccountEffect(kind=AccountEffect.COOL, reason=reason)


def _cool_alone(reason: str) -> AccountEffect:
    """What is no fault of the provider's spares the other accounts of the limit group."""
    return AccountEffect(kind=AccountEffect.COOL, reason=reason, account_only=True)


def _bench(reason: str) -> AccountEffect:
    return AccountEffect(kind=AccountEffect.BENCH, reason=reason)


NO_EFFECT = None
FINE = Meaning(Direction.NOWHERE, NO_EFFECT)

_BY_TROUBLE = {
    Trouble.UNREACHABLE: Meaning(Direction.ELSEWHERE, _cool("Unreachable")),
    Trouble.PROXY: Meaning(Direction.ELSEWHERE, _cool_alone("ProxyUnreachable")),
    Trouble.STALE: Meaning(Direction.IN_PLACE, NO_EFFECT),
    Trouble.RESET: Meaning(Direction.IN_PLACE, _cool("Unreachable")),
    Trouble.CUT: Meaning(Direction.ELSEWHERE, _cool("Failing")),
    Trouble.SILENT: Meaning(Direction.ELSEWHERE, _cool("Failing")),
    Trouble.BROKEN: Meaning(Direction.ELSEWHERE, _cool("Failing")),
    Trouble.OVERFLOW: FINE,
    Trouble.STOPPING: FINE,
}

_BY_CLASS = {
    ErrorClass.CALLER: FINE,
    ErrorClass.CONFLICT: Meaning(Direction.IN_PLACE, NO_EFFECT),
    # The reason counts where a fresh token is refused as well; a key that can't be refreshed has the refresher's.
    ErrorClass.CREDENTIAL: Meaning(Direction.REFRESH, _bench("NeedsAuthorization"), accounts_own=True),
    ErrorClass.BILLING: Meaning(Direction.ELSEWHERE, _bench("BillingError"), accounts_own=True),
    ErrorClass.DISABLED: Meaning(Direction.ELSEWHERE, _bench("AccountDisabled"), accounts_own=True),
    ErrorClass.ORGANIZATION_ON_HOLD: Meaning(Direction.NOWHERE, _bench("OrganizationOnHold")),
    ErrorClass.SERVER: Meaning(Direction.IN_PLACE, _cool("Failing")),
}


def meaning_of(ending: Ending, grant: Grant) -> Meaning:
    """Return what the `ending` of an attempt under `grant` means."""
    if ending.trouble is Trouble.CREDENTIAL:
        effect = _cool_alone(ending.reason) if ending.transient else _bench(ending.reason)
        return Meaning(Direction.ELSEWHERE, effect, accounts_own=True)
    if ending.verdict is not None:
        # In the time of the clock that ends rests, Redis's: this machine's own may be wrong by hours.
        now_ms = grant.admitted_at_ms + int(ending.took_s * 1000)
        return _meaning_of_verdict(ending.verdict, grant.send_model, now_ms)
    if ending.trouble is not None:
        return _BY_TROUBLE[ending.trouble]
    broke_off = ending.committed and ending.reason and ending.reason not in _OWN_ENDS
    return Meaning(Direction.NOWHERE, _cool("Failing")) if broke_off else FINE


_OWN_ENDS = frozenset((Trouble.STOPPING.value, "client_gone"))


def _meaning_of_verdict(verdict: Verdict, sent_model: str, now_ms: int) -> Meaning:
    until_ms = verdict.rest_until_ms(now_ms)
    if verdict.error_class is ErrorClass.LIMITED:
        effect = AccountEffect(
            kind=AccountEffect.REST, reason="Limited", until_ms=until_ms,
            model_class=sent_model if verdict.model_scoped else "",
        )
        return Meaning(Direction.ELSEWHERE, effect, limited=True)
    if verdict.error_class is ErrorClass.OVERLOADED:
        effect = AccountEffect(kind=AccountEffect.COOL, reason="Overloaded", until_ms=until_ms)
        return Meaning(Direction.ELSEWHERE, effect)
    return _BY_CLASS[verdict.error_class]
