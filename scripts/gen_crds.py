#!/usr/bin/env python3
"""Generate deploy/crds from the documents' models, or with --check fail where the committed files differ."""

import sys
from pathlib import Path

from signalbox.resources.crds import files

CRDS = Path(__file__).resolve().parent.parent / "deploy" / "crds"


def main() -> int:
    """Return the exit status."""
    wanted = files()
    if "--check" not in sys.argv:
        CRDS.mkdir(exist_ok=True)
        for name, text in wanted.items():
            (CRDS / name).write_text(text)
        return 0
    present = {path.name: path.read_text() for path in CRDS.glob("*.yaml")}
    drift = sorted(name for name in {*wanted, *present} if wanted.get(name) != present.get(name))
    for name in drift:
        print(f"deploy/crds/{name}: differs from what it is generated from; run `make crds`")
    return 1 if drift else 0


if __name__ == "__main__":
    sys.exit(main())
