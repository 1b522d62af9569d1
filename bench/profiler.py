"""Where a room's time goes, function by function, while it is under load: with py-spy or perf, whichever is installed.

Neither the product nor the benchmark needs them; the split by process in the report needs nothing. Both look from
outside, so the room runs as it always does.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import processes
from scenarios import Scenario, finish_load, start_load
from targets import Target


class NoProfilerError(RuntimeError):
    """Neither py-spy nor perf was found."""


def _recorder(pid: int, seconds: float, output: Path) -> list[str]:
    """The command that samples process `pid` for `seconds` into `output`."""
    beside_python = Path(sys.executable).parent / "py-spy"
    if py_spy := shutil.which("py-spy") or (beside_python.exists() and str(beside_python)):
        duration = str(max(1, int(seconds)))
        return [py_spy, "record", "--pid", str(pid), "--duration", duration, "--rate", "200", "--native",
                "--format", "speedscope", "--output", str(output.with_suffix(".speedscope.json"))]  # fmt: skip
    if perf := shutil.which("perf"):
        return [perf, "record", "-g", "-F", "199", "-p", str(pid), "-o", str(output.with_suffix(".perf")),
                "--", "sleep", str(seconds)]  # fmt: skip
    raise NoProfilerError("--profile needs py-spy (`pip install py-spy`) or perf on PATH")


def run(room: str, subjects: Sequence[Target], scenarios: Sequence[Scenario], seconds: float, directory: Path) -> int:
    """Samples every process of the room under each load; leaves the profiles in the current directory."""
    for target in subjects:
        assert target.root is not None
        pids = [process.pid for process in processes.tree(target.root) if processes.role(process.pid) == room]
        for scenario in scenarios if pids else ():
            _profile(room, pids, target, scenario, seconds, directory)
        if pids:
            return 0
    raise RuntimeError(f"--profile: no process of {room}; rooms are {', '.join(name for name, _ in processes.ROLES)}")


def _profile(
    room: str, pids: Sequence[int], target: Target, scenario: Scenario, seconds: float, directory: Path
) -> None:
    output = Path.cwd()
    names = [output / f"profile-{scenario.name}-{room}-{pid}" for pid in pids]
    commands = [_recorder(pid, seconds, name) for pid, name in zip(pids, names, strict=True)]
    load = start_load(target, scenario, seconds + 2, directory)
    time.sleep(1)
    for recorder in [subprocess.Popen(command) for command in commands]:
        recorder.wait()
    finish_load(load)
    for name in names:
        print(*sorted(output.glob(f"{name.name}.*")), sep="\n")
