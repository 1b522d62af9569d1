#!/usr/bin/env python3
"""collect.py OUT PACKAGE...: put the workspace's packages where an image wants them, without building wheels.

OUT/rooms gets each package's code and a note of its name and version, OUT/bin its commands. Standard library only.
"""

import shutil
import sys
import tomllib
from pathlib import Path

COMMAND = "#!/usr/bin/python3\nimport sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n"


def collect(package: Path, out: Path) -> None:
    """Copy one package."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(package / "src", out / "rooms", dirs_exist_ok=True, ignore=ignored)
    info = out / "rooms" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n",
    )
    for name, target in project.get("scripts", {}).items():
        module, function = target.split(":")
        command = out / "bin" / name
        command.parent.mkdir(parents=True, exist_ok=True)
        command.write_text(COMMAND.format(module=module, function=function))
        command.chmod(0o755)


if __name__ == "__main__":
    for folder in sys.argv[2:]:
        collect(Path(folder), Path(sys.argv[1]))
