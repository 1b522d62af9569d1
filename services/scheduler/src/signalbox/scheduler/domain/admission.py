"""One admission as a small machine: checks and ranking give an operation for Redis, its answer a response or more.

Sans-I/O: the driver runs `operation` in a batch, hands the answer to `receive`, and reads `response` once it is there.
"""

import zlib
from collections.abc import Sequence
from typing import Any, Final

from signalbox.scheduler.domain import denials
from signalbox.scheduler.domain.keycheck import check_key
from signalbox.scheduler.domain.limits import limit_states
from signalbox.scheduler.domain.operations import NOTHING, Candidate, Head, Retake, Settle, Take, read_token
from signalbox.scheduler.domain.policies import (
    ACCOUNT,
    KEY,
    POOL,
    AccountPolicy,
    KeyLimit,
    KeyPolicy,
    PoolPolicy,
)
from signalbox.scheduler.domain.rank import Ranked, Ranking, Wish, rank
from signalbox.scheduler.domain.snapshot import PoolIndex
from signalbox.scheduler.domain.view import View
from signalbox.v1.scheduler_pb2 import AdmitRequest, AdmitResponse, Decision, Denial, Grant
from signalbox.v1.scheduler_pb2 import Candidate as CandidateNote

LEASE_TTL_MS: Final = 30_000
DERIVED_PIN_TTL_MS: Final = 300_000
COUNT_TOKENS: Final = "count_tokens"
_MOST_ROUNDS = 12
_MOST_LOST_RACES = 2
_FIRST_OFFER = 3
_LARGEST_OFFER = 64
_NOTED = 4
_EFFECTS = {"rest": "limited", "cool": "cooling", "bench": "benched"}
_TRANSIENT = ("limited", "cooling", "full", "capped", "probing")


def lease_id(request_id: str, attempt: int) -> str:
    """Name a lease so that repeating the call that created it finds it again."""
    return f"{request_id}.{attempt}"


