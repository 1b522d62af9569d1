"""What operators script against: the command line's JSON, what `up` leaves on disk and in the process table, metrics, gRPC.

One relay with a failover, a denial and a plain answer behind it; everything is read from other directories than its own.
"""

import asyncio
import csv
import hashlib
import io
import json
import os
import re
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.support.caller import MODEL, Answer, Caller, eventually
from tests.support.instance import SIGNALBOX, Instance, account, pool, relay_key, secret
from tests.support.machine import busy
from tests.support.sim import Simulator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

KEY = "contract-relay-key-ada"
PROMPT = "a-prompt-that-nobody-may-see"
IN_FORCE_S = 2.0
SLACK_S = 3.0
TOKENS = ("input_tokens", "output_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "cache_read_tokens")
MAYBE_TEXT = (str, type(None))

# The contract's fields and what JSON type they have.
FIELDS: dict[str, dict[str, Any]] = {
    "accounts": {"name": str, "namespace": str, "provider": str, "state": str, "state_reason": str, "available": bool, "reason": str,
                 "limited_until": MAYBE_TEXT, "in_flight": int, "windows": list, "conditions": list},
    "pools": {"name": str, "namespace": str, "strategy": str, "accounts": dict},
    "keys": {"name": str, "namespace": str, "owner": str, "state": str, "reason": str, "limits": list, "expires_at": MAYBE_TEXT, "first_used_at": MAYBE_TEXT},
    "usage": {"key": str, "requests": int, **dict.fromkeys(TOKENS, int), "cost_usd": str},
    "requests": {"request_id": str, "attempt": int, "route": str, "key": str, "owner": str, "account": str, "pool": str, "model": str, "served_model": str,
                 "outcome": str, "status": int, "streamed": bool, **dict.fromkeys(TOKENS, int), "estimated": bool, "cost_usd": str, "price_assumed": bool,
                 "started_at": str, "duration_ms": int, "ttft_ms": (int, type(None)), "client": str},
}
METRICS = {
    "requests_total": {"route", "outcome"}, "request_duration_seconds": set(), "time_to_first_token_seconds": set(), "gateway_overhead_seconds": set(),
    "in_flight": set(), "attempts_total": {"account", "outcome"}, "failovers_total": {"reason"}, "account_state": {"account", "state"},
    "account_headroom_ratio": {"account", "window"}, "admissions_total": {"decision", "reason"}, "admission_duration_seconds": set(),
    "tokens_total": {"account", "model", "kind"}, "cost_usd_total": {"account", "model"}, "refreshes_total": {"account", "outcome"},
    "credential_expiry_seconds": {"account"}, "journal_pending": set(), "ledger_lag_seconds": set(), "reconcile_total": {"kind", "result"},
}
NOT_YET_SEEN = {"account_headroom_ratio", "refreshes_total", "credential_expiry_seconds"}   # need windows, refreshes, expiring tokens
PROCESSES = {"gateway": "signalbox.gateway", "scheduler": "signalbox.scheduler", "token-refresher": "signalbox.token_refresher",
             "usage": "signalbox.usage", "redis": "redis-server"}
SERVICES = {"scheduler": "Scheduler", "token-refresher": "TokenRefresher", "usage": "Usage"}


class Relay:
    """The relay after three requests: `plain`, `retried` (overloaded at first) and `denied`."""

    def __init__(self, directory: Path) -> None:
        self.sim = Simulator({"accounts": [{"name": name, "key": f"sk-ant-contract-{name}"} for name in "ab"]}).start()
        documents = [document for name in "ab" for document in (secret(name, **{"api-key": f"sk-ant-contract-{name}"}), account(name, self.sim.url))]
        documents += [pool("default", ["a", "b"]), secret("ada", text=KEY)]
        documents += [relay_key("ada", secretRef={"name": "ada", "key": "text"}, limits=[{"per": "Day", "requests": 1000, "costUSD": 20}])]
        self.instance = Instance(directory, documents)

    def begin(self) -> "Relay":
        self.caller = Caller(self.instance.url, KEY)
        self.plain = self.caller.send(PROMPT, stream=True, headers={"user_agent": "claude-cli/2.1.0 (external, cli)"})
        self.retried = self.caller.send(f"{PROMPT} [[sim once status=529]]")
        self.denied = Caller(self.instance.url, "a-key-that-nobody-has").send()
        eventually(lambda: {r["request_id"] for r in self.instance.requests()}, within_s=10.0, wanted=lambda ids: self.plain.request_id in ids and self.retried.request_id in ids)
        return self

    def rows(self, answer: Answer) -> list[dict[str, Any]]:
        return list(self.instance.json("explain", answer.request_id))


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    made = Relay(tmp_path_factory.mktemp("operations"))
    try:
        with made.instance:
            yield made.begin()
    finally:
        made.sim.stop()


# ---------------------------------------------------------------------------------------------- JSON

@pytest.mark.parametrize("command", FIELDS)
def test_json_has_the_contracts_fields(relay: Relay, command: str) -> None:
    rows = relay.instance.json(*([command] if command in ("usage", "requests") else [command, "list"]))
    assert rows
    for row in rows:
        wrong = {name: row.get(name, "missing") for name, kind in FIELDS[command].items() if name not in row or not isinstance(row[name], kind)}
        assert not wrong


def test_the_ledger_shows_each_attempt(relay: Relay) -> None:
    rows = {(r["request_id"], r["attempt"]): r for r in relay.instance.requests()}
    plain = rows[relay.plain.request_id, 1]
    truth = next(t for t in relay.sim.truth() if t["request_id"] == relay.plain.headers["request-id"])
    assert (plain["key"], plain["owner"], plain["account"], plain["pool"]) == ("default/ada", "ada@example.com", f"default/{truth['account']}", "default/default")
    assert (plain["route"], plain["model"], plain["outcome"], plain["status"], plain["streamed"], plain["client"]) == ("messages", MODEL, "ok", 200, True, "ClaudeCode")
    assert [plain["input_tokens"], plain["output_tokens"]] == [truth["usage"]["input_tokens"], truth["usage"]["output_tokens"]]
    assert datetime.fromisoformat(plain["started_at"]) <= datetime.now(UTC)
    assert not any(r["attempt"] == 0 for r in rows.values())   # denials are shown when asked for
    assert any(r["request_id"] == relay.denied.request_id for r in relay.instance.json("requests", "--denials", "--last", "50"))
    assert {r["key"] for r in relay.instance.json("requests", "--key", "ada", "--last", "2")} == {"default/ada"}


def test_a_retry_is_explained_attempt_by_attempt(relay: Relay) -> None:
    rows = relay.rows(relay.retried)
    assert [r["attempt"] for r in rows] == list(range(1, int(relay.retried.headers["x-signalbox-attempts"]) + 1))
    assert len(rows) > 1
    assert [(r["outcome"], r["cost_usd"]) for r in rows[:-1]] == [("upstream_error", "0")] * (len(rows) - 1)
    assert all(r["decision"]["chosen"] == r["account"] for r in rows)
    story = relay.instance.run("explain", relay.retried.request_id).stdout
    assert all(f"attempt {r['attempt']} {r['account']}" in story for r in rows)


def test_a_denial_is_explained_as_attempt_0(relay: Relay) -> None:
    [row] = eventually(lambda: json.loads(relay.instance.run("explain", relay.denied.request_id, "-o", "json", check=False).stdout or "[]"), within_s=5.0)
    assert (row["attempt"], row["status"], row["reason"], row["cost_usd"]) == (0, 401, "key_invalid", "0")
    assert "key_invalid" in relay.instance.run("explain", relay.denied.request_id).stdout


def test_usage_by_everything_and_as_csv(relay: Relay) -> None:
    by = ["key", "owner", "account", "model", "day"]
    rows = relay.instance.json("usage", "--by", ",".join(by), "--since", "24h")
    assert set(rows[0]) == {*by, "requests", *TOKENS, "cost_usd"}
    table = list(csv.DictReader(io.StringIO(relay.instance.run("usage", "--by", ",".join(by), "-o", "csv").stdout)))
    assert table == [{name: str(value) for name, value in row.items()} for row in rows]
    assert relay.instance.run("usage", "--by", "colour", check=False).returncode != 0


def test_limits_are_shown_as_in_key_info(relay: Relay) -> None:
    [row] = relay.instance.json("keys", "describe", "ada")
    assert row["limits"] == relay.instance.key_info(KEY)["limits"]


# ---------------------------------------------------------------------------------------------- acting

def test_keys_are_created_rotated_paused_and_resumed(relay: Relay) -> None:
    def status_of(key: str) -> int:
        return Caller(relay.instance.url, key).get("/v1/key-info").status

    def key_in(text: str) -> str:
        [key] = re.findall(r"sbx_[0-9A-Za-z]{43}\b", text)
        return str(key)

    first = key_in(relay.instance.run("keys", "create", "bob", "--owner", "bob@example.com").stdout)
    eventually(lambda: status_of(first), within_s=IN_FORCE_S + SLACK_S, wanted=lambda status: status == 200)
    documents = "".join(file.read_text() for file in relay.instance.manifests.glob("*.yaml"))
    assert first not in documents
    assert "sha256:" + hashlib.sha256(first.encode()).hexdigest() in documents
    second = key_in(relay.instance.run("keys", "rotate", "bob", "--overlap", "24h").stdout)
    eventually(lambda: status_of(second), within_s=IN_FORCE_S + SLACK_S, wanted=lambda status: status == 200)
    assert status_of(first) == 200
    relay.instance.run("keys", "pause", "bob")
    eventually(lambda: Caller(relay.instance.url, second).send().code, within_s=IN_FORCE_S + SLACK_S, wanted=lambda code: code == "key_paused")
    relay.instance.run("keys", "resume", "bob")
    eventually(lambda: Caller(relay.instance.url, second).send().status, within_s=IN_FORCE_S + SLACK_S, wanted=lambda status: status == 200)


def test_accounts_are_tested_with_one_count_of_tokens(relay: Relay) -> None:
    before = len(relay.sim.truth(path="/v1/messages/count_tokens"))
    relay.instance.run("accounts", "test", "a")
    calls = relay.sim.truth(path="/v1/messages/count_tokens")[before:]
    assert [(c["account"], c["status"]) for c in calls] == [("a", 200)]
    assert relay.instance.run("accounts", "test", "nobody", check=False).returncode != 0


def test_check_names_file_line_path_and_reason(tmp_path: Path) -> None:
    (tmp_path / "key.yaml").write_text("apiVersion: signalbox.dev/v1alpha1\nkind: RelayKey\nmetadata: {name: x}\nspec:\n  owner: x\n  colour: red\n")
    done = subprocess.run([SIGNALBOX, "check", str(tmp_path)], text=True, capture_output=True, check=False, cwd="/")
    assert done.returncode == 1
    assert re.search(r"key\.yaml:6: spec\.colour: \S", done.stdout + done.stderr)


@pytest.mark.parametrize("form", ["{}", "unix:{}"])
def test_the_address_may_come_from_the_environment(relay: Relay, form: str) -> None:
    environment = {**os.environ, "SIGNALBOX_ADDR": form.format(relay.instance.data)}
    done = subprocess.run([SIGNALBOX, "accounts", "list", "-o", "json"], env=environment, text=True, capture_output=True, check=True, cwd="/")
    assert [row["name"] for row in json.loads(done.stdout)] == ["a", "b"]


# ---------------------------------------------------------------------------------------------- processes and files

def test_status_names_every_process(relay: Relay) -> None:
    status = relay.instance.json("status")
    assert (status["ready"], status["url"]) == (True, relay.instance.url)
    assert {room["room"] for room in status["rooms"]} == set(PROCESSES)
    for room in status["rooms"]:
        assert (room["ready"], room["restarts"], type(room["sockets"])) == (True, 0, list)
        assert PROCESSES[room["room"]] in Path(f"/proc/{room['pid']}/cmdline").read_text()


def test_everything_on_disk_is_its_owners_alone(relay: Relay) -> None:
    for path in [relay.instance.data, *relay.instance.data.rglob("*")]:
        if path.is_symlink():
            continue
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except FileNotFoundError:    # a journal that was delivered, the database's own
            continue
        assert mode == (0o700 if path.is_dir() else 0o600), (oct(mode), path)
    assert list((relay.instance.data / "journal").rglob("*.journal"))


def test_redis_answers_on_its_socket_without_a_password(relay: Relay) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(relay.instance.data / "run" / "redis.sock"))
        connection.sendall(b"PING\r\n")
        assert connection.recv(100) == b"+PONG\r\n"


