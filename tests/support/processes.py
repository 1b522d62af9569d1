"""Ending a process that a test started, as an operator would."""

import signal
import subprocess


def stop(process: "subprocess.Popen[str]", limit_s: float) -> int:
    """Ask a process to stop and return its exit status. Raises subprocess.TimeoutExpired, after it has killed it."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
