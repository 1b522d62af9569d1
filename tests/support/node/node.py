"""A whole Kubernetes node in namespaces and control groups of its own: containerd, the control plane, kubelet, DNS.

No container engine and no registry are needed, but root and a few Debian packages. Everything lies in one directory;
what is made outside of it (a link, control groups) is written down before it is made, so that `down` finds it whatever
happened.
"""

import contextlib
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support.node import configuration
from tests.support.node.configuration import COREDNS, NAME, PAUSE, PLUGINS, Networks

ROOT = Path(__file__).resolve().parents[3]
GROUPS = Path("/sys/fs/cgroup")
PACKAGES = {
    "containerd": "containerd", "runc": "runc", "iptables": "iptables", "ip": "iproute2", "conntrack": "conntrack",
    "nsenter": "util-linux", "unshare": "util-linux", "setpriv": "util-linux", "mount": "mount",
}
"""What must be on PATH, and the Debian package that has it."""
NAMESPACES = ("--mount", "--cgroup", "--net", "--uts", "--ipc", "--pid")
PRIVATE = (*NAMESPACES, "--fork", "--kill-child", "--propagation", "private", "--mount-proc")
MOST_NODES = 64
LEAST_MEMORY_BYTES, LEAST_DISK_BYTES = 3 << 30, 5 << 30
"""A node with a release takes less than half of it."""


class Cannot(Exception):
    """There can be no node here; the text says why, for people."""


