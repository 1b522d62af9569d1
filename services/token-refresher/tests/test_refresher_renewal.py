"""Renewals as a machine without I/O, against a model provider that rotates and revokes families.

Hypothesis interleaves two refreshers on one store step by step, kills either after any step, loses answers on their way
there or back, changes seeds, takes accounts away and brings them back. What must hold is invariant 3 of the contract.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from signalbox.token_refresher.domain import grants, oauth
from signalbox.token_refresher.domain.credentials import credential, since_ms, standing, turned
from signalbox.token_refresher.domain.grants import Grant, Reason, Seed, Tokens, retired, seeded
from signalbox.token_refresher.domain.oauth import Busy, Issued, Lost, Refusal, Refused, Unsent
from signalbox.token_refresher.domain.ports import Conflict, Stored, StoreUnavailable
from signalbox.token_refresher.domain.renewal import (
    Demand,
    Exchange,
    IdentityUnusable,
    Machine,
    Outcome,
    Pause,
    Read,
    ReadIdentity,
    Renewal,
    Write,
    renew,
)
from signalbox.token_refresher.domain.schedule import Ahead, due_at_ms

ACME = "default/acme"
AHEAD = Ahead(300_000)
LIFE_MS = 3_600_000
BEGIN_MS = 1_795_219_200_000
TIMELY = Demand()


class Clock:
    def __init__(self) -> None:
        self.ms = BEGIN_MS

    def now_ms(self) -> int:
        return self.ms

    def monotonic_s(self) -> float:
        return self.ms / 1000


class Store:
    """Compare and swap over one grant, one step each; `away` makes it fail."""

    def __init__(self) -> None:
        self.there: Stored | None = None
        self.away = False
        self._revisions = itertools.count(1)

    def read(self) -> Stored | None:
        if self.away:
            raise StoreUnavailable("away")
        return self.there

    def write(self, grant: Grant, expected: str) -> Stored:
        if self.away:
            raise StoreUnavailable("away")
        if (self.there.revision if self.there else "") != expected:
            raise Conflict
        self.there = Stored(grant, str(next(self._revisions)))
        return self.there


@dataclass
class Family:
    """What one consent became at the provider: only `current` is good; using a spent token again kills it."""

    current: str
    spent: set[str] = field(default_factory=set)
    revoked: bool = False


class Provider:
    """Rotates at each refresh and revokes a family whose spent token comes again."""

    def __init__(self) -> None:
        self.families: list[Family] = []
        self.rotates = True
        self.tells = True          # the answer names the refresh token
        self._numbers = itertools.count(1)

    def consent(self) -> str:
        token = f"consent-{next(self._numbers)}"
        self.families.append(Family(token))
        return token

    def refresh(self, token: str, now_ms: int) -> Issued | Refused:
        family = next((f for f in self.families if token == f.current or token in f.spent), None)
        if family is None or family.revoked or token != family.current:
            if family is not None:
                family.revoked = True
            return Refused(Refusal.GRANT, "invalid_grant")
        number = next(self._numbers)
        if self.rotates:
            family.spent.add(token)
            family.current = f"refresh-{number}"
        said = family.current if self.rotates or self.tells else ""
        return Issued(Tokens(f"access-{number}", now_ms, now_ms + LIFE_MS, said))


class World(RuleBasedStateMachine):
    """Refreshers one after the other on one store, one provider, and everything that can go wrong between them."""

    @initialize()
    def begin(self) -> None:
        self.clock, self.store, self.provider = Clock(), Store(), Provider()
        self.machine: Machine | None = None
        self.result: Any = None
        self.superseded: set[str] = set()      # tokens whose successor was read by a refresher that lived to keep it
        self.read_last = ""                    # the token whose successor the running one has read and not kept yet
        self.tokens: list[str] = []            # consents, in order
        self.seeds = 0
        self.excuse = ""                       # why a grant may need a new authorisation
        self.seed(None)

    # ---------------------------------------------------------------- documents

    @rule(again=st.none() | st.integers(0, 5))
    def seed(self, again: int | None) -> None:
        """The document changes: with a new consent, or with one that was there before."""
        self.seeds += 1
        if again is None or not self.tokens:
            self.tokens.append(self.provider.consent())
            token, self.excuse = self.tokens[-1], ""
        else:
            token = self.tokens[again % len(self.tokens)]
            if self.store.there is not None and self.store.there.grant.seed.refresh_token != token:
                self.excuse = "an earlier consent came back"
        config = {"tokenURL": "https://auth.example/token", "clientID": "c", "baseURL": f"https://{self.seeds}"}
        seed = Seed(ACME, "oauth", {"refreshToken": token}, config, f"seed-{self.seeds}")
        self._change(lambda grant: seeded(grant, seed, self.clock.now_ms()))

    @rule()
    def the_account_goes_and_comes_back(self) -> None:
        assert self.store.there is not None
        seed = self.store.there.grant.seed
        self._change(lambda grant: retired(grant, self.clock.now_ms()))
        self._change(lambda grant: seeded(grant, seed, self.clock.now_ms()))

    def _change(self, step: Any) -> None:
        away, self.store.away = self.store.away, False
        there = self.store.there
        grant = step(there.grant if there else None)
        if grant is None:
            self.store.there = None
        elif there is None or grant != there.grant:
            self.store.write(grant, there.revision if there else "")
        self.store.away = away

    # ---------------------------------------------------------------- the world

    @rule(s=st.integers(1, 4000))
    def time_passes(self, s: int) -> None:
        self.clock.ms += s * 1000

    @rule(away=st.booleans())
    def the_store_comes_and_goes(self, away: bool) -> None:
        self.store.away = away

    @rule(rotates=st.booleans(), tells=st.booleans())
    def the_provider_changes_its_ways(self, rotates: bool, tells: bool) -> None:
        self.provider.rotates, self.provider.tells = rotates, tells

    @rule()
    def the_consent_is_withdrawn(self) -> None:
        self.provider.families[-1].revoked = True
        self.excuse = "withdrawn"

    # ---------------------------------------------------------------- refreshers

    @precondition(lambda self: self.machine is None)
    @rule(reject=st.booleans(), insist=st.booleans())
    def a_renewal_begins(self, reject: bool, insist: bool) -> None:
        version = self.store.there.grant.version if reject and self.store.there else ""
        self.machine, self.result = renew(ACME, Demand(version, insist), self.clock, AHEAD), None

    @precondition(lambda self: self.machine is not None)
    @rule(fate=st.sampled_from(["answered", "answered", "answered", "lost before", "lost after", "busy", "unsent"]))
    def a_step(self, fate: str) -> None:
        assert self.machine is not None
        try:
            step = (
                self.machine.throw(self.result) if isinstance(self.result, Exception)
                else self.machine.send(self.result)
            )
        except StopIteration as end:
            self._ended(end.value)
            return
        try:
            self.result = self._carry_out(step, fate)
        except (Conflict, StoreUnavailable) as e:
            self.result = e

    @precondition(lambda self: self.machine is not None)
    @rule()
    def a_crash(self) -> None:
        """The lease dies with its holder; an answer that it had read and not kept is as good as lost."""
        if self.read_last:
            self.excuse = "killed between an answer and its keeping"
        self.machine, self.read_last = None, ""

    def _carry_out(self, step: Any, fate: str) -> Any:
        match step:
            case Read():
                return self.store.read()
            case Write(grant, expected):
                stored = self.store.write(grant, expected)
                self._kept()
                return stored
            case Pause():
                return None
            case Exchange(request):
                return self._exchange(request.hidden[0], fate)
        raise AssertionError(step)

    def _exchange(self, token: str, fate: str) -> oauth.Answer:
        # The promise itself: what has a successor that somebody read does not leave again.
        assert token not in self.superseded
        if fate == "unsent":
            return Unsent("refused")
        if fate == "busy":
            return Busy("503")
        if fate == "lost before":
            return Lost("reset")
        answer = self.provider.refresh(token, self.clock.now_ms())
        if fate == "lost after":
            if self.provider.rotates:
                self.excuse = "an answer with a successor was lost"
            return Lost("reset")
        if isinstance(answer, Issued) and answer.tokens.refresh_token not in ("", token):
            self.read_last = token
        return answer

    def _kept(self) -> None:
        if self.read_last:
            self.superseded.add(self.read_last)
            self.read_last = ""

    def _ended(self, renewal: Renewal) -> None:
        self._kept()
        self.machine = None
        if renewal.outcome is Outcome.RENEWED:
            assert renewal.stored is not None
            assert renewal.stored.grant.access_token, "kept before anybody is told"

    # ---------------------------------------------------------------- what must hold

    @invariant()
    def the_store_tells_the_truth(self) -> None:
        """A grant is usable, or says why not; what is not lost for good is tried again by itself."""
        if not hasattr(self, "store") or self.store.there is None:
            return
        grant = self.store.there.grant
        now = standing(grant, self.clock.now_ms())
        if now.valid:
            assert credential(grant, self.clock.now_ms()) is not None
        else:
            assert now.message
            assert now.reason is Reason.NEEDS_AUTHORIZATION or due_at_ms(grant, AHEAD) is not None

    def teardown(self) -> None:
        """All faults end, and a refresher that starts now has a usable grant or a reason to have none."""
        if not hasattr(self, "store"):
            return
        if self.machine is not None:
            self.a_crash()
        self.store.away = False
        for _ in range(3):
            assert self.store.there is not None
            grant = self.store.there.grant
            self.clock.ms = max(self.clock.ms + 1, due_at_ms(grant, AHEAD) or 0)
            self.a_renewal_begins(reject=False, insist=False)
            while self.machine is not None:
                self.a_step("answered")
        assert self.store.there is not None
        now = standing(self.store.there.grant, self.clock.now_ms())
        if not now.valid:
            assert now.reason is Reason.NEEDS_AUTHORIZATION
            assert self.excuse, "nothing that happened can have cost the grant"


World.TestCase.settings = settings(max_examples=250, stateful_step_count=50, deadline=None)
TestWorld = pytest.mark.slow(World.TestCase)


# -------------------------------------------------------------------------------------------------- single courses


def oauth_grant(**fields: Any) -> Grant:
    config = {"tokenURL": "https://auth.example/token", "clientID": "c"}
    return seeded(None, Seed(ACME, "oauth", {"refreshToken": "first"}, config, "seed"), BEGIN_MS)


def federation_grant() -> Grant:
    config = {"tokenURL": "https://api.example/t", "organizationID": "o", "federationRuleID": "r",
              "identityTokenFile": "/tokens/one"}
    return seeded(None, Seed(ACME, "federation", {}, config, "seed"), BEGIN_MS)


class Course:
    """Drives one renewal by scripted answers; `sent` are the tokens or assertions that left."""

    def __init__(self, grant: Grant, answers: list[Any], identities: list[Any] = ()) -> None:  # type: ignore[assignment]
        self.clock, self.store = Clock(), Store()
        self.store.there = Stored(grant, "7")
        self._answers, self._identities = iter(answers), iter(identities)
        self.sent: list[str] = []
        self.paused = 0

    def run(self, demand: Demand = TIMELY) -> Renewal:
        machine, result = renew(ACME, demand, self.clock, AHEAD), None
        while True:
            try:
                step = machine.throw(result) if isinstance(result, Exception) else machine.send(result)
            except StopIteration as end:
                return end.value
            try:
                result = self._carry_out(step)
            except (Conflict, StoreUnavailable) as e:
                result = e

    def _carry_out(self, step: Any) -> Any:
        match step:
            case Read():
                return self.store.read()
            case Write(grant, expected):
                return self.store.write(grant, expected)
            case ReadIdentity():
                return next(self._identities)
            case Pause():
                self.paused += 1
                self.store.away = self.paused < 3
                return None
            case Exchange(request):
                self.sent.append(request.hidden[0])
                answer = next(self._answers)
                return answer(self) if callable(answer) else answer
        raise AssertionError(step)

    @property
    def kept(self) -> Grant:
        assert self.store.there is not None
        return self.store.there.grant


def issued(access: str = "access", refresh: str = "second") -> Issued:
    return Issued(Tokens(access, BEGIN_MS, BEGIN_MS + LIFE_MS, refresh))


GRANT_REFUSED = Refused(Refusal.GRANT, "invalid_grant")


def test_a_lost_answer_is_asked_for_once_more_with_the_same_token() -> None:
    course = Course(oauth_grant(), [Lost("reset"), issued()])
    assert course.run().outcome is Outcome.RENEWED
    assert course.sent == ["first", "first"]
    assert (course.kept.refresh_token, course.kept.in_doubt) == ("second", 0)


def test_lost_twice_it_backs_off_and_stays_in_doubt() -> None:
    course = Course(oauth_grant(), [Lost("reset"), Lost("reset")])
    assert course.run().outcome is Outcome.LOST
    assert course.sent == ["first", "first"]
    assert course.kept.in_doubt == 2
    assert course.kept.retry_at_ms > BEGIN_MS
    assert course.run().outcome is Outcome.NOT_DUE, "nothing more before its time"


def test_invalid_grant_after_a_lost_answer_needs_authorisation() -> None:
    course = Course(oauth_grant(), [Lost("reset"), GRANT_REFUSED])
    assert course.run().outcome is Outcome.NEEDS_AUTHORIZATION
    assert len(course.sent) == 2
    assert course.run(Demand(insist=True)).outcome is Outcome.NOT_DUE, "a dead token does not leave again"
    assert len(course.sent) == 2


def test_invalid_grant_because_a_peer_rotated_adopts_the_peers() -> None:
    def a_peer_rotates(course: Course) -> Refused:
        assert course.store.there is not None
        newer = grants.renewed(course.kept, Tokens("peers", BEGIN_MS, BEGIN_MS + LIFE_MS, "peers-next"))
        course.store.write(newer, course.store.there.revision)
        return GRANT_REFUSED

    course = Course(oauth_grant(), [a_peer_rotates])
    assert course.run().outcome is Outcome.NOT_DUE
    assert course.sent == ["first"]
    assert course.kept.access_token == "peers"


def test_nothing_is_sent_while_the_store_can_not_note_it() -> None:
    course = Course(oauth_grant(), [])
    read = course.store.read

    def then_full() -> Stored | None:
        found = read()
        course.store.away = True
        return found

    course.store.read = then_full  # type: ignore[method-assign]
    assert course.run().outcome is Outcome.STORE_AWAY
    assert course.sent == []


def test_a_successor_is_written_however_often_that_takes() -> None:
    def and_the_store_fails(course: Course) -> Issued:
        course.store.away = True
        return issued()

    course = Course(oauth_grant(), [and_the_store_fails])
    assert course.run().outcome is Outcome.RENEWED
    assert course.paused == 3
    assert course.kept.refresh_token == "second"


def test_a_seed_that_changes_under_way_takes_the_successor_over_or_makes_it_void() -> None:
    def reseed(token: str) -> Any:
        def change(course: Course) -> Issued:
            assert course.store.there is not None
            seed = Seed(ACME, "oauth", {"refreshToken": token}, {**course.kept.seed.config, "baseURL": "x"}, "seed-2")
            course.store.write(seeded(course.kept, seed, BEGIN_MS), course.store.there.revision)
            return issued()
        return change

    same = Course(oauth_grant(), [reseed("first")])
    assert same.run().outcome is Outcome.RENEWED
    assert (same.kept.seed.version, same.kept.refresh_token) == ("seed-2", "second")
    other = Course(oauth_grant(), [reseed("other")])
    assert other.run().outcome is Outcome.NOT_DUE
    assert (other.kept.refresh_token, other.kept.access_token) == ("other", "")
    back = seeded(other.kept, Seed(ACME, "oauth", {"refreshToken": "first"}, other.kept.seed.config, "3"), BEGIN_MS)
    assert standing(back, BEGIN_MS).reason is Reason.NEEDS_AUTHORIZATION, "the successor of `first` was read"


def test_an_answer_without_refresh_token_keeps_the_stored_one() -> None:
    course = Course(oauth_grant(), [issued(refresh="")])
    assert course.run().outcome is Outcome.RENEWED
    assert course.kept.refresh_token == "first"


@pytest.mark.parametrize(("answer", "outcome", "valid_meanwhile"), [
    (Busy("503"), Outcome.BUSY, True),
    (Unsent("refused"), Outcome.UNREACHABLE, True),
    (Refused(Refusal.CONFIGURATION, "invalid_client"), Outcome.CREDENTIAL_INVALID, True),
    (GRANT_REFUSED, Outcome.NEEDS_AUTHORIZATION, False),
])
def test_the_old_token_serves_on_while_it_lasts(answer: Any, outcome: Outcome, valid_meanwhile: bool) -> None:
    grant = grants.renewed(oauth_grant(), Tokens("old", BEGIN_MS, BEGIN_MS + LIFE_MS, "next"))
    course = Course(grant, [answer])
    course.clock.ms = BEGIN_MS + LIFE_MS - 1000
    assert course.run().outcome is outcome
    assert standing(course.kept, course.clock.ms).valid is valid_meanwhile
    after = standing(course.kept, BEGIN_MS + LIFE_MS)
    assert not after.valid
    expected = {Outcome.CREDENTIAL_INVALID: "CredentialInvalid", Outcome.NEEDS_AUTHORIZATION: "NeedsAuthorization"}
    assert after.reason == expected.get(outcome, "RefreshFailing")


def test_retry_after_is_obeyed() -> None:
    course = Course(oauth_grant(), [Busy("429", 120_000)])
    course.run()
    assert course.kept.retry_at_ms >= BEGIN_MS + 120_000


def test_a_rejected_token_is_renewed_once_and_an_older_rejection_is_nothing() -> None:
    grant = grants.renewed(oauth_grant(), Tokens("old", BEGIN_MS, BEGIN_MS + LIFE_MS, "next"))
    course = Course(grant, [issued("new", "third")])
    assert course.run(Demand(grant.version)).outcome is Outcome.RENEWED
    assert course.run(Demand(grant.version)).outcome is Outcome.NOT_DUE
    assert course.sent == ["next"]


def test_a_rejection_is_kept_although_nothing_can_be_sent_now() -> None:
    grant = grants.renewed(oauth_grant(), Tokens("old", BEGIN_MS, BEGIN_MS + LIFE_MS, "next"))
    resting = grants.failed(grant, "503", BEGIN_MS + 60_000, answered=True)
    course = Course(resting, [])
    assert course.run(Demand(resting.version)).outcome is Outcome.NOT_DUE
    assert not standing(course.kept, BEGIN_MS).valid


def test_an_identity_token_is_read_anew_each_time() -> None:
    course = Course(federation_grant(), [GRANT_REFUSED, issued(refresh="")], ["expired", "fresh", "fresh"])
    assert course.run().outcome is Outcome.RENEWED
    assert course.sent == ["expired", "fresh"]


def test_the_same_assertion_is_not_refused_twice() -> None:
    course = Course(federation_grant(), [GRANT_REFUSED], ["one", "one"])
    assert course.run().outcome is Outcome.CREDENTIAL_INVALID
    assert course.sent == ["one"]
    assert BEGIN_MS < course.kept.retry_at_ms <= BEGIN_MS + 60_000, "the file may be mended"


def test_an_identity_file_that_is_missing_is_said_and_tried_again() -> None:
    course = Course(federation_grant(), [issued(refresh="")], [IdentityUnusable("no such file"), "there"])
    assert course.run().outcome is Outcome.CREDENTIAL_INVALID
    assert standing(course.kept, BEGIN_MS).message == "no such file"
    course.clock.ms += 60_000
    assert course.run().outcome is Outcome.RENEWED


def test_since_when_a_grant_can_serve_or_cannot() -> None:
    """The moment moves when it can serve and could not, or the other way round; a token runs out without a word."""
    grant, now_ms = turned(None, oauth_grant(), BEGIN_MS), BEGIN_MS
    assert (standing(grant, now_ms).valid, since_ms(grant, now_ms)) == (False, BEGIN_MS)

    def then(ms: int, after: Grant) -> tuple[bool, int]:
        nonlocal grant, now_ms
        now_ms, grant = ms, turned(grant, after, ms)
        return standing(grant, ms).valid, since_ms(grant, ms)

    first_ms, out_ms = BEGIN_MS + 7, BEGIN_MS + 7 + LIFE_MS
    tokens = Tokens("access", first_ms, out_ms, "second")
    assert then(BEGIN_MS + 5, grants.failed(grant, "503", 0, answered=True)) == (False, BEGIN_MS)
    assert then(first_ms, grants.renewed(grant, tokens)) == (True, first_ms)
    assert then(first_ms + 9, grants.failed(grant, "503", 0, answered=True)) == (True, first_ms)
    assert (standing(grant, out_ms).valid, since_ms(grant, out_ms + 50)) == (False, out_ms)
    assert then(out_ms + 99, grants.failed(grant, "503", 0, answered=True)) == (False, out_ms)
    fault = grants.Fault(Reason.NEEDS_AUTHORIZATION, "revoked")
    assert then(out_ms + 200, grants.faulted(grant, fault)) == (False, out_ms)
    assert then(out_ms + 300, grants.renewed(grant, Tokens("new", out_ms + 300, out_ms + 900, "third"))) == (
        True, out_ms + 300,
    )
    assert then(out_ms + 400, grants.faulted(grant, fault)) == (False, out_ms + 400)
    assert since_ms(grant, out_ms + 950) == out_ms + 400, "it could not serve when its token ran out"


def test_a_renewal_keeps_the_moment() -> None:
    course = Course(oauth_grant(), [issued()])
    stored = course.run().stored
    assert stored is not None
    assert stored.grant.turned_at_ms == course.clock.now_ms() >= BEGIN_MS
