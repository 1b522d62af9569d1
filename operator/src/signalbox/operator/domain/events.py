"""Which changes of an object's status are told as Kubernetes Events: each once, with constant reasons. Pure."""

from collections.abc import Mapping
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
    """Return what there is to tell of a status that changed from `old` to `new`."""
    before, after = _by_type(old), _by_type(new)
    told = [
        event for name in (c.ACCEPTED, c.READY, c.CREDENTIAL_VALID, c.AVAILABLE)
        if name in after and (event := _change(before.get(name, {}), after[name])) is not None
    ]
    if kind == "RelayKey":
        told += _exhaustion(before.get(c.READY, {}), after.get(c.READY, {}))
    return list({event.reason: event for event in reversed(told)}.values())[::-1]


def _change(old: Mapping[str, Any], new: Mapping[str, Any]) -> Event | None:
    reason, message = str(new["reason"]), str(new.get("message", ""))
    if new["status"] == "False":
        changed = old.get("status") != "False" or old.get("reason") != reason
        return Event(WARNING, reason, message or reason) if changed and reason not in _ASKED_FOR else None
    if new["status"] == "True" and old.get("status") == "False" and old.get("reason") not in _ASKED_FOR:
        return Event(NORMAL, RECOVERED, f"{new['type']} again, after {old.get('reason')}")
    return None


def _exhaustion(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Event]:
    was, is_ = old.get("reason") == c.LIMITED, new.get("reason") == c.LIMITED
    if is_ and not was:
        return [Event(WARNING, KEY_EXHAUSTED, str(new.get("message", "")))]
    if was and not is_ and new.get("status") == "True":
        return [Event(NORMAL, RECOVERED, "its limits leave room again")]
    return []


def _by_type(status: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {str(one["type"]): one for one in status.get("conditions") or () if "type" in one}
