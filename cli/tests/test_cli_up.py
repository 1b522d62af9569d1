"""`signalbox up` with its real rooms: starting, refusing to start, restarting what dies, stopping. Slow: processes."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from signalbox.cli.supervisor.redis import find_binary
from signalbox.core.keys import hash_key
from tests.support import commands
from tests.support.machine import busy, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SIGNALBOX = str(Path(sys.executable).parent / "signalbox")
KEY = "sbx_a_test_key_of_enough_characters"
DOCUMENTS = f"""
apiVersion: v1
kind: Secret
metadata: {{name: acme}}
stringData: {{api-key: "${{TEST_API_KEY}}"}}
---
apiVersion: signalbox.dev/v1alpha1
kind: ClaudeAccount
metadata: {{name: acme}}
spec:
  provider: Anthropic
  baseURL: http://127.0.0.1:9
  credential: {{apiKey: {{secretRef: {{name: acme, key: api-key}}}}}}
---
apiVersion: signalbox.dev/v1alpha1
kind: RelayKey
metadata: {{name: ada}}
spec:
  owner: ada@example.com
  keyHash: "{hash_key(KEY)}"
  limits:
  - {{per: Minute, requests: 60}}
"""
API_KEY = "sk-ant-test-never-to-be-seen-0123456789"
# What the machine may add when its cores are busy with other tests; deadlines themselves are the contract's.
SLACK_S = 5.0
ROOMS = ["redis", "usage", "token-refresher", "scheduler", "gateway"]


def environment(**extra: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SIGNALBOX_")}
    return {**clean, "TEST_API_KEY": API_KEY, "SIGNALBOX_STOP_GRACE_SECONDS": "5", **extra}


class Up:
    def __init__(self, directory: Path, *arguments: str, **env: str) -> None:
        self.data = directory / "d"
        self.manifests = directory / "m"
        self.manifests.mkdir(exist_ok=True)
        self.env = environment(**env)
        self.stderr = (directory / "stderr").open("w+")
        self.process = subprocess.Popen(
            [SIGNALBOX, "up", "--manifests", str(self.manifests), "--data", str(self.data), "--port", "0", *arguments],
            stdout=subprocess.PIPE, stderr=self.stderr, env=self.env, text=True,
        )
        self.url = ""

    def ready(self) -> "Up":
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert re.fullmatch(r"ready http://127\.0\.0\.1:\d+\n", line), self.said()
        self.url = line.split()[1]
        return self

    def said(self) -> str:
        return Path(self.stderr.name).read_text()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return commands.run([*arguments, "--data", str(self.data)], self.env, 60)

    def script(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The same by the installed script."""
        return subprocess.run(
            [SIGNALBOX, *arguments, "--data", str(self.data)], capture_output=True, text=True, env=self.env, timeout=60,
            check=False,
        )

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(sig)
        return self.process.wait(60)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.stderr.close()


def http_status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as e:
        return e.code


