"""One renewal from the reading of the grant to the keeping of its successor, as a machine without I/O.

`renew` is a generator: it yields what is to be done next, gets the result sent back (or Conflict, StoreUnavailable
thrown in), and returns the outcome. Whoever drives it holds the grant's lease. Killed between any two steps, the next
renewal finds in the store all that it needs:

    read ─▶ is it due at all? ─no─▶ done (a peer was quicker)
      ▲             │ yes
      │       write "is being sent"        nothing is sent that the store could not note: a full disk costs no token
      │             │
      ├─conflict────┤
      │       exchange ─▶ answer with successor ─▶ write it, however often that takes ─▶ done
      │             ├───▶ lost: it may have taken effect. Read again, the same token once more, then back off
      └─────────────┼───▶ invalid_grant: read again (a peer may have rotated); still the same ─▶ NeedsAuthorization
                    └───▶ configuration ─▶ CredentialInvalid; 429, 5xx, unreachable ─▶ back off

A refresh token whose successor was read is in no store state that can be read again, so it is never sent again.
"""

from collections.abc import Generator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from signalbox.core.clock import Clock
from signalbox.token_refresher.domain import grants, oauth
from signalbox.token_refresher.domain.credentials import turned
from signalbox.token_refresher.domain.grants import OAUTH, Fault, Grant, Reason
from signalbox.token_refresher.domain.oauth import Busy, Issued, Lost, Refusal, Refused, TokenRequest, Unsent
from signalbox.token_refresher.domain.ports import Conflict, Found, Stored, StoreUnavailable
from signalbox.token_refresher.domain.schedule import Ahead, due_at_ms, recheck_at_ms, retry_at_ms

MOST_ROUNDS = 8
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True)
class Read:
    """Read the grant from the store. Gives back Found."""

    account_id: str


@dataclass(frozen=True, slots=True)
class Write:
    """Write the grant over the state of that revision. Gives back Stored; Conflict and StoreUnavailable come in."""

    grant: Grant
    expected: str


@dataclass(frozen=True, slots=True)
class ReadIdentity:
    """Read the identity token file. Gives back its text, or IdentityUnusable."""

    path: str


@dataclass(frozen=True, slots=True)
class IdentityUnusable:
    """The identity token can't be had, and why, for people."""

    why: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """Ask the token endpoint. Gives back an oauth.Answer; Conflict comes in where the lease does not last for it."""

    request: TokenRequest


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so many seconds."""

    s: float


Step = Read | Write | ReadIdentity | Exchange | Pause


class Outcome(StrEnum):
    """How a renewal ended; the values of the metric's label."""

    RENEWED = "renewed"
    NOT_DUE = "not_due"                   # a peer renewed it, or nothing can be done by time alone
    GONE = "gone"
    NEEDS_AUTHORIZATION = "needs_authorization"
    CREDENTIAL_INVALID = "credential_invalid"
    BUSY = "busy"
    UNREACHABLE = "unreachable"
    LOST = "lost"
    STORE_AWAY = "store_away"             # nothing was sent, or nothing came back that has to be kept


@dataclass(frozen=True, slots=True)
class Demand:
    """What somebody wants beyond what time asks for: another token than the rejected one; a try in spite of a fault."""

    rejected_version: str = ""
    insist: bool = False


@dataclass(frozen=True, slots=True)
class Renewal:
    """How one ended and what is stored now (None: nothing)."""

    outcome: Outcome
    stored: Stored | None
    message: str = ""


Machine = Generator[Step, Any, Renewal]


def renew(account_id: str, demand: Demand, clock: Clock, ahead: Ahead) -> Machine:
    """Renew the account's grant if that is due or demanded."""
    lost = refused = ""     # the token that the answer was lost of, or that was refused, in this renewal
    found: Found = yield from _read(account_id)
    for _ in range(MOST_ROUNDS):
        if not isinstance(found, Stored):
            return Renewal(Outcome.GONE, None)
        grant = grants.rejected(found.grant, demand.rejected_version)
        wanted = _is_wanted(grant, demand, clock.now_ms(), ahead)
        try:
            if not wanted:
                return Renewal(Outcome.NOT_DUE, (yield from _noted(found, grant, clock)))
            if grant.seed.kind == OAUTH:
                # Noted first: nothing is sent while the store could not keep what comes back.
                found = yield from _noted(found, grants.sending(grant), clock)
        except Conflict:
            found = yield from _read(account_id)
            continue
        except StoreUnavailable as e:
            return Renewal(Outcome.STORE_AWAY, found, str(e))
        token = yield from _token(grant)
        if isinstance(token, IdentityUnusable):
            return (yield from _keep(found, token, clock))
        try:
            answer: oauth.Answer = yield Exchange(_request(grant, token))
        except Conflict as e:
            return Renewal(Outcome.BUSY, found, str(e))
        if isinstance(answer, Lost) and lost != token:
            lost = token
            found = yield from _read(account_id)
            continue
        if isinstance(answer, Refused) and answer.about is Refusal.GRANT and refused != token:
            refused = token
            again = yield from _read(account_id)
            if not _holds(again, grant) or (yield from _token(grant)) != token:
                found = again
                continue
        return (yield from _keep(found, answer, clock))
    return Renewal(Outcome.BUSY, found if isinstance(found, Stored) else None, "others kept changing the grant")


