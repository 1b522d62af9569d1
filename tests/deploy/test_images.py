"""The images' Dockerfile: clean for hadolint, and it makes every image that the other way of building makes."""

import re
import subprocess
import sys
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
