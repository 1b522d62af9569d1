"""What is broken when: a list of blows that depends on the seed and the length alone. Pure.

Blows come one after another, each over before the next begins, so that what follows one is its doing; some are two
things at once. While they last, accounts fall ill as well (`ailments`), one at a time, two never.
"""

import random
from dataclasses import dataclass
from typing import Any

FIRST_S = 3.0       # of load before anything breaks
QUIET_S = 6.0       # of load after the last blow, so that it is seen whether service is back
LONGEST_STOP_S = 5.0


@dataclass(frozen=True)
class Blow:
    """One thing that is broken `at_s` seconds after the load began, for `lasts_s` (0: a moment).

    `which` chooses among a room's processes, modulo their number; -1 stands for all of them.
    """

    at_s: float
    kind: str
    which: int = 0
    lasts_s: float = 0.0

    def __str__(self) -> str:
        of = "" if self.which < 0 else f" #{self.which}"
        lasting = f" for {self.lasts_s:.1f} s" if self.lasts_s else ""
        return f"{self.at_s:6.1f} s  {self.kind}{of}{lasting}"


@dataclass(frozen=True)
class Ailment:
    """One account that does what `behaviour` says, from `at_s` for `lasts_s` seconds."""

    at_s: float
    account: str
    name: str
    behaviour: dict[str, Any]
    lasts_s: float


# How often each kind comes up, out of the sum; and whether it lasts.
KINDS: dict[str, tuple[int, bool]] = {
    "kill gateway": (3, False), "kill scheduler": (3, False), "kill both schedulers": (1, False),
    "kill redis": (3, False), "kill usage": (2, False), "kill token-refresher": (2, False),
    "stop gateway": (2, True), "stop scheduler": (2, True), "stop both schedulers": (1, True),
    "stop redis": (2, True), "stop usage": (2, True), "stop token-refresher": (1, True),
    "flush redis": (3, False), "flush redis and kill scheduler": (1, False), "flush redis and kill gateway": (1, False),
    "kill redis and scheduler": (1, False),
    "cut connections to the provider": (2, False), "cut connections to redis": (2, False),
}
AILMENTS: dict[str, dict[str, Any]] = {
    "429": {"status": 429, "retry_after": 2}, "429 without a time": {"status": 429}, "500": {"status": 500},
    "529": {"status": 529}, "reset": {"drop": "reset"}, "silence": {"drop": "silence"},
    "no content": {"stall": {"at": "message_start"}}, "error events": {"error_event": {"at": "message_start"}},
    "cut streams": {"cut": {"how": "fin", "at": "half"}}, "stalls": {"stall": {"at": "half"}},
    "html": {"content_type": "text/html"},
}


def blows(seed: int, seconds: float) -> list[Blow]:
    """Return the blows of a run."""
    rng = random.Random(f"blows {seed}")
    names, weights = list(KINDS), [weight for weight, _ in KINDS.values()]
    made: list[Blow] = []
    at_s = FIRST_S
    while at_s < seconds - QUIET_S:
        (kind,) = rng.choices(names, weights)
        lasts_s = round(rng.uniform(0.5, LONGEST_STOP_S), 1) if KINDS[kind][1] else 0.0
        which = -1 if "both" in kind or "cut" in kind else rng.randrange(2)
        made.append(Blow(round(at_s, 1), kind, which, lasts_s))
        at_s += lasts_s + rng.uniform(4.0, 9.0)
    return made


def ailments(seed: int, seconds: float, accounts: str) -> list[Ailment]:
    """Return who falls ill when."""
    rng = random.Random(f"ailments {seed}")
    made: list[Ailment] = []
    at_s = rng.uniform(1.0, 3.0)
    while at_s < seconds - QUIET_S:
        name = rng.choice(list(AILMENTS))
        lasts_s = round(rng.uniform(2.0, 6.0), 1)
        made.append(Ailment(round(at_s, 1), rng.choice(accounts), name, AILMENTS[name], lasts_s))
        at_s += lasts_s + rng.uniform(0.5, 4.0)
    return made
