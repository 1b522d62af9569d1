"""What the operator survives: the API server away, its own death, Redis wiped, dead watches, rivals, lost peers."""

import concurrent.futures
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.support.control_plane import ControlPlane
from tests.support.instance import relay_key, secret
from tests.support.kube import Api, placed, within
from tests.support.rbac import OPERATOR
from tests.support.release import Release, free_port
from tests.support.sim import Simulator
from tests.support.tenant import apply_account, apply_key, served, tenant
from tests.support.tunnel import Tunnel

# The contract's bound where a watch is dead, and what a busy machine adds.
DEAD_WATCH_S = 30.0
SLACK_S = 5.0
AWAY_S = 60.0


@pytest.fixture
def alone(release: Release) -> Iterator[Release]:
    """The release, to be broken; afterwards it is whole again."""
    yield release
    release.mend()


def available(api: Api, ns: str) -> str:
    return str(api.condition("ClaudeAccount", "acme", "Available", ns).get("reason", ""))


def test_traffic_goes_on_while_the_api_server_is_away(
    plane: ControlPlane, api: Api, alone: Release, sim: Simulator, ns: str,
) -> None:
    key = tenant(api, alone, ns, sim.url)
    plane.stop_api()
    until_s = time.monotonic() + AWAY_S
    try:
        while time.monotonic() < until_s:
            assert alone.call(key)[0] == 200
            assert alone.page("operator", "/healthz")[0] == 200
            time.sleep(1)
    finally:
        plane.start_api()
    api.merge("RelayKey", "ada", {"spec": {"state": "Paused"}}, ns)
    within(DEAD_WATCH_S, lambda: "key_paused" in alone.call(key)[1])
    assert alone.log["operator"], "the operator logs"
    assert not any("Traceback" in line for line in alone.log["operator"])


def test_the_operator_is_killed_at_any_point(api: Api, alone: Release, sim: Simulator, ns: str) -> None:
    """Killed while it brings things into force, again and again: in the end all of it is, and nothing flickered."""
    first = tenant(api, alone, ns, sim.url)
    for turn in range(4):
        for number in range(10):
            apply_key(api, ns, f"k{turn}-{number}")
        alone.kill("operator")
        assert alone.call(first)[0] == 200
        alone.start("operator", wait=False)
        time.sleep(0.3 * (turn + 1))
    alone.wait_ready("operator")
    keys = [apply_key(api, ns, f"k{turn}-{number}") for turn in range(4) for number in range(10)]
    for key in keys:
        within(20, lambda key=key: alone.key_info(key)[0] == 200)
    within(30, lambda: all(
        api.condition("RelayKey", f"k{turn}-{number}", "Ready", ns).get("status") == "True"
        for turn in range(4) for number in range(10)
    ))


def test_what_was_deleted_while_the_operator_was_away_goes(api: Api, alone: Release, sim: Simulator, ns: str) -> None:
    key = tenant(api, alone, ns, sim.url)
    alone.kill("operator")
    api.delete("RelayKey", "ada", ns)
    assert alone.call(key)[0] == 200, "nobody could tell the scheduler"
    alone.start("operator")
    within(10, lambda: alone.call(key)[0] == 401)


def test_redis_is_wiped(api: Api, alone: Release, sim: Simulator, ns: str) -> None:
    key = tenant(api, alone, ns, sim.url)
    alone.flush_redis()
    served(alone, key, 40)
    alone.kill("scheduler")
    alone.flush_redis()
    alone.start("scheduler")
    served(alone, key, 40)
    within(15, lambda: available(api, ns) == "Serves")


def test_the_refresher_loses_its_grants(api: Api, alone: Release, sim: Simulator, ns: str) -> None:
    key = tenant(api, alone, ns, sim.url)
    alone.kill("token_refresher")
    for file in (alone.directory / "credentials").iterdir():
        if file.is_file():
            file.unlink()
    alone.start("token_refresher")
    served(alone, key, 40)


