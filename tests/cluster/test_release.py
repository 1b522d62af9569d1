"""A release on a real cluster: it installs, relays, is closed to strangers, cuts no stream while it changes, comes back."""

import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import pytest

from tests.cluster.conftest import ASKS, KEY, VALUES, pod_spec
from tests.cluster.kubectl import CHART, NAMESPACE, WAIT, Cluster

STREAMS = 200
LONGEST_S = 600
"""After so many seconds streams are begun no more even where nobody says that it is enough."""
AFTER_S = 10
"""So much longer than a change goes on they are begun, because what it took out of use is still ending."""
ROOMS = ("gateway", "scheduler", "token-refresher", "usage", "operator")
GATEWAY = f"signalbox-gateway.{NAMESPACE}:8080"
ASK = """
import json, sys, urllib.request, urllib.error
body = {"model": "claude-sonnet-5-5", "max_tokens": 64, "messages": [{"role": "user", "content": "hello"}]}
request = urllib.request.Request("http://GATEWAY/v1/messages", data=json.dumps(body).encode(), headers={
    "x-api-key": "KEY", "content-type": "application/json", "anthropic-version": "2023-06-01"})
try:
    with urllib.request.urlopen(request, timeout=60) as reply:
        print(json.dumps([reply.status, reply.headers["x-signalbox-request-id"]]))
except urllib.error.HTTPError as e:
    print(json.dumps([e.code, e.read().decode()]))
""".replace("GATEWAY", GATEWAY).replace("KEY", KEY)


@pytest.fixture(scope="module")
def caller(serving: Cluster) -> Cluster:
    """A stranger's pod in the namespace that can run Python: it is no part of the release."""
    serving.apply({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "caller"},
        "spec": {**pod_spec("signalbox", ["sleep", "infinity"], resources=ASKS), "terminationGracePeriodSeconds": 1},
    })
    serving.run("wait", "--for=condition=Ready", "pod/caller", f"--timeout={WAIT}")
    return serving


def ask(cluster: Cluster) -> Any:
    return json.loads(cluster.run("exec", "caller", "--", "python3", "-c", ASK))


def start_streams(cluster: Cluster) -> subprocess.Popen[str]:
    """Keep streams open until `all_whole` is called; return when all of them are."""
    program = (CHART.parents[2] / "tests/cluster/streams.py").read_text()
    running = cluster.start("exec", "-i", "caller", "--", "python3", "-c", program, GATEWAY, KEY, str(STREAMS), str(LONGEST_S))
    time.sleep(8)
    return running


def all_whole(cluster: Cluster, running: subprocess.Popen[str], *, refused: Collection[str] = ()) -> Counter[str]:
    """Let the streams end; none may have been cut, and each has exactly one row. Return counts of what became of them.

    Requests may have been `refused` so: by status and code.
    """
    said, errors = running.communicate("enough\n", timeout=400)
    assert running.returncode == 0, errors[-2000:]
    found = json.loads(said.strip().splitlines()[-1])
    assert set(found["counts"]) <= {"whole", *refused}, found["counts"]
    whole = set(found["whole"])
    assert len(whole) == found["counts"]["whole"] >= STREAMS
    until_s = time.monotonic() + 120
    while True:
        rows = [r["request_id"] for r in cluster.command("requests", "--last", "100000") if r["request_id"] in whole]
        if len(rows) >= len(whole) or time.monotonic() > until_s:
            break
        time.sleep(2)
    assert len(rows) == len(set(rows)) == len(whole)
    return Counter(found["counts"])


@pytest.mark.ci
def test_helm_test_makes_a_relayed_call_and_shows_its_log(installed: Cluster) -> None:
    said = installed.helm("test", "signalbox", "--logs", f"--timeout={WAIT}")
    assert "Phase:          Succeeded" in said, said
    assert re.search(r"POD LOGS: signalbox-test\n200 request \S+ whole", said), said
    left = installed.run("get", "cla,clp,rk,secret,configmap,service,pod", "-l", "app.kubernetes.io/component=test", "-o", "name")
    assert left.split() == ["pod/signalbox-test"], "its log stays, nothing else does"


@pytest.mark.ci
def test_a_call_is_relayed_and_every_room_tells_of_it(caller: Cluster) -> None:
    status, request_id = ask(caller)
    assert status == 200, request_id
    until_s = time.monotonic() + 120
    while request_id not in {r["request_id"] for r in caller.command("requests")}:
        assert time.monotonic() < until_s
        time.sleep(1)
    for room in ROOMS:
        assert "left" in caller.run("exec", f"deploy/signalbox-{room}", "--", "signalbox", "accounts", "list")


