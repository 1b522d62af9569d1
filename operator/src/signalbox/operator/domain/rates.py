"""When a status is written: what is stated at once, what is counted once a minute and only if it moved. Pure."""

import hashlib
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, NamedTuple, Self

from signalbox.resources.values import parse_time

# Several statements that change within a moment travel together.
FACTS_EVERY_S: Final = 1.0
_MOVED_PERMILLE: Final = 10
_MOVED_S: Final = 60.0
_COUNTED: Final = frozenset({"inFlight", "lastUsedAt", "limits"})

Status = Mapping[str, Any]


class Written(NamedTuple):
    """A status that we wrote: when (monotonic seconds), and its digest, for ten thousand are kept."""

    at_s: float
    digest: bytes

    @classmethod
    def of(cls, status: Status, at_s: float) -> Self:
        """Note that a status was written."""
        return cls(at_s, _digest(status))


def _digest(status: Status) -> bytes:
    return hashlib.sha256(json.dumps(status, sort_keys=True).encode()).digest()


def due_in_s(old: Status, new: Status, last: Written | None, now_s: float, *, every_s: float) -> float | None:
    """Return in how many seconds `new` should be written, None where it need not.

    `old` is what the API server has, `last` what we wrote last. `every_s` is how often numbers are written at most, and
    the same again where the API server did not keep it (another writer, an older schema).
    """
    old = _ours(old, new)
    if old == new:
        return None
    since_s = now_s - last.at_s if last else float("inf")
    if last is not None and last.digest == _digest(new):
        return max(0.0, every_s - since_s)
    if _stated(old) != _stated(new):
        return max(0.0, FACTS_EVERY_S - since_s)
    if _moved(old, new):
        return max(0.0, every_s - since_s)
    return None


def _ours(old: Status, new: Status) -> Status:
    """Return what the API server has without conditions that others keep beside ours, in our order."""
    present = {one.get("type"): one for one in old.get("conditions") or ()}
    kept = [present[one["type"]] for one in new.get("conditions") or () if one["type"] in present]
    return {**old, "conditions": kept}


def _stated(status: Status) -> dict[str, Any]:
    """Return what is no number: everything but the counted parts, of which only the names and the bounds count."""
    out = {name: value for name, value in status.items() if name not in _COUNTED}
    out["limits"] = {_name(limit): _bounds(limit) for limit in status.get("limits") or ()}
    return out


def _name(limit: Status) -> str:
    return str(limit.get("name") or limit.get("window"))


def _bounds(limit: Status) -> list[Any]:
    return [(limit.get(unit) or {}).get("limit") for unit in ("requests", "tokens", "costUSD")]


def _moved(old: Status, new: Status) -> bool:
    before = {_name(limit): limit for limit in old.get("limits") or ()}
    return (
        old.get("inFlight", 0) != new.get("inFlight", 0)
        or _apart(old.get("lastUsedAt"), new.get("lastUsedAt"))
        or any(_limit_moved(before.get(_name(limit), {}), limit) for limit in new.get("limits") or ())
    )


def _limit_moved(old: Status, new: Status) -> bool:
    if abs(new.get("utilizationPermille", 0) - old.get("utilizationPermille", 0)) >= _MOVED_PERMILLE:
        return True
    if _apart(old.get("resetsAt"), new.get("resetsAt")):
        return True
    return any(_amount_moved(old.get(unit) or {}, new.get(unit) or {}) for unit in ("requests", "tokens", "costUSD"))


def _amount_moved(old: Status, new: Status) -> bool:
    limit = Decimal(str(new.get("limit", 0)))
    moved = max(
        abs(Decimal(str(new.get(part, 0))) - Decimal(str(old.get(part, 0)))) for part in ("used", "reserved")
    )
    return moved > 0 and moved * 100 >= limit


def _apart(old: str | None, new: str | None) -> bool:
    """Whether two moments lie so far apart that it is worth a write."""
    if old is None or new is None:
        return old != new
    return abs((parse_time(new) - parse_time(old)).total_seconds()) >= _MOVED_S
