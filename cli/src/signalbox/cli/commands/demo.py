"""`signalbox demo`: a whole instance before a simulated provider, and a short tour that makes real requests.

The provider is the simulator, a program of its own that is found beside this one; nothing of it is imported.
"""

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from signalbox.cli.commands.common import becomes_true
from signalbox.cli.errors import CommandFailed
from signalbox.cli.locate import locate
from signalbox.cli.output import note
from signalbox.cli.supervisor.instance import Instance, Options
from signalbox.cli.supervisor.layout import PRIVATE_UMASK
from signalbox.cli.supervisor.process import Spec, spawn
from signalbox.core.keys import hash_key, new_key
from signalbox.resources.documents import render, write_file
from signalbox.v1 import usage_pb2

SIMULATOR = "signalbox-simulator"
_MODEL = "claude-sonnet-5-5"
_SIMULATOR_READY_S = 20.0
# `busy` comes first and is always limited, so that the first request shows a failover.
_ACCOUNTS = {"busy": 0, "left": 1, "right": 1}
_LIMITED = {"status": 429, "retry_after": 600, "message": "This account has used up its limit."}


def demo(data: Path | None, port: int, *, once: bool) -> None:
    """Serve until SIGTERM or SIGINT, or with `once` until the tour is over. Raises StartupError, CommandFailed."""
    os.umask(PRIVATE_UMASK)
    os.environ.setdefault("SIGNALBOX_LOG_LEVEL", "error")
    with _data_directory(data) as directory:
        asyncio.run(_demo(directory, port, once=once))


async def _demo(data: Path, port: int, *, once: bool) -> None:
    keys = {name: f"sk-ant-demo-{name}-0123456789" for name in _ACCOUNTS}
    async with _simulator(data, keys) as provider:
        relay_key = new_key()
        manifests = _write_documents(data / "manifests", provider, keys, relay_key)
        instance = Instance(Options(manifests, data, port=port, log_format="text"))

        async def show() -> None:
            print(f"ready {instance.url}", flush=True)
            await _Tour(instance.url, relay_key, data).walk()
            if once:
                instance.stop()
            else:
                _invite(instance.url, relay_key, data)

        await instance.serve(show)


