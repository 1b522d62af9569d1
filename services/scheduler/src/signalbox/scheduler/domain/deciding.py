"""One decision as a small machine: checks and ranking give an operation for Redis, its answer a response or more.

Sans-I/O: the driver runs `operation` in a batch, hands the answer to `receive`, and reads `response` once it is there.
Who may is keycheck.py's business, which account rank.py's. Here nothing waits; what may is an Admission (admission.py).
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Self

from signalbox.scheduler.domain import denials, offering, patience, refusing
from signalbox.scheduler.domain.decisions import REPEATED, candidates, excluded, serialised, why_chosen
from signalbox.scheduler.domain.granting import answer_with_grant
from signalbox.scheduler.domain.keycheck import check_request
from signalbox.scheduler.domain.limits import limit_states, lines_of_limits
from signalbox.scheduler.domain.operations import (
    Head,
    Retake,
    Settle,
    Take,
    lease_id,
    read_reports,
    read_token,
)
from signalbox.scheduler.domain.patience import Patience, Wait
from signalbox.scheduler.domain.policies import KeyLimit, KeyPolicy
from signalbox.scheduler.domain.rank import ROUND_ROBIN, Ranked, Ranking, Wish, rank
from signalbox.scheduler.domain.snapshot import NOWHERE, PoolIndex
from signalbox.scheduler.domain.view import View
from signalbox.v1.scheduler_pb2 import AdmitRequest, AdmitResponse, Denial, RetryRequest

_MOST_ROUNDS = 12
_MOST_OFFERS = 12
_MOST_LOST_RACES = 2
_FIRST_OFFER = 3
_LARGEST_OFFER = 64
_EFFECTS = {"rest": "limited", "cool": "cooling", "cool_account": "cooling", "bench": "benched"}
_NOBODY: Final[Mapping[str, str]] = MappingProxyType({})

Respond = Callable[..., AdmitResponse]


class Deciding:
    """One attempt of a request on its way to a grant or a denial."""

    # What most requests leave as it is lies on the class: fewer things to set up for each.
    token = b""
    operation: Take | None = None
    response: AdmitResponse | None = None
    wait: Wait | None = None
    stale = False
    """The snapshot is behind what Redis holds; it must be refreshed before `replan`."""
    remember_first_use_ms = 0
    respond: Respond = AdmitResponse
    """Makes the response, in the answer that it goes into: messages are costly to copy."""
    _tried: tuple[str, ...] = ()
    _again_with = ""
    _failed: Settle | None = None
    _key: KeyPolicy | None = None
    _reach = NOWHERE
    _ranking = Ranking()
    _last_denial: Denial | None = None
    _session = ""
    _hint: str | None = None
    _left_out: Mapping[str, str] = _NOBODY
    _is_settled = False
    _pin = ""
    _pin_reason = ""
    _offers = 0
    _rounds = 0
    _stale_rounds = 0
    _limits: tuple[KeyLimit, ...] = ()
    _offered: Sequence[Ranked] = ()
    _foreseen: Ranked | None = None

    def __init__(
        self, view: View, request: AdmitRequest, patience_: Patience, now_ms: int, attempt: int,
    ) -> None:
        self.view = view
        self.request = request
        self.id = lease_id(request.request_id, attempt)
        """The name of the lease that it is after."""
        self._attempt = attempt
        self.seq = request.seq
        self.blob = request.SerializeToString()
        self._model = request.model
        self._reasons: dict[str, str] = {}
        """Why accounts cannot serve this request, as Redis said in this decision."""
        self._patience = patience_
        self._now_ms = now_ms

    @classmethod
    def first(cls, view: View, request: AdmitRequest, now_ms: int, respond: Respond = AdmitResponse) -> Self:
        """Begin a request's first attempt."""
        begun = cls(view, request, Patience(request.deadline_ms, 0), now_ms, 1)
        begun.respond = respond
        begun.replan(now_ms)
        return begun

    @classmethod
    def following(
        cls, view: View, asked: RetryRequest, failed: Settle, now_ms: int, respond: Respond = AdmitResponse,
    ) -> Self:
        """Begin the attempt after the one that ended as `failed`. Raises ValueError for a token that is none."""
        token = asked.failed.lease_token
        head, blob = read_token(token)
        begun = cls(
            view, AdmitRequest.FromString(blob), Patience(asked.deadline_ms, asked.waited_ms), now_ms, head.attempt + 1,
        )
        begun.seq, begun.respond = asked.seq, respond
        begun.token = token
        begun._failed = failed
        kind, reason, until_ms, *_ = failed.effect
        if kind in _EFFECTS:
            begun._reasons[head.account_id] = _EFFECTS[kind]
            begun._patience.found_out(_EFFECTS[kind], until_ms)
        if patience.heals_soon(_EFFECTS.get(kind, ""), reason):
            begun._patience.expects(head.account_id, until_ms)
        if asked.same_account:
            begun._tried, begun._again_with = head.tried, head.account_id
        else:
            begun._tried = (*head.tried, head.account_id)
        begun.replan(now_ms)
        return begun

    # ------------------------------------------------------------------------------------------------ planning

    def replan(self, now_ms: int) -> None:
        """Check and rank anew; leaves an operation or a response."""
        self._now_ms, self.stale, self.operation, self.wait, self._last_denial = now_ms, False, None, None, None
        self._rounds += 1
        if self._rounds > _MOST_ROUNDS:
            self._deny(denials.unavailable("The documents change faster than they can be read"))
            return
        self._key, self._reach, denial = check_request(self.view, self.request, self._attempt, now_ms)
        if denial is not None:
            self._refuse(denial)
            return
        self._rank()
        if not self._ranking.candidates and self._tried and not self._patience.revisit:
            self._look_back(now_ms)
            self._rank()
        if not self._ranking.candidates:
            self._no_account()
            return
        self._offer(self._ranking.candidates)

    def _rank(self) -> None:
        self._session = self._session_name()
        if self._hint is None:
            self._hint = self.view.pins.get(self._session) if self._session else ""
        first, want, waits = self._hint, _FIRST_OFFER, self._patience
        if self._again_with and self._again_with not in self._reasons:
            first = self._again_with
        self._left_out = _NOBODY
        if self._reasons or self._tried:
            # The pinned account stays among the candidates: what keeps it out decides what becomes of the pin.
            left_out = {a: why for a, why in self._reasons.items() if a != self._hint}
            left_out.update((a, "tried") for a in self._tried if a not in waits.revisit)
            self._left_out = left_out
            want = min(_LARGEST_OFFER, _FIRST_OFFER * (1 + len(self._reasons)))
        elif self._hint and not waits.hurry:
            want = 1  # the pinned account almost always takes it; the others are ranked when it does not
        seed = zlib.crc32(self.request.request_id.encode())
        wish = Wish(self._model, seed, self._now_ms, first, self._left_out, want, waits.woken_by)
        self._ranking = rank(self._reach.indexes, self.view.live, self.view.turns, wish)

    def _look_back(self, now_ms: int) -> None:
        view = self.view
        self._patience.look_back(self._tried, view.snapshot.accounts, view.live, self.request.model, now_ms)

    def _session_name(self) -> str:
        assert self._key is not None
        if not self._reach.pins or not (session := self.request.session):
            return ""
        return f"{self._key.id}|{session.hex()}"

    def _offer(self, candidates: list[Ranked]) -> None:
        key, r, waits = self._key, self.request, self._patience
        assert key is not None
        offer = offering.offer(self._reach, key, self._model, r, candidates)
        worst, usual, sizes = offering.amounts(self.view, key, self._model, r, offer)
        names: list[str] = []
        versions: list[str] = []    # of all that it rests on, where comparing the registry's keeps losing races
        if self._stale_rounds >= _MOST_LOST_RACES:
            names, versions = offering.versions_of(key, offer.policies, candidates)
        pin_state = self._ranking.pin_state or "gone"
        if self._again_with and self._again_with != self._hint:
            pin_state = "elsewhere"
        self._limits, self._offered, self._foreseen = offer.limits, candidates, candidates[0]
        self._provisionally(1)
        self.operation = self._taking(last=False)(
            id=self.id, key=key.id, owner=key.owner, attempt=self._attempt, tried=self._tried,
            version=str(self.view.snapshot.version),
            names=names, versions=versions,
            life=key.lifetime_ms, most=key.concurrency, counts=int(offer.counts and self._attempt == 1),
            limits=offer.operands, usual=usual, worst=worst, sizes=sizes, cands=offer.cands, pools=offer.pools,
            session=self._session, pin_ttl=offer.pools[0][1], hint=self._hint or "", hint_state=pin_state,
            refuse=int(self._reach.keeps_pins_of(self._hint or "")), bound=int(r.state_bound),
            turn=waits.turn, hurry=int(waits.hurry or waits.over),
        )

    def _taking(self, *, last: bool) -> Callable[..., Take]:
        """Return what makes the operation: the first attempt's takes, a later one's settles the failed one before."""
        return Take if self._failed is None else partial(Retake, failed=self._failed, last=int(last))

    def _provisionally(self, change: int) -> None:
        """Count the first choice at once, so that a burst that is planned together spreads."""
        if self._foreseen is None:
            return
        account, live = self._foreseen.account, self.view.live
        if live.set_running(account.id, account.group, live.account(account.id).in_flight + change):
            self.view.snapshot.release(account.id)
        self._takes_turn(self._foreseen, change)

    def _takes_turn(self, chosen: Ranked, times: int) -> None:
        pool = self._reach.indexes[chosen.pool].pool
        if pool.strategy == ROUND_ROBIN:
            self.view.turns.took(pool.id, chosen.account, times)

    # ------------------------------------------------------------------------------------------------ answers

    def receive(self, answer: list[Any], now_ms: int) -> None:
        """Take Redis's answer to `operation`; leaves a response, another operation, or `stale`."""
        kind = answer[0]
        self._now_ms = now_ms
        self._is_settled = kind not in (b"closed", b"lost", b"error")
        if kind == b"grant":
            self._granted(answer)
            return
        self._provisionally(-1)
        self._foreseen = None
        if kind == b"again":
            self._granted_before(answer[1])
        elif kind == b"stale":
            self.stale = True
            self._stale_rounds += 1
        elif kind == b"pin":
            self._hint = answer[1].decode()
            self.replan(now_ms)
        elif kind == b"none":
            self._none_had_room(answer[1])
        elif kind == b"patience":
            self._pinned_is_full(answer[1].decode(), answer[2])
        elif kind == b"behind":
            self._stands_behind()
        elif kind == b"refused":
            self._pin_is_kept(answer[1].decode(), answer[2])
        else:
            self._denied(kind, answer)
        if self.response is not None:
            self.operation = None

    def _granted(self, answer: list[Any]) -> None:
        _, position, pin, token, first, running, reports, pin_reason, passed = answer
        key = self._key
        assert key is not None
        chosen = self._offered[position - 1]
        account = chosen.account
        pool = self._reach.indexes[chosen.pool].pool
        if position == 1:    # as was foreseen: its turn is counted already
            self.view.snapshot.release(account.id)
        else:
            self._provisionally(-1)
            self._takes_turn(chosen, 1)
            self._passed_over(passed)
        self._foreseen = None
        self.view.live.set_running(account.id, account.group, running)
        if first and self._failed is None:
            self.remember_first_use_ms = self._now_ms
        if self._session and pin in (b"new", b"moved"):
            self.view.pins.put(self._session, account.id)
        response = answer_with_grant(
            self.respond, account, pool, seq=self.seq, lease=self.id, token=token, attempt=self._attempt,
            send_model=chosen.sends, key_id=key.id, owner=key.owner, admitted_ms=self._now_ms,
        )
        if pin == b"moved":
            response.grant.repinned = True
        if waited_ms := self._patience.total_ms(self._now_ms):
            response.grant.waited_ms = waited_ms
        self._pin, self._pin_reason = pin.decode(), pin_reason.decode() or self._pin_reason
        why = why_chosen(self._ranking, self._offered, account.id, pin, self._again_with)
        self._finish(response, read_reports(reports), self._decision(pool.strategy, account.id, why))

    def _granted_before(self, token: bytes) -> None:
        """Answer a repeated call with the lease that the first one created."""
        head: Head = read_token(token)[0]
        account = self.view.snapshot.accounts.get(head.account_id)
        pool = self.view.snapshot.pools.get(head.pool_id)
        if account is None or pool is None:
            self._deny(denials.unavailable())
            return
        response = answer_with_grant(
            self.respond, account, pool, seq=self.seq, lease=self.id, token=token, attempt=head.attempt,
            send_model=head.model, key_id=head.key_id, owner=head.owner, admitted_ms=head.admitted_ms,
        )
        self._finish(response, (), self._decision(pool.strategy, account.id, REPEATED))

    def _denied(self, kind: bytes, answer: list[Any]) -> None:
        key = self._key
        if kind in (b"closed", b"lost", b"error", b"forgone") or key is None:
            self._deny(denials.unavailable())
            return
        self._deny(refusing.told_by_redis(answer, key, self._limits, self._now_ms), read_reports(answer[5]))

    def _none_had_room(self, passed: list[Any]) -> None:
        key = self._key
        if self._last_denial is not None or key is None:
            self._deny(self._last_denial or denials.key_invalid())
            return
        self._passed_over(passed)
        self._offers += 1
        if self._ranking.more and self._offers < _MOST_OFFERS:
            self.replan(self._now_ms)
        else:
            self._no_account()

    def _passed_over(self, passed: list[Any]) -> None:
        """Note why Redis passed over the first of those that were offered: reason and until when, one after another."""
        for candidate, reason, until_ms in zip(self._offered, passed[::2], passed[1::2], strict=False):
            self._reasons[candidate.account.id] = why = reason.decode()
            self._patience.found_out(why, until_ms)

    def _no_account(self) -> None:
        """Wait where an account frees up in time, refuse where none does."""
        denial = self._no_candidate()
        soonest_ms = self._soonest()
        if not patience.ANY_TIME.isdisjoint(self._ranking.excluded):
            self._patience.any_time = True
        if denial.error_code == "pool_limited" and not self._pin_refused():
            index = patience.queue_of(self._reach.indexes, self.request.model)
            if self._waits(index, soonest_ms, patience.ALL_FULL):
                return
        self._refuse(denial)

    def _waits(self, index: PoolIndex | None, wake_ms: int, why: str, account: str = "") -> bool:
        """Begin to wait in a pool's queue if something may come of it by `wake_ms`; return whether it does."""
        return False

    def _pinned_is_full(self, reason: str, until_ms: int) -> None:
        """Wait for the pinned account, or be served elsewhere with the pin left where it is."""
        self._pin_reason = reason
        self._patience.any_time = reason in patience.ANY_TIME
        if not self._waits(self._reach.index_of(self._hint or ""), until_ms, patience.PIN_FULL, self._hint or ""):
            self._patience.hurry = True
            self.replan(self._now_ms)

    def _stands_behind(self) -> None:
        """Wait with those that wait already; where that is not allowed, be refused as they will be."""
        index = patience.queue_of(self._reach.indexes, self.request.model)
        if not self._waits(index, self._now_ms + patience.BEHIND_MS, patience.BEHIND_OTHERS):
            self._patience.turn = 1
            self.replan(self._now_ms)

    def _pin_is_kept(self, reason: str, until_ms: int) -> None:
        """Refuse what may not move. Of an account that this request has tried, what became of it decides."""
        assert self._key is not None
        self._pin_reason = self._reasons.get(self._hint or "", reason)
        wait_ms = max(0, (until_ms or self._patience.soonest_ms or self._ranking.soonest_ms) - self._now_ms)
        self._pin = "refused"
        self._refuse(denials.pin_refused(self._key, wait_ms, heals=self._pin_reason in refusing.TRANSIENT))

    # ------------------------------------------------------------------------------------------------ responses

    def _no_candidate(self) -> Denial:
        """Return the denial for a request that no account takes."""
        assert self._key is not None
        return refusing.nobody_takes_it(
            self._key, self.request.model, {*self._ranking.excluded, *self._reasons.values()},
            max(0, self._soonest() - self._now_ms), serving=self._ranking.serving, pin_refused=self._pin_refused(),
        )

    def _soonest(self) -> int:
        """Return when the first of the accounts that are kept out may serve again, 0 for none."""
        return min(filter(None, (self._ranking.soonest_ms, self._patience.soonest_ms)), default=0)

    def _pin_refused(self) -> bool:
        pinned = self._ranking.pin_state not in ("", "gone", "elsewhere")
        return pinned and (self.request.state_bound or self._reach.keeps_pins_of(self._hint or ""))

    def _refuse(self, denial: Denial) -> None:
        """Deny without asking Redis, but for a failed attempt that is still to be settled."""
        if self._failed is None:
            self._deny(denial)
            return
        self._last_denial = denial
        self._ask_for_nothing(last=True)

    def _ask_for_nothing(self, *, last: bool) -> None:
        """Have the failed attempt settled before waiting, or (`last`) before being refused."""
        head = read_token(self.token)[0]
        self.operation = self._taking(last=last)(
            id=self.id, key=head.key_id, owner=head.owner, attempt=self._attempt, tried=self._tried,
            version=str(self.view.snapshot.version),
        )

    def give_up(self) -> None:
        """Refuse because nothing can be decided."""
        self.wait = None
        self._deny(denials.unavailable())

    def _deny(self, denial: Denial, reports: Sequence[Sequence[int]] = ()) -> None:
        indexes = self._reach.indexes
        strategy = indexes[0].pool.strategy if indexes else ""
        response = self.respond(seq=self.seq, denial=denial)
        self._finish(response, reports, self._decision(strategy, "", denial.error_code))

    def _finish(self, response: AdmitResponse, reports: Sequence[Sequence[int]], decided: bytes) -> None:
        if self.request.wants_limit_lines and response.HasField("grant"):
            response.limit_lines = lines_of_limits(self._limits, reports)
        else:
            response.limits.extend(limit_states(self._limits, reports))
        response.decision = decided
        self.operation, self.response = None, response

    def _decision(self, strategy: str, chosen: str, reason: str) -> bytes:
        ranking, reasons, waits = self._ranking, self._reasons, self._patience
        pinned = pin_reason = ""
        if self._pin in ("moved", "full", "refused"):
            pinned, pin_reason = self._hint or "", self._pin_reason or ranking.pin_state
        return serialised(
            strategy=strategy, considered=ranking.considered, excluded=excluded(ranking, reasons, self._left_out),
            candidates=candidates(self._offered, reasons, chosen), pin=self._pin, chosen=chosen, reason=reason,
            waited_ms=waits.waited_ms(self._now_ms) if waits.why else 0, waited_for=waits.why,
            pinned=pinned, pin_reason=pin_reason,
        )
