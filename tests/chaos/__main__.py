"""`make chaos SEED=… SECONDS=…`: one run, its table, and exit status 1 where anything was violated."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.chaos.report import table
from tests.chaos.storm import Storm
from tests.chaos.verdict import Verdict, judge


def run(seed: int, seconds: float, directory: Path) -> Verdict:
    """Make one run and return what was found; its schedule and its table are printed."""
    with Storm(directory, seed, seconds) as storm:
        storm.rage(lambda what: print(what, flush=True))
        verdict = judge(storm)
        print(table(storm, verdict), flush=True)
        if verdict.total:
            kept = directory / "up.log"
            kept.write_text("".join(storm.instance.log))
            print(f"what `up` said: {kept}", flush=True)
    return verdict


def main() -> int:
    """Run as often as there are seeds."""
    parser = argparse.ArgumentParser(prog="make chaos")
    parser.add_argument("--seed", default="1", help="a number, or several separated by commas")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the load of each run lasts")
    options = parser.parse_args()
    violations = 0
    for seed in map(int, options.seed.split(",")):
        violations += run(seed, options.seconds, Path(tempfile.mkdtemp(prefix=f"signalbox-chaos-{seed}-"))).total
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
