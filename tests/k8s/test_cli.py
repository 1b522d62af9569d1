"""`signalbox keys|accounts|pools ...` against a cluster, with the rights of the person who runs it."""

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.control_plane import ControlPlane
from tests.support.instance import pool
from tests.support.kube import SOON_S, Api, placed, within
from tests.support.rbac import grant_tenant
from tests.support.release import Release
from tests.support.sim import Simulator
from tests.support.tenant import apply_account, served, tenant

SIGNALBOX = str(Path(sys.executable).parent / "signalbox")
Run = Callable[..., subprocess.CompletedProcess[str]]


def runner(kubeconfig: Path) -> Run:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SIGNALBOX_")}

    def run(*arguments: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [SIGNALBOX, *arguments, "--cluster"], env={**clean, "KUBECONFIG": str(kubeconfig)}, text=True,
            capture_output=True, timeout=60, check=False,
        )
        assert (result.returncode != 0) == fails, (arguments, result.stdout, result.stderr)
        return result

    return run


@pytest.fixture
def person(plane: ControlPlane, api: Api, ns: str) -> Run:
    """The command as a person with a tenant's rights in one namespace, which is their context's."""
    user = f"grace-{ns}"
    grant_tenant(api, user, ns)
    path = plane.identity(user)
    config = json.loads(path.read_text())
    config["contexts"][0]["context"]["namespace"] = ns
    path.write_text(json.dumps(config))
    return runner(path)


