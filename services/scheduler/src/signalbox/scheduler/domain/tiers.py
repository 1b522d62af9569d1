"""The accounts of one priority that serve a model, kept so that finding some that can costs the same however many.

Accounts that cannot serve are set aside when a request comes across them, and come back when their time is over or an
event says so (`release`). Small tiers set nothing aside: looking at all of them is cheap, and exact.
"""

import heapq
from collections import Counter
from collections.abc import Iterator

from signalbox.scheduler.domain.policies import AccountPolicy

SHORTLIST = 16
"""How many accounts a request looks at in one tier."""
FULL = "full"


class Tier:
    """`accounts` are all of it. `set_aside` is shared by all tiers: the ids that any of them has set aside."""

    def __init__(self, priority: int, accounts: tuple[AccountPolicy, ...], set_aside: set[str]) -> None:
        self.priority = priority
        self.accounts = accounts
        self.is_small = len(accounts) <= SHORTLIST
        self.excluded: Counter[str] = Counter()
        """How many are set aside, by reason."""
        self._set_aside_anywhere = set_aside
        self._at_hand = list(accounts)
        self._place = {a.id: i for i, a in enumerate(accounts)} if not self.is_small else {}
        self._aside: dict[str, tuple[AccountPolicy, str, int]] = {}
        self._full: dict[str, AccountPolicy] = {}
        self._rests: list[tuple[int, str]] = []
        self._benches: list[tuple[int, str]] = []

    def from_place(self, seed: int, now_ms: int) -> Iterator[AccountPolicy]:
        """Yield those at hand, each once, from where `seed` points; the last one yielded may be set aside meanwhile."""
        self._wake(now_ms)
        at_hand = self._at_hand
        at = start = seed % len(at_hand) if at_hand else 0
        while at < len(at_hand):
            account = at_hand[at]
            yield account
            if at < len(at_hand) and at_hand[at] is account:
                at += 1
        at, end = 0, start
        while at < end:
            account = at_hand[at]
            yield account
            if at < len(at_hand) and at_hand[at] is account:
                at += 1
            elif len(at_hand) >= end:
                at += 1  # what took its place was yielded before
            else:
                end = len(at_hand)

    def believed_full(self, most: int) -> list[AccountPolicy]:
        """Return some of those that were full when they were last heard of, the longest ago first."""
        return [a for a, _ in zip(self._full.values(), range(most), strict=False)]

    def put_aside(self, account: AccountPolicy, reason: str, until_ms: int) -> None:
        """Set an account aside: until a time (Unix ms) or, where that is 0, until it is released."""
        place = self._place.pop(account.id, None)
        if place is None:
            return
        last = self._at_hand.pop()
        if last is not account:
            self._at_hand[place] = last
            self._place[last.id] = place
        self._aside[account.id] = account, reason, until_ms
        self._set_aside_anywhere.add(account.id)
        self.excluded[reason] += 1
        if reason == FULL:
            self._full[account.id] = account
        if until_ms:
            heapq.heappush(self._benches if reason == "benched" else self._rests, (until_ms, account.id))

    def release(self, account_id: str) -> None:
        """Have an account looked at again."""
        found = self._aside.pop(account_id, None)
        if found is None:
            return
        account, reason, _ = found
        self.excluded[reason] -= 1
        if not self.excluded[reason]:
            del self.excluded[reason]
        self._full.pop(account_id, None)
        self._place[account_id] = len(self._at_hand)
        self._at_hand.append(account)

    def soonest_ms(self) -> int:
        """Return when the first rest of those set aside ends, 0 for none; benches end when they end."""
        while self._rests and not self._is_valid(*self._rests[0]):
            heapq.heappop(self._rests)
        return self._rests[0][0] if self._rests else 0

    def _wake(self, now_ms: int) -> None:
        for heap in (self._rests, self._benches):
            while heap and heap[0][0] <= now_ms:
                until_ms, account_id = heapq.heappop(heap)
                if self._is_valid(until_ms, account_id):
                    self.release(account_id)

    def _is_valid(self, until_ms: int, account_id: str) -> bool:
        found = self._aside.get(account_id)
        return found is not None and found[2] == until_ms
