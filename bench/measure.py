#!/usr/bin/env python3
"""What Signalbox costs: CPU per request, added latency and memory, beside Portkey and a direct call, in one run.

    bench/measure.py [--reps 3] [--seconds 10] [--only closed,stream] [--skip-peer] [--out results.jsonl]
    bench/measure.py --soak 10                       memory over ten minutes of mixed load
    bench/measure.py --only closed --profile gateway a profile of one room under load

Prints Markdown. README.md beside this file says how to read it. Exit status 1: an answer was not whole or the ledger
differs from what the mock saw, so that the figures do not count.
"""

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import processes
import profiler
import report
import soak
import targets
from measurement import Measurement
from scenarios import SCENARIOS, Scenario, finish_load, start_load
from targets import Count, Mock, Target

LEDGER_MUST_AGREE_WITHIN_S = 30.0


def _agreed_ledger(target: Target, before: Count, expected: Count) -> tuple[Count, bool]:
    """The ledger's growth once it is as expected or time is up; and whether it had to be waited for."""
    deadline = time.monotonic() + LEDGER_MUST_AGREE_WITHIN_S
    late = False
    while (grown := target.ledger() - before) != expected and time.monotonic() < deadline:
        late = True
        time.sleep(1)
    return grown, late


def _run_load(target: Target, scenario: Scenario, seconds: float, directory: Path) -> dict[str, Any]:
    return finish_load(start_load(target, scenario, seconds, directory))


def measure(
    target: Target, scenario: Scenario, mock: Mock, rep: int, options: argparse.Namespace, directory: Path
) -> Measurement:
    """Warms up, waits for quiet, loads, waits for quiet, compares the ledger."""
    assert target.root is not None
    root = target.root
    idle = processes.idle_cores(root)
    ledger_before = target.ledger() if target.data else None
    received_before = mock.count()
    if options.warm:
        _run_load(target, scenario, options.warm, directory)
        processes.wait_until_quiet(root, idle)
        idle = processes.idle_cores(root)

    began, busy_before, mock_before = time.monotonic(), processes.machine_busy_s(), processes.cpu_s(mock.pid)
    cpu_before = processes.cpu_by_role(root)
    load = _run_load(target, scenario, options.seconds, directory)
    pss = processes.pss_by_role(root)
    processes.wait_until_quiet(root, idle)
    cpu = _growth(cpu_before, processes.cpu_by_role(root))
    lasted_s, busy_s = time.monotonic() - began, processes.machine_busy_s() - busy_before
    own_s = sum(cpu.values()) + processes.cpu_s(mock.pid) - mock_before + load["load_cpu_s"]

    received, ledger = mock.count() - received_before, None
    if ledger_before is not None:
        ledger, late = _agreed_ledger(target, ledger_before, received)
        if late:  # accounting was still under way: all of it counts
            cpu = _growth(cpu_before, processes.cpu_by_role(root))
    noise = max(0.0, busy_s - own_s) / lasted_s
    return Measurement(target.name, target.version, scenario.name, rep, load, cpu, pss, idle, noise, received, ledger)


def prime(target: Target, mock: Mock, seconds: float, directory: Path) -> None:
    """Load that does not count, so that compilers, pools and caches are in the state they will stay in."""
    ledger_before, received_before = target.ledger() if target.data else None, mock.count()
    _run_load(target, SCENARIOS[0], seconds, directory)
    if ledger_before is not None:
        _agreed_ledger(target, ledger_before, mock.count() - received_before)


def measure_direct(mock: Mock, scenario: Scenario, rep: int, seconds: float, directory: Path) -> Measurement:
    """The same load without anything in between: the latency that the others add to."""
    before = mock.count()
    load = _run_load(mock.direct(), scenario, seconds, directory)
    return Measurement("direct", "-", scenario.name, rep, load, {}, {}, 0, 0, mock.count() - before, None)


