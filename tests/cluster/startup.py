"""How long a room takes to start from its image, beside the one that runs; in a room's pod, standard library only.

    python3 - ROOM < startup.py

Prints one JSON object: seconds until the new process is healthy and until it is ready, and its CPU seconds until then.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request

LIMIT_S = 60.0
TELEMETRY = "127.0.0.1:19090"


def answers(path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{TELEMETRY}{path}", timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(room: str) -> None:
    """Start it, wait, kill it."""
    listens = {name: "127.0.0.1:0" for name in os.environ if name.startswith("SIGNALBOX_") and name.endswith("_LISTEN")}
    with tempfile.TemporaryDirectory() as journal:
        environment = {
            **os.environ, **listens, "SIGNALBOX_TELEMETRY_ADDRESS": TELEMETRY, "SIGNALBOX_GATEWAY_JOURNAL_DIR": journal,
        }
        began_s, took = time.monotonic(), {}
        process = subprocess.Popen(["python3", "-m", f"signalbox.{room}"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for name, path in (("healthy_s", "/healthz"), ("ready_s", "/readyz")):
                while not answers(path):
                    if process.poll() is not None or time.monotonic() - began_s > LIMIT_S:
                        sys.exit(f"{room} is not {name} after {time.monotonic() - began_s:.0f} s")
                    time.sleep(0.02)
                took[name] = round(time.monotonic() - began_s, 2)
            took["cpu_s"] = round(cpu_s(process.pid), 2)
        finally:
            process.kill()
            process.wait()
    print(json.dumps(took))


if __name__ == "__main__":
    main(sys.argv[1])
