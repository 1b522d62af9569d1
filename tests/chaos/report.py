"""A run as a table for people: what was compared, what callers saw, recovery times, violations."""

from tests.chaos.storm import Storm
from tests.chaos.verdict import Verdict

SHOWN = 12
NAMES = {
    1: "every attempt accounted once", 2: "no limit overrun", 3: "no grant lost", 4: "no lie on the wire", 5: "no secret leaked",
}


def table(storm: Storm, verdict: Verdict) -> str:
    """Return the run's result."""
    counts = verdict.counts
    lines = [
        "",
        f"seed {storm.seed}, {storm.seconds:.0f} s of load, {len(storm.struck)} blows, {len(storm.calls)} requests; "
        f"quiet after {verdict.quiet_s:.1f} s",
        f"provider received {counts['received']}, ledger holds {counts['attempts']} attempts: {counts['exact']} equal to the token, "
        f"{counts['within bounds']} within what can be known, {counts['unsent']} never sent; "
        f"{counts['limits nearly or wholly used']} limits nearly or wholly used, {counts['refreshes']} refreshes of a grant",
        "callers saw  " + ", ".join(f"{name.removeprefix('saw ')} {n}" for name, n in _most(counts, "saw ")),
        "ledger says  " + ", ".join(f"{name.removeprefix('ledger ')} {n}" for name, n in _most(counts, "ledger ")),
        "",
        f"{'fault':34} {'times':>5} {'back after, mean':>17} {'longest':>9}",
    ]
    for kind, times in sorted(verdict.recoveries.items()):
        lines.append(f"{kind:34} {len(times):5} {sum(times) / len(times):15.1f} s {max(times):7.1f} s")
    lines += ["", f"{'invariant':34} {'violations':>10}"]
    lines += [f"{number} {NAMES[number]:32} {len(found):10}" for number, found in verdict.violations.items()]
    for number, found in verdict.violations.items():
        lines += [f"  {number}: {what}" for what in found[:SHOWN]]
        if len(found) > SHOWN:
            lines.append(f"  {number}: and {len(found) - SHOWN} more")
    return "\n".join(lines)


def _most(counts: dict[str, int], prefix: str) -> list[tuple[str, int]]:
    found = [(name, n) for name, n in counts.items() if name.startswith(prefix)]
    return sorted(found, key=lambda pair: -pair[1])