@dataclass(frozen=True)
class _Tour:
    """The requests that the demo makes, and the commands that it then runs as a user would."""

    url: str
    key: str
    data: Path

    async def walk(self) -> None:
        _say("A request. The account `busy` is tried first and answers 429; the caller never notices:")
        answer = await asyncio.to_thread(self._ask, "What is a relay?", stream=False)
        print(f"  {answer['status']}, attempts: {answer['attempts']}, request id: {answer['request_id']}")
        _say("Another one, streamed. `busy` rests until its limit resets, so another account is asked at once:")
        streamed = await asyncio.to_thread(self._ask, "And what is a pool?", stream=True)
        print(f"  {streamed['status']}, attempts: {streamed['attempts']}, {streamed['events']} events")
        _say("Every attempt is in the ledger, with what it cost:")
        await becomes_true(lambda: self._in_ledger(streamed["request_id"]))
        await self._command("requests", "--last", "5")
        _say("Why the first request went where it went:")
        await self._command("explain", answer["request_id"])
        _say("What was used, and the state of the accounts:")
        await self._command("usage", "--by", "key,account,model")
        await self._command("accounts", "list")

    def _ask(self, question: str, *, stream: bool) -> dict[str, Any]:
        body = {
            "model": _MODEL, "max_tokens": 256, "stream": stream, "messages": [{"role": "user", "content": question}],
        }
        request = urllib.request.Request(  # noqa: S310 - our own address
            f"{self.url}/v1/messages",
            data=json.dumps(body).encode(),
            headers={
                "x-api-key": self.key, "content-type": "application/json", "anthropic-version": "2023-06-01",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310
                lines = reply.read().splitlines()
                return {
                    "status": reply.status,
                    "attempts": reply.headers.get("x-signalbox-attempts", "1"),
                    "request_id": reply.headers["x-signalbox-request-id"],
                    "events": sum(line.startswith(b"event:") for line in lines),
                }
        except OSError as e:
            raise CommandFailed(f"the demo's own request failed: {e}") from e

    async def _in_ledger(self, request_id: str) -> bool:
        query = usage_pb2.QueryRequest(explain=usage_pb2.ExplainQuery(request_id=request_id))
        async with locate(self.data).rooms() as rooms:
            return bool((await rooms.query(query)).rows)

    async def _command(self, *arguments: str) -> None:
        print(f"  $ signalbox {' '.join(arguments)}", flush=True)
        command = (sys.executable, "-m", "signalbox.cli", *arguments, "--data", str(self.data))
        child = await asyncio.create_subprocess_exec(*command)
        if await child.wait() != 0:
            raise CommandFailed(f"signalbox {arguments[0]} failed")


def _say(text: str) -> None:
    print(f"\n{text}", flush=True)


def _invite(url: str, key: str, data: Path) -> None:
    _say("The relay goes on serving; stop it with Ctrl-C. Point any Anthropic client at it:")
    print(f"  export ANTHROPIC_BASE_URL={url} ANTHROPIC_AUTH_TOKEN={key}")
    print(f"  export SIGNALBOX_ADDR=unix:{data}   # for signalbox status, requests, explain ...", flush=True)


@contextlib.contextmanager
def _data_directory(data: Path | None) -> Iterator[Path]:
    if data is not None:
        data.mkdir(parents=True, exist_ok=True)
        yield data.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="signalbox-demo-") as temporary:
        yield Path(temporary)


@contextlib.asynccontextmanager
async def _simulator(data: Path, keys: dict[str, str]) -> AsyncIterator[str]:
    """Run the simulator with one account for each key, the first of them limited; yield its URL."""
    program = Path(sys.executable).with_name(SIMULATOR)
    found = str(program) if program.exists() else shutil.which(SIMULATOR)
    if found is None:
        raise CommandFailed(f"{SIMULATOR} is not installed: the demo needs it; `make setup` in a checkout brings it")
    config = data / "simulator.json"
    write_file(config, json.dumps({
        "accounts": [{"name": name, "key": key} for name, key in keys.items()],
        "script": [{"account": next(iter(keys)), "standing": _LIMITED}],
    }))
    spec = Spec("simulator", "simulator", (found, "--port", "0", "--config", str(config)), dict(os.environ), _no_probe)
    child = await spawn(spec)
    assert child.stdout is not None
    try:
        url = await asyncio.wait_for(_ready_url(child.stdout), _SIMULATOR_READY_S)
        drain = asyncio.create_task(_drain(child.stdout))
        yield url
        drain.cancel()
    except TimeoutError as e:
        raise CommandFailed("the simulator did not become ready") from e
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        await child.wait()


async def _no_probe() -> dict[str, str]:
    return {}


async def _ready_url(output: asyncio.StreamReader) -> str:
    said = []
    while line := (await output.readline()).decode().strip():
        if line.startswith("ready "):
            return line.split()[1]
        said.append(line)
    raise CommandFailed(f"the simulator did not start: {said[-1] if said else 'it said nothing'}")


async def _drain(output: asyncio.StreamReader) -> None:
    while await output.read(65536):
        pass


def _write_documents(directory: Path, provider: str, keys: dict[str, str], relay_key: str) -> Path:
    """Write three accounts at the simulated provider, a pool that tries `busy` first, and one relay key."""
    directory.mkdir(exist_ok=True)
    for name, key in keys.items():
        write_file(directory / f"account-{name}.yaml", "---\n".join((
            render("Secret", name, {"stringData": {"api-key": key}}),
            render("ClaudeAccount", name, {"spec": {
                "provider": "Anthropic",
                "baseURL": provider,
                "credential": {"apiKey": {"secretRef": {"name": name, "key": "api-key"}}},
                "priority": _ACCOUNTS[name],
            }}),
        )))
    pool = {"members": {"accounts": list(keys)}, "strategy": "Priority"}
    write_file(directory / "pool.yaml", render("AccountPool", "default", {"spec": pool}))
    limits = [{"per": "Minute", "requests": 60}, {"per": "Day", "costUSD": "5.00"}]
    spec = {"owner": "you@example.com", "keyHash": hash_key(relay_key), "limits": limits}
    write_file(directory / "key.yaml", render("RelayKey", "you", {"spec": spec}))
    note(f"Documents of the demo: {directory}")
    return directory