class Admission:
    """One request on its way to a grant or a denial."""

    def __init__(self, view: View, request: AdmitRequest, seq: int, now_ms: int) -> None:
        self.view = view
        self.request = request
        self.seq = seq
        self.blob = request.SerializeToString()
        self.token = b""
        self.operation: Take | Retake | None = None
        self.response: AdmitResponse | None = None
        self.stale = False
        """The snapshot is behind what Redis holds; it must be refreshed before `replan`."""
        self.remember_first_use_ms = 0
        self._attempt = 1
        self._tried: tuple[str, ...] = ()
        self._again_with = ""
        self._failed: Settle | None = None
        self._key: KeyPolicy | None = None
        self._last_denial: Denial | None = None
        self._session = ""
        self._hint: str | None = None
        self._reasons: dict[str, str] = {}
        """Why accounts cannot serve this request, as Redis said in this decision."""
        self._soonest_ms = 0
        self._rounds = 0
        self._stale_rounds = 0
        self._limits: tuple[KeyLimit, ...] = ()
        self._ranking = Ranking()
        self._indexes: list[PoolIndex] = []
        self._offered: list[Ranked] = []
        self._now_ms = now_ms

    @classmethod
    def first(cls, view: View, request: AdmitRequest, now_ms: int) -> "Admission":
        """Begin a request's first attempt."""
        admission = cls(view, request, request.seq, now_ms)
        admission.replan(now_ms)
        return admission

    @classmethod
    def following(
        cls, view: View, seq: int, token: bytes, failed: Settle, *, same_account: bool, now_ms: int,
    ) -> "Admission":
        """Begin the attempt after `failed`, whose lease had `token`. Raises ValueError for what is no token."""
        head, blob = read_token(token)
        admission = cls(view, AdmitRequest.FromString(blob), seq, now_ms)
        admission.token = token
        admission._attempt = head.attempt + 1
        admission._failed = failed
        kind, _, until_ms, *_ = failed.effect
        if kind in _EFFECTS:
            admission._found_out(head.account_id, _EFFECTS[kind], until_ms)
        if same_account:
            admission._tried, admission._again_with = head.tried, head.account_id
        else:
            admission._tried = (*head.tried, head.account_id)
        admission.replan(now_ms)
        return admission

    # ------------------------------------------------------------------------------------------------ planning

    def replan(self, now_ms: int) -> None:
        """Check and rank anew; leaves an operation or a response."""
        self._now_ms, self.stale, self.operation, self._last_denial = now_ms, False, None, None
        self._rounds += 1
        if self._rounds > _MOST_ROUNDS:
            self._deny(denials.unavailable("The documents change faster than they can be read"))
            return
        denial = self._checked()
        if denial is not None:
            self._refuse(denial)
            return
        self._rank()
        if not self._ranking.candidates:
            self._refuse(self._no_candidate())
            return
        self._offer(self._ranking.candidates, last=not self._ranking.more)

    def _checked(self) -> Denial | None:
        r = self.request
        key, denial = check_key(self.view, r.key_hash, r.client, r.source_address, self._now_ms)
        self._key = key
        if key is None or denial is not None:
            return denial
        for model in (r.model, *r.models):
            if not key.permits(model):
                return denials.model_not_allowed(key, model)
        if key.reason == "PoolNotAllowed":
            return denials.pool_not_allowed(key)
        self._indexes = [i for p in key.pools if (i := self.view.snapshot.index(p)) is not None]
        if not any(i.members for i in self._indexes):
            return denials.pool_empty(key)
        most = max(i.pool.max_attempts for i in self._indexes)
        return denials.pool_unavailable(key) if self._attempt > most else None

    def _rank(self) -> None:
        self._session = self._session_name()
        if self._hint is None:
            self._hint = self.view.pins.get(self._session) if self._session else ""
        first = self._again_with if self._again_with not in self._reasons else ""
        # The pinned account stays among the candidates: what keeps it out decides what becomes of the pin.
        left_out = {a: why for a, why in self._reasons.items() if a != self._hint}
        left_out.update(dict.fromkeys(self._tried, "tried"))
        want = min(_LARGEST_OFFER, _FIRST_OFFER * (1 + len(self._reasons)))
        if self._hint and not self._reasons and not self._tried:
            want = 1  # the pinned account almost always takes it; the others are ranked when it does not
        seed = zlib.crc32(self.request.request_id.encode())
        wish = Wish(self.request.model, seed, self._now_ms, first or self._hint, left_out, want)
        self._ranking = rank(self._indexes, self.view.live, self.view.turns, wish)

    def _session_name(self) -> str:
        assert self._key is not None
        if not self.request.session or not any(i.pool.pin_ttl_ms for i in self._indexes):
            return ""
        return f"{self._key.id}|{self.request.session.hex()}"

    def _offer(self, candidates: list[Ranked], *, last: bool) -> None:
        key, r = self._key, self.request
        assert key is not None
        counts = r.route != COUNT_TOKENS
        self._limits, limits = key.limits_for(r.model) if counts else ((), ())
        worst, usual, sizes = self._amounts(key, candidates) if counts else (NOTHING, NOTHING, NOTHING)
        used = list(dict.fromkeys(c.pool for c in candidates))
        slots = {position: i + 1 for i, position in enumerate(used)}
        pools = [self._indexes[p].pool for p in used]
        versions: list[tuple[str, str]] = []
        if self._stale_rounds >= _MOST_LOST_RACES:
            versions = [(f"{KEY}/{key.id}", key.version), *((f"{POOL}/{p.id}", p.version) for p in pools)]
            versions += [(f"{ACCOUNT}/{c.account.id}", c.account.version) for c in candidates]
        pin_state = self._ranking.pin_state or "gone"
        if self._again_with and self._again_with != self._hint:
            pin_state = "elsewhere"
        fields: dict[str, Any] = {
            "id": lease_id(r.request_id, self._attempt), "key": key.id, "owner": key.owner,
            "attempt": self._attempt, "tried": self._tried,
            "version": str(self.view.snapshot.version),
            "names": [n for n, _ in versions], "versions": [v for _, v in versions],
            "life": key.lifetime_ms, "most": key.concurrency, "counts": int(counts and self._attempt == 1),
            "limits": limits, "usual": usual, "worst": worst, "sizes": sizes,
            "cands": [self._candidate(c, slots[c.pool], limits, counts=counts) for c in candidates],
            "pools": [(p.id, self._pin_ttl(p), int(p.refuses)) for p in pools],
            "session": self._session, "pin_ttl": self._pin_ttl(pools[0]),
            "hint": self._hint or "", "hint_state": pin_state,
            "refuse": int(self._pinned_pool_refuses()), "bound": int(r.state_bound),
        }
        self._offered = candidates
        self._provisionally(candidates[:1], 1)
        self._set_operation(fields, last=last)

    def _set_operation(self, fields: dict[str, Any], *, last: bool) -> None:
        if self._failed is None:
            self.operation = Take(**fields)
        else:
            self.operation = Retake(**fields, failed=self._failed, last=int(last))

    def _candidate(self, c: Ranked, pool: int, limits: Sequence[Any], *, counts: bool) -> Candidate:
        extra: tuple[Any, ...] = ()
        if counts and c.sends != self.request.model and self._key is not None and self._key.limits:
            extra = tuple(x for x in self._key.limits_for(c.sends)[1] if x not in limits)
        return c.account.candidate(pool, c.sends, extra, counts=counts)

    def _amounts(self, key: KeyPolicy, candidates: list[Ranked]) -> tuple[tuple[int, int], ...]:
        """Return the worst case, the usual case (tokens, cost) and the sizes for accounts' caps (input, output)."""
        r = self.request
        sizes = (r.input_bytes // 4, r.max_tokens) if any(c.account.caps for c in candidates) else NOTHING
        if not key.measures_amounts:
            return NOTHING, NOTHING, sizes
        worst = self.view.prices.worst_case(r.model, r.input_bytes, r.max_tokens)
        usual = self.view.estimates.usual(key.id, r.model, r.input_bytes, r.max_tokens, worst)
        return worst, usual, sizes

    def _pin_ttl(self, pool: PoolPolicy) -> int:
        return min(pool.pin_ttl_ms, DERIVED_PIN_TTL_MS) if self.request.session_derived else pool.pin_ttl_ms

    def _pinned_pool_refuses(self) -> bool:
        return bool(self._hint) and any(i.pool.refuses for i in self._indexes if self._hint in i.pool.members)

    def _provisionally(self, candidates: Sequence[Ranked], change: int) -> None:
        """Count the first choice at once, so that a burst that is planned together spreads."""
        for c in candidates:
            self.view.live.account(c.account.id).in_flight += change
            self.view.turns.took(self._indexes[c.pool].pool.id, c.account, change)

    # ------------------------------------------------------------------------------------------------ answers

    def receive(self, answer: list[Any], now_ms: int) -> None:
        """Take Redis's answer to `operation`; leaves a response, another operation, or `stale`."""
        kind = answer[0]
        self._now_ms = now_ms
        self._provisionally(self._offered[:1], -1)
        if kind == b"grant":
            self._granted(answer)
        elif kind == b"again":
            self._granted_before(answer[1])
        elif kind == b"stale":
            self.stale = True
            self._stale_rounds += 1
        elif kind == b"pin":
            self._hint = answer[1].decode()
            self.replan(now_ms)
        elif kind == b"none":
            self._none_had_room(answer[1:])
        else:
            self._denied(kind, answer)
        if self.response is not None:
            self.operation = None

    def _none_had_room(self, reasons: list[Any]) -> None:
        key = self._key
        if self._last_denial is not None or key is None:
            self._deny(self._last_denial or denials.key_invalid())
            return
        for candidate, reason, until in zip(self._offered, reasons[::2], reasons[1::2], strict=False):
            self._found_out(candidate.account.id, reason.decode(), until)
        if self._ranking.more:
            self.replan(self._now_ms)
        else:
            self._ranking.candidates = []
            self._deny(self._no_candidate())

    def _found_out(self, account_id: str, reason: str, until_ms: int) -> None:
        self._reasons[account_id] = reason
        if until_ms and (not self._soonest_ms or until_ms < self._soonest_ms):
            self._soonest_ms = until_ms

    def _granted(self, answer: list[Any]) -> None:
        _, position, pin, token, first, running, reports = answer
        chosen = self._offered[position - 1]
        account = chosen.account
        self.view.live.account(account.id).in_flight = running
        pool = self._indexes[chosen.pool].pool
        self.view.turns.took(pool.id, account)
        if first and self._failed is None:
            self.remember_first_use_ms = self._now_ms
        if self._session and pin in (b"new", b"moved"):
            self.view.pins.put(self._session, account.id)
        grant = self._grant(account, pool, token, attempt=self._attempt, send_model=chosen.sends)
        grant.repinned, grant.admitted_at_ms = pin == b"moved", self._now_ms
        why = self._why(account.id, pin)
        self._finish(grant, None, reports, self._decision(pool.strategy, pin.decode(), account.id, why))

    def _grant(
        self, account: AccountPolicy, pool: PoolPolicy, token: bytes, *, attempt: int, send_model: str,
    ) -> Grant:
        grant = Grant()
        grant.CopyFrom(account.grant_in(pool))
        grant.lease_ttl_ms = LEASE_TTL_MS
        grant.lease_id, grant.lease_token = lease_id(self.request.request_id, attempt), token
        grant.attempt, grant.attempts_left = attempt, max(0, pool.max_attempts - attempt)
        grant.send_model = send_model
        if self._key:
            grant.key_id, grant.owner = self._key.id, self._key.owner
        return grant

    def _granted_before(self, token: bytes) -> None:
        """Answer a repeated call with the lease that the first one created."""
        head: Head = read_token(token)[0]
        account = self.view.snapshot.accounts.get(head.account_id)
        pool = self.view.snapshot.pools.get(head.pool_id)
        if account is None or pool is None:
            self._deny(denials.unavailable())
            return
        grant = self._grant(account, pool, token, attempt=head.attempt, send_model=head.model)
        grant.key_id, grant.owner, grant.admitted_at_ms = head.key_id, head.owner, head.admitted_ms
        self._finish(grant, None, [], self._decision(pool.strategy, "", account.id, "repeated"))

    def _denied(self, kind: bytes, answer: list[Any]) -> None:
        key = self._key
        if kind in (b"closed", b"lost") or key is None:
            self._deny(denials.unavailable())
            return
        if kind == b"refused":
            # Of an account that this request has tried, what became of it decides.
            reason = self._reasons.get(self._hint or "", answer[1].decode())
            wait_ms = max(0, (answer[2] or self._soonest_ms or self._ranking.soonest_ms) - self._now_ms)
            self._deny(denials.pin_refused(key, wait_ms, heals=reason in _TRANSIENT), pin="refused")
            return
        _, what, which, at_ms, never, reports = answer
        wait_ms = max(0, at_ms - self._now_ms) if at_ms else 0
        if what == b"expired":
            self._deny(denials.key_expired(key))
        elif what == b"concurrency":
            self._deny(denials.key_limit_concurrency(key))
        else:
            dimension = int(what.removeprefix(b"limit_"))
            name = self._limits[which - 1].name
            self._deny(denials.key_limit(key, dimension, name, wait_ms, never_fits=bool(never)), reports)

    # ------------------------------------------------------------------------------------------------ responses

    def _no_candidate(self) -> Denial:
        """Return the denial for a request that no account takes."""
        key, ranking = self._key, self._ranking
        assert key is not None
        if not ranking.serving:
            return denials.no_account_for_model(key, self.request.model)
        reasons = {*ranking.excluded, *self._reasons.values()}
        soonest = min(filter(None, (ranking.soonest_ms, self._soonest_ms)), default=0)
        wait_ms = max(0, soonest - self._now_ms)
        transient = not reasons.isdisjoint(_TRANSIENT)
        if transient and self._pin_refused():
            return denials.pin_refused(key, wait_ms, heals=True)
        if transient:
            return denials.pool_limited(key, wait_ms)
        limits = [r for r in reasons if r.startswith("key_limit_")]
        if limits:
            return denials.key_limit(key, int(limits[0][-1]), self.request.model, wait_ms, never_fits=False)
        return denials.pool_unavailable(key)

    def _pin_refused(self) -> bool:
        pinned = self._ranking.pin_state not in ("", "gone", "elsewhere")
        return pinned and (self.request.state_bound or self._pinned_pool_refuses())

    def _refuse(self, denial: Denial) -> None:
        """Deny without asking Redis, but for a failed attempt that is still to be settled."""
        if self._failed is None:
            self._deny(denial)
            return
        head = read_token(self.token)[0]
        self._last_denial = denial
        self._offered = []
        self._set_operation(
            {
                "id": lease_id(self.request.request_id, self._attempt), "key": head.key_id, "owner": head.owner,
                "attempt": self._attempt, "tried": self._tried, "version": str(self.view.snapshot.version),
            },
            last=True,
        )

    def _deny(self, denial: Denial, reports: Sequence[Any] = (), pin: str = "") -> None:
        strategy = self._indexes[0].pool.strategy if self._indexes else ""
        self._finish(None, denial, reports, self._decision(strategy, pin, "", denial.error_code))

    def _finish(self, grant: Grant | None, denial: Denial | None, reports: Sequence[Any], decision: Decision) -> None:
        self.operation = None
        self.response = AdmitResponse(
            seq=self.seq, grant=grant, denial=denial, limits=limit_states(self._limits, reports),
            decision=decision.SerializeToString(),
        )

    def _why(self, account_id: str, pin: bytes) -> str:
        """Say why the chosen account came first."""
        if pin == b"hit":
            return "the conversation is pinned to it"
        if account_id == self._again_with:
            return "tried again in place"
        if self._ranking.considered == 1:
            return "no other account could serve"
        if account_id != self._offered[0].account.id:
            return "the first with room"
        return "the best of its pool and priority"

    def _decision(self, strategy: str, pin: str, chosen: str, reason: str) -> Decision:
        excluded = dict(self._ranking.excluded)
        for account_id, why in self._reasons.items():
            if account_id not in self._tried:
                excluded.setdefault(why, 1)
        return Decision(
            strategy=strategy, pin=pin, considered=self._ranking.considered, chosen=chosen, reason=reason,
            candidates=[
                CandidateNote(account_id=c.account.id, score=c.score, note=self._reasons.get(c.account.id, ""))
                for c in self._offered[:_NOTED]
            ],
            excluded=excluded,
        )
