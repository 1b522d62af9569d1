"""The kinds of load, the request body they share, and the call of the load generator.

The body is an ordinary short question, about 1 KB, or what a coding agent sends turn after turn, about 95 KB; one
session for every 16 requests.
"""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targets import BUILD, Target

SESSION_MARK = "4000-8000-"  # the digits after it number the session; see load.c, -g


@dataclass(frozen=True)
class Scenario:
    """One kind of load: `arguments` of load.c; `directive` and `deltas` are what the mock is asked for."""

    name: str
    about: str
    arguments: Sequence[str]
    deltas: int | None = None  # None: not streamed
    directive: str = "n=0"
    agent: bool = False  # with an agent's body
    crowded: bool = False  # beside very many keys and accounts, of Signalbox's only

    @property
    def decisive_latency(self) -> str:
        """The latency that a person feels: the first byte of a stream, all of a message."""
        return "latency_ms" if self.deltas is None else "first_byte_ms"


SCENARIOS = (
    Scenario("closed", "32 connections, messages not streamed", ["-c", "32"]),
    Scenario("stream", "32 connections, streams of 50 deltas without delay", ["-c", "32"], 50, "n=50"),
    Scenario("slow200", "200 streams at once, 50 deltas 20 ms apart", ["-c", "200", "-s", "1"], 50, "n=50 delay_ms=20"),
    Scenario("agent", "as stream, requests of 95 KB as coding agents send them", ["-c", "32"], 50, "n=50", agent=True),
    Scenario("many", "as closed, beside {keys:,} keys and {accounts:,} accounts", ["-c", "32"], crowded=True),
    Scenario("open200", "200 requests/s, messages not streamed, latency from the due time", ["-r", "200"]),
)

# Load for minutes on end rather than for figures: what people and programs do side by side.
SOAK = (
    Scenario("soak-streams", "slow streams", ["-c", "20", "-s", "1"], 50, "n=50 delay_ms=20"),
    Scenario("soak-messages", "messages", ["-r", "50"]),
)


_FUNCTION = "def area(width: float, height: float) -> float:\n    return width * height\n"
_INSTRUCTIONS = "You answer questions about a code base, briefly and to the point. "


def _agents_parts() -> dict[str, Any]:
    """Returns what an agent sends besides the question: instructions, tools, and what these brought."""
    parameter = {"type": "string", "description": "The absolute path of the file or directory that is meant. " * 3}
    tools = [
        {
            "name": f"tool_{n}",
            "description": "Reads, writes or searches files, and says what it did. " * 20,
            "input_schema": {
                "type": "object",
                "properties": {f"parameter_{i}": parameter for i in range(4)},
                "required": ["parameter_0"],
            },
        }
        for n in range(20)
    ]
    turns: list[Any] = []
    for n in range(20):
        use = {"type": "tool_use", "id": f"toolu_{n:024}", "name": "tool_1", "input": {"parameter_0": f"/src/{n}.py"}}
        result = {"type": "tool_result", "tool_use_id": use["id"], "content": _FUNCTION * 22}
        turns += [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    return {"instructions": _INSTRUCTIONS * 200, "tools": tools, "turns": turns}


def _body(scenario: Scenario) -> str:
    user_id = {
        "device_id": "0" * 64,
        "account_uuid": "",
        "session_id": f"00000000-0000-{SESSION_MARK}000000000000",
    }
    text = f"Explain what the following function does and whether it can fail. [[mock {scenario.directive}]]\n"
    question = {"role": "user", "content": [{"type": "text", "text": text + _FUNCTION * 3}]}
    more = _agents_parts() if scenario.agent else {"instructions": _INSTRUCTIONS * 4, "turns": []}
    body = {
        "model": "claude-sonnet-4-5-20250929",
        "max_tokens": 1024,
        "stream": scenario.deltas is not None,
        "metadata": {"user_id": json.dumps(user_id)},
        "system": [{"type": "text", "text": more["instructions"]}],
        "messages": [question, *more["turns"]],
    }
    return json.dumps(body | ({"tools": more["tools"]} if scenario.agent else {}))


def start_load(target: Target, scenario: Scenario, seconds: float, directory: Path) -> subprocess.Popen[str]:
    """Starts the load generator; it prints its result when it ends."""
    body = directory / f"{scenario.name}.json"
    body.write_text(_body(scenario))
    command = [str(BUILD / "load"), "-u", target.url, "-b", str(body), "-g", SESSION_MARK, "-t", str(seconds)]
    command += ["-l", f"{target.name}/{scenario.name}", *scenario.arguments]
    command += ["-e", str(scenario.deltas)] if scenario.deltas is not None else []
    for header in target.headers:
        command += ["-H", header]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish_load(load: subprocess.Popen[str]) -> dict[str, Any]:
    """Waits for the load generator and returns its result (the fields are described in load.c)."""
    output, _ = load.communicate()
    if load.returncode not in (0, 1):
        raise RuntimeError(f"the load generator failed with status {load.returncode}")
    result: dict[str, Any] = json.loads(output)
    return result
