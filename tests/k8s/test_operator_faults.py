"""What the operator survives: the API server away, its own death, expired and silently dead watches, a successor."""

import os
import signal
import time

from tests.support.control_plane import ControlPlane
from tests.support.kube import SOON_S, Api, within
from tests.support.rbac import OPERATOR
from tests.support.release import Release, free_port
from tests.support.sim import Simulator
from tests.support.tenant import apply_key, served, tenant
from tests.support.tunnel import Tunnel

# The contract's bound where a watch is dead, and what a busy machine adds.
DEAD_WATCH_S = 30.0
SLACK_S = 15.0
AWAY_S = 60.0
WATCHED = ("ClaudeAccount", "AccountPool", "RelayKey", "Secret", "Namespace")
# Of waiting for what has no bound of its own, on a machine that may be busy.
PATIENCE_S = 90.0
# Without a sign of the newer operator until the older one takes over (SILENT_AFTER_S), and what looking every 3 s adds.
GIVES_WAY_S = 20.0


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
    within(DEAD_WATCH_S + SLACK_S, lambda: "key_paused" in alone.call(key)[1])
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
        within(SOON_S, lambda key=key: alone.key_info(key)[0] == 200)
    within(SOON_S, lambda: all(
        api.condition("RelayKey", f"k{turn}-{number}", "Ready", ns).get("status") == "True"
        for turn in range(4) for number in range(10)
    ))


def test_what_was_deleted_while_the_operator_was_away_goes(api: Api, alone: Release, sim: Simulator, ns: str) -> None:
    key = tenant(api, alone, ns, sim.url)
    alone.kill("operator")
    api.delete("RelayKey", "ada", ns)
    assert alone.call(key)[0] == 200, "nobody could tell the scheduler"
    alone.start("operator")
    within(SOON_S, lambda: alone.call(key)[0] == 401)


def test_a_silently_dead_watch_is_replaced(
    plane: ControlPlane, api: Api, alone: Release, sim: Simulator, ns: str,
) -> None:
    """The way to the API server swallows everything on the connections that there are; new ones work."""
    with Tunnel(plane.url) as tunnel:
        kubeconfig = str(plane.identity(f"{OPERATOR}-through-a-tunnel", user=OPERATOR, url=tunnel.url))
        before = said(alone, "watch_begins")
        alone.restart("operator", SIGNALBOX_OPERATOR_KUBECONFIG=kubeconfig, KUBECONFIG=kubeconfig)
        key = tenant(api, alone, ns, sim.url)
        within(PATIENCE_S, lambda: said(alone, "watch_begins") >= before + len(WATCHED))
        time.sleep(3)  # the listing that follows each start of a watch is over
        tunnel.swallow()
        api.merge("RelayKey", "ada", {"spec": {"state": "Paused"}}, ns)
        began_s = time.monotonic()
        within(DEAD_WATCH_S + SLACK_S, lambda: "key_paused" in alone.call(key)[1])
        print(f"\nrevoked over a dead watch after {time.monotonic() - began_s:.1f} s")
        alone.kill("operator")


def test_an_operator_that_was_thought_dead_gives_way_and_takes_over_when_the_newer_one_dies(
    api: Api, alone: Release, sim: Simulator, ns: str,
) -> None:
    key = tenant(api, alone, ns, sim.url)
    earlier = {event: said(alone, event) for event in ("watching", "superseded", "taking_over")}

    def anew(event: str) -> int:
        return said(alone, event) - earlier[event]

    old = alone.pid("operator")
    alone.signal("operator", signal.SIGSTOP)
    alone.start("operator", SIGNALBOX_TELEMETRY_ADDRESS=f"127.0.0.1:{free_port()}", wait=False)
    within(PATIENCE_S, lambda: anew("watching"))
    os.kill(old, signal.SIGCONT)
    try:
        within(PATIENCE_S, lambda: anew("superseded"))
        within(PATIENCE_S, lambda: alone.page("operator", "/readyz")[0] == 503)  # the older one's page
        assert alone.page("operator", "/healthz")[0] == 200
        set_state(api, ns, "Paused")
        within(PATIENCE_S, lambda: "key_paused" in alone.call(key)[1])
        time.sleep(GIVES_WAY_S)
        assert (anew("watching"), anew("superseded"), anew("taking_over")) == (1, 1, 0), "two that live do not fight"
        alone.kill("operator")
        set_state(api, ns, "Active")
        within(GIVES_WAY_S + PATIENCE_S, lambda: alone.call(key)[0] == 200)
        within(PATIENCE_S, lambda: alone.page("operator", "/readyz")[0] == 200)
        assert anew("taking_over") == 1
    finally:
        os.kill(old, signal.SIGKILL)
        alone.mend()


