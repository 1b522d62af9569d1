"""What is known of the accounts right now: in flight, rests, benches, learned windows.

A view, refreshed by events and by what each call answers; Redis decides. Pure data with small questions.
"""

from dataclasses import dataclass, field

from signalbox.scheduler.domain.policies import AccountPolicy, model_class
from signalbox.v1.common_pb2 import Window


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
    """What the provider said about one limit group: windows by name, utilisation as a fraction."""

    windows: dict[str, Window] = field(default_factory=dict)

    def fullest(self, now_ms: int) -> float:
        """Return how used the fullest window that has not been reset since is, 0 (unused or unknown) and up."""
        most = 0.0
        for w in self.windows.values():
            if w.resets_at_ms and w.resets_at_ms <= now_ms:
                continue
            used = w.utilization
            if w.limit > 0 and w.remaining >= 0:
                used = max(used, 1.0 - w.remaining / w.limit)
            most = max(most, used)
        return most


class LiveState:
    """All accounts' numbers. Accounts that are not mentioned are idle and well."""

    def __init__(self) -> None:
        self.accounts: dict[str, AccountState] = {}
        self.groups: dict[str, GroupState] = {}
        self.rests: dict[str, Health] = {}
        """By `group` or `group|model class`."""
        self.benches: dict[str, Health] = {}

    def account(self, account_id: str) -> AccountState:
        """Return the account's numbers, to be updated in place."""
        state = self.accounts.get(account_id)
        if state is None:
            state = self.accounts[account_id] = AccountState()
        return state

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

    def kept_out_as(self, account: AccountPolicy, model: str, now_ms: int) -> Health | None:
        """Return what keeps the account from serving requests for `model` now; see `kept_out`."""
        return self.kept_out(account.id, account.group, model_class(account.sends(model) or model), now_ms)
