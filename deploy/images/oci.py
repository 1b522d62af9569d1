#!/usr/bin/env python3
"""OCI image archives and their layers, with the standard library alone.

    oci.py difference BASE.tar FOLDER OUT.tar      what FOLDER has that BASE.tar lacks, as a layer
    oci.py archive REFERENCE OUT.tar --layer TAR... [--user U] [--env K=V]... [--stop-signal S] [--sbom VERSION]
                                                    [-- CMD...]
    oci.py compare A.tar B.tar                     paths whose contents, kinds, modes or owners differ in two images

The same layers give the same digests, so that a node unpacks what it knows only once. `--sbom` adds a last layer with
/usr/share/signalbox/sbom.cdx.json: every Debian and Python package of the layers below it (CycloneDX 1.5).
"""

import argparse
import hashlib
import io
import json
import os
import platform
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
OCI = "application/vnd.oci.image."
WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
SBOM = "usr/share/signalbox/sbom.cdx.json"


def difference(base: str, folder: str, out: str) -> None:
    """Write the layer that turns `base` into `folder`: what is new or changed, and whiteouts for what is gone."""
    with tarfile.open(base) as t:
        before = {m.name.removeprefix("./"): _traits(m) for m in t}
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as t:
        seen = {"."}
        for path in sorted(_below(folder)):
            name = os.path.relpath(path, folder)
            seen.add(name)
            member = t.gettarinfo(path, arcname=name)
            if member is None or before.get(name) == _traits(member):
                continue
            member.uname = member.gname = ""
            member.mtime = int(member.mtime)
            if member.isfile():
                with open(path, "rb") as f:
                    t.addfile(member, f)
            else:
                t.addfile(member)
        gone = {n for n in before if n not in seen}
        for name in sorted(n for n in gone if os.path.dirname(n) not in gone):
            t.addfile(tarfile.TarInfo(os.path.join(os.path.dirname(name), WHITEOUT + os.path.basename(name))))


def _below(folder: str) -> Iterator[str]:
    for directory, folders, files in os.walk(folder):
        yield from (os.path.join(directory, name) for name in folders + files)


def _traits(m: tarfile.TarInfo) -> tuple[Any, ...]:
    kind = "file" if m.isfile() or m.islnk() else m.type
    size = (m.size, int(m.mtime)) if m.isfile() else ()
    return kind, m.mode & 0o7777, m.uid, m.gid, m.linkname if m.issym() else "", size


def archive(options: argparse.Namespace, command: list[str]) -> None:
    """Write the image."""
    layers = [(path, _digest(path), os.path.getsize(path)) for path in options.layer]
    extra = None
    if options.sbom:
        extra = _one_file(SBOM, json.dumps(sbom(options.layer, options.sbom), indent=1).encode())
        layers.append(("", "sha256:" + hashlib.sha256(extra).hexdigest(), len(extra)))
    config = _json({
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {
            "User": options.user, "WorkingDir": "/", "Env": options.env, "Cmd": command or None,
            **({"StopSignal": options.stop_signal} if options.stop_signal else {}),
        },
        "rootfs": {"type": "layers", "diff_ids": [digest for _, digest, _ in layers]},
        "history": [{"created_by": "deploy/images/oci.py"} for _ in layers],  # engines want one to build upon it
    })
    manifest = _json({
        "schemaVersion": 2, "mediaType": OCI + "manifest.v1+json", "config": _descriptor("config.v1+json", config),
        "layers": [{"mediaType": OCI + "layer.v1.tar", "digest": d, "size": s} for _, d, s in layers],
    })
    names = {
        "io.containerd.image.name": options.reference,
        "org.opencontainers.image.ref.name": options.reference.rsplit(":", 1)[1],
    }
    index = _json({
        "schemaVersion": 2, "mediaType": OCI + "index.v1+json",
        "manifests": [_descriptor("manifest.v1+json", manifest) | {"annotations": names}],
    })
    small = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index}
    small |= {_blob("sha256:" + hashlib.sha256(b).hexdigest()): b for b in (config, manifest)}
    if extra is not None:
        small[_blob(layers[-1][1])] = extra
    with tarfile.open(options.out + ".new", "w") as t:
        for name, data in small.items():
            t.addfile(_member(name, data), io.BytesIO(data))
        for path, digest, size in layers:
            if path:
                member = tarfile.TarInfo(_blob(digest))
                member.size = size
                with open(path, "rb") as f:
                    t.addfile(member, f)
    os.replace(options.out + ".new", options.out)


