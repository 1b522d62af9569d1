"""The release that these tests install, in the cluster that SIGNALBOX_TEST_KUBECONFIG names; without one they are skipped.

`make test-cluster` sets it (__main__.py). Images are loaded by SIGNALBOX_TEST_LOAD (a command that gets an archive's path) from
SIGNALBOX_TEST_IMAGES; where these are not set, the nodes must have them already.
"""

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.kubectl import CHART, NAMESPACE, WAIT, Cluster, Object

KUBECONFIG = os.environ.get("SIGNALBOX_TEST_KUBECONFIG", "")
KEEP = bool(os.environ.get("SIGNALBOX_TEST_KEEP"))
"""Leave the release where it is at the end, and take the one that such a run left."""
LEAVE = KEEP or bool(os.environ.get("SIGNALBOX_TEST_LEAVE"))
"""Leave it where it is: the cluster itself goes."""
WHY = os.environ.get("SIGNALBOX_TEST_WHY", "needs a cluster: `make test-cluster` brings one up")
IMAGES, LOAD = os.environ.get("SIGNALBOX_TEST_IMAGES", ""), os.environ.get("SIGNALBOX_TEST_LOAD", "")
KEY = "a relay key of the cluster tests"
PROVIDER_KEY = "sk-simulated-provider"
TAG = os.environ.get("SIGNALBOX_TEST_TAG", "")
"""Of the images under test, where it is not the chart's own version."""
VALUES = (
    "--set=postgresql.bundled.enabled=true", "--set=gateway.terminationGracePeriodSeconds=300",
    *((f"--set={image}.tag={TAG}" for image in (
        "image", "redis.bundled.image", "postgresql.bundled.image", "test.image",
    )) if TAG else ()),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()) and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(1200))
            if not KUBECONFIG:
                item.add_marker(pytest.mark.skip(reason=WHY))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster, with the images on its nodes and an empty namespace that enforces restricted pods."""
    found = Cluster(KUBECONFIG)
    if not (KEEP and NAMESPACE in found.run("get", "namespace", "-o", "name")):
        if LOAD:
            for archive in sorted(Path(IMAGES).glob("*.tar")):
                subprocess.run([*shlex.split(LOAD), str(archive)], check=True, cwd=CHART.parents[2])
        _clear(found)
        found.run("create", "namespace", NAMESPACE)
        found.run("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    yield found
    if not LEAVE:
        _clear(found)


def _clear(cluster: Cluster) -> None:
    """Remove what these tests make. Documents go first, while there is an operator to take its finalizers off."""
    cluster.run("delete", "cla,clp,rk", "--all", "--ignore-not-found", "--timeout=60s", check=False)
    cluster.helm("uninstall", "signalbox", "--ignore-not-found", "--wait", f"--timeout={WAIT}")
    cluster.run("delete", "namespace", NAMESPACE, "--ignore-not-found", f"--timeout={WAIT}")


@pytest.fixture(scope="session")
def installed(cluster: Cluster) -> Cluster:
    """The release, whole."""
    if not (KEEP and "signalbox" in cluster.helm("list", "--short", "--deployed")):
        cluster.helm("install", "signalbox", str(CHART), *VALUES, "--wait", f"--timeout={WAIT}")
    return cluster


@pytest.fixture(scope="session")
def serving(installed: Cluster) -> Cluster:
    """The release with a simulated provider in a pod, two accounts at it, and a key."""
    installed.apply(*_provider(), *_documents())
    installed.rolled_out("deploy/provider")
    for account in ("left", "right"):
        installed.run("wait", "--for=condition=Available", f"cla/{account}", "--timeout=120s")
    installed.run("wait", "--for=condition=Ready", "rk/ada", "--timeout=120s")
    return installed


def _image(name: str) -> str:
    chart = (CHART / "Chart.yaml").read_text()
    version = TAG or next(line.split()[1] for line in chart.splitlines() if line.startswith("appVersion"))
    return f"localhost/{name}:{version}"


def pod_spec(image: str, command: list[str], **container: object) -> Object:
    """A pod that the restricted standard admits."""
    return {
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "main", "image": _image(image), "imagePullPolicy": "IfNotPresent", "command": command,
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}, **container,
        }],
    }


ASKS = {"requests": {"cpu": "50m", "memory": "64Mi"}}
"""Of pods that stand for the world outside: without it they would starve beside the release on a node that is too small."""


def _provider() -> list[Object]:
    labels = {"app": "provider"}
    run = "echo '{\"open\": true}' >/tmp/config && exec signalbox-simulator --host 0.0.0.0 --port 8000 --config /tmp/config"
    serve = ["sh", "-c", run]
    spec = pod_spec(
        "signalbox-simulator", serve, readinessProbe={"tcpSocket": {"port": 8000}, "periodSeconds": 1}, resources=ASKS,
    )
    return [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "provider"},
         "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "provider"},
         "spec": {"selector": labels, "ports": [{"port": 8000}]}},
    ]


def _documents() -> list[Object]:
    ours = "signalbox.dev/v1alpha1"
    accounts = [
        {"apiVersion": ours, "kind": "ClaudeAccount", "metadata": {"name": name},
         "spec": {"provider": "Anthropic", "baseURL": f"http://provider.{NAMESPACE}.svc:8000",
                  "credential": {"apiKey": {"secretRef": {"name": "provider-key", "key": "api-key"}}}}}
        for name in ("left", "right")
    ]
    return [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "provider-key"}, "stringData": {"api-key": PROVIDER_KEY}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ada"}, "stringData": {"relay-key": KEY}},
        *accounts,
        {"apiVersion": ours, "kind": "AccountPool", "metadata": {"name": "default"},
         "spec": {"members": {"accounts": ["left", "right"]},
                  "timeouts": {"connect": "60s", "firstContent": "120s", "idle": "120s"}}},
        {"apiVersion": ours, "kind": "RelayKey", "metadata": {"name": "ada"},
         "spec": {"owner": "ada@example.com", "secretRef": {"name": "ada", "key": "relay-key"}}},
    ]
