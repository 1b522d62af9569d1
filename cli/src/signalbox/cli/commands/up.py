"""`signalbox up`: everything on one machine, until it is told to stop."""

import asyncio

from signalbox.cli.supervisor.instance import Instance, Options
from signalbox.core.lifecycle import process_age_s


def up(options: Options) -> None:
    """Serve until SIGTERM or SIGINT. Prints `ready URL` on stdout when it serves. Raises StartupError."""
    asyncio.run(_serve(options))


async def _serve(options: Options) -> None:
    instance = Instance(options, age_s=process_age_s())

    async def say_ready() -> None:
        print(f"ready {instance.url}", flush=True)

    await instance.serve(say_ready)
