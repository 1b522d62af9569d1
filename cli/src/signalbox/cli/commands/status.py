"""`signalbox status`: which processes an instance has, and whether they serve."""

import asyncio
import json
from typing import Any

from signalbox.cli.errors import CommandFailed
from signalbox.cli.locate import Target
from signalbox.cli.output import Format, note, print_json, print_table
from signalbox.cli.supervisor import unixhttp


def show_status(target: Target, output: Format) -> None:
    """Print the supervisor's word on its rooms. Raises CommandFailed where there is no supervisor to ask."""
    status = read_status(target)
    if output is Format.JSON:
        print_json(status)
        return
    print(f"{'ready' if status['ready'] else 'not ready'}  {status['url']}  telemetry {status['telemetry_url']}")
    rows = [
        [
            room["room"] + (f" {room['worker']}" if "worker" in room else ""),
            str(room["pid"] or "-"),
            "yes" if room["ready"] else "no: " + "; ".join(f"{need}: {why}" for need, why in room["missing"].items()),
            str(room["restarts"]),
            room["sockets"][0] if room["sockets"] else "-",
        ]
        for room in status["rooms"]
    ]
    titles = ["ROOM", "PID", "READY", "RESTARTS", "SERVES ON"]
    print_table(titles, rows, right=("PID", "RESTARTS"), empty="No rooms yet.")
    for problem in status["problems"]:
        note(problem)


def read_status(target: Target) -> dict[str, Any]:
    """Return what the supervisor says."""
    if target.control is None:
        raise CommandFailed("status is of a local instance: in a cluster, ask kubectl for the pods")
    try:
        _, body = asyncio.run(unixhttp.get(target.control, "/status", limit_s=10.0))
    except OSError as e:
        raise CommandFailed(f"the instance on {target.where} does not answer: {e}") from e
    status: dict[str, Any] = json.loads(body)
    return status
