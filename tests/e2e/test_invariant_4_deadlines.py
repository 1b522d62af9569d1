"""Invariant 4's deadlines: an upstream call ends within 2 s of its caller's hanging up, or of its own time limit.

Measured at the provider: when it noticed that nobody listens any more. Only the times are looked at here; that no
broken answer is dressed as whole is also what compare.py checks after every fault.
"""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.load import Load, Seen, message, model_of_its_own
from tests.support.machine import busy
from tests.support.rig import Rig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

CLOSED_LIMIT_S = 2.0
# What a machine busy with other tests may add: for a process to be scheduled, for the simulator to look.
SLACK_S = 1.0
TIMEOUTS = {"connect": "2s", "headers": "2s", "headersUnstreamed": "3s", "firstContent": "1500ms", "idle": "2s", "total": "6s"}

HANG_UPS = {
    "before the head": (True, "[[sim delay_s=30]]", 1.0),
    "before the head, not streamed": (False, "[[sim delay_s=30]]", 1.0),
    "silence": (True, "[[sim drop=silence]]", 1.0),
    "before content": (True, "[[sim stall.at=message_start]]", 1.0),
    "amid content": (True, "[[sim deltas=300 delta_delay_s=0.1]]", 1.0),
    "amid a stall": (True, "[[sim stall.at=half]]", 1.0),
}

# What the provider does, whether it is streamed, after how long it is given up, and what the caller is told.
LIMITS = {
    "headers": (True, "[[sim drop=silence]]", 2.0, "upstream_timeout"),
    "headersUnstreamed": (False, "[[sim drop=silence]]", 3.0, "upstream_timeout"),
    "firstContent": (True, "[[sim stall.at=message_start]]", 1.5, "upstream_timeout"),
    "idle": (True, "[[sim stall.at=content]]", 2.0, "upstream_truncated"),
    "total": (True, "[[sim deltas=300 delta_delay_s=0.1]]", 6.0, "upstream_truncated"),
}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    spec = {"timeouts": TIMEOUTS, "failover": {"maxAttempts": 1}}
    with Rig(tmp_path_factory.mktemp("i4"), workers=1, pool_spec=spec) as made:
        yield made


@pytest.fixture
def load(rig: Rig) -> Iterator[Load]:
    with rig.load(1, callers=0) as made:
        yield made


def at_provider(rig: Rig, model: str) -> dict[str, Any]:
    """Return the provider's row of a request once it has ended."""
    rig.sim.wait_quiet(15)
    (row,) = [row for row in rig.sim.truth() if row["model"] == model]
    return row


def unix_s(monotonic_s: float) -> float:
    """Return a monotonic time on the provider's clock."""
    return time.time() - time.monotonic() + monotonic_s


def test_a_call_ends_when_its_caller_hangs_up(rig: Rig, load: Load) -> None:
    begun = {
        name: load.ask(message(prompt, stream=stream, model=model_of_its_own(), max_tokens=8192), hang_up_after_s=after_s)
        for name, (stream, prompt, after_s) in HANG_UPS.items()
    }
    for name, future in begun.items():
        seen: Seen = future.result(30)
        assert seen.hung_up, name
        row = at_provider(rig, seen.model)
        assert row["client_gone_at"] is not None, name
        took_s = row["client_gone_at"] - unix_s(seen.ended_s)
        print(f"\n{name}: closed {took_s:.3f} s after the hang-up")
        assert -0.1 <= took_s <= CLOSED_LIMIT_S + SLACK_S * busy(), name
    rig.settled(by_s=time.monotonic() + 10)


def test_a_silent_or_stalled_call_ends_with_its_limit(rig: Rig, load: Load) -> None:
    begun = {
        name: load.ask(message(prompt, stream=stream, model=model_of_its_own(), max_tokens=8192))
        for name, (stream, prompt, _, _) in LIMITS.items()
    }
    for name, future in begun.items():
        _, _, limit_s, code = LIMITS[name]
        seen: Seen = future.result(30)
        row = at_provider(rig, seen.model)
        assert row["client_gone_at"] is not None, name
        took_s = row["client_gone_at"] - row["received_at"]
        print(f"\n{name}: closed {took_s - limit_s:+.3f} s from its limit")
        assert limit_s - SLACK_S <= took_s <= limit_s + CLOSED_LIMIT_S + SLACK_S * busy(), name
        assert seen.error_code == code, name
        assert seen.ended_s - seen.began_s <= limit_s + CLOSED_LIMIT_S + SLACK_S * busy(), name
    rig.settled(by_s=time.monotonic() + 10)
    models = {future.result().model for future in begun.values()}
    outcomes = {row["outcome"] for row in rig.instance.requests() if row["model"] in models}
    assert outcomes == {"timeout"}
