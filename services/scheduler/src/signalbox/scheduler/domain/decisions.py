"""What a decision looked at and why it came out as it did: kept in the ledger, told by `explain`."""

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

from signalbox.scheduler.domain.rank import Ranked, Ranking
from signalbox.scheduler.domain.tiers import FULL
from signalbox.v1.scheduler_pb2 import Candidate, Decision

_NOTED = 4

HIT = "the conversation is pinned to it"
IN_PLACE = "tried again in place"
ALONE = "no other account could serve"
WITH_ROOM = "the first with room"
BEST = "the best of its pool and priority"
REPEATED = "repeated"


def why_chosen(ranking: Ranking, offered: Sequence[Ranked], account_id: str, pin: bytes, again_with: str) -> str:
    """Say why the chosen account came first."""
    if pin == b"hit":
        return HIT
    if account_id == again_with:
        return IN_PLACE
    if ranking.considered == 1:
        return ALONE
    if account_id != offered[0].account.id:
        return WITH_ROOM
    return BEST


def excluded(
    ranking: Ranking, reasons: Mapping[str, str], known: Collection[str],
) -> tuple[tuple[str, int], ...]:
    """Count the accounts that were left out, by reason. `reasons`: why Redis refused some; `known` to the ranking."""
    counts = ranking.excluded
    if reasons:
        counts = dict(counts)
        for account_id, why in reasons.items():
            if account_id not in known:
                counts[why] = counts.get(why, 0) + 1
    return tuple(counts.items())


def candidates(
    offered: Sequence[Ranked], reasons: Mapping[str, str], chosen: str,
) -> tuple[tuple[str, int, str], ...]:
    """Return the first of those that were offered: account, score, and why Redis refused it or it came last."""
    return tuple([
        (c.account.id, c.score, reasons.get(c.account.id) or (FULL if c.full and c.account.id != chosen else ""))
        for c in offered[:_NOTED]
    ])


@lru_cache(maxsize=1024)    # requests of pinned conversations are decided alike, one after another
def serialised(
    *, strategy: str, considered: int, excluded: tuple[tuple[str, int], ...],
    candidates: tuple[tuple[str, int, str], ...], pin: str, chosen: str, reason: str, waited_ms: int, waited_for: str,
    pinned: str, pin_reason: str,
) -> bytes:
    """Return a decision as it is kept; what is what says the message."""
    return Decision(
        strategy=strategy, considered=considered, excluded=dict(excluded),
        candidates=[Candidate(account_id=a, score=score, note=note) for a, score, note in candidates],
        pin=pin, chosen=chosen, reason=reason, waited_ms=waited_ms, waited_for=waited_for, pinned=pinned,
        pin_reason=pin_reason,
    ).SerializeToString()