def test_a_silently_dead_watch_is_replaced(
    plane: ControlPlane, api: Api, alone: Release, sim: Simulator, ns: str,
) -> None:
    """The way to the API server swallows everything on the connections that there are; new ones work."""
    with Tunnel(plane.url) as tunnel:
        kubeconfig = str(plane.identity(f"{OPERATOR}-through-a-tunnel", user=OPERATOR, url=tunnel.url))
        alone.restart("operator", SIGNALBOX_OPERATOR_KUBECONFIG=kubeconfig, KUBECONFIG=kubeconfig)
        key = tenant(api, alone, ns, sim.url)
        time.sleep(15)  # the listing that follows each start of a watch is over
        tunnel.swallow()
        api.merge("RelayKey", "ada", {"spec": {"state": "Paused"}}, ns)
        began_s = time.monotonic()
        within(DEAD_WATCH_S + SLACK_S, lambda: "key_paused" in alone.call(key)[1])
        print(f"\nrevoked over a dead watch after {time.monotonic() - began_s:.1f} s")
        alone.kill("operator")


def test_expired_watches_miss_nothing(api: Api, alone: Release, sim: Simulator, ns: str) -> None:
    """Stopped for longer than a watch lasts: it goes on from where it was."""
    key = tenant(api, alone, ns, sim.url)
    alone.signal("operator", signal.SIGSTOP)
    try:
        api.delete("RelayKey", "ada", ns)
        fresh = apply_key(api, ns, "bob")
        time.sleep(28)
    finally:
        alone.signal("operator", signal.SIGCONT)
    within(DEAD_WATCH_S, lambda: alone.call(key)[0] == 401)
    served(alone, fresh)


