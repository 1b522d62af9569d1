"""What a decision looked at and why it came out as it did: kept in the ledger, told by `explain`."""

from collections.abc import Collection, Mapping, Sequence

from signalbox.scheduler.domain.rank import Ranked, Ranking
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


def decision(
    strategy: str, ranking: Ranking, offered: Sequence[Ranked], reasons: Mapping[str, str], known: Collection[str],
) -> Decision:
    """Return what was looked at. `reasons`: why Redis refused accounts; `known`: those that the ranking knew of."""
    excluded = dict(ranking.excluded)
    for account_id, why in reasons.items():
        if account_id not in known:
            excluded[why] = excluded.get(why, 0) + 1
    return Decision(
        strategy=strategy, considered=ranking.considered, excluded=excluded,
        candidates=[
            Candidate(account_id=c.account.id, score=c.score, note=reasons.get(c.account.id, ""))
            for c in offered[:_NOTED]
        ],
    )
