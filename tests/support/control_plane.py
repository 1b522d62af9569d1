"""A real Kubernetes control plane for tests: etcd, kube-apiserver and kube-controller-manager on loopback ports.

No containers and no root; pods are accepted and never run. The programs come from scripts/k8s/assets.py. As a program
(`python -m tests.support.control_plane`) it prints a kubeconfig and serves until interrupted. Imports nothing of the
product.
"""

import base64
import contextlib
import datetime
import ipaddress
import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from tests.support.certificates import believing
from tests.support.machine import free_port

ASSETS = Path(__file__).resolve().parents[2] / "scripts" / "k8s" / "assets.py"
START_LIMIT_S = 90.0
SERVICES = "10.96.0.0/16"


class CannotRun(Exception):
    """There is no control plane here; the text says why."""


def assets(group: str = "control-plane") -> Path:
    """Return the folder with the programs of a group, building them if need be. Raises CannotRun, which says why."""
    said = ""
    command = [sys.executable, str(ASSETS), group]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asked:
        assert asked.stdout is not None
        assert asked.stderr is not None
        for line in asked.stderr:
            said = line.strip()
            print(said, file=sys.stderr, flush=True)
        found = asked.stdout.read().strip()
    if asked.returncode != 0:
        raise CannotRun(f"no {group} can be had here: {said.partition(': ')[2]}")
    return Path(found.splitlines()[-1])