def within(limit_s: float, condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, f"not within {limit_s} s"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    directory = tmp_path_factory.mktemp("u")
    (directory / "m").mkdir()
    (directory / "m" / "all.yaml").write_text(DOCUMENTS)
    made = Up(directory, "--workers", "2").ready()
    yield made
    made.close()


def test_status_shows_every_process(up: Up) -> None:
    status = up.json("status")
    assert status["ready"] is True
    assert status["url"] == up.url
    assert [r["room"] for r in status["rooms"]] == [*ROOMS, "gateway"]
    for room in status["rooms"]:
        assert room["ready"] is True
        assert room["restarts"] == 0
        command = Path(f"/proc/{room['pid']}/cmdline").read_text().replace("\0", " ")
        assert ("redis-server" if room["room"] == "redis" else f"signalbox.{room['room'].replace('-', '_')}") in command
        assert API_KEY not in Path(f"/proc/{room['pid']}/environ").read_text()
    assert http_status(f"{status['telemetry_url']}/readyz") == 200
    assert up.script("status").returncode == 0


def test_the_telemetry_port_serves_all_rooms_and_workers(up: Up) -> None:
    status = up.json("status")
    with urllib.request.urlopen(f"{status['telemetry_url']}/metrics", timeout=30) as reply:
        text = reply.read().decode()
    assert set(re.findall(r'room="([^"]+)"', text)) == {*ROOMS, "supervisor"} - {"redis"}
    assert set(re.findall(r'room="gateway",worker="(\d)"', text)) == {"0", "1"}
    assert text.count("# TYPE process_resident_memory_bytes") == 1
    for room in status["rooms"]:
        if room["telemetry_url"]:
            assert http_status(room["telemetry_url"] + "/metrics") == 200
            assert http_status(room["telemetry_url"] + "/healthz") == 200
    assert http_status(f"{status['telemetry_url']}/rooms/nobody/metrics") == 404


def test_lists_have_the_contracts_fields(up: Up) -> None:
    account = up.json("accounts", "list")[0]
    assert (account["name"], account["namespace"], account["provider"]) == ("acme", "default", "Anthropic")
    assert account["state"] == "Active"
    assert account["available"] is True
    assert {"state_reason", "reason", "limited_until", "in_flight", "windows"} <= set(account)
    assert {c["type"]: c["status"] for c in account["conditions"]}["CredentialValid"] == "True"
    pool = up.json("pools", "list")[0]
    assert (pool["name"], pool["strategy"], pool["accounts"]) == ("default", "Headroom", {"Ready": 1})
    key = up.json("keys", "list")[0]
    assert (key["name"], key["owner"], key["state"]) == ("ada", "ada@example.com", "Active")
    assert key["limits"][0]["requests"]["limit"] == 60
    assert {"reason", "expires_at", "first_used_at"} <= set(key)
    for noun, name in (("accounts", "acme"), ("pools", "default"), ("keys", "ada")):
        assert up.run(noun, "list").returncode == 0
        assert up.json(noun, "describe", name)[0]["name"] == name
        assert name in up.run(noun, "describe", name).stdout
        assert up.run(noun, "describe", "nobody").returncode == 1
        assert up.json("describe", name)[0]["name"] == name
    assert [row["kind"] for row in up.json("describe", "default/ada")] == ["RelayKey"]
    assert "kind:" in up.run("describe", "acme").stdout
    assert up.run("describe", "nobody").returncode == 1
    assert up.json("requests") == []
    assert up.json("usage", "--by", "key,day", "--since", "7d") == []
    assert up.run("usage", "-o", "csv").stdout.startswith("key,requests,")
    assert up.run("explain", "req_nothing").returncode == 1


def test_pause_and_resume_wait_until_they_are_in_force(up: Up) -> None:
    assert up.run("accounts", "pause", "acme", "--reason", "rotating key").returncode == 0
    account = up.json("accounts", "describe", "acme")[0]
    assert (account["state"], account["state_reason"], account["available"]) == ("Paused", "rotating key", False)
    assert up.run("accounts", "resume", "acme").returncode == 0
    assert up.json("accounts", "describe", "acme")[0]["state"] == "Active"
    assert up.run("keys", "pause", "ada").returncode == 0
    assert up.json("keys", "describe", "ada")[0]["state"] == "Paused"
    assert up.run("keys", "resume", "ada").returncode == 0


def test_a_created_key_works_at_once_and_a_rotated_one_twice(up: Up) -> None:
    made = up.run("keys", "create", "bob", "--owner", "bob@example.com", "--limit", "hour:requests=100")
    assert made.returncode == 0, made.stderr
    rotated = up.run("keys", "rotate", "bob", "--overlap", "1h")
    assert rotated.returncode == 0, rotated.stderr
    for key in (made.stdout.strip(), rotated.stdout.strip()):
        request = urllib.request.Request(f"{up.url}/v1/key-info", headers={"x-api-key": key})
        with urllib.request.urlopen(request, timeout=30) as reply:
            assert json.load(reply)["owner"] == "bob@example.com"


def test_an_account_that_cannot_be_reached_fails_its_test(up: Up) -> None:
    done = up.run("accounts", "test", "acme")
    assert done.returncode == 1
    assert "default/acme does not work" in done.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_a_killed_room_is_back(up: Up, room: str) -> None:
    before = next(r for r in up.json("status")["rooms"] if r["room"] == room)
    os.kill(before["pid"], signal.SIGKILL)
    telemetry = up.json("status")["telemetry_url"]

    def now() -> dict[str, Any]:
        with urllib.request.urlopen(f"{telemetry}/status", timeout=30) as reply:
            return next(r for r in json.load(reply)["rooms"] if r["room"] == room)

    within(2.0 + SLACK_S, lambda: now()["pid"] not in (None, before["pid"]))
    within(20.0 + SLACK_S, lambda: http_status(f"{telemetry}/readyz") == 200)
    assert now()["restarts"] == before["restarts"] + 1


def test_a_second_up_on_the_same_data_is_refused(up: Up) -> None:
    started_s = time.monotonic()
    second = up.script("up", "--manifests", str(up.manifests), "--port", "0")
    assert second.returncode == 2
    assert f"another `signalbox up` (pid {up.process.pid})" in second.stderr
    assert time.monotonic() - started_s < 10 + SLACK_S * busy()
    assert up.json("status")["ready"] is True


def test_nothing_in_the_data_directory_is_readable_for_others_or_holds_the_key_in_clear(up: Up) -> None:
    for path in up.data.rglob("*"):
        with contextlib.suppress(FileNotFoundError):    # a journal that was delivered, the database's own
            if not path.is_symlink():
                assert path.lstat().st_mode & 0o077 == 0, path
            if path.is_file():
                assert API_KEY.encode() not in path.read_bytes(), path
    assert API_KEY not in up.said()
    assert KEY not in up.said()


def test_sigterm_ends_everything_with_status_zero(up: Up) -> None:  # the last one: it stops the module's instance
    pids = [r["pid"] for r in up.json("status")["rooms"]]
    assert up.stop() == 0
    assert not any(map(alive, pids))
    assert up.script("status").returncode == 1


# ------------------------------------------------------------------ starts that must fail


BAD_STARTS: list[tuple[str, list[str], dict[str, str], str]] = [
    ("setting", [], {"SIGNALBOX_LOG_LEVEL": "loud"}, "SIGNALBOX_LOG_LEVEL"),
    ("room's setting", [], {"SIGNALBOX_GATEWAY_MAX_BODY_BYTES": "many"}, "SIGNALBOX_GATEWAY_MAX_BODY_BYTES"),
    ("redis refused", [], {"SIGNALBOX_REDIS_URL": "redis://:hidden@127.0.0.1:1/0"}, "127.0.0.1:1"),
    ("redis malformed", [], {"SIGNALBOX_REDIS_URL": "http://x"}, "SIGNALBOX_REDIS_URL"),
    ("ledger refused", [], {"SIGNALBOX_DATABASE_URL": "postgresql://u:hidden@127.0.0.1:1/db"}, "127.0.0.1"),
    ("ledger malformed", [], {"SIGNALBOX_DATABASE_URL": "mongo://x"}, "SIGNALBOX_DATABASE_URL"),
    ("ledger unwritable", [], {"SIGNALBOX_DATABASE_URL": "sqlite:////proc/none/ledger.db"}, "/proc/none"),
    ("data", ["--data", "/proc/none"], {}, "/proc/none"),
    ("manifests", ["--manifests", "/proc/none"], {}, "/proc/none"),
    ("host", ["--host", "192.0.2.1"], {}, "192.0.2.1"),
]


@pytest.mark.parametrize(("what", "arguments", "env", "named"), BAD_STARTS, ids=[b[0] for b in BAD_STARTS])
def test_a_start_that_cannot_work_says_why_within_ten_seconds(
    tmp_path: Path, what: str, arguments: list[str], env: dict[str, str], named: str,
) -> None:
    started_s = time.monotonic()
    bad = Up(tmp_path, *arguments, **env)
    try:
        assert bad.process.wait(60) == 2
        assert time.monotonic() - started_s < 10 + SLACK_S * busy()
        assert bad.process.stdout is not None
        assert bad.process.stdout.read() == ""
        last = bad.said().splitlines()[-1]
        assert last.startswith("signalbox: cannot start: ")
        assert named in last
        assert "hidden" not in bad.said()
        assert "Traceback" not in last
    finally:
        bad.close()


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        bad = Up(tmp_path, "--port", str(port))
        assert bad.process.wait(60) == 2
        assert f"127.0.0.1:{port}" in bad.said().splitlines()[-1]
        bad.close()


@pytest.mark.parametrize(("variable", "scheme"), [
    ("SIGNALBOX_REDIS_URL", "redis://"), ("SIGNALBOX_DATABASE_URL", "postgresql://u:hidden@"),
])
def test_a_store_that_never_answers_is_named(tmp_path: Path, variable: str, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        started_s = time.monotonic()
        bad = Up(tmp_path, **{variable: f"{scheme}127.0.0.1:{port}/0"})
        try:
            assert bad.process.wait(60) == 2
            assert time.monotonic() - started_s < 10 + SLACK_S * busy()
            last = bad.said().splitlines()[-1]
            assert last.startswith("signalbox: cannot start: ")
            assert "127.0.0.1" in last
            assert "hidden" not in bad.said()
        finally:
            bad.close()


def test_a_refused_document_does_not_hold_up_the_start(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "bad.yaml").write_text(DOCUMENTS.replace("provider: Anthropic", "provider: Nobody"))
    started = Up(tmp_path)
    try:
        started.ready()
        within(2.0 + SLACK_S, lambda: f"{tmp_path}/m/bad.yaml:11: spec.provider: " in started.said())
        assert any("spec.provider" in p for p in started.json("status")["problems"])
        (tmp_path / "m" / "bad.yaml").write_text(DOCUMENTS)
        within(4.0 + SLACK_S * busy(), lambda: [a["name"] for a in started.json("accounts", "list")] == ["acme"])
        # Killed outright: nothing is left behind, and the next start finds all it needs.
        pids = [r["pid"] for r in started.json("status")["rooms"]]
        started.process.kill()
        within(3.0 + SLACK_S, lambda: not any(map(alive, pids)))
        again = Up(tmp_path).ready()
        assert [k["name"] for k in again.json("keys", "list")] == ["ada"]
        assert again.stop(signal.SIGINT) == 0
        again.close()
    finally:
        started.close()


def test_stopping_during_the_start_is_no_failure(tmp_path: Path) -> None:
    started = Up(tmp_path)
    try:
        within(10.0 + SLACK_S * busy(), lambda: (tmp_path / "d" / "run" / "redis.sock").exists())
        assert started.stop() == 0
    finally:
        started.close()


def test_stores_of_ones_own_and_two_schedulers(tmp_path: Path) -> None:
    """An external Redis is used and not started; one scheduler of two is enough; a dead gateway refuses nobody."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "all.yaml").write_text(DOCUMENTS)
    port = free_port()
    own = subprocess.Popen(
        [find_binary(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path),
         "--requirepass", "hidden", "--loglevel", "warning"],
        stdout=subprocess.DEVNULL,
    )
    started = Up(tmp_path, "--schedulers", "2", SIGNALBOX_REDIS_URL=f"redis://:hidden@127.0.0.1:{port}/0")
    try:
        started.ready()
        rooms = started.json("status")["rooms"]
        assert [r["room"] for r in rooms] == ["usage", "token-refresher", "scheduler", "scheduler", "gateway"]
        assert not (started.data / "run" / "redis.sock").exists()
        os.kill(next(r["pid"] for r in rooms if r["room"] == "scheduler"), signal.SIGSTOP)
        os.kill(next(r["pid"] for r in rooms if r["room"] == "gateway"), signal.SIGKILL)
        assert http_status(f"{started.url}/healthz") == 200
        assert [a["name"] for a in started.json("accounts", "list")] == ["acme"], "the frozen scheduler is passed over"
        os.kill(next(r["pid"] for r in rooms if r["room"] == "scheduler"), signal.SIGKILL)
        assert [a["name"] for a in started.json("accounts", "list")] == ["acme"]
        assert "hidden" not in started.said()
        assert started.stop() == 0
    finally:
        started.close()
        own.terminate()
        own.wait()
