"""The Helm chart at a real API server: every combination of values is accepted, upgrades and reinstalls keep what they must."""

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.deploy.chart import CHART, ROOMS, SCHEMAS, helm, pods, template
from tests.deploy.test_chart import MATRIX, MONITORING
from tests.support.control_plane import ControlPlane
from tests.support.instance import SIGNALBOX
from tests.support.kube import SOON_S, Api, within

VALUES = ("--set=postgresql.bundled.enabled=true", "--set=rooms.tls.mode=Generated", "--set=crds.install=false")
GRANTS = ("get", "list", "create", "update", "delete")


@pytest.fixture(scope="module")
def addons(api: Api) -> None:
    """The definitions of Prometheus, KEDA, cert-manager and the Gateway API; their controllers are not here."""
    api.define(*(json.loads(file.read_text()) for file in sorted(SCHEMAS.glob("crds/*.json"))))


@pytest.mark.usefixtures("addons")
@pytest.mark.parametrize("case", MATRIX)
def test_the_api_server_takes_every_object(api: Api, case: str) -> None:
    for namespace in ("relay", "a", "b"):
        api.namespace(namespace, **{"pod-security.kubernetes.io/enforce": "restricted"})
        # Pods need it, and the controller manager makes it a moment later: half a minute after the API server was away.
        within(SOON_S, lambda namespace=namespace: api.get("ServiceAccount", "default", namespace))
    for document in template(*MATRIX[case], apis=MONITORING):
        api.try_out(document)


class Installation:
    """helm against the control plane; nothing runs there, but every object is kept as it would be."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self._plane = plane
        self._environment = {**os.environ, "KUBECONFIG": str(plane.kubeconfig)}
        self._namespace = namespace

    def helm(self, *arguments: str) -> None:
        command = [helm(), "--namespace", self._namespace, *arguments]
        ran = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr

    def make_certificates(self, api: Api) -> None:
        """Do what the chart's Job would do, with its command and its rights; nothing runs Jobs here."""
        objects = template(*(v.removeprefix("--set=") for v in VALUES), namespace=self._namespace)
        hooks = [o for o in objects if o["metadata"]["name"] == "signalbox-certificates-hook"]
        for hook in hooks:
            if hook["kind"] in ("ServiceAccount", "Role", "RoleBinding"):
                api.apply(hook, force=True)
        [container] = pods(hooks)["signalbox-certificates-hook"]["containers"]
        account = f"system:serviceaccount:{self._namespace}:signalbox-certificates-hook"
        kubeconfig = self._plane.identity(f"certificates-{self._namespace}", user=account)
        config = json.loads(kubeconfig.read_text())
        config["contexts"][0]["context"]["namespace"] = self._namespace
        kubeconfig.write_text(json.dumps(config))
        command = [SIGNALBOX, *container["command"][1:]]
        ran = subprocess.run(
            command, env={**os.environ, "KUBECONFIG": str(kubeconfig)}, capture_output=True, text=True, check=False,
        )
        assert ran.returncode == 0, ran.stderr

    def objects(self, api: Api, path: str) -> dict[str, Any]:
        found = api._call("GET", f"/{path.replace('NS', self._namespace)}")["items"]
        return {o["metadata"]["name"]: o for o in found if o.get("type") != "helm.sh/release.v1"}

    def generations(self, api: Api) -> dict[str, int]:
        found = {}
        for plural in ("deployments", "statefulsets"):
            items = self.objects(api, f"apis/apps/v1/namespaces/NS/{plural}")
            found |= {name: o["metadata"]["generation"] for name, o in items.items()}
        return found

    def secrets(self, api: Api) -> dict[str, Any]:
        return {n: o["data"] for n, o in self.objects(api, "api/v1/namespaces/NS/secrets").items()}


@pytest.fixture
def installation(plane: ControlPlane, api: Api, ns: str) -> Iterator[Installation]:
    found = Installation(plane, ns)
    found.helm("install", "signalbox", str(CHART), *VALUES, "--no-hooks")
    yield found
    found.helm("uninstall", "signalbox", "--ignore-not-found")


def test_only_rooms_that_read_a_setting_are_rolled(api: Api, installation: Installation) -> None:
    first = installation.generations(api)
    assert len(first) == 7
    installation.helm("upgrade", "signalbox", str(CHART), *VALUES, "--no-hooks")
    assert installation.generations(api) == first
    installation.helm("upgrade", "signalbox", str(CHART), *VALUES, "--no-hooks", "--set=gateway.maxBufferedBytes=99999999")
    second = installation.generations(api)
    assert {name for name in first if first[name] != second[name]} == {"signalbox-gateway"}


def test_secrets_outlive_upgrades_and_reinstalls(api: Api, installation: Installation) -> None:
    installation.make_certificates(api)
    first = installation.secrets(api)
    made = ("rooms", "rooms-tls", "rooms-authority", "redis", "postgresql", "token-refresher")
    assert set(first) == {f"signalbox-{s}" for s in made}
    assert set(first["signalbox-rooms-tls"]) == {"tls.crt", "tls.key", "ca.crt"}
    installation.helm("upgrade", "signalbox", str(CHART), *VALUES, "--no-hooks")
    installation.make_certificates(api)
    assert installation.secrets(api) == first
    installation.helm("uninstall", "signalbox", "--no-hooks")
    assert not installation.generations(api)
    installation.helm("install", "signalbox", str(CHART), *VALUES, "--no-hooks")
    installation.make_certificates(api)
    assert installation.secrets(api) == first


def test_two_rooms_read_secrets_and_one_writes_its_own(api: Api, installation: Installation, ns: str) -> None:
    for room in ROOMS:
        for verb in ("get", "list", "watch", "create", "update", "patch", "delete"):
            for namespace in (ns, "kube-system"):
                asked = api._call("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", json={
                    "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
                        "user": f"system:serviceaccount:{ns}:signalbox-{room}",
                        "resourceAttributes": {"namespace": namespace, "verb": verb, "resource": "secrets"},
                    },
                })
                verbs = {"operator": ("get", "list", "watch"), "token-refresher": GRANTS}.get(room, ())
                expected = verb in verbs and namespace == ns
                assert asked["status"]["allowed"] is expected, (room, verb, namespace)
