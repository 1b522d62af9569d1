"""Renders the chart with helm, for the tests here; says what is missing where there is no helm."""

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.gen_schemas import of_addon

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/signalbox"
SCHEMAS = ROOT / "tests/deploy/schemas"
ROOMS = ("gateway", "scheduler", "token-refresher", "usage", "operator")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C it takes a fifth of the time

Object = dict[str, Any]


def helm() -> str:
    """The helm program: SIGNALBOX_HELM, the one on PATH, or the one that `make tools` built."""
    return os.environ.get("SIGNALBOX_HELM") or tool("helm")


@functools.cache
def tool(name: str, group: str = "tools") -> str:
    """A program on PATH or of the project's own building; skips where there is neither."""
    if found := shutil.which(name):
        return found
    command = [sys.executable, str(ROOT / "scripts/k8s/assets.py"), group, "--only-find"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode != 0:
        pytest.skip(f"needs {name}: `scripts/k8s/assets.py {group}` builds it")
    return f"{built.stdout.strip()}/{name}"


def conformity(objects: list[Object]) -> subprocess.CompletedProcess[str]:
    """What kubeconform says of objects, by the schemas of this repository alone: an unknown kind or field is an error."""
    with tempfile.TemporaryDirectory() as own:
        for crd in sorted((ROOT / "deploy/crds").glob("*.yaml")):
            for name, schema in of_addon(yaml.safe_load(crd.read_text())).items():
                (Path(own) / name).write_text(json.dumps(schema))
        places = [f"-schema-location={place}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json" for place in (SCHEMAS, own)]
        return _conformity(objects, places)


def _conformity(objects: list[Object], places: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [tool("kubeconform"), "-strict", "-output=json", *places],
        input=yaml.safe_dump_all(objects), capture_output=True, text=True, check=False,
    )


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([helm(), *arguments], capture_output=True, text=True, check=False)


def template(*values: str, release: str = "signalbox", namespace: str = "relay", apis: tuple[str, ...] = ()) -> list[Object]:
    """The objects that these `--set` values render to, hooks included, lists taken apart."""
    sets = [part for value in values for part in ("--set-json" if "=[" in value or "={" in value else "--set", value)]
    ran = run("template", release, str(CHART), "--namespace", namespace, *sets, *(f"--api-versions={a}" for a in apis))
    assert ran.returncode == 0, ran.stderr
    found = [o for o in yaml.load_all(ran.stdout, Loader=LOADER) if o]
    return [item for o in found for item in (o["items"] if o["kind"] == "List" else [o])]


def refusal(*values: str, release: str = "signalbox") -> str:
    """What helm says to values that it must refuse."""
    sets = [part for value in values for part in ("--set-json" if "=[" in value or "={" in value else "--set", value)]
    ran = run("template", release, str(CHART), *sets)
    assert ran.returncode != 0
    return ran.stderr


def one(objects: list[Object], kind: str, name: str) -> Object:
    """The only object of this kind and name."""
    [found] = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    return found


def pods(objects: list[Object]) -> dict[str, Object]:
    """Pod specs of everything that makes pods, by name."""
    found = {}
    for o in objects:
        if o["kind"] in ("Deployment", "StatefulSet", "Job"):
            found[o["metadata"]["name"]] = o["spec"]["template"]["spec"]
        elif o["kind"] == "CronJob":
            found[o["metadata"]["name"]] = o["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        elif o["kind"] == "Pod":
            found[o["metadata"]["name"]] = o["spec"]
    return found


def variables(pod: Object) -> dict[str, Any]:
    """The environment of a pod's only container."""
    [container] = pod["containers"]
    return {v["name"]: v.get("value", v.get("valueFrom")) for v in container.get("env", ())}