def test_a_status_does_not_run_ahead_of_what_is_in_force(api: Api, alone: Release, sim: Simulator, ns: str) -> None:
    """Whoever has read that a document was observed reads what it says, not what the one before it said."""
    tenant(api, alone, ns, sim.url)
    within(SOON_S, lambda: reason(api, ns) == "Serves")
    for state, means in (("Paused", "Paused"), ("Active", "Serves")) * 2:
        alone.signal("scheduler", signal.SIGSTOP)
        try:
            generation = api.merge("RelayKey", "ada", {"spec": {"state": state}}, ns)["metadata"]["generation"]
            time.sleep(2)  # twice as long as a status waits for the next one at most
            assert observed(api, ns) < generation, f"{state} is not in force"
        finally:
            alone.signal("scheduler", signal.SIGCONT)
        within(SOON_S, lambda generation=generation: observed(api, ns) == generation)
        assert reason(api, ns) == means


def test_a_key_is_paused_and_says_so_while_the_token_refresher_is_away(
    api: Api, alone: Release, sim: Simulator, ns: str,
) -> None:
    """Without it nothing new can be planned; what withdraws access does not wait for that, and is told."""
    key = tenant(api, alone, ns, sim.url)
    before = said(alone, "documents_not_in_force")
    alone.kill("token_refresher")
    alone.restart("scheduler")
    within(PATIENCE_S, lambda: said(alone, "documents_not_in_force") > before)
    set_state(api, ns, "Paused")
    within(SOON_S, lambda: reason(api, ns) == "Paused")
    assert observed(api, ns) == 2
    assert "key_paused" in alone.call(key)[1]


def test_a_key_that_is_made_paused_never_seems_to_serve(api: Api, alone: Release, sim: Simulator, ns: str) -> None:
    tenant(api, alone, ns, sim.url)
    for number in range(3):
        apply_key(api, ns, f"k{number}", state="Paused")
        within(SOON_S, lambda number=number: observed(api, ns, f"k{number}") == 1)
        assert reason(api, ns, f"k{number}") == "Paused"


def observed(api: Api, ns: str, name: str = "ada") -> int:
    return int((api.get("RelayKey", name, ns) or {}).get("status", {}).get("observedGeneration", 0))


def reason(api: Api, ns: str, name: str = "ada") -> str:
    return str(api.condition("RelayKey", name, "Ready", ns).get("reason"))


def said(release: Release, event: str) -> int:
    """How often operators have logged an event."""
    return sum(f'"{event}"' in line for line in release.log["operator"])


def set_state(api: Api, ns: str, state: str) -> None:
    api.merge("RelayKey", "ada", {"spec": {"state": state}}, ns)


def test_watches_that_the_api_server_has_let_expire_miss_nothing(
    plane: ControlPlane, api: Api, alone: Release, sim: Simulator, ns: str,
) -> None:
    """The operator stands still, and meanwhile what its watches would go on from has been forgotten (410)."""
    key = tenant(api, alone, ns, sim.url)
    before = said(alone, "watch_begins")
    alone.signal("operator", signal.SIGSTOP)
    try:
        api.delete("RelayKey", "ada", ns)
        fresh = apply_key(api, ns, "bob")
        plane.stop_api()
        plane.compact()
        plane.start_api()
    finally:
        alone.signal("operator", signal.SIGCONT)
    within(DEAD_WATCH_S + SLACK_S, lambda: alone.call(key)[0] == 401)
    served(alone, fresh)
    # What had reached the operator before it stood still may have told it of both already.
    within(DEAD_WATCH_S + SLACK_S, lambda: said(alone, "watch_begins") > before, what="a watch that had expired")
    api.delete("RelayKey", "bob", ns)
    within(SOON_S, lambda: alone.call(fresh)[0] == 401)