class Node:
    """The node in a directory, which is made for it. `programs` is where scripts/k8s/assets.py put the binaries."""

    def __init__(self, directory: Path, programs: Path) -> None:
        self.directory = directory.resolve()
        self.kubeconfig = self.directory / "kubeconfig"
        self.programs = programs
        self._state = self.directory / "node.json"

    def is_up(self) -> bool:
        """Whether its first process runs."""
        return _alive(self._read())

    # ------------------------------------------------------------ up

    def up(self, *, outlive: bool = True) -> None:
        """Start it and wait until pods can run and find one another. Raises Cannot, or AssertionError with the logs.

        Without `outlive` it ends with this process, even when that one is killed.
        """
        if self.is_up():
            raise Cannot(f"a node is up in {self.directory}")
        if self.directory.exists() and not self._state.exists() and any(self.directory.iterdir()):
            raise Cannot(f"{self.directory} is not empty and holds no node")
        self.down()
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        try:
            self._start(outlive)
            self._furnish()
        except BaseException:
            for log in sorted((self.directory / "logs").glob("*.log")):
                print(f"--- {log}\n{log.read_text(errors='replace')[-600:]}", file=sys.stderr)
            self.down()
            raise

    def _start(self, outlive: bool) -> None:
        number = self._claim()
        networks = Networks(number)
        groups = _groups(number)
        inner = f"sbn{number}"
        self._write({"link": f"sbx{number}", "groups": [str(g) for g in groups]})
        _run("ip", "link", "add", f"sbx{number}", "type", "veth", "peer", "name", inner)
        _make(groups)
        configuration.write(self.directory, self.programs, networks)
        command = [
            *(() if outlive else ("setpriv", "--pdeathsig", "KILL")), "unshare", *PRIVATE, sys.executable, str(Path(__file__).with_name("init.py")), f"{self.directory}/init.json",
        ]
        with (self.directory / "logs/init.log").open("wb") as log:
            outer = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=lambda: [g.joinpath("cgroup.procs").write_text("0") for g in groups],
            )
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        _wait("the node's first process", lambda: children.read_text().strip() != "", 15)
        pid = int(children.read_text())
        self._write({**self._read(), "pid": pid, "started": _started(pid), "outer": outer.pid})
        _run("ip", "link", "set", inner, "netns", str(pid), "name", "eth0")
        _run("ip", "addr", "add", f"{networks.gateway}/30", "dev", f"sbx{number}")
        _run("ip", "link", "set", f"sbx{number}", "up")

    def _claim(self) -> int:
        """Return a number whose networks and groups nobody uses."""
        routes = json.loads(_run("ip", "-json", "-4", "route") or "[]")
        used = [ipaddress.ip_network(r["dst"], strict=False) for r in routes if r["dst"] != "default"]
        for number in range(MOST_NODES):
            mine = Networks(number)
            networks = [ipaddress.ip_network(n) for n in (mine.link, mine.pods, mine.services)]
            taken = (Path(f"/sys/class/net/sbx{number}"), *_groups(number))
            if not any(t.exists() for t in taken) and not any(n.overlaps(u) for n in networks for u in used if u.version == 4):
                return number
        raise Cannot("all numbers for nodes are taken: networks in 10.97, 10.98 and 10.245, or control groups signalbox-node-*")

    def _furnish(self) -> None:
        """Load the images that every pod needs, and what a cluster is expected to have."""
        _wait("containerd", lambda: self.run("ctr", "version", check=False).returncode == 0, 60)
        for reference, program in ((PAUSE, "pause"), (COREDNS, "coredns")):
            image = self._image(reference, program)
            self.load(image)
            image.unlink()
        _wait("an API server", lambda: self._ready(), 180)
        self.kubectl("apply", "-f", str(self.directory / "cluster.yaml"))
        _wait("the node's own object", lambda: self._has(f"node/{NAME}"), 120)
        self.kubectl("wait", "--for=condition=Ready", f"node/{NAME}", "--timeout=180s")
        self.kubectl("-n", "kube-system", "rollout", "status", "deploy/coredns", "--timeout=180s")
        _wait("a default service account", lambda: self._has("serviceaccount/default"), 60)

    def _ready(self) -> bool:
        return self.kubectl("get", "--raw", "/readyz", check=False) == "ok"

    def _has(self, what: str) -> bool:
        return self.kubectl("get", what, "-o", "name", check=False) != ""

    def _image(self, reference: str, program: str) -> Path:
        """An image whose only file is one static program."""
        layer, image = self.directory / f"{program}.layer", self.directory / f"{program}.tar"
        with tarfile.open(layer, "w") as t:
            t.add(self.programs / program, arcname=f"bin/{program}")
        tool = ROOT / "deploy/images/oci.py"
        _run(sys.executable, str(tool), "archive", reference, str(image), "--layer", str(layer), "--", f"/bin/{program}")
        layer.unlink()
        return image

    # ------------------------------------------------------------ while it is up

    def load(self, archive: Path) -> None:
        """Import an image archive; pods find it at once, with imagePullPolicy IfNotPresent or Never.

        It is unpacked here, once: eight pods that start from it together would unpack it eight times.
        """
        unpacked = f"--snapshotter={configuration.snapshotter(self.directory)}"
        with archive.open("rb") as given:
            self.run("ctr", "-n", "k8s.io", "images", "import", unpacked, "-", stdin=given)

    def run(self, *command: str, check: bool = True, stdin: Any = subprocess.DEVNULL) -> subprocess.CompletedProcess[str]:
        """Run a program in the node's namespaces."""
        state = self._read()
        if not _alive(state):
            raise AssertionError(f"no node is up in {self.directory}")
        inside = ["nsenter", "-t", str(state["pid"]), "-m", "-n", "-u", "-i", "-p", "--", *command]
        ran = subprocess.run(inside, stdin=stdin, capture_output=True, text=True, check=False)
        if check and ran.returncode:
            raise AssertionError(f"{' '.join(command)}: {ran.stderr[-1000:]}")
        return ran

    def kubectl(self, *arguments: str, check: bool = True) -> str:
        """Run kubectl as the administrator; return what it printed."""
        return _run(str(self.programs / "kubectl"), "--kubeconfig", str(self.kubeconfig), *arguments, check=check)

    # ------------------------------------------------------------ down

    def down(self) -> None:
        """End every process and remove everything but logs (logs, and var/log of the pods), whatever of it there is."""
        state = self._read()
        if not state:
            return
        if _alive(state):
            os.kill(state["pid"], signal.SIGKILL)  # its namespace's first process: the kernel ends the rest with it
            _wait("an end of the node", lambda: not _alive(state), 30)
        for group in state["groups"]:
            _wait(f"an empty {group}", lambda group=group: _ended(Path(group)) and _removed(Path(group)), 30)
        with contextlib.suppress(ChildProcessError, KeyError):
            os.waitpid(state["outer"], 0)
        _run("ip", "link", "delete", state["link"], check=False)
        _run("rm", "-rf", "--one-file-system", *(str(self.directory / kept) for kept in ("etc", "etcd", "pki", "var/lib")))
        for file in ("kubeconfig", "cluster.yaml", "init.json"):
            (self.directory / file).unlink(missing_ok=True)
        self._write({})

    # ------------------------------------------------------------ what is written down

    def _read(self) -> dict[str, Any]:
        return json.loads(self._state.read_text()) if self._state.exists() else {}

    def _write(self, state: dict[str, Any]) -> None:
        self._state.write_text(json.dumps(state))


