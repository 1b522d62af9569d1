"""The images: their Dockerfile, that both ways of building make the same ones, and which way is taken."""

import io
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

IMAGES = Path(__file__).resolve().parents[2] / "deploy/images"
HADOLINT = Path(sys.executable).with_name("hadolint")


def test_the_dockerfile_is_clean() -> None:
    linted = subprocess.run([HADOLINT, "--no-color", IMAGES / "Dockerfile"], capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout + linted.stderr
    bad = subprocess.run([HADOLINT, "-"], input="FROM debian\nRUN cd /tmp\n", capture_output=True, text=True, check=False)
    assert "DL3006" in bad.stdout


def test_both_ways_of_building_make_the_same_images() -> None:
    targets = set(re.findall(r"^FROM \S+ AS (signalbox\S*)$", (IMAGES / "Dockerfile").read_text(), re.MULTILINE))
    script = (IMAGES / "build.sh").read_text()
    [listed] = re.findall(r"^IMAGES=\((.*)\)$", script, re.MULTILINE)
    assert targets == set(listed.split()) == set(re.findall(r"^    archive (signalbox\S*)", script, re.MULTILINE))


def test_an_engine_without_the_base_image_is_left_aside(tmp_path: Path) -> None:
    """With docker answering and nothing to pull, and no root, which the other way needs: here it ends."""
    for name, body in {
        "docker": '[ "$1" = info ]', "podman": "false", "buildah": "false", "id": "echo 1000",
    }.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "BUILDER": ""}
    ran = subprocess.run(
        [IMAGES / "build.sh", tmp_path / "out"], env=environment, capture_output=True, text=True, check=False,
    )
    assert re.search(r"docker cannot get debian:\S+-slim, so .* from Debian packages", ran.stderr), ran.stderr
    assert "needs root" in ran.stderr
    named = subprocess.run(
        [IMAGES / "build.sh", tmp_path / "out"], env={**environment, "BUILDER": "docker"}, capture_output=True, text=True,
        check=False,
    )
    assert named.returncode != 0, "who names an engine gets that one or none"
    assert "Debian packages" not in named.stderr


def test_images_are_compared_file_by_file(tmp_path: Path) -> None:
    def image(name: str, *layers: dict[str, str]) -> Path:
        options: list[str] = []
        for number, files in enumerate(layers):
            layer = tmp_path / f"{name}-{number}.tar"
            with tarfile.open(layer, "w") as t:
                for path, text in files.items():
                    member = tarfile.TarInfo(path)
                    member.size = len(text)
                    t.addfile(member, io.BytesIO(text.encode()))
            options += ["--layer", str(layer)]
        out = tmp_path / f"{name}.tar"
        subprocess.run([sys.executable, IMAGES / "oci.py", "archive", "localhost/x:1", out, *options], check=True)
        return out

    one = image("one", {"a": "1", "b": "1", "d/c": "1"}, {"b": "2", ".wh.d": ""})
    same, other = image("same", {"./b": "2", "./a": "1"}), image("other", {"a": "1", "b": "1", "e": "1"})
    said = [
        subprocess.run([sys.executable, IMAGES / "oci.py", "compare", one, x], capture_output=True, text=True, check=True).stdout
        for x in (same, other)
    ]
    assert said[0].split("\n") == ["", ""]
    assert said[1].splitlines() == ["differs: /b", "only in the second: /e"]