def test_kubectl_shows_accounts_pools_and_keys_under_load(caller: Cluster) -> None:
    """Numbers in statuses are at most a minute old; the streams last longer than that."""
    running = start_streams(caller)
    try:
        until_s = time.monotonic() + 120
        while sum(a["status"].get("inFlight", 0) for a in caller.get("cla")) < STREAMS // 2:
            assert time.monotonic() < until_s, caller.get("cla")
            time.sleep(1)
        shown = caller.run("get", "cla,clp,rk")
        all_whole(caller, running)
    finally:
        running.kill()
    print(shown)
    for word in (
        "claudeaccount.signalbox.dev/left", "accountpool.signalbox.dev/default", "relaykey.signalbox.dev/ada", "Anthropic",
        "ada@example.com", "True",
    ):
        assert word in shown


@pytest.mark.ci
@pytest.mark.parametrize(("address", "let_in"), [
    (GATEWAY, True), (f"signalbox-scheduler.{NAMESPACE}:7001", False), (f"signalbox-scheduler.{NAMESPACE}:7011", False),
    (f"signalbox-usage.{NAMESPACE}:7003", False),
    (f"signalbox-token-refresher.{NAMESPACE}:7002", False), (f"signalbox-redis.{NAMESPACE}:6379", False),
    (f"signalbox-postgresql.{NAMESPACE}:5432", False),
])
def test_networks_are_closed_to_strangers(caller: Cluster, address: str, let_in: bool) -> None:
    host, port = address.split(":")
    try_it = f"import socket; socket.create_connection(({host!r}, {port}), 5); print('open')"
    assert ("open" in caller.run("exec", "caller", "--", "python3", "-c", try_it, check=False)) is let_in


@pytest.mark.ci
@pytest.mark.parametrize("room", ROOMS)
def test_secrets_are_for_operator_and_token_refresher_alone(installed: Cluster, room: str) -> None:
    who = f"--as=system:serviceaccount:{NAMESPACE}:signalbox-{room}"
    for verb in ("get", "list", "create", "update", "patch", "delete"):
        allowed = {"operator": ("get", "list"), "token-refresher": ("get", "list", "create", "update", "delete")}
        may = verb in allowed.get(room, ())
        assert installed.run("auth", "can-i", verb, "secrets", who, check=False).strip().startswith("yes" if may else "no")
    assert installed.run("auth", "can-i", "list", "secrets", "-n", "kube-system", who, check=False).startswith("no")


@pytest.mark.ci
@pytest.mark.parametrize("room", ROOMS)
def test_attempts_at_secrets_are_refused(installed: Cluster, room: str) -> None:
    who = f"--as=system:serviceaccount:{NAMESPACE}:signalbox-{room}"
    reads = room in ("operator", "token-refresher")
    assert ("Forbidden" in installed.run("get", "secrets", who, check=False)) is not reads
    assert "Forbidden" in installed.run("get", "secrets", "--namespace=kube-system", who, check=False)
    made = installed.run("create", "secret", "generic", "attempt", "--dry-run=server", who, check=False)
    assert ("forbidden" in made.lower()) is (room != "token-refresher")
    token = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    has = installed.run("exec", f"deploy/signalbox-{room}", "--", "sh", "-c", f"test -e {token} && echo has; true")
    assert (has.strip() == "has") is reads


@pytest.mark.ci
@pytest.mark.parametrize(("room", "let_out"), [
    ("gateway", True), ("token-refresher", True), ("scheduler", False), ("usage", False), ("operator", False),
])
def test_only_rooms_that_call_providers_reach_them(serving: Cluster, room: str, let_out: bool) -> None:
    try_it = "import socket; socket.create_connection(('provider', 8000), 5); print('open')"
    said = serving.run("exec", f"deploy/signalbox-{room}", "--", "python3", "-c", try_it, check=False)
    assert ("open" in said) is let_out, said
    assert let_out or "Error" in said, said


def upgrade(cluster: Cluster) -> None:
    """Roll every room."""
    rooms = ("gateway", "scheduler", "tokenRefresher", "usage", "operator")
    changed = [f"--set-string={room}.podAnnotations.rolled={time.time_ns()}" for room in rooms]
    cluster.helm("upgrade", "signalbox", str(CHART), *VALUES, *changed, "--wait", f"--timeout={WAIT}")


def evict(cluster: Cluster) -> None:
    """Evict every gateway and scheduler under their budgets."""
    for room in ("gateway", "scheduler"):
        for pod in cluster.pods(room):
            cluster.evict(pod["metadata"]["name"])
            cluster.rolled_out(f"deploy/signalbox-{room}")


def scale(cluster: Cluster) -> None:
    """Scale gateways up and down again."""
    for replicas in (3, 1, 2):
        cluster.run("scale", "deploy/signalbox-gateway", f"--replicas={replicas}")
        cluster.rolled_out("deploy/signalbox-gateway")
        time.sleep(5)