def prepare() -> None:
    """Make sure that there can be a node here, installing missing Debian packages. Raises Cannot."""
    if os.geteuid() != 0:
        raise Cannot("a node needs root")
    if too_small := _too_small():
        raise Cannot(f"a node needs {too_small}")
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = {package for program, package in PACKAGES.items() if not shutil.which(program)}
    if not any(Path(p, "bridge").exists() for p in PLUGINS):
        missing.add("containernetworking-plugins")
    if missing and not _install(sorted(missing)):
        raise Cannot(f"a node needs these Debian packages: {' '.join(sorted(missing))}")
    groups = _groups(MOST_NODES)
    try:
        _make(groups)
    except OSError as e:
        raise Cannot(f"a node needs control groups that it may make: {e}") from e
    finally:
        for group in groups:
            _removed(group)
    tried = subprocess.run(["unshare", *PRIVATE, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        raise Cannot(f"a node needs namespaces of its own: {tried.stderr.strip()}")


def _too_small() -> str:
    """What this machine has too little of, "" where it has enough."""
    told = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    if int(told["MemAvailable"].split()[0]) * 1024 < LEAST_MEMORY_BYTES:
        return f"{LEAST_MEMORY_BYTES >> 30} GiB of memory that nothing else uses"
    if shutil.disk_usage(ROOT).free < LEAST_DISK_BYTES:
        return f"{LEAST_DISK_BYTES >> 30} GiB of disk for {ROOT}"
    return ""


def _install(packages: Sequence[str]) -> bool:
    if not shutil.which("apt-get"):
        return False
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    patience = ("-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20", "-o", "DPkg::Lock::Timeout=60")
    command = ["apt-get", *patience, "install", "-y", "-qq", "--no-install-recommends", *packages]
    with _unstarted("containerd.service"):
        for before in ((), ("apt-get", *patience, "update", "-qq")):
            if before:
                subprocess.run(before, env=environment, capture_output=True, check=False)
            if subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0:
                return True
    return False


@contextlib.contextmanager
def _unstarted(unit: str) -> Iterator[None]:
    """A package brings its service along, which the machine does not want for that: keep systemd from starting it."""
    systemd = Path("/run/systemd/system").exists()
    if systemd:
        subprocess.run(["systemctl", "mask", "--runtime", unit], capture_output=True, check=False)
    try:
        yield
    finally:
        if systemd:
            subprocess.run(["systemctl", "unmask", "--runtime", unit], capture_output=True, check=False)


def _groups(number: int) -> list[Path]:
    """The node's own folder in each hierarchy of control groups: below this process's with v1, at the top with v2."""
    name = f"signalbox-node-{number}"
    if (GROUPS / "cgroup.controllers").exists():
        return [GROUPS / name]
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        mounted = GROUPS / (controllers.removeprefix("name=") or "unified")
        if mounted.exists():
            found.append(mounted / path.lstrip("/") / name)
    return found


def _make(groups: list[Path]) -> None:
    for group in groups:
        group.mkdir()
        if (group / "cpuset.mems").exists() and not (group / "cgroup.controllers").exists():
            for setting in ("cpuset.cpus", "cpuset.mems"):  # v1 leaves them empty, and then no process may enter
                (group / setting).write_text((group.parent / setting).read_text())
        if group.parent == GROUPS:
            available = (group / "cgroup.controllers").read_text().split()
            if missing := {"cpu", "memory", "pids"} - set(available):
                group.rmdir()
                raise OSError(f"{', '.join(sorted(missing))} cannot be shared out here")


def _ended(group: Path) -> bool:
    """Kill what is in a group still: a node that was interrupted while it started has processes that nobody wrote down."""
    for listed in group.rglob("cgroup.procs"):
        with contextlib.suppress(OSError):
            for pid in listed.read_text().split():
                os.kill(int(pid), signal.SIGKILL)
    return True


def _removed(group: Path) -> bool:
    for folder, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)
    return not group.exists()


def _started(pid: int) -> str:
    """When a process was started, in the kernel's ticks; "" where there is none or it is only to be buried."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _alive(state: dict[str, Any]) -> bool:
    """Whether the node's first process runs; another one with its number is not it."""
    return "pid" in state and state["started"] == _started(state["pid"])


def _run(*command: str, check: bool = True) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and ran.returncode:
        raise AssertionError(f"{' '.join(command)[:300]}: {ran.stderr[-1000:]}")
    return ran.stdout if ran.returncode == 0 else ""


def _wait(what: str, there: Callable[[], bool], limit_s: float) -> None:
    until_s = time.monotonic() + limit_s
    while not there():
        if time.monotonic() > until_s:
            raise AssertionError(f"no {what.removeprefix('an ').removeprefix('a ')} after {limit_s:.0f} s")
        time.sleep(0.2)