def test_a_second_up_on_the_same_data_is_refused(relay: Relay) -> None:
    command = [SIGNALBOX, "up", "--manifests", str(relay.instance.manifests), "--data", str(relay.instance.data), "--port", "0"]
    done = subprocess.run(command, text=True, capture_output=True, timeout=60, check=False)
    assert done.returncode != 0
    assert str(relay.instance.data) in done.stderr


# ---------------------------------------------------------------------------------------------- telemetry, gRPC

def test_metrics_have_the_contracts_names_and_labels(relay: Relay) -> None:
    page = relay.instance.metrics()
    for name, labels in METRICS.items():
        full = f"signalbox_{name}"
        assert re.search(rf"^# TYPE {full} ", page, re.MULTILINE), name
        samples = re.findall(rf"^{full}(?:_count)?(\{{.*\}})? \S+$", page, re.MULTILINE)
        assert samples or name in NOT_YET_SEEN, name
        for sample in samples:
            own = set(re.findall(r'(\w+)="', sample))
            assert labels <= own <= labels | {"room", "worker", "route"}, name
    assert set(re.findall(r'room="([^"]+)"', page)) >= {"gateway", "scheduler", "token-refresher", "usage"}
    for hidden in (KEY, PROMPT, "default/ada", "ada@example.com", "sk-ant-"):
        assert hidden not in page