def rows(result: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return list(json.loads(result.stdout))


def test_a_key_is_made_rotated_and_paused(api: Api, release: Release, sim: Simulator, ns: str, person: Run) -> None:
    apply_account(api, ns, sim.url)
    made = rows(person("keys", "create", "eve", "--owner", "eve@example.com", "--limit", "day:cost=20", "-o", "json"))[0]
    assert made["namespace"] == ns
    served(release, made["key"])
    document = api.get("RelayKey", "eve", ns)
    assert made["key"] not in str(document)
    rotated = rows(person("keys", "rotate", "eve", "--overlap", "1h", "-o", "json"))[0]
    for key in (made["key"], rotated["key"]):
        within(SOON_S, lambda key=key: release.key_info(key)[0] == 200)
    person("keys", "pause", "eve")
    within(SOON_S, lambda: "key_paused" in release.call(rotated["key"])[1])
    listed = rows(person("keys", "list", "-o", "json"))
    assert [(row["name"], row["owner"], row["state"]) for row in listed] == [("eve", "eve@example.com", "Paused")]
    person("keys", "resume", "eve")
    served(release, rotated["key"])
    assert "exists already" in person("keys", "create", "eve", "--owner", "x", fails=True).stderr


def test_a_document_whose_status_keeps_changing_is_changed(
    api: Api, release: Release, sim: Simulator, ns: str, person: Run,
) -> None:
    tenant(api, release, ns, sim.url)
    done = threading.Event()

    def disturb() -> None:
        for n in itertools.count():
            if done.wait(0.005):
                return
            api.merge("RelayKey", "ada", {"metadata": {"annotations": {"example.com/n": str(n)}}}, ns)

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        for command, state in (("pause", "Paused"), ("resume", "Active"), ("pause", "Paused")):
            person("keys", command, "ada")
            assert api.get("RelayKey", "ada", ns)["spec"].get("state", "Active") == state
    finally:
        done.set()
        disturber.join()


def test_a_key_in_a_secret(api: Api, release: Release, sim: Simulator, ns: str, person: Run) -> None:
    apply_account(api, ns, sim.url)
    key = person("keys", "create", "bob", "--owner", "bob@example.com", "--secret").stdout.strip()
    served(release, key)
    assert api.get("RelayKey", "bob", ns)["spec"]["secretRef"] == {"name": "bob-relay-key", "key": "relay-key"}
    # Who may not read Secrets cannot learn the present key, and so cannot let it overlap.
    assert "said no" in person("keys", "rotate", "bob", fails=True).stderr


def test_an_account_is_paused_and_shown(api: Api, release: Release, sim: Simulator, ns: str, person: Run) -> None:
    key = tenant(api, release, ns, sim.url)
    api.apply(placed(pool("both", ["acme"]), ns))
    person("accounts", "pause", "acme", "--reason", "rotating")
    within(SOON_S, lambda: "pool_unavailable" in release.call(key)[1] or "pool_limited" in release.call(key)[1])
    within(SOON_S, lambda: rows(person("accounts", "describe", "acme", "-o", "json"))[0]["reason"] == "Paused")
    shown = rows(person("accounts", "describe", f"{ns}/acme", "-o", "json"))[0]
    assert (shown["state"], shown["state_reason"], shown["available"]) == ("Paused", "rotating", False)
    person("accounts", "resume", "acme")
    served(release, key)
    pools = within(SOON_S, lambda: [
        row for row in rows(person("pools", "list", "-o", "json")) if row["accounts"] == {"Ready": 1}
    ])
    assert pools[0]["strategy"] == "Headroom"
    assert "acme" in person("accounts", "list").stdout


def test_what_a_gitops_controller_manages_is_left_alone(
    api: Api, release: Release, sim: Simulator, ns: str, person: Run,
) -> None:
    tenant(api, release, ns, sim.url)
    document = api.get("RelayKey", "ada", ns)
    spec = {**document["spec"], "state": "Active"}
    managed = {key: document[key] for key in ("apiVersion", "kind")}
    metadata = {"name": "ada", "namespace": ns}
    api.apply({**managed, "metadata": metadata, "spec": spec}, "argocd-controller", force=True)
    refused = person("keys", "pause", "ada", fails=True)
    assert "managed by argocd-controller" in refused.stderr
    assert api.get("RelayKey", "ada", ns)["spec"]["state"] == "Active"


def test_the_persons_own_rights_decide(api: Api, release: Release, sim: Simulator, ns: str, person: Run) -> None:
    other = f"{ns}-other"
    api.namespace(other)
    tenant(api, release, other, sim.url)
    for arguments in (
        ("keys", "pause", f"{other}/ada"), ("keys", "describe", f"{other}/ada"),
        ("keys", "create", f"{other}/mallory", "--owner", "m"),
    ):
        assert "said no" in person(*arguments, fails=True).stderr
    assert rows(person("keys", "list", "-o", "json")) == []


def test_the_administrator_sees_all_namespaces(
    plane: ControlPlane, api: Api, release: Release, sim: Simulator, ns: str,
) -> None:
    tenant(api, release, ns, sim.url)
    admin = runner(plane.kubeconfig)
    found = {(row["namespace"], row["name"]) for row in rows(admin("accounts", "list", "-o", "json"))}
    assert (ns, "acme") in found


# What runs in a pod finds these files; here in a mount namespace of the command's own.
AS_IN_A_POD = """
mount -t tmpfs tmpfs /run
mkdir -p /run/secrets/kubernetes.io
cp -r "$1" /run/secrets/kubernetes.io/serviceaccount
shift
exec "$@"
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0,
    reason="needs a mount namespace: root",
)
def test_in_a_pod_the_service_account_decides(
    plane: ControlPlane, api: Api, release: Release, sim: Simulator, ns: str, tmp_path: Path,
) -> None:
    key = tenant(api, release, ns, sim.url)
    grant_tenant(api, f"system:serviceaccount:{ns}:default", ns)
    token = within(SOON_S, lambda: api.get("ServiceAccount", "default", ns) and api.token("default", ns))
    files = {"token": str(token), "namespace": ns, "ca.crt": plane.authority.certificate_file.read_text()}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    host, port = plane.url.removeprefix("https://").split(":")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SIGNALBOX_") and k != "KUBECONFIG"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["unshare", "--mount", "sh", "-e", "-c", AS_IN_A_POD, "sh", str(tmp_path), SIGNALBOX, *arguments, "--cluster"],
            env={**clean, "KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}, text=True,
            capture_output=True, timeout=60, check=False,
        )

    listed = run("keys", "list", "-o", "json")
    assert [(row["namespace"], row["name"]) for row in rows(listed)] == [(ns, "ada")], listed.stderr
    paused = run("keys", "pause", "ada")
    assert paused.returncode == 0, paused.stderr
    within(SOON_S, lambda: "key_paused" in release.call(key)[1])
    assert "said no" in run("keys", "pause", "default/ada").stderr


def test_no_cluster_is_told_plainly(tmp_path: Path) -> None:
    missing = runner(tmp_path / "nothing")("keys", "list", fails=True)
    assert "kubeconfig" in missing.stderr.lower() or "nothing" in missing.stderr
    assert "Traceback" not in missing.stderr
