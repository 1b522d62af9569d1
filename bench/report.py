"""Turns measurements into Markdown: cost beside the peer, where it goes, latency, memory, and whether all is exact.

Ranges are minimum to maximum over the repetitions; single figures are medians.
"""

import datetime
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from measurement import Measurement
from processes import ROLES
from scenarios import SCENARIOS, Scenario

MB = 1024 * 1024
INTERPRETER = Path(__file__).parents[1] / "scripts" / "interpreter.py"

# What the project promises. A ratio is CPU per request against the peer's in the same repetition.
MOST_RATIO = {"closed": 0.5, "stream": 0.5, "slow200": 0.5}
MOST_ADDED_P50_MS = {"open200": 1.5}
MOST_PSS_MB = 450
MOST_IN_A_CROWD = 1.2


class Results:
    """Measurements, looked up by target and scenario."""

    def __init__(self, measurements: Sequence[Measurement], crowd: tuple[int, int]) -> None:
        self.all = measurements
        self.crowd = crowd
        run = {measurement.scenario for measurement in measurements}
        self.scenarios = [scenario for scenario in SCENARIOS if scenario.name in run]
        self.subjects = [name for name in ("signalbox", "portkey") if any(m.target == name for m in measurements)]

    def of(self, target: str, scenario: str) -> list[Measurement]:
        """In the order of the repetitions."""
        found = [m for m in self.all if m.target == target and m.scenario == scenario]
        return sorted(found, key=lambda m: m.rep)

    def ratios(self, scenario: str) -> list[float]:
        """CPU per request, Signalbox against the peer, one for each repetition."""
        pairs = zip(self.of("signalbox", scenario), self.of("portkey", scenario), strict=False)
        return [ours.cpu_ms_per_request / theirs.cpu_ms_per_request for ours, theirs in pairs]

    def added_ms(self, target: str, scenario: Scenario, percentile: str) -> list[float]:
        """Latency beyond the direct call of the same repetition, milliseconds."""
        pairs = zip(self.of(target, scenario.name), self.of("direct", scenario.name), strict=False)
        field = scenario.decisive_latency
        return [there.load[field][percentile] - direct.load[field][percentile] for there, direct in pairs]


