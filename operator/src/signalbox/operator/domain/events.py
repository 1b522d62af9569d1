"""Which changes of an object's status are told as Kubernetes Events: each once, with constant reasons. Pure."""

from collections.abc import Mapping, Set
from typing import Any, Final, NamedTuple

from signalbox.resources import conditions as c

NORMAL: Final = "Normal"
WARNING: Final = "Warning"
RECOVERED: Final = "Recovered"
KEY_EXHAUSTED: Final = "KeyExhausted"
# Where there is no Event for a reason, because somebody asked for it.
_ASKED_FOR: Final = frozenset({"Paused", "Draining", c.PENDING})

DRAIN_LIMIT_REACHED: Final = "DrainLimitReached"

REASONS: Final = {
    RECOVERED: "The object serves again, or its newest document is in force again.",
    KEY_EXHAUSTED: "A limit of the key is used up.",
    DRAIN_LIMIT_REACHED: "A deleted account went although it was not known to be idle.",
}


class Event(NamedTuple):
    """One thing to tell: Normal or Warning, a constant reason, a message for people."""

    type: str
    reason: str
    message: str


def events(kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Event]:
    """Return what there is to tell of a status that changed from `old` to `new`.

    One cause makes several conditions false, and not always at one moment: it is told when the first one shows it, and
    again when the last one no longer does.
    """
    before, after = _by_type(old), _by_type(new)
    known, left = _causes(before), _causes(after)
    told = [
        event for name in (c.ACCEPTED, c.READY, c.CREDENTIAL_VALID, c.AVAILABLE)
        if name in after and (event := _change(before.get(name, {}), after[name], known, left)) is not None
    ]
    if kind == "RelayKey":
        told += _exhaustion(before.get(c.READY, {}), after.get(c.READY, {}))
    return list({event.reason: event for event in reversed(told)}.values())[::-1]


def _change(
    old: Mapping[str, Any], new: Mapping[str, Any], known: Set[str], left: Set[str],
) -> Event | None:
    """Tell of one condition; `known` were the causes before, `left` are those that remain."""
    reason, message = str(new["reason"]), str(new.get("message", ""))
    if new["status"] == "False":
        return Event(WARNING, reason, message or reason) if reason not in known | _ASKED_FOR else None
    if new["status"] == "True" and old.get("status") == "False" and old.get("reason") not in left | _ASKED_FOR:
        return Event(NORMAL, RECOVERED, f"{new['type']} again, after {old.get('reason')}")
    return None


def _causes(conditions: Mapping[str, Mapping[str, Any]]) -> frozenset[str]:
    """Return why conditions are false."""
    return frozenset(str(one.get("reason")) for one in conditions.values() if one.get("status") == "False")


def _exhaustion(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Event]:
    was, is_ = old.get("reason") == c.LIMITED, new.get("reason") == c.LIMITED
    if is_ and not was:
        return [Event(WARNING, KEY_EXHAUSTED, str(new.get("message", "")))]
    if was and not is_ and new.get("status") == "True":
        return [Event(NORMAL, RECOVERED, "its limits leave room again")]
    return []


def _by_type(status: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {str(one["type"]): one for one in status.get("conditions") or () if "type" in one}
