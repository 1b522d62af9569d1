"""One target under one load, as it was measured. How it is measured and how it is shown lie beside it."""

from dataclasses import dataclass
from typing import Any

from targets import Count


@dataclass(frozen=True)
class Measurement:
    """One target under one load, once. CPU is the whole tree's from the first request until it was quiet again."""

    target: str
    version: str
    scenario: str
    rep: int
    load: dict[str, Any]
    cpu_s: dict[str, float]  # by role
    pss: dict[str, int]  # bytes by role, at the end of the load
    idle_cores: float  # what the tree used just before, unasked
    noise_cores: float  # what everything else on the machine used meanwhile
    received: Count  # by the mock, warm-up included
    ledger: Count | None  # the ledger's growth over the same time; None: keeps none

    @property
    def ok(self) -> bool:
        """Every answer was whole, reached the mock once, and is in the ledger where there is one."""
        return self.load["errors"] == 0 and self.ledger in (None, self.received)

    @property
    def cpu_ms_per_request(self) -> float:
        """Milliseconds of CPU time, user and system, of all processes."""
        answers: int = self.load["ok"]
        return sum(self.cpu_s.values()) * 1000 / max(1, answers)