class ControlPlane:
    """One control plane in a directory of its own. Use it as a context manager."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kubeconfig = directory / "admin.kubeconfig"
        self._programs = assets()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._etcd, self._peers, self._port, self._manager = (free_port() for _ in range(4))
        self.url = f"https://127.0.0.1:{self._port}"

    def __enter__(self) -> "ControlPlane":
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> "ControlPlane":
        """Start and wait until it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.authority = Authority(self.directory)
        self.authority.server("apiserver")
        self.identity("admin", groups=("system:masters",))
        self.identity("controller-manager", user="system:kube-controller-manager")
        self._spawn("etcd", *etcd_flags(self.directory, self._etcd, self._peers))
        self.start_api()
        config = self.directory / "controller-manager.kubeconfig"
        self._spawn(
            "kube-controller-manager", *manager_flags(self.authority, config), f"--secure-port={self._manager}",
            "--concurrent-gc-syncs=2",
        )
        self._wait("a default service account", "/api/v1/namespaces/default/serviceaccounts/default")
        return self

    def start_api(self) -> None:
        """Start the API server and wait until it is ready."""
        self._spawn(
            "kube-apiserver", *api_flags(self.authority, self._etcd), "--bind-address=127.0.0.1",
            f"--secure-port={self._port}", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none",
            f"--service-cluster-ip-range={SERVICES}", "--authorization-mode=RBAC",
        )
        self._wait("the API server", "/readyz")

    def stop_api(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """Kill the API server; what it knew is in etcd."""
        process = self._processes.pop("kube-apiserver")
        process.send_signal(sig)
        process.wait(30)

    def compact(self) -> None:
        """Have etcd forget all history: watches that ask for an older version than the present one have expired."""
        # A revision that nobody watches: whatever a watch saw last is older than this one.
        put = {"key": base64.b64encode(b"/compacted").decode(), "value": ""}
        present = self._ask_etcd("kv/put", put)["header"]["revision"]
        self._ask_etcd("kv/compaction", {"revision": present, "physical": True})

    def _ask_etcd(self, what: str, body: dict[str, object]) -> dict[str, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._etcd}/v3/{what}", data=json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return dict(json.load(answer))

    def stop(self) -> None:
        """Kill everything; the data goes with the directory."""
        for name in ("kube-controller-manager", "kube-apiserver", "etcd"):
            if (process := self._processes.pop(name, None)) is not None:
                process.kill()
                process.wait(30)

    def identity(self, name: str, *, user: str = "", groups: tuple[str, ...] = (), url: str = "") -> Path:
        """Return a new kubeconfig of a user with these groups, which reaches the API server at `url`."""
        path = self.directory / f"{name}.kubeconfig"
        self.authority.kubeconfig(path, url or self.url, user or name, groups)
        return path

    def _spawn(self, name: str, *arguments: str) -> None:
        with open(self.directory / f"{name}.log", "ab") as log:
            self._processes[name] = subprocess.Popen(
                [self._programs / name, *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )

    def _wait(self, what: str, path: str) -> None:
        context = believing(cafile=str(self.authority.certificate_file))
        context.load_cert_chain(*self.authority.files("admin"))
        until_s = time.monotonic() + START_LIMIT_S
        while True:
            dead = [name for name, process in self._processes.items() if process.poll() is not None]
            if dead or time.monotonic() > until_s:
                logs = "\n".join(p.read_text(errors="replace")[-600:] for p in self.directory.glob("*.log"))
                raise AssertionError(f"no {what}; ended: {dead}\n{logs}")
            with contextlib.suppress(OSError, urllib.error.URLError):
                with urllib.request.urlopen(self.url + path, context=context, timeout=5):
                    return
            time.sleep(0.1)


def etcd_flags(directory: Path, clients: int, peers: int) -> list[str]:
    """etcd with its data in `directory`, on these ports of loopback."""
    return [
        "--name=test", f"--data-dir={directory}/etcd", "--unsafe-no-fsync", "--log-level=error",
        f"--listen-client-urls=http://127.0.0.1:{clients}", f"--advertise-client-urls=http://127.0.0.1:{clients}",
        f"--listen-peer-urls=http://127.0.0.1:{peers}", f"--initial-advertise-peer-urls=http://127.0.0.1:{peers}",
        f"--initial-cluster=test=http://127.0.0.1:{peers}",
    ]


def api_flags(authority: "Authority", etcd: int) -> list[str]:
    """What every API server here is told: where etcd is, and whom it trusts."""
    certificate, key = authority.files("apiserver")
    return [
        f"--etcd-servers=http://127.0.0.1:{etcd}", f"--client-ca-file={authority.certificate_file}",
        f"--tls-cert-file={certificate}", f"--tls-private-key-file={key}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={authority.accounts_public}",
        f"--service-account-signing-key-file={authority.accounts_key}",
    ]


def manager_flags(authority: "Authority", kubeconfig: Path) -> list[str]:
    """What every controller manager here is told."""
    return [
        f"--kubeconfig={kubeconfig}", f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}", "--leader-elect=false", "--use-service-account-credentials=true",
        f"--service-account-private-key-file={authority.accounts_key}",
        f"--root-ca-file={authority.certificate_file}", "--bind-address=127.0.0.1",
    ]


class Authority:
    """A certificate authority, and the key of service accounts' tokens."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self._certificate = self._sign(self._name, self._key.public_key(), authority=True)
        self.certificate_file = self._write("ca.crt", self._certificate.public_bytes(serialization.Encoding.PEM))
        accounts = rsa.generate_private_key(65537, 2048)
        self.accounts_key = self._write("sa.key", _private(accounts))
        self.accounts_public = self._write("sa.pub", accounts.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo,
        ))

    def server(self, name: str, names: tuple[str, ...] = (), addresses: tuple[str, ...] = ()) -> None:
        """Write a server's key and certificate, for loopback and these names and addresses."""
        alternatives: list[x509.GeneralName] = [x509.DNSName(n) for n in ("localhost", *names)]
        alternatives += [x509.IPAddress(ipaddress.ip_address(a)) for a in ("127.0.0.1", *addresses)]
        self._pair(name, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), alternatives)

    def client(self, user: str, groups: tuple[str, ...]) -> tuple[bytes, bytes]:
        """Return a user's certificate and key."""
        attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        subject = x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, user)])
        return self._pair(user.replace(":", "-"), subject, [])

    def kubeconfig(self, path: Path, url: str, user: str, groups: tuple[str, ...] = ()) -> None:
        """Write a kubeconfig of a user with these groups, which reaches the API server at `url`."""
        certificate, key = self.client(user, groups)
        b64 = lambda data: base64.b64encode(data).decode()  # noqa: E731
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": url, "certificate-authority-data": b64(self.certificate_file.read_bytes()),
            }}],
            "users": [{"name": user, "user": {
                "client-certificate-data": b64(certificate), "client-key-data": b64(key),
            }}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user, "namespace": "default"}}],
        }
        path.touch(0o600)
        path.write_text(json.dumps(config))

    def files(self, name: str) -> tuple[str, str]:
        """Return where a pair was written."""
        return str(self._directory / f"{name}.crt"), str(self._directory / f"{name}.key")

    def _pair(self, name: str, subject: x509.Name, names: list[x509.GeneralName]) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(subject, key.public_key(), names=names).public_bytes(serialization.Encoding.PEM)
        self._write(f"{name}.crt", certificate)
        self._write(f"{name}.key", _private(key))
        return certificate, _private(key)

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, names: list[x509.GeneralName] | None = None,
        authority: bool = False,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key)
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def _write(self, name: str, data: bytes) -> Path:
        path = self._directory / name
        path.touch(0o600)
        path.write_bytes(data)
        return path


def _private(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption(),
    )


def main() -> None:
    """Serve until interrupted."""
    with tempfile.TemporaryDirectory() as directory, ControlPlane(Path(directory)) as plane:
        print(plane.kubeconfig, flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    main()