def _range(values: Iterable[float], digits: int) -> str:
    """Such as `0.21 (0.20 to 0.24)`; a dash for nothing."""
    values = list(values)
    if not values:
        return "–"
    middle, low, high = (f"{v:.{digits}f}" for v in (statistics.median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _roles(present: Iterable[str]) -> list[str]:
    order = [name for name, _ in ROLES] + ["other"]
    return sorted(set(present), key=order.index)


def _cost(results: Results) -> str:
    rows = []
    for scenario in results.scenarios:
        about = scenario.about.format(keys=results.crowd[0], accounts=results.crowd[1])
        cells = [f"{scenario.name}: {about}"]
        for target in results.subjects:
            cells.append(_range((m.cpu_ms_per_request for m in results.of(target, scenario.name)), 3))
        rows.append([*cells, _range(results.ratios(scenario.name), 2)])
    return _table(["load", *(f"{name}, ms" for name in results.subjects), "ratio"], rows)


def _split(results: Results, target: str) -> str:
    roles = _roles(role for m in results.all if m.target == target for role in m.cpu_s)
    rows = []
    for scenario in results.scenarios:
        found = results.of(target, scenario.name)
        if not found:
            continue
        cells = [
            f"{statistics.median(m.cpu_s.get(role, 0.0) * 1000 / max(1, m.load['ok']) for m in found):.3f}"
            for role in roles
        ]
        rows.append([scenario.name, *cells, f"{statistics.median(m.idle_cores for m in found):.2f}"])
    return _table(["load", *roles, "idle cores"], rows)


def _latency(results: Results) -> str:
    rows = []
    for scenario in results.scenarios:
        for target in ["direct", *results.subjects]:
            found = results.of(target, scenario.name)
            if not found:
                continue
            field = scenario.decisive_latency
            cells = [scenario.name, target, "first byte" if scenario.deltas else "whole answer"]
            cells.append(_range((m.load["per_s"] for m in found), 0))
            cells += [_range((m.load[field][p] for m in found), 2) for p in ("p50", "p99")]
            direct = target == "direct"
            cells += ["–" if direct else _range(results.added_ms(target, scenario, p), 2) for p in ("p50", "p99")]
            rows.append(cells)
    return _table(["load", "through", "to the", "answers/s", "p50, ms", "p99, ms", "added p50", "added p99"], rows)


def _memory(results: Results) -> str:
    roles = _roles(role for m in results.all for role in m.pss)
    rows = []
    for scenario in results.scenarios:
        for target in results.subjects:
            found = results.of(target, scenario.name)
            if not found:
                continue
            by_role = [max(m.pss.get(role, 0) for m in found) / MB for role in roles]
            total = max(sum(m.pss.values()) for m in found) / MB
            rows.append([scenario.name, target, f"{total:.0f}", *(f"{size:.0f}" if size else "–" for size in by_role)])
    return _table(["after", "of", "all, MB", *roles], rows)


def _promises(results: Results) -> str:
    rows = []

    def judge(what: str, values: list[float], most: float, digits: int, pick: Callable[[list[float]], float]) -> None:
        if values:
            figure = pick(values)
            rows.append([what, f"≤ {most}", f"{figure:.{digits}f}", "met" if figure <= most else "**missed**"])

    for name, most in MOST_RATIO.items():
        judge(f"CPU against Portkey, {name}", results.ratios(name), most, 2, statistics.median)
    for scenario in results.scenarios:
        if most_ms := MOST_ADDED_P50_MS.get(scenario.name):
            added = results.added_ms("signalbox", scenario, "p50")
            judge(f"added latency p50, {scenario.name}, ms", added, most_ms, 2, statistics.median)
    pairs = zip(results.of("signalbox", "many"), results.of("signalbox", "closed"), strict=False)
    crowded = [many.cpu_ms_per_request / few.cpu_ms_per_request for many, few in pairs]
    judge("CPU in a crowd of keys and accounts, many against closed", crowded, MOST_IN_A_CROWD, 2, statistics.median)
    in_a_crowd = {scenario.name for scenario in SCENARIOS if scenario.crowded}
    memory = [
        sum(m.pss.values()) / MB for m in results.all if m.target == "signalbox" and m.scenario not in in_a_crowd
    ]
    judge("memory of all processes, PSS, MB", memory, MOST_PSS_MB, 0, max)
    return _table(["promise", "", "measured", ""], rows) if rows else ""


def _exactness(results: Results) -> str:
    """What makes the figures count: whole answers, and a ledger that agrees with the mock."""
    bad = [measurement for measurement in results.all if not measurement.ok]
    if bad:
        return "**These figures do not count:**\n\n" + "\n".join(f"- {line(measurement)}" for measurement in bad)
    kept = [m.ledger for m in results.all if m.ledger is not None]
    answers = f"All {sum(m.load['ok'] for m in results.all):,} answers were whole."
    if not kept:
        return answers
    return (
        f"{answers} Signalbox's ledger agrees with what the mock received and reported, after every load: "
        f"{sum(count.requests for count in kept):,} requests, {sum(count.input_tokens for count in kept):,} input and "
        f"{sum(count.output_tokens for count in kept):,} output tokens (warm-up included)."
    )


def environment() -> str:
    """One line on machine and versions."""
    model = "unknown processor"
    for text in Path("/proc/cpuinfo").read_text().splitlines():
        if text.startswith("model name"):
            model = text.partition(":")[2].strip()
            break
    built = subprocess.run([sys.executable, INTERPRETER], capture_output=True, text=True, check=True).stdout.strip()
    today = datetime.datetime.now(datetime.UTC).date()
    python = f"Python {platform.python_version()} ({built})"
    return f"{today}, {os.cpu_count()} × {model}, Linux {platform.release()}, {python}"


def line(m: Measurement) -> str:
    """One measurement in one line, for watching a run."""
    latency = m.load["latency_ms"]
    text = f"{m.scenario:8} #{m.rep} {m.target:9} {m.load['ok']:7} ok, {m.load['per_s']:8.1f}/s"
    text += f", p50 {latency['p50']:.2f} ms, p99 {latency['p99']:.2f} ms"
    if m.cpu_s:
        total_mb = sum(m.pss.values()) / MB
        text += f", {m.cpu_ms_per_request:.3f} ms CPU each, {total_mb:.0f} MB, noise {m.noise_cores:.2f} cores"
    if m.load["errors"]:
        text += f"; {m.load['errors']} ERRORS, first: {m.load['first_error']}"
    if m.ledger not in (None, m.received):
        text += f"; LEDGER {m.ledger} but the mock saw {m.received}"
    return text


def markdown(measurements: Sequence[Measurement], crowd: tuple[int, int]) -> str:
    """The whole report; `crowd`: how many keys and accounts the crowded loads had beside them."""
    results = Results(measurements, crowd)
    versions = ", ".join(dict.fromkeys(f"{m.target} {m.version}" for m in measurements if m.version != "-"))
    noise = _range((m.noise_cores for m in measurements if m.cpu_s), 2)
    parts = [
        f"Measured {environment()}; {versions}. Other work on the machine meanwhile: {noise} cores.",
        "### CPU per request, whole process tree",
        _cost(results),
        *(
            part
            for target in results.subjects
            for part in (f"### Where it goes: {target}, CPU ms per request", _split(results, target))
        ),
        "### Latency",
        _latency(results),
        "### Memory (PSS, MB, the most of all repetitions)",
        _memory(results),
        _promises(results),
        _exactness(results),
    ]
    return "\n\n".join(part for part in parts if part)
