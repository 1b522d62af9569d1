"""The script: which behaviour the next request meets. Rules are matched in order; a rule's list is used up one a request.

It decides and counts; it reads no socket. The clock is given, so that flapping can be tested.
"""

import fnmatch
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from signalbox_simulator.behaviour import NOTHING, Behaviour, BehaviourError, as_json, parse

MARKED_BODIES = 10_000


@dataclass(frozen=True, slots=True)
class Subject:
    """What a rule can match on. `body` is None while it has not been read."""

    account: str | None
    path: str
    headers: dict[str, str]
    model: str | None = None
    stream: bool | None = None
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """All that is given must hold; globs for `account`, `path`, `model` and header values, a substring for `body`."""

    account: str | None = None
    path: str | None = None
    model: str | None = None
    stream: bool | None = None
    header: dict[str, str] = field(default_factory=dict)
    body: str | None = None

    @property
    def needs_body(self) -> bool:
        """Whether the rule can't be decided from the headers alone."""
        return self.model is not None or self.stream is not None or self.body is not None

    def holds(self, s: Subject) -> bool:
        """Tell whether the rule is for this request."""
        if self.stream is not None and s.stream is not self.stream:
            return False
        if self.body is not None and self.body.encode() not in (s.body or b""):
            return False
        pairs = [(self.account, s.account), (self.path, s.path), (self.model, s.model)]
        pairs += [(glob, s.headers.get(name.lower())) for name, glob in self.header.items()]
        return all(glob is None or fnmatch.fnmatchcase(value or "", glob) for glob, value in pairs)


@dataclass(slots=True)
class Flap:
    """Ill for a while, well for a while: by time (`ill_s`, `well_s`) or by requests (`ill`, `well`). Ill comes first."""

    ill: int = 0
    well: int = 0
    ill_s: float = 0.0
    well_s: float = 0.0
    seen: int = 0

    def is_ill(self, since_s: float) -> bool:
        """Tell whether the request that is asking now meets the illness; `since_s` counts from the rule's beginning."""
        if self.ill_s > 0:
            return since_s % (self.ill_s + self.well_s) < self.ill_s
        self.seen += 1
        return (self.seen - 1) % max(1, self.ill + self.well) < self.ill


@dataclass(slots=True)
class Rule:
    """A list of behaviours to use up, then perhaps one that stays."""

    id: int
    match: Match
    queue: deque[Behaviour]
    standing: Behaviour | None
    flap: Flap | None
    begun_s: float
    lasts_s: float | None
    used: int = 0

    def over(self, now_s: float) -> bool:
        """Tell whether the rule has nothing more to give."""
        if self.lasts_s is not None and now_s - self.begun_s >= self.lasts_s:
            return True
        return not self.queue and self.standing is None

    def as_json(self) -> dict[str, Any]:
        """Return what is left of the rule."""
        return {
            "id": self.id, "used": self.used, "behaviours": [as_json(b) for b in self.queue],
            "standing": None if self.standing is None else as_json(self.standing),
        }


class Script:
    """All rules. Lists are served before standing behaviours, the oldest list and the newest standing one first."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rules: list[Rule] = []
        self._next_id = 1
        self._marked: OrderedDict[bytes, int] = OrderedDict()
        self.default = NOTHING

    def add(self, document: dict[str, Any]) -> int:
        """Add a rule from JSON and return its id. Raises BehaviourError."""
        known = {"match", "account", "behaviours", "standing", "flap", "lasts_s"}
        if unknown := set(document) - known:
            raise BehaviourError(f"script.{unknown.pop()}: no such field")
        match = dict(document.get("match") or {})
        if "account" in document:
            match["account"] = document["account"]
        standing, flap = document.get("standing"), document.get("flap")
        behaviours = document.get("behaviours") or []
        try:
            rule = Rule(
                id=self._next_id, match=Match(**match),
                queue=deque(parse(b, f"behaviours[{i}]") for i, b in enumerate(behaviours)),
                standing=None if standing is None else parse(standing, "standing"),
                flap=None if flap is None else Flap(**flap), begun_s=self._clock(), lasts_s=document.get("lasts_s"),
            )
        except TypeError as e:
            raise BehaviourError(f"script: {e}") from e
        self._next_id += 1
        self._rules.append(rule)
        return rule.id

    def clear(self, account: str | None = None) -> None:
        """Forget all rules, or one account's."""
        self._rules = [r for r in self._rules if account is not None and r.match.account != account]

    def as_json(self) -> list[dict[str, Any]]:
        """Return the rules that are left."""
        now_s = self._clock()
        return [r.as_json() for r in self._rules if not r.over(now_s)]

    def take_early(self, subject: Subject) -> Behaviour | None:
        """Take the next behaviour if it answers before the body is read; otherwise leave everything as it was."""
        rule = self._find(subject, lambda r: not r.match.needs_body)
        if rule is None:
            return None
        behaviour = rule.queue[0] if rule.queue else rule.standing
        if behaviour is None or not behaviour.early:
            return None
        return self.take(subject)

    def take(self, subject: Subject) -> Behaviour:
        """Return the behaviour that this request meets, laid over the default one, and count it as used."""
        rule = self._find(subject, lambda _: True)
        if rule is None:
            return self.default
        now_s = self._clock()
        if rule.flap is not None and not rule.flap.is_ill(now_s - rule.begun_s):
            return self.default
        rule.used += 1
        behaviour = rule.queue.popleft() if rule.queue else rule.standing
        assert behaviour is not None
        if rule.over(now_s):
            self._rules.remove(rule)
        return behaviour.over(self.default)

    def mark(self, behaviour: Behaviour, digest: bytes) -> bool:
        """Tell whether a marker still applies to a body that may come again; its `times` says how often it does."""
        if behaviour.times is None:
            return True
        seen = self._marked.pop(digest, 0)
        self._marked[digest] = seen + 1
        if len(self._marked) > MARKED_BODIES:
            self._marked.popitem(last=False)
        return seen < behaviour.times

    def _find(self, subject: Subject, also: Callable[[Rule], bool]) -> Rule | None:
        if not self._rules:
            return None
        now_s = self._clock()
        self._rules = [r for r in self._rules if not r.over(now_s)]
        fitting = [r for r in self._rules if also(r) and r.match.holds(subject)]
        listed = next((r for r in fitting if r.queue), None)
        return listed or next(reversed(fitting), None)
