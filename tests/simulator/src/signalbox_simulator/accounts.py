"""Accounts as the provider sees them: credentials, organisations, and limits that really count.

Limits belong to an organisation and a class of models, so two keys of one organisation share them. Token buckets refill
continuously; the clock is given. Behaviour that is not about limits is the script's.
"""

import hashlib
import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

MODEL_CLASSES = ("opus", "sonnet", "haiku", "fable", "mythos")
KINDS = ("requests", "input_tokens", "output_tokens")


class AccountError(ValueError):
    """An account's description is wrong."""


@dataclass(frozen=True, slots=True)
class Account:
    """One account: who it is, what opens it, what it may use per `per_s` seconds, what else its answers say."""

    name: str
    keys: tuple[str, ...] = ()
    organization: str = ""
    workspace: str = ""
    limits: dict[str, int] = field(default_factory=dict)
    per_s: float = 60.0
    unified: dict[str, str] = field(default_factory=dict)
    disabled: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the account as the control API takes it."""
        return {
            "name": self.name, "keys": list(self.keys), "organization": self.organization, "workspace": self.workspace,
            "limits": self.limits, "per_s": self.per_s, "unified": self.unified, "disabled": self.disabled,
        }


def parse_account(document: object) -> Account:
    """Build an account from JSON; `key` is short for a list of one. Raises AccountError."""
    if not isinstance(document, dict) or not isinstance(document.get("name"), str):
        raise AccountError("accounts: each needs a name")
    fields = dict(document)
    name = fields.pop("name")
    keys = [fields.pop("key")] if "key" in fields else []
    keys += fields.pop("keys", [])
    if unknown := set(fields) - {"organization", "workspace", "limits", "per_s", "unified", "disabled"}:
        raise AccountError(f"accounts.{name}.{unknown.pop()}: no such field")
    if unknown := set(fields.get("limits") or {}) - set(KINDS):
        raise AccountError(f"accounts.{name}.limits.{unknown.pop()}: one of {', '.join(KINDS)} is expected")
    fields["unified"] = {k: str(v) for k, v in (fields.get("unified") or {}).items()}
    if not fields.get("organization"):
        fields["organization"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"simulator:{name}"))
    return Account(name=name, keys=tuple(keys), **fields)


class Bucket:
    """A token bucket that may go into debt: what a reply will cost is only known when it ends."""

    def __init__(self, limit: int, per_s: float, now_s: float) -> None:
        self.limit = limit
        self._rate = limit / per_s
        self._level = float(limit)
        self._at_s = now_s

    def level(self, now_s: float) -> float:
        """Return what is left."""
        self._level = min(float(self.limit), self._level + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        return self._level

    def take(self, amount: float, now_s: float) -> None:
        """Use something up."""
        self._level = self.level(now_s) - amount

    def wait_s(self, amount: float, now_s: float) -> float:
        """Return the seconds until `amount` (or all that fits in, if that is less) is there."""
        return max(0.0, min(amount, self.limit) - self.level(now_s)) / self._rate

    def full_in_s(self, now_s: float) -> float:
        """Return the seconds until nothing is missing."""
        return self.wait_s(self.limit, now_s)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A limit that is used up: which one, and the whole seconds until it would do."""

    kind: str
    limit: int
    retry_after_s: int