@pytest.mark.parametrize("change", [pytest.param(upgrade, marks=pytest.mark.ci), evict, scale])
def test_no_stream_is_cut(caller: Cluster, change: Callable[[Cluster], None]) -> None:
    running = start_streams(caller)
    try:
        began_s = time.monotonic()
        change(caller)
        took_s = time.monotonic() - began_s
        time.sleep(AFTER_S)
        took = all_whole(caller, running)
    finally:
        running.kill()
    print(f"{change.__name__}: {took['whole']} streams, none cut, one row each; the change took {took_s:.0f} s")


def test_an_upgrade_without_changes_rolls_nothing(caller: Cluster) -> None:
    def generations() -> dict[str, int]:
        return {o["metadata"]["name"]: o["metadata"]["generation"] for o in caller.get("deploy,sts", "-l", "app.kubernetes.io/instance=signalbox")}

    caller.helm("upgrade", "signalbox", str(CHART), *VALUES, "--wait", f"--timeout={WAIT}")
    before = generations()
    caller.helm("upgrade", "signalbox", str(CHART), *VALUES, "--wait", f"--timeout={WAIT}")
    assert generations() == before


def test_redis_is_away_for_forty_seconds(caller: Cluster) -> None:
    """What runs goes on, what comes is refused with a reason, and afterwards service is back."""
    running = start_streams(caller)
    try:
        caller.run("scale", "sts/signalbox-redis", "--replicas=0")
        caller.run("wait", "--for=delete", "pod/signalbox-redis-0", f"--timeout={WAIT}")
        time.sleep(40)
        status, body = ask(caller)
        assert (status, json.loads(body)["error"]["details"]["error_code"]) == (503, "scheduler_unavailable")
        caller.run("scale", "sts/signalbox-redis", "--replicas=1")
        caller.rolled_out("sts/signalbox-redis")
        since_s = time.monotonic()
        while ask(caller)[0] != 200:
            assert time.monotonic() - since_s < 60
            time.sleep(0.5)
        back_s = time.monotonic() - since_s
        time.sleep(AFTER_S)
        took = all_whole(caller, running, refused=("503 scheduler_unavailable", "429 pool_limited"))
    finally:
        running.kill()
        caller.run("scale", "sts/signalbox-redis", "--replicas=1")
    print(f"redis away for 40 s: {dict(took)}; service back {back_s:.0f} s after Redis")


TALK = """
import socket, ssl
def answers(tls, certificate):
    try:
        s = socket.create_connection(("signalbox-scheduler", 7001), 5)
        if tls:
            context = ssl.create_default_context(cafile="/etc/signalbox/tls/ca.crt")
            context.check_hostname = False
            context.set_alpn_protocols(["h2"])
            if certificate:
                context.load_cert_chain("/etc/signalbox/tls/tls.crt", "/etc/signalbox/tls/tls.key")
            s = context.wrap_socket(s)
        s.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        return s.recv(9)[3:4] == b"\\4"
    except OSError:
        return False
print(answers(False, False), answers(True, False), answers(True, True))
"""
"""Whether a scheduler begins to speak HTTP/2 in clear, without a certificate, and with the room's own."""


def test_a_reinstall_finds_its_ledger_and_its_documents_and_can_speak_mutual_tls(caller: Cluster) -> None:
    before = {r["request_id"] for r in caller.command("requests", "--last", "100000")}
    caller.helm("uninstall", "signalbox", "--wait", f"--timeout={WAIT}")
    assert len(caller.get("cla")) == 2
    caller.helm("install", "signalbox", str(CHART), *VALUES, "--set=rooms.tls.mode=Generated", "--wait", f"--timeout={WAIT}")
    assert before <= {r["request_id"] for r in caller.command("requests", "--last", "100000")}
    serves(caller)
    assert caller.run("exec", "deploy/signalbox-gateway", "--", "python3", "-c", TALK).split() == ["False", "False", "True"]


def test_the_certificates_job_runs_by_its_schedule_too(caller: Cluster) -> None:
    """After the reinstallation above: the CronJob's own pod and its own rights, once now."""
    def certificates() -> Any:
        return [caller.get("secret", name)["data"] for name in ("signalbox-rooms-tls", "signalbox-rooms-authority")]

    before = certificates()
    caller.run("create", "job", "once", "--from=cronjob/signalbox-certificates")
    caller.run("wait", "--for=condition=Complete", "job/once", f"--timeout={WAIT}")
    print(caller.run("logs", "job/once"))
    assert certificates() == before, "they are good for months yet"
    caller.run("delete", "secret", "signalbox-rooms-tls")
    caller.run("create", "job", "again", "--from=cronjob/signalbox-certificates")
    caller.run("wait", "--for=condition=Complete", "job/again", f"--timeout={WAIT}")
    assert certificates()[0]["tls.crt"] != before[0]["tls.crt"]
    serves(caller)


def serves(cluster: Cluster) -> None:
    """Wait until a call is relayed."""
    until_s = time.monotonic() + 120
    while (answer := ask(cluster))[0] != 200:
        assert time.monotonic() < until_s, answer
        time.sleep(1)
