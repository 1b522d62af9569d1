"""kubectl and helm as the tests of a real cluster use them, and one release that they install."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.deploy.chart import helm, tool

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/signalbox"
NAMESPACE = "signalbox-test"
WAIT = "300s"

Object = dict[str, Any]


class Cluster:
    """The cluster of one kubeconfig. Commands raise AssertionError with what the program said."""

    def __init__(self, kubeconfig: str) -> None:
        self._environment = {**os.environ, "KUBECONFIG": kubeconfig}
        self._kubectl, self._helm = tool("kubectl", "node"), helm()

    def run(self, *arguments: str, given: str = "", check: bool = True, limit_s: float = 330) -> str:
        """Run kubectl in the tests' namespace; return what it printed."""
        return self._run([self._kubectl, "--namespace", NAMESPACE, *arguments], given, check, limit_s)

    def helm(self, *arguments: str, check: bool = True, limit_s: float = 900) -> str:
        """Run helm in the tests' namespace; return what it printed."""
        return self._run([self._helm, "--namespace", NAMESPACE, *arguments], "", check, limit_s)

    def _run(self, command: list[str], given: str, check: bool, limit_s: float) -> str:
        ran = subprocess.run(
            command, input=given, capture_output=True, text=True, env=self._environment, check=False, timeout=limit_s,
        )
        if check and ran.returncode != 0:
            raise AssertionError(f"{' '.join(command)[:300]} exited {ran.returncode}:\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
        return ran.stdout if check else ran.stdout + ran.stderr

    def get(self, *what: str) -> Any:
        """An object, or a list's items."""
        found = json.loads(self.run("get", *what, "-o", "json"))
        return found["items"] if found["kind"] == "List" else found

    def apply(self, *documents: Object) -> None:
        """Apply documents."""
        self.run("apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": documents}))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start kubectl."""
        return subprocess.Popen(
            [self._kubectl, "--namespace", NAMESPACE, *arguments], env=self._environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )

    def command(self, *arguments: str) -> Any:
        """What `signalbox ARGUMENTS -o json` prints in the usage room's pod."""
        return json.loads(self.run("exec", "deploy/signalbox-usage", "--", "signalbox", *arguments, "-o", "json"))

    def rolled_out(self, *names: str) -> None:
        """Wait until deployments or stateful sets are whole."""
        for name in names:
            self.run("rollout", "status", name, f"--timeout={WAIT}")

    def pods(self, room: str) -> list[Object]:
        """A room's pods that are not on their way out."""
        found = self.get("pods", "-l", f"app.kubernetes.io/instance=signalbox,app.kubernetes.io/component={room}")
        return [p for p in found if "deletionTimestamp" not in p["metadata"]]

    def evict(self, pod: str) -> None:
        """Ask the eviction API until it lets the pod go."""
        body = json.dumps({
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": NAMESPACE},
        })
        until_s = time.monotonic() + 120
        while True:
            said = self.run(
                "create", "--raw", f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction", "-f", "-", given=body, check=False,
            )
            if '"Success"' in said:
                return
            assert "disruption budget" in said or "TooManyRequests" in said, said
            assert time.monotonic() < until_s, f"the budget never let {pod} go: {said}"
            time.sleep(2)
