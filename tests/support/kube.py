"""The API server as tests talk to it: HTTP and JSON with a kubeconfig's identity. Imports nothing of the product."""

import base64
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from tests.support.certificates import believing

CRDS = Path(__file__).resolve().parents[2] / "deploy" / "crds"
OURS = "signalbox.dev/v1alpha1"
_PATHS = {
    "ClaudeAccount": (f"apis/{OURS}", "claudeaccounts"), "AccountPool": (f"apis/{OURS}", "accountpools"),
    "RelayKey": (f"apis/{OURS}", "relaykeys"), "Secret": ("api/v1", "secrets"), "Event": ("api/v1", "events"),
    "Namespace": ("api/v1", "namespaces"), "ServiceAccount": ("api/v1", "serviceaccounts"),
    "Lease": ("apis/coordination.k8s.io/v1", "leases"),
    "Role": ("apis/rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": ("apis/rbac.authorization.k8s.io/v1", "rolebindings"),
    "ClusterRole": ("apis/rbac.authorization.k8s.io/v1", "clusterroles"),
    "ClusterRoleBinding": ("apis/rbac.authorization.k8s.io/v1", "clusterrolebindings"),
    "CustomResourceDefinition": ("apis/apiextensions.k8s.io/v1", "customresourcedefinitions"),
}
_CLUSTER = ("Namespace", "CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding")
_TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"

# For what should be so in a moment, on a machine of whatever speed: asked again and again, waiting costs nothing.
SOON_S = 60.0

T = TypeVar("T")
Document = dict[str, Any]


class Refusal(Exception):
    """The API server said no. `causes` are (path, message) pairs."""

    def __init__(self, status: Mapping[str, Any]) -> None:
        super().__init__(status.get("message", str(status)))
        self.code = int(status.get("code", 0))
        self.reason = str(status.get("reason", ""))
        causes = (status.get("details") or {}).get("causes") or []
        self.causes = [(cause.get("field", ""), cause.get("message", "")) for cause in causes]


class Api:
    """The API server, as the identity of one kubeconfig."""

    def __init__(self, kubeconfig: Path) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        context = believing(cadata=_text(cluster["certificate-authority-data"]))
        if "client-certificate-data" in user:
            with tempfile.NamedTemporaryFile("w", suffix=".pem") as pair:
                pair.write(_text(user["client-certificate-data"]) + _text(user["client-key-data"]))
                pair.flush()
                context.load_cert_chain(pair.name)
        headers = {"authorization": f"Bearer {user['token']}"} if "token" in user else {}
        self._http = httpx2.Client(base_url=cluster["server"], verify=context, headers=headers, timeout=30)

    # ------------------------------------------------------------------ objects

    def get(self, kind: str, name: str, namespace: str = "default") -> Document | None:
        """Return an object, None where there is none."""
        try:
            return self._call("GET", f"{_collection(kind, namespace)}/{name}")
        except Refusal as e:
            if e.code == 404:
                return None
            raise

    def list(self, kind: str, namespace: str | None = "default", **query: str) -> list[Document]:
        """Return a collection's objects."""
        return list(self._call("GET", _collection(kind, namespace), params=query)["items"])

    def table(self, kind: str, namespace: str = "default") -> tuple[Sequence[str], Sequence[Document]]:
        """Return what `kubectl get` shows: the columns of priority 0, and a row of cells for each object."""
        table = self._call("GET", _collection(kind, namespace), headers={"accept": _TABLE})
        columns = [column["name"] for column in table["columnDefinitions"] if column.get("priority", 0) == 0]
        names = [column["name"] for column in table["columnDefinitions"]]
        return columns, [dict(zip(names, row["cells"], strict=True)) for row in table["rows"]]

    def create(self, document: Document, *, dry_run: bool = False) -> Document:
        """Create an object under strict validation, as kubectl does."""
        query = {"fieldValidation": "Strict", **({"dryRun": "All"} if dry_run else {})}
        return self._call("POST", _of(document), json=document, params=query)

    def try_out(self, document: Document) -> None:
        """Let the API server judge an object of any kind that it knows, without keeping it. Raises Refusal."""
        version, metadata = document["apiVersion"], document["metadata"]
        base = f"/apis/{version}" if "/" in version else f"/api/{version}"
        [kind] = [r for r in self._call("GET", base)["resources"] if r["kind"] == document["kind"] and "/" not in r["name"]]
        place = f"/namespaces/{metadata.get('namespace', 'default')}" if kind["namespaced"] else ""
        query = {"fieldManager": "tests", "force": "true", "fieldValidation": "Strict", "dryRun": "All"}
        self._call(
            "PATCH", f"{base}{place}/{kind['name']}/{metadata['name']}", content=json.dumps(document), params=query,
            headers={"content-type": "application/apply-patch+yaml"},
        )

    def apply(self, document: Document, manager: str = "kubectl", *, force: bool = False) -> Document:
        """Apply an object server-side under strict validation."""
        query = {"fieldManager": manager, "force": str(force).lower(), "fieldValidation": "Strict"}
        name = document["metadata"]["name"]
        return self._call(
            "PATCH", f"{_of(document)}/{name}", content=json.dumps(document), params=query,
            headers={"content-type": "application/apply-patch+yaml"},
        )

    def merge(
        self, kind: str, name: str, changes: Document, namespace: str = "default", *, part: str = "",
    ) -> Document:
        """Change fields of an object, or of its part `status`."""
        path = f"{_collection(kind, namespace)}/{name}" + (f"/{part}" if part else "")
        return self._call(
            "PATCH", path, content=json.dumps(changes), headers={"content-type": "application/merge-patch+json"},
        )

    def delete(self, kind: str, name: str, namespace: str = "default") -> None:
        """Delete an object if it is there."""
        try:
            self._call("DELETE", f"{_collection(kind, namespace)}/{name}")
        except Refusal as e:
            if e.code != 404:
                raise

    def delete_all(self, kind: str, namespace: str = "default") -> None:
        """Delete all objects of a kind."""
        self._call("DELETE", _collection(kind, namespace))

    def token(self, service_account: str, namespace: str = "default") -> str:
        """Return a token of a service account."""
        path = f"{_collection('ServiceAccount', namespace)}/{service_account}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
        return str(self._call("POST", path, json=body)["status"]["token"])

    # ------------------------------------------------------------------ conveniences

    def install_crds(self) -> None:
        """Install the custom resources and wait until they are served."""
        import yaml

        self.define(*(yaml.safe_load(file.read_text()) for file in sorted(CRDS.glob("*.yaml"))))
        within(20, self._served)

    def define(self, *definitions: Document) -> None:
        """Install custom resource definitions and wait until they are established."""
        for definition in definitions:
            self.apply(definition, force=True)
        within(20, lambda: all(
            any(c["type"] == "Established" and c["status"] == "True" for c in (crd["status"].get("conditions") or ()))
            for crd in self.list("CustomResourceDefinition", None)
        ))

    def namespace(self, name: str, **labels: str) -> None:
        """Make a namespace."""
        document = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        self.apply(document, force=True)

    def condition(self, kind: str, name: str, type_: str, namespace: str = "default") -> dict[str, Any]:
        """Return one condition of an object, {} where it has none."""
        status = (self.get(kind, name, namespace) or {}).get("status") or {}
        return next((c for c in status.get("conditions") or () if c["type"] == type_), {})

    def events(self, name: str, namespace: str = "default") -> Sequence[tuple[str, str]]:
        """Return (reason, message) of all Events about objects of a name."""
        found = [e for e in self.list("Event", namespace) if e["involvedObject"]["name"] == name]
        return [(e["reason"], e["message"]) for e in found]

    def _served(self) -> bool:
        try:
            return all(self.list(kind) is not None for kind in ("ClaudeAccount", "AccountPool", "RelayKey"))
        except Refusal:
            return False

    def _call(self, method: str, path: str, **options: Any) -> Document:
        answer = self._http.request(method, path, **options)
        if answer.status_code >= 400:
            try:
                raise Refusal(answer.json())
            except ValueError:
                raise Refusal({"code": answer.status_code, "message": answer.text}) from None
        return dict(answer.json())


def within(limit_s: float, holds: Callable[[], T], *, what: str = "") -> T:
    """Ask until the answer is true and return it; raise after `limit_s` with the last answer."""
    until_s = time.monotonic() + limit_s
    while not (answer := holds()):
        if time.monotonic() > until_s:
            raise AssertionError(f"not within {limit_s} s: {what or holds} (last: {answer!r})")
        time.sleep(0.05)
    return answer


def _text(data: str) -> str:
    return base64.b64decode(data).decode()


def _of(document: Document) -> str:
    return _collection(document["kind"], document["metadata"].get("namespace", "default"))


def _collection(kind: str, namespace: str | None) -> str:
    base, plural = _PATHS[kind]
    return f"/{base}/{plural}" if kind in _CLUSTER or namespace is None else f"/{base}/namespaces/{namespace}/{plural}"


def placed(document: Document, namespace: str, **labels: str) -> Document:
    """Return a document put into a namespace, with labels."""
    metadata = {**document["metadata"], "namespace": namespace, **({"labels": labels} if labels else {})}
    return {**document, "metadata": metadata}
