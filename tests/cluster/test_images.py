"""The images as built: how big, what they say that they hold, and how fast a room starts from them."""

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import IMAGES
from tests.cluster.kubectl import ROOT, Cluster

MOST_BYTES = 250_000_000
SBOM = "usr/share/signalbox/sbom.cdx.json"
ROOMS = ("gateway", "scheduler", "token-refresher", "usage", "operator")


class Image:
    """An OCI archive."""

    def __init__(self, path: Path) -> None:
        self._archive = tarfile.open(path)  # noqa: SIM115 (as long as the image is looked at)
        index = json.loads(self._read("index.json"))
        manifest = json.loads(self._blob(index["manifests"][0]["digest"]))
        self.config = json.loads(self._blob(manifest["config"]["digest"]))
        self._layers = [layer["digest"] for layer in manifest["layers"]]

    def files(self) -> dict[str, tuple[int, bytes]]:
        """Sizes of the files that remain in the end, and the text of the bill of materials."""
        found: dict[str, tuple[int, bytes]] = {}
        for digest in self._layers:
            with tarfile.open(fileobj=self._archive.extractfile(f"blobs/{digest.replace(':', '/')}")) as layer:
                for member in layer:
                    name = member.name.removeprefix("./")
                    text = layer.extractfile(member).read() if name == SBOM else b""  # type: ignore[union-attr]
                    found[name] = (member.size if member.isfile() else 0, text)
        return found

    def _blob(self, digest: str) -> bytes:
        return self._read(f"blobs/{digest.replace(':', '/')}")

    def _read(self, name: str) -> bytes:
        return self._archive.extractfile(name).read()  # type: ignore[union-attr]


def archives() -> list[Path]:
    found = sorted(Path(IMAGES).glob("*.tar")) if IMAGES else []
    if not found:
        pytest.skip("the images of this cluster were not built here")
    for path in found:
        with tarfile.open(path) as archive:
            if "index.json" not in archive.getnames():
                pytest.skip("a container engine's own kind of archive")
    return found


def test_images_are_small_and_no_ones_root() -> None:
    for path in archives():
        image = Image(path)
        size = sum(size for size, _ in image.files().values())
        print(f"{path.stem}: {size / 1e6:.0f} MB unpacked")
        assert image.config["config"]["User"] == "10001:10001"
        assert size <= MOST_BYTES


def test_the_bill_of_materials_names_every_pinned_package() -> None:
    [path] = [p for p in archives() if p.stem == "signalbox"]
    files = Image(path).files()
    if SBOM not in files:
        pytest.skip("built with a container engine, which attests by itself")
    bill: dict[str, Any] = json.loads(files[SBOM][1])
    named = {(re.sub(r"[-_.]+", "-", c["name"]).lower(), c["version"]) for c in bill["components"]}
    lock = (ROOT / "deploy/images/requirements.lock").read_text()
    pinned = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^ \\;]+)", lock, re.MULTILINE)
    assert len(pinned) > 30
    assert {(re.sub(r"[-_.]+", "-", n).lower(), v) for n, v in pinned} <= named
    assert {"libc6", "python3", "ca-certificates"} <= {name for name, _ in named}


def test_every_module_has_its_byte_code() -> None:
    """The root is read-only: what has none would be compiled at every start."""
    for path in archives():
        files = Image(path).files()
        modules = {name for name in files if re.match(r"(opt/signalbox|usr/lib/python3\.\d+)/.*\.py$", name)}
        assert modules or path.stem not in ("signalbox", "signalbox-simulator")
        compiled = {re.sub(r"__pycache__/([^/]+)\.cpython-\d+\.pyc$", r"\1.py", name) for name in files if name.endswith(".pyc")}
        assert modules - compiled == set()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_starts_from_its_image(serving: Cluster, room: str) -> None:
    program = (ROOT / "tests/cluster/startup.py").read_text()
    running = serving.start("exec", "-i", f"deploy/signalbox-{room}", "--", "python3", "-", room.replace("-", "_"))
    said, errors = running.communicate(program)
    if room == "operator":  # the newer one has taken over, and the one of the release waits to be replaced
        serving.run("rollout", "restart", "deploy/signalbox-operator")
        serving.rolled_out("deploy/signalbox-operator")
    assert running.wait(30) == 0, errors[-1000:]
    took = json.loads(said)
    print(f"{room}: healthy after {took['healthy_s']} s, ready after {took['ready_s']} s, {took['cpu_s']} s of CPU")