def _noted(stored: Stored, grant: Grant, clock: Clock) -> Generator[Step, Any, Stored]:
    """Write the grant where it differs from what is stored."""
    if grant == stored.grant:
        return stored
    written: Stored = yield Write(turned(stored.grant, grant, clock.now_ms()), stored.revision)
    return written


def _is_wanted(grant: Grant, demand: Demand, now_ms: int, ahead: Ahead) -> bool:
    if grant.fault is not None and grant.fault.reason is Reason.NEEDS_AUTHORIZATION:
        return False     # its token is dead or spent: it must not leave again, whoever asks
    if demand.insist and grant.renewable and not grant.retired_at_ms:
        return True
    due_ms = due_at_ms(grant, ahead)
    return due_ms is not None and due_ms <= now_ms


def _token(grant: Grant) -> Generator[Step, Any, str | IdentityUnusable]:
    """Return what is exchanged: the refresh token, or what the identity token file holds at this moment."""
    if grant.seed.kind == OAUTH:
        return grant.refresh_token
    token: str | IdentityUnusable = yield ReadIdentity(grant.seed.config["identityTokenFile"])
    return token


def _request(grant: Grant, token: str) -> TokenRequest:
    return oauth.refresh_request(grant) if grant.seed.kind == OAUTH else oauth.federation_request(grant, token)


def _read(account_id: str) -> Generator[Step, Any, Found]:
    """Read the grant, however long the store is away."""
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            found: Found = yield Read(account_id)
        except StoreUnavailable:
            yield Pause(pause_s)
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
        else:
            return found


def _keep(stored: Stored, answer: oauth.Answer | IdentityUnusable, clock: Clock) -> Machine:
    """Write what the answer makes of the grant. A successor is written however often that takes: nobody else has it."""
    sent = stored.grant
    pause_s = FIRST_PAUSE_S
    while True:
        now_ms = clock.now_ms()
        outcome, kept = _judge(stored.grant, answer, now_ms)
        kept = turned(stored.grant, kept, now_ms)
        try:
            return Renewal(outcome, (yield Write(kept, stored.revision)), kept.why)
        except StoreUnavailable as e:
            if not isinstance(answer, Issued):
                return Renewal(Outcome.STORE_AWAY, stored, str(e))
            yield Pause(pause_s)
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
        except Conflict:
            there = yield from _read(sent.account_id)
            if isinstance(there, Stored) and there.grant.access_token == kept.access_token != sent.access_token:
                return Renewal(outcome, there)    # our own write took effect although it seemed to fail
            if not _holds(there, sent):
                return Renewal(Outcome.NOT_DUE, there if isinstance(there, Stored) else None)
            assert isinstance(there, Stored)
            stored = there


def _holds(found: Found, sent: Grant) -> bool:
    """Whether the store's grant is still the one whose token was sent, so that the answer is about it.

    Another seed may have come meanwhile; as long as it took the same refresh token over, the successor is its own.
    """
    if not isinstance(found, Stored) or found.grant.seed.kind != sent.seed.kind:
        return False
    if sent.seed.kind == OAUTH:
        return found.grant.refresh_token == sent.refresh_token
    return found.grant.seed.version == sent.seed.version and found.grant.access_token == sent.access_token


def _judge(grant: Grant, answer: oauth.Answer | IdentityUnusable, now_ms: int) -> tuple[Outcome, Grant]:
    """Return what the answer is called, and what it makes of the grant."""
    soon_ms = retry_at_ms(grant, now_ms)
    match answer:
        case Issued(tokens) if tokens.access_token:
            return Outcome.RENEWED, grants.renewed(grant, tokens)
        case Issued(tokens):
            why = "the token endpoint's answer holds no usable access token"
            return Outcome.BUSY, grants.failed(grants.renewed(grant, tokens), why, soon_ms, answered=True)
        case Refused(Refusal.GRANT, message) if grant.seed.kind == OAUTH:
            hint = "authorise the account anew, or put a new refresh token into its Secret"
            fault = Fault(Reason.NEEDS_AUTHORIZATION, f"{message}; {hint}")
            return Outcome.NEEDS_AUTHORIZATION, grants.faulted(grant, fault)
        case Refused(Refusal.GRANT, message) | IdentityUnusable(message):
            # The file, or the provider's rule, can be mended without a word to us.
            return Outcome.CREDENTIAL_INVALID, grants.faulted(grant, _invalid(message), soon_ms)
        case Refused(_, message):
            return Outcome.CREDENTIAL_INVALID, grants.faulted(grant, _invalid(message), recheck_at_ms(grant, now_ms))
        case Busy(message, asked_ms):
            at_ms = retry_at_ms(grant, now_ms, asked_ms)
            return Outcome.BUSY, grants.failed(grant, message, at_ms, answered=True)
        case Unsent(message):
            return Outcome.UNREACHABLE, grants.failed(grant, message, soon_ms, answered=True)
        case Lost(message):
            return Outcome.LOST, grants.failed(grant, message, soon_ms, answered=False)


def _invalid(message: str) -> Fault:
    return Fault(Reason.CREDENTIAL_INVALID, message)
