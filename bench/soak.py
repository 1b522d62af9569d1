"""Does memory stay flat? Mixed load for minutes, the memory of all processes every 15 s, and the slope of the line.

The first quarter is left out of the slope: caches and pools fill, and allocators find their size.
"""

import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import processes
from report import MB, environment
from scenarios import SOAK, finish_load, start_load
from targets import Mock, Target

EVERY_S = 15.0


@dataclass(frozen=True)
class Sample:
    """Memory at a time; `at_s` counts from the start of the load."""

    at_s: float
    pss: dict[str, int]  # bytes by role

    @property
    def total_mb(self) -> float:
        """All processes together."""
        return sum(self.pss.values()) / MB


def _slope_mb_per_h(times_s: list[float], sizes_mb: list[float]) -> float:
    return statistics.linear_regression(times_s, sizes_mb).slope * 3600


def _sample_until(root: int, began: float, lasts_s: float) -> list[Sample]:
    samples: list[Sample] = []
    while True:
        next_s = min(EVERY_S * len(samples), lasts_s)
        time.sleep(max(0.0, began + next_s - time.monotonic()))
        samples.append(Sample(time.monotonic() - began, processes.pss_by_role(root)))
        print(f"soak {samples[-1].at_s:6.0f} s  {samples[-1].total_mb:7.1f} MB", file=sys.stderr, flush=True)
        if next_s >= lasts_s:
            return samples


def _report(target: Target, samples: list[Sample]) -> str:
    settled = samples[len(samples) // 4 :]
    times_s = [sample.at_s for sample in settled]
    loads = ", ".join(scenario.about for scenario in SOAK)
    lines = [
        f"Memory of {target.name} {target.version} under mixed load ({loads}), {environment()}.",
        "",
        "| process | first, MB | last | most | slope, MB/h |",
        "| --- | --- | --- | --- | --- |",
    ]
    series = {role: [sample.pss.get(role, 0) / MB for sample in settled] for role in samples[-1].pss}
    series["**all**"] = [sample.total_mb for sample in settled]
    for role, sizes in series.items():
        slope = _slope_mb_per_h(times_s, sizes)
        lines.append(f"| {role} | {sizes[0]:.1f} | {sizes[-1]:.1f} | {max(sizes):.1f} | {slope:+.1f} |")
    return "\n".join(lines)


def run(target: Target, mock: Mock, minutes: float, directory: Path) -> int:
    """Prints the report and the result of each load; returns 1 if an answer was not whole or the ledger differs."""
    assert target.root is not None
    lasts_s = minutes * 60
    ledger_before, received_before = target.ledger() if target.data else None, mock.count()
    loads = [start_load(target, scenario, lasts_s, directory) for scenario in SOAK]
    samples = _sample_until(target.root, time.monotonic(), lasts_s)
    results = [finish_load(load) for load in loads]
    print(_report(target, samples))
    for result in results:
        print(json.dumps(result), file=sys.stderr)
    failed = any(result["errors"] for result in results)
    if ledger_before is not None:
        processes.wait_until_quiet(target.root, idle=0.1)
        ledger, received = target.ledger() - ledger_before, mock.count() - received_before
        failed |= ledger != received
        print(f"\nLedger: {ledger}; the mock: {received}.")
    return int(failed)