class Accounts:
    """Who may call, and the buckets of their organisations."""

    def __init__(self, clock: Callable[[], float], wall_clock: Callable[[], float]) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._by_name: dict[str, Account] = {}
        self._by_key: dict[str, Account] = {}
        self._buckets: dict[tuple[str, str], dict[str, Bucket]] = {}
        self.open = False

    def put(self, account: Account) -> None:
        """Add an account or replace it; buckets begin anew when its limits changed."""
        old = self._by_name.get(account.name)
        self.remove(account.name)
        self._by_name[account.name] = account
        self._by_key.update(dict.fromkeys(account.keys, account))
        if old is None or (old.limits, old.per_s) != (account.limits, account.per_s):
            self._buckets = {k: v for k, v in self._buckets.items() if k[0] != account.organization}

    def remove(self, name: str) -> None:
        """Forget an account."""
        account = self._by_name.pop(name, None)
        for key in account.keys if account else ():
            self._by_key.pop(key, None)

    def clear(self) -> None:
        """Forget all accounts."""
        self._by_name.clear()
        self._by_key.clear()
        self._buckets.clear()

    def all(self) -> list[Account]:
        """Return all accounts."""
        return list(self._by_name.values())

    def named(self, name: str) -> Account | None:
        """Return an account by its name."""
        return self._by_name.get(name)

    def by_key(self, key: str) -> Account | None:
        """Return the account that a key opens; in open mode any key opens an account of its own."""
        account = self._by_key.get(key)
        if account is None and self.open and key:
            account = parse_account({"name": "open-" + hashlib.sha256(key.encode()).hexdigest()[:8], "key": key})
            self.put(account)
        return account

    def admit(self, account: Account, model: str, input_tokens: int) -> Refusal | None:
        """Take one request and its input from the buckets, or say which of them is used up."""
        now_s = self._clock()
        buckets = self._buckets_of(account, model)
        needs = {"requests": 1, "input_tokens": input_tokens, "output_tokens": 1}
        waits = {kind: bucket.wait_s(needs[kind], now_s) for kind, bucket in buckets.items()}
        if waits and max(waits.values()) > 0:
            kind = max(waits, key=lambda k: waits[k])
            return Refusal(kind, buckets[kind].limit, max(1, math.ceil(waits[kind])))
        for kind in ("requests", "input_tokens"):
            if kind in buckets:
                buckets[kind].take(needs[kind], now_s)
        return None

    def produced(self, account: Account, model: str, output_tokens: int) -> None:
        """Take a reply's output from the bucket, into debt if need be."""
        bucket = self._buckets_of(account, model).get("output_tokens")
        if bucket is not None:
            bucket.take(output_tokens, self._clock())

    def headers(self, account: Account, model: str | None) -> list[tuple[str, str]]:
        """Return the organisation's and the limits' headers of an answer."""
        headers = [("anthropic-organization-id", account.organization)]
        if account.workspace:
            headers.append(("anthropic-workspace-id", account.workspace))
        if model is not None:
            headers += self._limit_headers(self._buckets_of(account, model))
        return headers + [(f"anthropic-ratelimit-unified-{n}", self._moment(v)) for n, v in account.unified.items()]

    def _limit_headers(self, buckets: dict[str, Bucket]) -> list[tuple[str, str]]:
        shown = {kind.replace("_", "-"): bucket for kind, bucket in buckets.items()}
        now_s = self._clock()
        tokens = [b for kind, b in buckets.items() if kind != "requests"]
        if tokens:
            shown["tokens"] = min(tokens, key=lambda b: b.level(now_s) / b.limit)
        headers = []
        for name, bucket in shown.items():
            grain = 1000 if name != "requests" and bucket.limit >= 1000 else 1
            left = max(0, int(bucket.level(now_s)) // grain * grain)
            reset = datetime.fromtimestamp(self._wall_clock() + bucket.full_in_s(now_s), UTC)
            headers += [
                (f"anthropic-ratelimit-{name}-limit", str(bucket.limit)),
                (f"anthropic-ratelimit-{name}-remaining", str(left)),
                (f"anthropic-ratelimit-{name}-reset", reset.isoformat(timespec="seconds").replace("+00:00", "Z")),
            ]
        return headers

    def _moment(self, value: str) -> str:
        """Turn `+SECONDS` into a Unix time that far ahead; leave everything else alone."""
        return str(int(self._wall_clock() + float(value))) if value.startswith("+") else value

    def _buckets_of(self, account: Account, model: str) -> dict[str, Bucket]:
        if not account.limits:
            return {}
        key = (account.organization, model_class(model))
        if key not in self._buckets:
            now_s = self._clock()
            self._buckets[key] = {k: Bucket(n, account.per_s, now_s) for k, n in account.limits.items()}
        return self._buckets[key]


def model_class(model: str) -> str:
    """Return the class of models that shares limits with this one."""
    return next((c for c in MODEL_CLASSES if c in model), "other")