def _growth(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    # A process that ended meanwhile is in its parent's figure by now: a role may shrink, the sum stays right.
    return {role: after.get(role, 0.0) - before.get(role, 0.0) for role in sorted(before | after)}


def run(options: argparse.Namespace, mock: Mock, subjects: list[Target], directory: Path) -> Iterator[Measurement]:
    """All measurements; the order of the subjects alternates, so that neither always finds the machine warmer."""
    scenarios = [s for s in SCENARIOS if s.name in options.only and s.crowded == subjects[0].crowded]
    for target in subjects if options.prime else ():
        prime(target, mock, options.prime, directory)
    for rep in range(1, options.reps + 1):
        for scenario in scenarios:
            yield measure_direct(mock, scenario, rep, max(2.0, options.seconds / 3), directory)
            for target in subjects if rep % 2 else subjects[::-1]:
                yield measure(target, scenario, mock, rep, options, directory)


@contextmanager
def _working_directory() -> Iterator[Path]:
    """A directory that is kept, and named, only if something goes wrong: the logs lie there."""
    directory = Path(tempfile.mkdtemp(prefix="signalbox-bench-"))
    try:
        yield directory
    except BaseException:
        print(f"bench: logs are in {directory}", file=sys.stderr)
        raise
    shutil.rmtree(directory)


def _arguments() -> argparse.Namespace:
    names = [scenario.name for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, default=3, help="repetitions [3]")
    parser.add_argument("--seconds", type=float, default=10, help="length of one measurement [10]")
    parser.add_argument("--prime", type=float, default=12, help="seconds of load on each before all else [12]")
    parser.add_argument("--warm", type=float, default=2, help="seconds of load before each that do not count [2]")
    parser.add_argument("--only", type=lambda text: text.split(","), default=names, help=f"of {','.join(names)}")
    parser.add_argument("--skip-peer", action="store_true", help="without Portkey, so without Node and npm")
    parser.add_argument("--skip-signalbox", action="store_true", help="Portkey and direct only")
    parser.add_argument("--workers", type=int, help="gateway workers [Signalbox's default]")
    parser.add_argument("--out", type=Path, help="append every measurement to this file, one JSON object a line")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="memory under mixed load over time instead")
    parser.add_argument(
        "--crowd", type=lambda text: tuple(map(int, text.split(","))), default=(100_000, 10_000),
        metavar="KEYS,ACCOUNTS", help="the size of the crowd of the load `many` [100000,10000]",
    )
    parser.add_argument("--profile", metavar="ROOM", help="profile this room (or portkey) under each of --only instead")
    options = parser.parse_args()
    if unknown := set(options.only) - set(names):
        parser.error(f"--only: {', '.join(sorted(unknown))}: not one of {', '.join(names)}")
    return options


def _measure_all(
    options: argparse.Namespace, mock: Mock, subjects: list[Target], directory: Path, stack: ExitStack,
) -> int:
    measurements: list[Measurement] = []
    for measurement in chain(run(options, mock, subjects, directory), _in_a_crowd(options, mock, directory, stack)):
        measurements.append(measurement)
        print(report.line(measurement), file=sys.stderr, flush=True)
        if options.out:
            row = dataclasses.asdict(measurement) | {"cpu_ms_per_request": measurement.cpu_ms_per_request}
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print(report.markdown(measurements, options.crowd))
    return 0 if all(measurement.ok for measurement in measurements) else 1


def _in_a_crowd(
    options: argparse.Namespace, mock: Mock, directory: Path, stack: ExitStack,
) -> Iterator[Measurement]:
    """What the crowded loads cost, on an instance of their own that is started after all else."""
    if options.skip_signalbox or not any(s.crowded and s.name in options.only for s in SCENARIOS):
        return
    print(f"starting with {options.crowd[0]} keys and {options.crowd[1]} accounts ...", file=sys.stderr, flush=True)
    target = stack.enter_context(targets.signalbox(mock.url, directory, options.workers, crowd=options.crowd))
    yield from run(options, mock, [target], directory)


def main() -> int:
    """Runs what the arguments ask for; returns the exit status."""
    options = _arguments()
    targets.build()
    with _working_directory() as directory, ExitStack() as stack:
        mock = stack.enter_context(targets.mock(directory))
        subjects = []
        if not options.skip_signalbox:
            subjects.append(stack.enter_context(targets.signalbox(mock.url, directory, options.workers)))
        if not options.skip_peer and not (options.soak and subjects):
            subjects.append(stack.enter_context(targets.peer(mock.url, directory)))
        if not subjects:
            raise RuntimeError("nothing to measure is left")
        if options.soak:
            return soak.run(subjects[0], mock, options.soak, directory)
        if options.profile:
            scenarios = [scenario for scenario in SCENARIOS if scenario.name in options.only]
            return profiler.run(options.profile, subjects, scenarios, options.seconds, directory)
        return _measure_all(options, mock, subjects, directory, stack)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (targets.StartError, profiler.NoProfilerError, RuntimeError) as error:
        sys.exit(f"bench: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"bench: {' '.join(map(str, error.cmd[:3]))} failed with status {error.returncode}")
