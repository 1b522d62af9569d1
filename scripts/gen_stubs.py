#!/usr/bin/env python3
"""Generate the stubs of proto/signalbox/v1 into proto/src, or with --check fail where the committed ones differ."""

import filecmp
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "proto" / "src"


def generate(out: Path) -> None:
    """Write *_pb2.py, *_pb2.pyi, *_pb2_grpc.py and *_pb2_grpc.pyi below `out`."""
    protos = sorted(str(p.relative_to(ROOT / "proto")) for p in (ROOT / "proto" / "signalbox").rglob("*.proto"))
    args = ["protoc", f"-I{ROOT / 'proto'}", f"--python_out={out}", f"--pyi_out={out}"]
    args.append(f"--plugin=protoc-gen-mypy_grpc={Path(sys.executable).with_name('protoc-gen-mypy_grpc')}")
    args += [f"--grpc_python_out={out}", f"--mypy_grpc_out=readable_stubs:{out}", *protos]
    if protoc.main(args) != 0:
        raise SystemExit("protoc failed")


def main() -> int:
    """Return the exit status."""
    if "--check" not in sys.argv:
        generate(OUT)
        return 0
    with tempfile.TemporaryDirectory() as tmp:
        generate(Path(tmp))
        made = sorted(p.relative_to(tmp) for p in Path(tmp).rglob("*_pb2*"))
        drift = [p for p in made if not (OUT / p).exists() or not filecmp.cmp(Path(tmp) / p, OUT / p, shallow=False)]
    for p in drift:
        print(f"proto/src/{p}: differs from what proto/ generates; run `make stubs`")
    return 1 if drift else 0


if __name__ == "__main__":
    sys.exit(main())
