"""The gateway as a process: what it says when it can't start, that it lives without its neighbours, how it stops."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from tests.support.machine import free_port

pytestmark = pytest.mark.slow


def start(tmp_path, *, pass_fds=(), **overrides):
    env = {
        **os.environ, "SIGNALBOX_SHARED_SECRET": "s" * 32, "SIGNALBOX_SCHEDULER_ADDRESS": "127.0.0.1:1,127.0.0.1:2",
        "SIGNALBOX_TOKEN_REFRESHER_ADDRESS": "127.0.0.1:1", "SIGNALBOX_USAGE_ADDRESS": "127.0.0.1:1",
        "SIGNALBOX_GATEWAY_JOURNAL_DIR": str(tmp_path / "journal"), "SIGNALBOX_STOP_GRACE_SECONDS": "2",
        "SIGNALBOX_TELEMETRY_ADDRESS": f"127.0.0.1:{free_port()}", **overrides,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "signalbox.gateway"], env=env, stderr=subprocess.PIPE, text=True, pass_fds=pass_fds,
    )


def status(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as e:
        return e.code
    except OSError:
        return 0


def wait_for(port, process):
    end_s = time.monotonic() + 60    # on a busy machine it waits for a processor
    while time.monotonic() < end_s:
        if status(port, "/healthz") == 200:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise AssertionError("did not serve")


def test_it_lives_without_its_neighbours_and_stops_when_asked(tmp_path):
    """One that is given its socket and one that is told an address; both at once, for stopping takes them seconds."""
    listening, port = socket.create_server(("127.0.0.1", 0)), free_port()
    given = start(tmp_path / "a", SIGNALBOX_GATEWAY_LISTEN=f"fd:{listening.fileno()}", pass_fds=(listening.fileno(),))
    told = start(tmp_path / "b", SIGNALBOX_GATEWAY_LISTEN=f"127.0.0.1:{port}")
    try:
        for process, at in ((given, listening.getsockname()[1]), (told, port)):
            wait_for(at, process)
            assert status(at, "/readyz") == 503
            assert status(at, "/v1/models") == 401
            process.send_signal(signal.SIGTERM)
        assert (given.wait(30), told.wait(30)) == (0, 0)
    finally:
        given.kill()
        told.kill()
    for process in (given, told):
        log = process.stderr.read()
        assert '"event": "stopped"' in log
        assert "s" * 32 not in log


@pytest.mark.parametrize(("setting", "value", "named"), [
    ("SIGNALBOX_GATEWAY_LISTEN", "127.0.0.1", "SIGNALBOX_GATEWAY_LISTEN"),
    ("SIGNALBOX_GATEWAY_LISTEN", "203.0.113.1:80", "listen 203.0.113.1:80"),
    ("SIGNALBOX_GATEWAY_JOURNAL_DIR", "/proc/nowhere", "journal directory /proc/nowhere"),
    ("SIGNALBOX_SCHEDULER_ADDRESS", "", "SIGNALBOX_SCHEDULER_ADDRESS"),
    ("SIGNALBOX_SCHEDULER_SESSION_ADDRESS", "127.0.0.1:3", "settings: SIGNALBOX_SCHEDULER_SESSION_ADDRESS must name"),
    ("SIGNALBOX_GATEWAY_TRUSTED_PROXIES", "10.0.0.0/33", "SIGNALBOX_GATEWAY_TRUSTED_PROXIES"),
])
def test_what_it_cannot_start_with_is_named(tmp_path, setting, value, named):
    process = start(tmp_path, **{setting: value})
    try:
        assert process.wait(60) == 2
    finally:
        process.kill()
    assert f"cannot start: {named}" in process.stderr.read()
