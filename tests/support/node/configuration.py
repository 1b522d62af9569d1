"""What the components of a node are told: files, identities and command lines. Starts nothing."""

import json
import sys
from pathlib import Path
from string import Template
from typing import Any

from tests.support.control_plane import Authority, api_flags, etcd_flags, manager_flags

HERE = Path(__file__).resolve().parent
NAME = "test-node"
API = "https://127.0.0.1:6443"
PAUSE, COREDNS = "localhost/test-node-pause:1", "localhost/test-node-coredns:1"
VOLUMES = 24
PLUGINS = ("/usr/lib/cni", "/opt/cni/bin")
"""Where Debian, and everybody else, keeps CNI plugins."""

CONTAINERD = """\
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$pause"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$plugins"
    conf_dir = "$directory/etc/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "$snapshotter"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"""


class Networks:
    """The addresses of the node with this number; several nodes can run at once."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.gateway, self.address = f"10.98.{number}.1", f"10.98.{number}.2"
        self.link, self.pods, self.services = f"10.98.{number}.0/30", f"10.245.{number}.0/24", f"10.97.{number}.0/24"
        self.api, self.dns = f"10.97.{number}.1", f"10.97.{number}.10"


def write(directory: Path, programs: Path, networks: Networks) -> None:
    """Write everything below `directory`: pki, etc, kubeconfig, node.yaml, init.json."""
    for name in ("pki", "etc/cni", "logs", "var/lib/volumes"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    for number in range(VOLUMES):
        volume = directory / f"var/lib/volumes/{number}"
        volume.mkdir(exist_ok=True)
        volume.chmod(0o777)
    authority = _identities(directory, networks)
    _files(directory, networks)
    (directory / "init.json").write_text(json.dumps({
        "name": NAME, "directory": str(directory), "address": networks.address, "gateway": networks.gateway,
        "kubectl": [str(programs / "kubectl"), "--kubeconfig", str(directory / "etc/admin.kubeconfig")],
        "components": list(_components(directory, programs, networks, authority).items()),
    }))


def _identities(directory: Path, networks: Networks) -> Authority:
    authority = Authority(directory / "pki")
    service = "kubernetes.default.svc"
    names = ("kubernetes", "kubernetes.default", service, f"{service}.cluster.local")
    authority.server("apiserver", names, (networks.address, networks.api))
    authority.server("kubelet-server", (NAME,), (networks.address,))
    for name, user, groups in (
        ("admin", "admin", ("system:masters",)), ("manager", "system:kube-controller-manager", ()),
        ("scheduler", "system:kube-scheduler", ()), ("proxy", "system:kube-proxy", ()),
        ("kubelet", f"system:node:{NAME}", ("system:nodes",)),
    ):
        authority.kubeconfig(directory / f"etc/{name}.kubeconfig", API, user, groups)
    authority.kubeconfig(
        directory / "kubeconfig", f"https://{networks.address}:6443", "admin", ("system:masters",),
    )
    return authority


def _files(directory: Path, networks: Networks) -> None:
    etc = directory / "etc"
    (etc / "containerd.toml").write_text(Template(CONTAINERD).substitute(
        pause=PAUSE, directory=directory, plugins=next(p for p in PLUGINS if Path(p, "bridge").exists()),
        snapshotter=snapshotter(directory),
    ))
    _json(etc / "cni/10-pods.conflist", {
        "cniVersion": "1.0.0", "name": "pods", "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": True, "isDefaultGateway": True, "ipMasq": True,
             "hairpinMode": True, "ipam": {"type": "host-local", "ranges": [[{"subnet": networks.pods}]]}},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    })
    (etc / "resolv.conf").write_text(f"nameserver {networks.dns}\n")
    _json(etc / "kubelet.yaml", {
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock", "cgroupDriver": "cgroupfs",
        "failSwapOn": False, "oomScoreAdj": 0, "clusterDomain": "cluster.local", "clusterDNS": [networks.dns],
        "resolvConf": f"{etc}/resolv.conf", "tlsCertFile": f"{directory}/pki/kubelet-server.crt",
        "tlsPrivateKeyFile": f"{directory}/pki/kubelet-server.key",
        "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": f"{directory}/pki/ca.crt"}},
        "authorization": {"mode": "Webhook"},
        "syncFrequency": "10s",  # changed Secrets reach the pods that mount them within seconds
        "imageGCHighThresholdPercent": 100,  # nothing can be pulled again
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
    })
    _json(etc / "proxy.yaml", {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "iptables",
        "clusterCIDR": networks.pods, "hostnameOverride": NAME, "oomScoreAdj": 0,
        "clientConnection": {"kubeconfig": f"{etc}/proxy.kubeconfig"},
        # Zeros leave the machine's own settings alone.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    })
    text = Template((HERE / "cluster.yaml").read_text()).substitute(coredns=COREDNS, dns=networks.dns)
    volume = (HERE / "volume.yaml").read_text()
    (directory / "cluster.yaml").write_text(
        "---\n".join([text, *(Template(volume).substitute(number=n) for n in range(VOLUMES))]),
    )


def _components(directory: Path, programs: Path, networks: Networks, authority: Authority) -> dict[str, list[str]]:
    """Command lines by name, in the order in which they are started."""
    etc = directory / "etc"
    kubelet, key = authority.files("admin")
    scheduler = etc / "scheduler.kubeconfig"
    return {
        "containerd": ["containerd", "--config", f"{etc}/containerd.toml"],
        "etcd": [f"{programs}/etcd", *etcd_flags(directory, 2379, 2380)],
        "kube-apiserver": [
            f"{programs}/kube-apiserver", *api_flags(authority, 2379), "--bind-address=0.0.0.0", "--secure-port=6443",
            f"--advertise-address={networks.address}", f"--service-cluster-ip-range={networks.services}",
            "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
            f"--kubelet-client-certificate={kubelet}", f"--kubelet-client-key={key}",
            f"--kubelet-certificate-authority={authority.certificate_file}",
            "--kubelet-preferred-address-types=InternalIP",
        ],
        "kube-controller-manager": [
            f"{programs}/kube-controller-manager", *manager_flags(authority, etc / "manager.kubeconfig"),
            f"--cluster-cidr={networks.pods}",
        ],
        "kube-scheduler": [
            f"{programs}/kube-scheduler", f"--kubeconfig={scheduler}", f"--authentication-kubeconfig={scheduler}",
            f"--authorization-kubeconfig={scheduler}", "--leader-elect=false", "--bind-address=127.0.0.1",
        ],
        "kubelet": [
            f"{programs}/kubelet", f"--config={etc}/kubelet.yaml", f"--kubeconfig={etc}/kubelet.kubeconfig",
            f"--hostname-override={NAME}", f"--node-ip={networks.address}",
        ],
        "kube-proxy": [f"{programs}/kube-proxy", f"--config={etc}/proxy.yaml"],
        "policies": [sys.executable, str(HERE / "policies.py"), API, f"{directory}/pki"],
    }


def snapshotter(directory: Path) -> str:
    """How containerd keeps file systems in `directory`: on an overlay no other can be put."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    holding = [(m[1], m[2]) for m in mounts if directory.is_relative_to(m[1])]
    return "native" if max(holding, key=lambda m: len(m[0]))[1] == "overlay" else "overlayfs"


def _json(path: Path, value: dict[str, Any]) -> None:
    """JSON is YAML."""
    path.write_text(json.dumps(value, indent=1))
