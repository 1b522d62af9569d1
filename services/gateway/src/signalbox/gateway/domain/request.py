"""One relayed request over its attempts: after each one, try again (where?) or tell the caller (what?).

Pure decisions over how attempts ended. Asking the scheduler for another account, and sending, is the relay's
(api/relay.py).
"""

from dataclasses import dataclass

from signalbox.gateway.domain.effects import FINE, NO_EFFECT, Direction, meaning_of
from signalbox.gateway.domain.events import Ending, ResponseHead, Trouble
from signalbox.gateway.domain.refusal import Refusal, from_answer
from signalbox.v1.common_pb2 import OUTCOME_TIMEOUT
from signalbox.v1.scheduler_pb2 import AccountEffect, AdmitResponse, Grant

FRESH_ENOUGH_S = 2.0
UNTOLD_MS = 1000    # what a limited account is waited for that did not say how long


@dataclass(frozen=True, slots=True)
class Next:
    """What follows an attempt: whether to try again, on the same account or another, after a new credential."""

    again: bool
    same_account: bool = False
    refresh: bool = False


_ENOUGH = Next(False)


@dataclass(frozen=True, slots=True)
class Verbatim:
    """The provider's own error, to be passed on as it came."""

    head: ResponseHead
    body: bytes


class Course:
    """What one request has tried so far. `effect` is what the last attempt means for its account."""

    def __init__(self) -> None:
        self._tried_in_place: set[str] = set()
        self._refreshed: set[str] = set()
        self._meaning = FINE
        self._serves_again_ms: list[int] = []    # when limited accounts that were tried do, in Redis's time
        self._soonest_ms = 0                     # from the last attempt to the first of these
        self.effect: AccountEffect | None = NO_EFFECT
        self.needs_new_connection = False
        self.credential_version = ""     # that the last attempt was made with

    def max_idle_s(self, grant: Grant) -> float | None:
        """How long a kept connection may have idled, seconds: the last attempt doesn't gamble on an old one."""
        return FRESH_ENOUGH_S if grant.attempts_left == 0 else None

    def after(self, ending: Ending, grant: Grant) -> Next:
        """Decide what follows the attempt that `grant` allowed."""
        self._meaning = meaning = meaning_of(ending, grant)
        self.effect = meaning.effect
        self.needs_new_connection = False
        if ending.committed or meaning.direction is Direction.NOWHERE:
            return _ENOUGH
        if meaning.limited:
            now_ms = grant.admitted_at_ms + int(ending.took_s * 1000)
            self._serves_again_ms.append(now_ms + (ending.retry_after_ms or UNTOLD_MS))
            self._soonest_ms = max(UNTOLD_MS, min(self._serves_again_ms) - now_ms)
        account = grant.account_id
        if meaning.direction is Direction.REFRESH and account not in self._refreshed:
            self._refreshed.add(account)
            self.effect = NO_EFFECT
            return Next(grant.attempts_left > 0, same_account=True, refresh=True)
        if grant.attempts_left == 0:
            return _ENOUGH
        if meaning.direction is Direction.IN_PLACE and account not in self._tried_in_place:
            self._tried_in_place.add(account)
            self.effect = NO_EFFECT
            self.needs_new_connection = ending.trouble in (Trouble.STALE, Trouble.RESET)
            return Next(True, same_account=True)
        return Next(True)

    def not_refreshed(self, reason: str, grant: Grant, *, transient: bool) -> Next:
        """Decide what follows when no new credential could be had for a rejected one."""
        kind = AccountEffect.COOL if transient else AccountEffect.BENCH
        self.effect = AccountEffect(kind=kind, reason=reason)
        return Next(grant.attempts_left > 0)

    def last_word(self, ending: Ending, denial: AdmitResponse | None) -> Verbatim | Refusal:
        """Return what the caller is told when `ending` was the last attempt; `denial` is why there is no other."""
        if denial is not None and denial.denial.error_code == "scheduler_unavailable":
            return from_answer(denial)  # nobody knows whether another account could have served
        if ending.trouble in (Trouble.PROVIDER, Trouble.CREDENTIAL):
            return self._last_word_on_error(ending, denial)
        if ending.trouble in (Trouble.OVERFLOW, Trouble.STOPPING):
            return Refusal("overloaded", "This gateway can't finish the answer; try again.", retry_after_ms=1000)
        if ending.outcome == OUTCOME_TIMEOUT:
            return Refusal("upstream_timeout", "The provider did not answer in time.")
        return Refusal("upstream_failed", "The provider could not be reached, or its answer broke off.")

    def _last_word_on_error(self, ending: Ending, denial: AdmitResponse | None) -> Verbatim | Refusal:
        if self._meaning.limited:
            return _limited(self._soonest_ms, denial)
        if not self._meaning.accounts_own:
            assert ending.answer is not None
            return Verbatim(ending.answer, ending.answer_body)
        if denial is not None:
            return from_answer(denial)
        return Refusal("pool_unavailable", "No account that could serve this is usable now; see their conditions.")


def _limited(soonest_ms: int, denial: AdmitResponse | None) -> Refusal:
    """A last 429 becomes pool_limited, with the soonest time at which some account serves again."""
    waits_ms = [soonest_ms]
    if denial is not None:
        if denial.denial.error_code != "pool_limited":
            return from_answer(denial)
        waits_ms.append(denial.denial.retry_after_ms)
    refusal = from_answer(denial) if denial is not None else Refusal(
        "pool_limited", "All accounts that could serve this rest until their limits reset.",
    )
    refusal.retry_after_ms = min((wait for wait in waits_ms if wait > 0), default=0)
    return refusal
