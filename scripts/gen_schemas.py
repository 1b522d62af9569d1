#!/usr/bin/env python3
"""Generate tests/deploy/schemas: what Kubernetes and its add-ons take, to check the chart without any of them.

Kubernetes' kinds from its Go module's OpenAPI, the add-ons' from the definitions that their Go modules ship;
Prometheus' module ships Go types only, of which the fields' names are taken, enough to find a misspelt one. Run it
when a version below moves; it needs Go and its module proxy, and is not part of `make docs`. tests/k8s holds the same
objects against a real API server.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

OUT = Path(__file__).resolve().parents[1] / "tests/deploy/schemas"
# Every kind of Kubernetes' own that the chart renders.
KINDS = (
    "ServiceAccount/v1", "Secret/v1", "ConfigMap/v1", "Service/v1", "PersistentVolumeClaim/v1", "Pod/v1",
    "Deployment/apps/v1", "StatefulSet/apps/v1", "Job/batch/v1", "CronJob/batch/v1",
    "Role/rbac.authorization.k8s.io/v1", "RoleBinding/rbac.authorization.k8s.io/v1",
    "ClusterRole/rbac.authorization.k8s.io/v1", "ClusterRoleBinding/rbac.authorization.k8s.io/v1",
    "NetworkPolicy/networking.k8s.io/v1", "Ingress/networking.k8s.io/v1", "PodDisruptionBudget/policy/v1",
    "HorizontalPodAutoscaler/autoscaling/v2",
    "CustomResourceDefinition/apiextensions.k8s.io/v1",
)
ADDONS = {
    "sigs.k8s.io/gateway-api@v1.6.3": ("config/crd/standard/gateway.networking.k8s.io_httproutes.yaml",),
    "github.com/kedacore/keda/v2@v2.18.0": ("config/crd/bases/keda.sh_scaledobjects.yaml",),
    "github.com/cert-manager/cert-manager@v1.19.1": ("deploy/crds/cert-manager.io_certificates.yaml",),
}
FOR_PEOPLE = ("description", "format", "default", "example")
PROMETHEUS = "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring@v0.95.2"
FROM_TYPES = {"PodMonitor": "podmonitors", "PrometheusRule": "prometheusrules"}
STRUCT = re.compile(r"^type (\w+) struct \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
FIELD = re.compile(r'^\t(?:\w+ +)?([\w.*\[\]]+) +`json:"([\w-]*)(,[\w,]*)?"', re.MULTILINE)

Json = Any


def of_kubernetes(swagger: dict[str, Json]) -> dict[str, Json]:
    """Return {file's name: schema} for KINDS from an API server's OpenAPI (version 2), with what they share."""
    definitions = swagger["definitions"]
    kinds = {
        "/".join(filter(None, (gvk["kind"], gvk["group"], gvk["version"]))): name
        for name, d in definitions.items() for gvk in d.get("x-kubernetes-group-version-kind", ())
    }
    wanted, shared = [kinds[kind] for kind in KINDS], {}
    while wanted:
        name = wanted.pop()
        if name not in shared:
            shared[name] = strict(definitions[name])
            refs = re.findall(r'"\$ref": "#/definitions/([^"]+)"', json.dumps(definitions[name]))
            wanted += refs
    files: dict[str, Json] = {
        file_of(kind): {"$ref": f"definitions.json#/definitions/{kinds[kind]}"} for kind in KINDS
    }
    return files | {"definitions.json": {"definitions": shared}}


def of_addon(crd: dict[str, Json]) -> dict[str, Json]:
    """Return {file's name: schema} for each version of a custom resource."""
    names, group = crd["spec"]["names"], crd["spec"]["group"]
    files = {}
    for version in crd["spec"]["versions"]:
        schema = strict(version["schema"]["openAPIV3Schema"])
        schema["properties"] |= {name: {"type": "string"} for name in ("apiVersion", "kind")}
        schema["properties"]["metadata"] = {"type": "object"}
        files[file_of(f"{names['kind']}/{group}/{version['name']}")] = schema
    return files


def file_of(kind: str) -> str:
    """Return the name under which kubeconform looks for `Kind/group/version`."""
    name, *where = kind.split("/")
    return "-".join([name.lower(), *(part.partition(".")[0] for part in where)]) + ".json"


def strict(node: Json) -> Json:
    """Return an OpenAPI schema as a JSON schema that knows every field, without words for people."""
    if isinstance(node, list):
        return [strict(n) for n in node]
    if not isinstance(node, dict):
        return node
    if node.get("format") == "int-or-string" or node.get("x-kubernetes-int-or-string"):
        return {"type": ["string", "integer"]}
    made = {k: strict(v) for k, v in node.items() if not k.startswith("x-") and k not in FOR_PEOPLE}
    if isinstance(node.get("properties"), dict):
        made["properties"] = {k: strict(v) for k, v in node["properties"].items()}
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    if made == {"type": "string"} and "serialization format is" in node.get("description", ""):
        return {"type": ["string", "number"]}  # a Quantity
    return made


def without_words(node: Json) -> Json:
    """Return a definition without its descriptions; a field may be called `description`."""
    if isinstance(node, list):
        return [without_words(n) for n in node]
    if not isinstance(node, dict):
        return node
    return {k: without_words(v) for k, v in node.items() if not (k == "description" and isinstance(v, str))}


def trimmed(crd: dict[str, Json]) -> dict[str, Json]:
    """Return a definition with its newest served version alone, as a test's API server takes it."""
    versions = [v for v in crd["spec"]["versions"] if v["storage"]]
    spec = {k: crd["spec"][k] for k in ("group", "names", "scope")} | {"versions": without_words(versions)}
    notes = {k: v for k, v in crd["metadata"].get("annotations", {}).items() if k == "api-approved.kubernetes.io"}
    metadata = {"name": crd["metadata"]["name"], **({"annotations": notes} if notes else {})}
    return {"apiVersion": crd["apiVersion"], "kind": crd["kind"], "metadata": metadata, "spec": spec}


def module(go: str, name: str) -> Path:
    """Return where a Go module's files are, fetching them if need be."""
    ran = subprocess.run([go, "mod", "download", "-json", name], capture_output=True, text=True, check=True, cwd="/")
    return Path(json.loads(ran.stdout)["Dir"])


def from_types(folder: Path) -> list[dict[str, Json]]:
    """Return definitions of Prometheus' kinds that know the fields of its Go types, and of no others."""
    structs = {name: body for file in sorted(folder.glob("*.go")) for name, body in STRUCT.findall(file.read_text())}
    anything = {"x-kubernetes-preserve-unknown-fields": True}

    def of_struct(name: str) -> dict[str, Json]:
        properties: dict[str, Json] = {}
        for type_name, field, options in FIELD.findall(structs[name]):
            if field and field != "-":
                properties[field] = of_type(type_name.lstrip("*"))
            elif "inline" in options and type_name in structs:
                properties |= of_struct(type_name)["properties"]
        return {"type": "object", "properties": properties}

    def of_type(name: str) -> dict[str, Json]:
        if name.startswith("[]"):
            return {"type": "array", "items": of_type(name.removeprefix("[]").lstrip("*"))}
        return of_struct(name) if name in structs else anything

    return [
        {
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{plural}.monitoring.coreos.com"},
            "spec": {
                "group": "monitoring.coreos.com", "scope": "Namespaced",
                "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
                "versions": [{
                    "name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {
                        "type": "object", "required": ["spec"], "properties": {"spec": of_struct(f"{kind}Spec")},
                    }},
                }],
            },
        }
        for kind, plural in FROM_TYPES.items()
    ]


def main() -> None:
    """Write all files."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from k8s.assets import KUBERNETES, find_go  # noqa: PLC0415 a script's own neighbour

    go = find_go()
    swagger = module(go, f"k8s.io/kubernetes@v{KUBERNETES}") / "api/openapi-spec/swagger.json"
    crds = [yaml.safe_load((module(go, name) / path).read_text()) for name, paths in ADDONS.items() for path in paths]
    crds = [trimmed(crd) for crd in (*crds, *from_types(module(go, PROMETHEUS) / "v1"))]
    files = of_kubernetes(json.loads(swagger.read_text()))
    for crd in crds:
        files |= of_addon(crd) | {f"crds/{crd['metadata']['name']}.json": crd}
    shutil.rmtree(OUT, ignore_errors=True)
    (OUT / "crds").mkdir(parents=True)
    for name, content in files.items():
        (OUT / name).write_text(json.dumps(content, sort_keys=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