def test_a_rival_that_writes_statuses_is_outlasted_without_a_fight(
    api: Api, alone: Release, sim: Simulator, ns: str,
) -> None:
    tenant(api, alone, ns, sim.url)
    within(15, lambda: available(api, ns) == "Serves")
    foreign = {"type": "Reviewed", "status": "True", "reason": "ByHand", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    status = api.get("ClaudeAccount", "acme", ns)["status"]
    changed = [{**c, "reason": "Wrong"} if c["type"] == "Ready" else c for c in status["conditions"]]
    before = alone.metric("operator", "signalbox_status_writes_total")
    api.merge("ClaudeAccount", "acme", {"status": {"conditions": [*changed, foreign]}}, ns, part="status")
    within(75, lambda: api.condition("ClaudeAccount", "acme", "Ready", ns).get("reason") == "Serves")
    assert api.condition("ClaudeAccount", "acme", "Reviewed", ns)["reason"] == "ByHand"
    time.sleep(5)
    assert alone.metric("operator", "signalbox_status_writes_total") - before <= 4, "two writers, round and round"


def test_a_status_that_the_schema_refuses_stops_nothing(api: Api, alone: Release, sim: Simulator, ns: str) -> None:
    """An older schema in the cluster, as after an upgrade in the wrong order."""
    key = tenant(api, alone, ns, sim.url)
    crd = api.get("CustomResourceDefinition", "claudeaccounts.signalbox.dev")
    properties = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    properties["conditions"]["items"]["properties"]["reason"]["enum"] = ["Pending"]
    api.merge("CustomResourceDefinition", crd["metadata"]["name"], {"spec": crd["spec"]})
    try:
        api.merge("ClaudeAccount", "acme", {"spec": {"weight": 7}}, ns)
        within(20, lambda: alone.metric("operator", 'signalbox_status_writes_total{kind="ClaudeAccount",result="refused"}'))
        api.merge("RelayKey", "ada", {"spec": {"state": "Paused"}}, ns)
        within(10, lambda: "key_paused" in alone.call(key)[1])
        assert alone.page("operator", "/healthz")[0] == 200
    finally:
        api.install_crds()
    generation = api.get("ClaudeAccount", "acme", ns)["metadata"]["generation"]
    within(75, lambda: api.get("ClaudeAccount", "acme", ns)["status"].get("observedGeneration") == generation)


def test_deletion_does_not_hang_when_the_schedulers_are_gone_for_good(
    api: Api, alone: Release, sim: Simulator, ns: str,
) -> None:
    tenant(api, alone, ns, sim.url)
    within(10, lambda: api.get("ClaudeAccount", "acme", ns)["metadata"].get("finalizers"))
    alone.kill("scheduler")
    alone.kill("token_refresher")
    api.delete("ClaudeAccount", "acme", ns)
    within(8 + 20, lambda: api.get("ClaudeAccount", "acme", ns) is None)
    within(5, lambda: "DrainLimitReached" in dict(api.events("acme", ns)))


def test_the_documented_escape_when_the_operator_is_gone(api: Api, alone: Release, sim: Simulator, ns: str) -> None:
    tenant(api, alone, ns, sim.url)
    within(10, lambda: api.get("ClaudeAccount", "acme", ns)["metadata"].get("finalizers"))
    alone.kill("operator")
    api.delete("ClaudeAccount", "acme", ns)
    assert api.get("ClaudeAccount", "acme", ns) is not None
    api.merge("ClaudeAccount", "acme", {"metadata": {"finalizers": None}}, ns)
    within(5, lambda: api.get("ClaudeAccount", "acme", ns) is None)


def test_an_account_goes_only_when_its_requests_have_ended(api: Api, alone: Release, sim: Simulator, ns: str) -> None:
    key = tenant(api, alone, ns, sim.url)
    within(10, lambda: api.get("ClaudeAccount", "acme", ns)["metadata"].get("finalizers"))
    sim.script({"delay_s": 3})
    with concurrent.futures.ThreadPoolExecutor() as pool:
        slow = pool.submit(alone.call, key)
        within(5, lambda: sim.summary()["in_flight"])
        api.delete("ClaudeAccount", "acme", ns)
        time.sleep(1.5)
        assert api.get("ClaudeAccount", "acme", ns) is not None, "it did not wait"
        assert slow.result(20)[0] == 200
    within(5, lambda: api.get("ClaudeAccount", "acme", ns) is None)


def test_an_operator_that_was_thought_dead_does_nothing_more(
    api: Api, alone: Release, sim: Simulator, ns: str,
) -> None:
    key = tenant(api, alone, ns, sim.url)
    old = alone.pid("operator")
    alone.signal("operator", signal.SIGSTOP)
    alone.start("operator", SIGNALBOX_TELEMETRY_ADDRESS=f"127.0.0.1:{free_port()}", wait=False)
    within(30, lambda: sum('"watching"' in line for line in alone.log["operator"]) > 1)
    os.kill(old, signal.SIGCONT)
    try:
        within(40, lambda: any("superseded" in line for line in alone.log["operator"]))
        api.merge("RelayKey", "ada", {"spec": {"state": "Paused"}}, ns)
        within(10, lambda: "key_paused" in alone.call(key)[1])
    finally:
        os.kill(old, signal.SIGKILL)
        alone.kill("operator")


def test_a_bad_document_disturbs_no_other(api: Api, alone: Release, sim: Simulator, ns: str) -> None:
    """The schema lets through what only the models refuse: here, by a Secret that is no key."""
    key = tenant(api, alone, ns, sim.url)
    api.apply(placed(secret("odd", **{"relay-key": "short"}), ns))
    api.apply(placed(relay_key("odd"), ns))
    within(10, lambda: api.condition("RelayKey", "odd", "Ready", ns).get("reason") == "SecretInvalid")
    assert alone.call(key)[0] == 200
    apply_account(api, ns, sim.url, "two")
    within(15, lambda: api.condition("ClaudeAccount", "two", "Available", ns).get("reason") == "Serves")