def test_a_model_that_callers_make_up_is_no_label(relay: Relay) -> None:
    relay.caller.send(model="a-model-that-i-made-up")
    assert "made-up" not in relay.instance.metrics()


@pytest.mark.parametrize("room", SERVICES)
def test_rooms_show_their_health_to_all_and_the_rest_to_their_own(relay: Relay, room: str) -> None:
    [address] = [r["sockets"][0] for r in relay.instance.status()["rooms"] if r["room"] == room]

    async def ask() -> tuple[int, grpc.StatusCode, grpc.StatusCode]:
        async with grpc.aio.insecure_channel(f"unix:{address}") as channel:
            health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
            listing = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=5)
            method = channel.unary_unary(f"/signalbox.v1.{SERVICES[room]}/Anything")(b"", timeout=5)
            return health.status, await listing.code(), await method.code()

    health, listing, method = asyncio.run(ask())
    assert health == health_pb2.HealthCheckResponse.SERVING
    assert (listing, method) == (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAUTHENTICATED)


# ---------------------------------------------------------------------------------------------- the end

def test_no_log_line_holds_a_secret(relay: Relay) -> None:
    log = "".join(relay.instance.log)
    assert "documents_in_force" in log
    assert not [word for word in (KEY, PROMPT, "sk-ant-") if word in log]
    assert not re.search(r"sbx_[0-9A-Za-z]{43}", log)


def test_sigterm_ends_all_processes_with_status_0(relay: Relay) -> None:   # the last one: it stops the module's relay
    pids = [room["pid"] for room in relay.instance.status()["rooms"]]
    began_s = time.monotonic()
    assert relay.instance.stop() == 0
    assert time.monotonic() - began_s < 20 * busy()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