def compare(first: str, second: str) -> list[str]:
    """Return a line for each path that is not the same in both images' file systems; times are left out."""
    one, other = contents(first), contents(second)
    return [
        f"{'only in the first' if p not in other else 'only in the second' if p not in one else 'differs'}: /{p}"
        for p in sorted(one.keys() | other.keys()) if one.get(p) != other.get(p)
    ]


def contents(image: str) -> dict[str, tuple[Any, ...]]:
    """Return an image's file system as it is in the end, by path: kind, mode, owner, group, hash or target."""
    found: dict[str, tuple[Any, ...]] = {}
    with tarfile.open(image) as archive:
        def blob(digest: str) -> IO[bytes]:
            file = archive.extractfile(f"blobs/{digest.replace(':', '/')}")
            assert file is not None
            return file

        index = archive.extractfile("index.json")
        assert index is not None
        manifest = json.load(blob(json.load(index)["manifests"][0]["digest"]))
        for layer in manifest["layers"]:
            with tarfile.open(fileobj=blob(layer["digest"])) as t:
                _lay_over(found, t)
    return found


def _lay_over(found: dict[str, tuple[Any, ...]], layer: tarfile.TarFile) -> None:
    for m in layer:
        name = os.path.normpath(m.name)
        folder, base = os.path.split(name)
        if base.startswith(WHITEOUT):
            gone = folder if base == OPAQUE else os.path.join(folder, base.removeprefix(WHITEOUT))
            for path in [p for p in found if p.startswith(gone + "/") or (p == gone and base != OPAQUE)]:
                del found[path]
        elif m.islnk():
            found[name] = found[os.path.normpath(m.linkname)]
        elif name != ".":
            file = layer.extractfile(m) if m.isfile() else None
            what = hashlib.sha256(file.read()).hexdigest() if file else m.linkname
            found[name] = (m.type if not m.isfile() else b"0", m.mode & 0o7777, m.uid, m.gid, what)


def sbom(layers: list[str], version: str) -> dict[str, Any]:
    """Return the bill of materials of these layers, later ones over earlier ones."""
    status, python = b"", set()
    for path in layers:
        with tarfile.open(path) as t:
            for member in t:
                name = member.name.removeprefix("./")
                if name == "var/lib/dpkg/status" and (file := t.extractfile(member)) is not None:
                    status = file.read()
                elif found := re.search(r"/([^/]+)-([^-/]+)\.dist-info/METADATA$", name):
                    python.add(found.groups())
    components = [
        {"type": "library", "name": n, "version": v, "purl": f"pkg:pypi/{n.lower().replace('_', '-')}@{v}"}
        for n, v in sorted(python)
    ]
    for paragraph in status.decode().split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Status): (.*)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            n, v = fields["Package"], fields["Version"]
            components.append({"type": "library", "name": n, "version": v, "purl": f"pkg:deb/debian/{n}@{v}"})
    return {
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {"component": {"type": "container", "name": "signalbox", "version": version}},
        "components": components,
    }


def _one_file(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as t:
        for parent in reversed(Path(name).parents[:-1]):
            folder = tarfile.TarInfo(str(parent))
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            t.addfile(folder)
        t.addfile(_member(name, data), io.BytesIO(data))
    return out.getvalue()


def _member(name: str, data: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    return member


def _digest(path: str) -> str:
    with open(path, "rb") as f:
        return "sha256:" + hashlib.file_digest(f, "sha256").hexdigest()


def _blob(digest: str) -> str:
    return "blobs/sha256/" + digest.removeprefix("sha256:")


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _descriptor(kind: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": OCI + kind, "digest": "sha256:" + hashlib.sha256(data).hexdigest(), "size": len(data)}


def main() -> None:
    """Read the command line."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["difference"] and len(arguments) == 4:
        difference(*arguments[1:])
        return
    if arguments[:1] == ["compare"] and len(arguments) == 3:
        print("\n".join(compare(*arguments[1:])))
        return
    end = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["archive"])
    parser.add_argument("reference")
    parser.add_argument("out")
    parser.add_argument("--layer", action="append", required=True)
    parser.add_argument("--user", default="")
    parser.add_argument("--env", action="append", default=[])
    parser.add_argument("--stop-signal", default="")
    parser.add_argument("--sbom", default="")
    archive(parser.parse_args(arguments[:end]), arguments[end + 1 :])


if __name__ == "__main__":
    main()
