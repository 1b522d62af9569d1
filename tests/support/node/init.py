"""The first process of a node, in namespaces of its own: private mounts, its end of the link, then every component.

    init.py SPECIFICATION.json      as node.py writes it; standard library only

When it ends the kernel ends everything else in its process namespace. A component that ends by itself is reported and
not started again: that is a failure to look at.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

KERNEL = {"vm/overcommit_memory": "1", "kernel/panic": "10", "kernel/panic_on_oops": "1"}
"""What the kubelet wants of the kernel. It finds it so, and the machine's own settings stay."""
LIMIT_S = 120.0


def run(*command: str) -> None:
    """Run a program; it must work."""
    subprocess.run(command, check=True)


def mounts(directory: Path) -> None:
    """What components write outside of `directory` by default lands in it, and /sys shows the node's own groups."""
    # The machine's groups, wherever else it shows them (in a chroot's /sys): a kubelet takes the first that it finds.
    shown = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    for place in reversed([m[1] for m in shown if m[2] in ("cgroup", "cgroup2") and not m[1].startswith("/sys/")]):
        run("umount", "--lazy", place.encode().decode("unicode_escape"))
    run("umount", "--recursive", "/sys")
    run("mount", "-t", "sysfs", "sysfs", "/sys")
    groups = Path("/sys/fs/cgroup")
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    if len(lines) == 1:
        run("mount", "-t", "cgroup2", "cgroup2", str(groups))
        _share_out(groups)
    else:
        run("mount", "-t", "tmpfs", "tmpfs", str(groups))
        for _, controllers, _ in lines:
            place = groups / (controllers.removeprefix("name=") or "unified")
            place.mkdir()
            named = f"none,{controllers}" if controllers.startswith("name=") else controllers
            kind = ["cgroup", "-o", named] if controllers else ["cgroup2"]
            run("mount", "-t", *kind, "cgroup", str(place))
    run("mount", "-t", "tmpfs", "tmpfs", "/run")
    for name in ("lib", "log"):
        (directory / "var" / name).mkdir(parents=True, exist_ok=True)
        run("mount", "--bind", str(directory / "var" / name), f"/var/{name}")
    for setting, value in KERNEL.items():
        stand_in = directory / "etc" / setting.replace("/", ".")
        stand_in.write_text(value + "\n")
        run("mount", "--bind", str(stand_in), f"/proc/sys/{setting}")
    run("mount", "--make-rshared", "/")


def _share_out(root: Path) -> None:
    """With cgroup v2 a group that shares controllers out among others may hold no process itself."""
    (root / "components").mkdir()
    for pid in (root / "cgroup.procs").read_text().split():
        (root / "components" / "cgroup.procs").write_text(pid)
    for controller in (root / "cgroup.controllers").read_text().split():
        (root / "cgroup.subtree_control").write_text(f"+{controller}")


def network(address: str, gateway: str) -> None:
    """Bring up the node's end of the link, which comes from outside."""
    _wait("link", lambda: Path("/sys/class/net/eth0").exists())
    for command in (
        "link set lo up", f"addr add {address}/30 dev eth0", "link set eth0 up", f"route add default via {gateway}",
    ):
        run("ip", *command.split())
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _wait(what: str, there: Any) -> None:
    until_s = time.monotonic() + LIMIT_S
    while not there():
        if time.monotonic() > until_s:
            raise SystemExit(f"no {what} after {LIMIT_S:.0f} s")
        time.sleep(0.2)


def main(specification: dict[str, Any]) -> None:
    """Start everything and stay."""
    directory = Path(specification["directory"])
    socket.sethostname(specification["name"])
    mounts(directory)
    network(specification["address"], specification["gateway"])
    ready = [*specification["kubectl"], "get", "--raw", "/readyz"]
    running = {}
    for name, command in specification["components"]:
        with (directory / "logs" / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        running[process.pid] = (name, process)
        if name == "kube-apiserver":  # the others give up where there is none yet
            _wait("API server", lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0)
    while True:
        pid, status = os.wait()  # orphans of containers come here too
        if pid in running:
            print(f"{running[pid][0]} ended with {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
