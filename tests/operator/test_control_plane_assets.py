"""Where the control plane's programs come from, and what is said where there are none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ASSETS = Path(__file__).resolve().parents[2] / "scripts" / "k8s" / "assets.py"
PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ASSETS), *arguments], env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )


def programs(folder: Path, names: tuple[str, ...] = PROGRAMS) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder


def test_a_folder_that_is_named_is_taken(tmp_path: Path) -> None:
    named = programs(tmp_path / "named")
    assert run(KUBEBUILDER_ASSETS=str(named)).stdout.strip() == str(named)


def test_a_named_folder_without_the_programs_is_told_and_nothing_else_is_tried(tmp_path: Path) -> None:
    result = run(KUBEBUILDER_ASSETS=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert result.returncode == 3
    assert "does not hold etcd, kube-apiserver, kube-controller-manager" in result.stderr
    assert not (tmp_path / "cache").exists()


def test_what_was_built_before_is_found(tmp_path: Path) -> None:
    version = next(line for line in ASSETS.read_text().splitlines() if line.startswith("KUBERNETES = ")).split('"')[1]
    built = programs(tmp_path / "signalbox" / f"k8s-{version}")
    assert run(KUBEBUILDER_ASSETS="", XDG_CACHE_HOME=str(tmp_path)).stdout.strip() == str(built)


def test_setup_envtest_is_asked(tmp_path: Path) -> None:
    found = programs(tmp_path / "envtest")
    fake = tmp_path / "bin" / "setup-envtest"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\n[ "$1" = use ] && echo {found}\n')
    fake.chmod(0o755)
    path = f"{fake.parent}:{os.environ['PATH']}"
    result = run(KUBEBUILDER_ASSETS="", XDG_CACHE_HOME=str(tmp_path / "cache"), PATH=path)
    assert result.stdout.strip() == str(found)


def test_tools_that_were_built_are_found_and_else_only_asked_for(tmp_path: Path) -> None:
    missing = run("tools", "--only-find", XDG_CACHE_HOME=str(tmp_path))
    assert missing.returncode == 3
    assert "assets.py tools builds them" in missing.stderr
    assert not (tmp_path / "signalbox").exists()
    version = next(line for line in ASSETS.read_text().splitlines() if line.startswith("HELM = ")).split('"')[1]
    built = programs(tmp_path / "signalbox" / f"helm-{version}", ("helm", "kubeconform"))
    assert run("tools", "--only-find", XDG_CACHE_HOME=str(tmp_path)).stdout.strip() == str(built)


def test_what_cannot_be_built_in_time_is_not_begun(tmp_path: Path) -> None:
    late = run("tools", XDG_CACHE_HOME=str(tmp_path), SIGNALBOX_BUILD_BY="1000")
    assert late.returncode == 3
    assert "helm, kubeconform would have to be built, and no time is left for it" in late.stderr
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]


@pytest.mark.slow
def test_without_a_control_plane_its_tests_are_skipped_with_a_plain_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-m", "k8s", "tests/k8s/test_crds.py"]
    ran = subprocess.run(
        command, env={**os.environ, "KUBEBUILDER_ASSETS": str(tmp_path)}, capture_output=True, text=True, check=False,
        cwd=ASSETS.parents[2],
    )
    assert ran.returncode == 0, ran.stdout
    assert "no control-plane can be had here: KUBEBUILDER_ASSETS" in " ".join(ran.stdout.split())
    assert " skipped" in ran.stdout.splitlines()[-1]
    assert " passed" not in ran.stdout.splitlines()[-1]
