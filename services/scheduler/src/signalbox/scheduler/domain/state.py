"""What is known of the accounts right now: in flight, rests, benches, learned windows.

A view, refreshed by events and by what each call answers; Redis decides. Pure data with small questions.
"""

from dataclasses import dataclass, field

from signalbox.scheduler.domain.headroom import NO_QUOTA, surplus
from signalbox.scheduler.domain.policies import AccountPolicy, model_class
from signalbox.v1.common_pb2 import Window

_LEARNING = 0.05
_HOLDS_MS = 200


@dataclass(slots=True)
class Health:
    """Why an account or limit group is kept out, and until when (Unix ms). `kind`: limited, cooling or benched."""

    kind: str
    reason: str
    until_ms: int
    failures: int


@dataclass(slots=True)
class AccountState:
    """One account's numbers."""

    in_flight: int = 0
    last_used_ms: int = 0


@dataclass(slots=True)
class GroupState:
    """What the provider said about one limit group: windows by name and model class, utilisation as a fraction."""

    windows: dict[str, Window] = field(default_factory=dict)
    in_flight: int = 0
    surpluses: dict[str, tuple[int, int, float]] = field(default_factory=dict)
    """Worked out lately, by model class: for how many in flight, until when it holds (Unix ms), the value."""

    def by_name(self) -> dict[str, Window]:
        """Return the quotas by the provider's name, of those for several classes of models the fullest."""
        found: dict[str, Window] = {}
        for window in self.windows.values():
            if window.name in NO_QUOTA:     # nothing of it is used or left: people would read "0 %"
                continue
            known = found.get(window.name)
            if known is None or window.utilization > known.utilization:
                found[window.name] = window
        return found


class LiveState:
    """All accounts' numbers. Accounts that are not mentioned are idle and well."""

    def __init__(self) -> None:
        self.accounts: dict[str, AccountState] = {}
        self.groups: dict[str, GroupState] = {}
        self.rests: dict[str, Health] = {}
        """By `group` or `group|model class`."""
        self.benches: dict[str, Health] = {}
        self.caps: dict[str, Health] = {}
        """Accounts whose own limits are used up. For people to see: what fits into them, Redis alone knows."""
        self.typical: dict[str, float] = {}
        """Tokens that a request lately took, by model class, in this scheduler."""

    def account(self, account_id: str) -> AccountState:
        """Return the account's numbers, to be updated in place."""
        state = self.accounts.get(account_id)
        if state is None:
            state = self.accounts[account_id] = AccountState()
        return state

    def set_running(self, account_id: str, group: str, number: int) -> bool:
        """Note how many requests an account has in flight; return whether there are fewer than before."""
        state = self.account(account_id)
        before, state.in_flight = state.in_flight, number
        if before != number:
            self.group(group).in_flight += number - before
        return number < before

    def learn_size(self, model_class: str, tokens: int) -> None:
        """Note what one request took of its account's token windows."""
        known = self.typical.get(model_class)
        self.typical[model_class] = tokens if known is None else known + (tokens - known) * _LEARNING

    def group(self, group: str) -> GroupState:
        """Return what the provider said about a limit group, to be updated in place."""
        state = self.groups.get(group)
        if state is None:
            state = self.groups[group] = GroupState()
        return state

    def kept_out(self, account_id: str, group: str, model_class: str, now_ms: int) -> Health | None:
        """Return what keeps the account from serving `model_class` now, the longest first; None where nothing does."""
        found: Health | None = None
        for record in (
            self.benches.get(account_id),
            self.rests.get(group),
            self.rests.get(f"{group}|{model_class}") if model_class else None,
        ):
            if record is not None and now_ms < record.until_ms and (found is None or record.until_ms > found.until_ms):
                found = record
        return found

    def surplus(self, group: str, model_class: str, now_ms: int) -> float:
        """Return how much quota a limit group has beyond what time demands; see headroom.py."""
        state = self.groups.get(group)
        if state is None or not state.windows:
            return 0.0
        known = state.surpluses.get(model_class)
        if known is not None and known[0] == state.in_flight and now_ms < known[1]:
            return known[2]
        typical = self.typical.get(model_class, 0.0)
        value = surplus(state.windows.values(), model_class, state.in_flight, typical, now_ms)
        state.surpluses[model_class] = state.in_flight, now_ms + _HOLDS_MS, value
        return value

    def until_ms(self, account: AccountPolicy, sends: str, now_ms: int) -> int:
        """Return until when an account is kept out of serving as `sends`, 0 where time alone will not change it."""
        out = self.kept_out(account.id, account.group, model_class(sends), now_ms)
        return out.until_ms if out is not None else 0

    def kept_out_as(self, account: AccountPolicy, model: str, now_ms: int) -> Health | None:
        """Return what keeps the account from serving requests for `model` now; see `kept_out`."""
        return self.kept_out(account.id, account.group, model_class(account.sends(model) or model), now_ms)
