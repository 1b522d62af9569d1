"""The process: read the options, listen, say that it is ready, stop on SIGTERM."""

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import signal
import sys
from pathlib import Path
from typing import Any

import uvloop

from signalbox_simulator.accounts import AccountError
from signalbox_simulator.behaviour import BehaviourError
from signalbox_simulator.control import apply_config
from signalbox_simulator.http1 import Connection
from signalbox_simulator.provider import Provider, Settings

BACKLOG = 1024


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; return the exit status."""
    options = _options(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    try:
        config: dict[str, Any] = json.loads(Path(options.config).read_text()) if options.config else {}
        settings = Settings(**{**config.pop("settings", {}), **({"seed": options.seed} if options.seed else {})})
        provider = Provider(settings)
        apply_config(provider, config)
    except (OSError, ValueError, TypeError, KeyError, AccountError, BehaviourError) as e:
        print(f"signalbox-simulator: {options.config}: {e}", file=sys.stderr)
        return 2
    try:
        uvloop.run(_serve(provider, options.host, options.port))
    except OSError as e:
        print(f"signalbox-simulator: {options.host}:{options.port}: {e}", file=sys.stderr)
        return 1
    return 0


async def _serve(provider: Provider, host: str, port: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    numbers = itertools.count(1)
    server = await loop.create_server(lambda: Connection(provider, next(numbers)), host, port, backlog=BACKLOG)
    bound = server.sockets[0].getsockname()[1]
    with contextlib.suppress(BrokenPipeError):
        print(f"ready http://{host}:{bound}", flush=True)
    await stop.wait()
    server.close()
    for connection in list(provider.connections):
        connection.transport.abort()
    await asyncio.sleep(0)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="signalbox-simulator", description="A simulated Anthropic provider.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 (the default) takes a free one")
    parser.add_argument("--seed", type=int, default=None, help="what the replies' words are made from")
    parser.add_argument("--config", help="a JSON file: settings, accounts, open, default, script, oauth")
    return parser.parse_args(arguments)
