"""Statuses, their pace and their Events, by table: what stands in them, when they are written, what is told."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from signalbox.operator.domain.deletion import Step, step
from signalbox.operator.domain.events import events
from signalbox.operator.domain.rates import FACTS_EVERY_S, Written, due_in_s
from signalbox.operator.domain.statuses import Facts, status_of
from signalbox.operator.domain.world import FINALIZER, read
from signalbox.resources.conditions import Condition
from signalbox.resources.models.status import STATUSES
from signalbox.resources.testing import GOOD
from signalbox.v1 import common_pb2, scheduler_pb2, token_refresher_pb2

NOW = datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC)
READY = Condition("Ready", True, "Serves")
IN_FORCE = Condition("Accepted", True, "InForce")
VALID = token_refresher_pb2.GrantStatus(valid=True, reason="Valid")


def facts(ready: Condition = READY, old: dict[str, Any] | None = None, **more: Any) -> Facts:
    return Facts(generation=3, judged=(ready, IN_FORCE), old=old or {}, now=NOW, **more)


def conditions(status: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}


def live(**fields: Any) -> scheduler_pb2.AccountStatus:
    return scheduler_pb2.AccountStatus(**{"state": "Active", "available": True, **fields})


REFUSED = token_refresher_pb2.GrantStatus(valid=False, reason="NeedsAuthorization", message="refused")


@pytest.mark.parametrize(
    ("given", "ready", "valid", "available"),
    [
        (facts(), ("True", "Serves"), ("Unknown", "Pending"), ("Unknown", "Pending")),
        (facts(account=live(), grant=VALID), ("True", "Serves"), ("True", "Valid"), ("True", "Serves")),
        (
            facts(account=live(available=False, reason="Limited"), grant=VALID),
            ("True", "Serves"), ("True", "Valid"), ("False", "Limited"),
        ),
        (
            facts(account=live(), grant=REFUSED),
            ("True", "Serves"), ("False", "NeedsAuthorization"), ("False", "NeedsAuthorization"),
        ),
        (
            facts(account=live(state="Paused", state_reason="r", available=False, reason="Paused"), grant=VALID),
            ("True", "Paused"), ("True", "Valid"), ("False", "Paused"),
        ),
        (
            facts(Condition("Ready", False, "SecretNotFound", "m"), account=live()),
            ("False", "SecretNotFound"), ("False", "SecretNotFound"), ("False", "SecretNotFound"),
        ),
        (
            facts(account=live(), grant=VALID, refused="too long"),
            ("True", "Serves"), ("False", "CredentialInvalid"), ("False", "CredentialInvalid"),
        ),
    ],
)
def test_an_accounts_conditions(given: Facts, ready: tuple[str, str], valid: tuple[str, str], available: tuple[str, str]) -> None:
    found = conditions(status_of("ClaudeAccount", given))
    assert found == {"Ready": ready, "CredentialValid": valid, "Available": available, "Accepted": ("True", "InForce")}


def test_every_status_keeps_the_schema_that_it_is_written_under() -> None:
    account = live(
        limited_until_ms=1, in_flight=2, last_used_at_ms=5, reason="x" * 100,
        windows=[common_pb2.Window(name="5h", utilization=1.2345, resets_at_ms=10)],
    )
    amount = common_pb2.Amount(limit=10, used=3, reserved=1)
    key = scheduler_pb2.KeyStatus(state="Limited", reason="day", first_used_at_ms=1, expires_at_ms=2, limits=[
        common_pb2.LimitState(name="day", per="Day", models=["a*"], requests=amount, tokens=amount, cost_nano_usd=amount),
    ])
    pool = scheduler_pb2.PoolStatus(strategy="Headroom", total=3, ready=1, by_state={"Ready": 1, "NotReady": 1, "New": 1})
    long = Condition("Ready", False, "Invalid", "m" * 5000)
    for kind, given in (
        ("ClaudeAccount", facts(account=account, grant=VALID)), ("AccountPool", facts(pool=pool)),
        ("RelayKey", facts(key=key)), ("RelayKey", facts(long)),
    ):
        status = status_of(kind, given)
        STATUSES[kind].model_validate_json(json.dumps(status))


def test_a_limited_key_is_ready_and_an_expired_one_is_not() -> None:
    for state, expected in (("Limited", ("True", "Limited")), ("Expired", ("False", "Expired")), ("Active", ("True", "Serves"))):
        status = status_of("RelayKey", facts(key=scheduler_pb2.KeyStatus(state=state, reason="day")))
        assert conditions(status)["Ready"] == expected


def test_a_transition_time_moves_with_the_status_alone() -> None:
    old = status_of("RelayKey", facts())
    for condition in old["conditions"]:
        condition["lastTransitionTime"] = "2026-01-01T00:00:00Z"
    same = status_of("RelayKey", facts(Condition("Ready", True, "Other", "words"), old))
    assert {c["lastTransitionTime"] for c in same["conditions"]} == {"2026-01-01T00:00:00Z"}
    flipped = status_of("RelayKey", facts(Condition("Ready", False, "Expired"), old))
    times = {c["type"]: c["lastTransitionTime"] for c in flipped["conditions"]}
    assert times == {"Ready": "2026-11-25T12:00:00Z", "Accepted": "2026-01-01T00:00:00Z"}


# ---------------------------------------------------------------------- pace


def status(**changes: Any) -> dict[str, Any]:
    base = {
        "observedGeneration": 1, "inFlight": 0,
        "conditions": [{"type": "Ready", "status": "True", "reason": "Serves", "message": ""}],
        "limits": [{"name": "day", "per": "Day", "requests": {"limit": 1000, "used": 5, "reserved": 0}}],
    }
    return {**base, **changes}


def used(number: int) -> dict[str, Any]:
    return status(limits=[{"name": "day", "per": "Day", "requests": {"limit": 1000, "used": number, "reserved": 0}}])


EVERY_S = 60.0
FLIPPED = status(conditions=[{"type": "Ready", "status": "False", "reason": "Expired", "message": ""}])


@pytest.mark.parametrize(
    ("old", "new", "last", "due_s"),
    [
        (status(), status(), None, None),
        (status(), FLIPPED, None, 0.0),
        (status(), FLIPPED, Written.of(status(), -0.5), FACTS_EVERY_S - 0.5),
        (used(5), used(6), None, None),  # a thousandth
        (used(5), used(15), None, 0.0),  # a hundredth
        (used(5), used(15), Written.of(used(5), -20.0), EVERY_S - 20),
        (status(), status(inFlight=1), Written.of(status(), -20.0), EVERY_S - 20),
        (status(), FLIPPED, Written.of(FLIPPED, -20.0), EVERY_S - 20),  # somebody undid it, or the schema drops it
        ({}, status(), None, 0.0),
        (status(conditions=[*status()["conditions"], {"type": "Foreign", "status": "True"}]), status(), None, None),
    ],
)
def test_when_a_status_is_written(old: Any, new: Any, last: Any, due_s: float | None) -> None:
    assert due_in_s(old, new, last, 0.0, every_s=EVERY_S) == due_s


# ---------------------------------------------------------------------- Events


def with_ready(value: str, reason: str, **more: tuple[str, str]) -> dict[str, Any]:
    stated = {"Ready": (value, reason), **more}
    return {"conditions": [{"type": t, "status": s, "reason": r, "message": ""} for t, (s, r) in stated.items()]}


@pytest.mark.parametrize(
    ("kind", "old", "new", "told"),
    [
        ("RelayKey", {}, with_ready("True", "Serves"), []),
        ("RelayKey", with_ready("Unknown", "Pending"), with_ready("True", "Serves"), []),
        ("RelayKey", with_ready("Unknown", "Pending"), with_ready("False", "SecretNotFound"), ["SecretNotFound"]),
        ("RelayKey", with_ready("False", "SecretNotFound"), with_ready("False", "SecretNotFound"), []),
        ("RelayKey", with_ready("False", "SecretNotFound"), with_ready("False", "Expired"), ["Expired"]),
        ("RelayKey", with_ready("False", "SecretNotFound"), with_ready("True", "Serves"), ["Recovered"]),
        ("RelayKey", with_ready("True", "Serves"), with_ready("True", "Limited"), ["KeyExhausted"]),
        ("RelayKey", with_ready("True", "Limited"), with_ready("True", "Serves"), ["Recovered"]),
        ("RelayKey", with_ready("True", "Serves"), with_ready("True", "Paused"), []),
        (
            "ClaudeAccount", with_ready("True", "Serves", Available=("True", "Serves")),
            with_ready("True", "Serves", Available=("False", "Limited")), ["Limited"],
        ),
        (
            "ClaudeAccount", with_ready("True", "Serves", Available=("True", "Serves")),
            with_ready("True", "Paused", Available=("False", "Paused")), [],
        ),
        (
            "ClaudeAccount", with_ready("True", "Serves", Available=("True", "Serves")),
            with_ready("False", "SecretNotFound", Available=("False", "SecretNotFound")), ["SecretNotFound"],
        ),
        (  # one cause shows in one condition after the other, and leaves them so
            "ClaudeAccount", with_ready("True", "Serves", Available=("False", "CredentialInvalid")),
            with_ready("True", "Serves", Available=("False", "CredentialInvalid"), CredentialValid=("False", "CredentialInvalid")),
            [],
        ),
        (
            "ClaudeAccount",
            with_ready("True", "Serves", Available=("False", "CredentialInvalid"), CredentialValid=("False", "CredentialInvalid")),
            with_ready("True", "Serves", Available=("False", "CredentialInvalid"), CredentialValid=("True", "Valid")), [],
        ),
        (
            "ClaudeAccount",
            with_ready("True", "Serves", Available=("False", "CredentialInvalid"), CredentialValid=("True", "Valid")),
            with_ready("True", "Serves", Available=("True", "Serves"), CredentialValid=("True", "Valid")), ["Recovered"],
        ),
        (  # another cause takes over
            "ClaudeAccount", with_ready("True", "Serves", Available=("False", "Limited")),
            with_ready("True", "Serves", Available=("False", "Unreachable")), ["Unreachable"],
        ),
    ],
)
def test_what_is_told(kind: str, old: Any, new: Any, told: list[str]) -> None:
    assert [event.reason for event in events(kind, old, new)] == told


# ---------------------------------------------------------------------- deletion


@pytest.mark.parametrize(
    ("deleting", "held", "in_flight", "age_s", "expected"),
    [
        (False, False, None, 0, Step.HOLD),
        (False, True, None, 0, Step.NOTHING),
        (True, False, 0, 0, Step.NOTHING),
        (True, True, 0, 0, Step.RELEASE),
        (True, True, 3, 59, Step.WAIT),
        (True, True, None, 59, Step.WAIT),
        (True, True, 3, 60, Step.GIVE_UP),
        (True, True, None, 60, Step.GIVE_UP),
    ],
)
def test_the_steps_of_an_accounts_end(deleting: bool, held: bool, in_flight: int | None, age_s: int, expected: Step) -> None:
    metadata: dict[str, Any] = {"name": "a", "namespace": "n", "resourceVersion": "1"}
    if deleting:
        metadata["deletionTimestamp"] = (NOW - timedelta(seconds=age_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
    if held:
        metadata["finalizers"] = [FINALIZER]
    account = read({
        "apiVersion": "signalbox.dev/v1alpha1", "kind": "ClaudeAccount", "metadata": metadata, "spec": GOOD["ClaudeAccount"],
    })
    assert step(account, in_flight, now=NOW, limit=timedelta(seconds=60)) is expected
