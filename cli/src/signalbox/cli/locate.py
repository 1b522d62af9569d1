"""Which instance a command talks to: `--data DIR`, else SIGNALBOX_ADDR, else the default data directory.

SIGNALBOX_ADDR is `DIR` or `unix:DIR` (a local instance's data directory) or `env:` (rooms elsewhere, as in a
cluster: their addresses and the shared secret come from the same variables that the rooms themselves read).
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from signalbox.cli.errors import BadUsage, NotRunning
from signalbox.cli.supervisor.layout import Layout, default_data
from signalbox.rooms.addresses import Addresses

if TYPE_CHECKING:
    from signalbox.rooms.client import Rooms

ADDR_VARIABLE = "SIGNALBOX_ADDR"


@dataclass(frozen=True)
class Target:
    """A running instance.

    Local only: `shared_secret` is a file, `control` the supervisor's socket, `manifests` the documents.
    """

    addresses: Addresses
    where: str
    shared_secret: Path | None = None
    control: Path | None = None
    manifests: Path | None = None

    def rooms(self) -> "Rooms":
        """Return the instance's rooms, to be used with `async with`. Raises StartupError where a setting is wrong."""
        # Half a second of imports that `status` does without.
        from signalbox.core.settings import RoomSettings, load  # noqa: PLC0415
        from signalbox.rooms.client import Rooms  # noqa: PLC0415

        own = {} if self.shared_secret is None else {"shared_secret_file": self.shared_secret}
        return Rooms(self.addresses, load(RoomSettings, **own))


def locate(data: Path | None, environ: Mapping[str, str] = os.environ) -> Target:
    """Return the instance that is meant. Raises NotRunning, BadUsage."""
    address = environ.get(ADDR_VARIABLE, "")
    if data is not None:
        return _local(data)
    if address == "env:":
        return _from_environment(environ)
    if address.startswith("unix:"):
        return _local(Path(address.removeprefix("unix:")))
    if "://" in address:
        raise BadUsage(f"{ADDR_VARIABLE}={address}: must be a data directory, unix:DIR or env:")
    if address:
        return _local(Path(address))
    return _local(default_data())


def _local(data: Path) -> Target:
    layout = Layout.at(data)
    description = layout.read_instance()
    control = layout.socket("supervisor")
    if description is None or not _answers(control):
        raise NotRunning(
            f"no instance runs on {layout.data}: start one with `signalbox up --manifests DIR --data {layout.data}`, "
            f"or name another with --data DIR or {ADDR_VARIABLE}",
        )
    return Target(
        addresses=Addresses(tuple(description["scheduler"]), description["token_refresher"], description["usage"]),
        where=str(layout.data),
        shared_secret=layout.shared_secret,
        control=control,
        manifests=Path(description["manifests"]),
    )


def _from_environment(environ: Mapping[str, str]) -> Target:
    names = ("SIGNALBOX_SCHEDULER_ADDRESS", "SIGNALBOX_TOKEN_REFRESHER_ADDRESS", "SIGNALBOX_USAGE_ADDRESS")
    missing = [name for name in names if not environ.get(name)]
    if missing:
        raise BadUsage(f"{ADDR_VARIABLE}=env: needs {', '.join(missing)}")
    schedulers, refresher, usage = (environ[name] for name in names)
    return Target(Addresses(tuple(schedulers.split(",")), refresher, usage), "the rooms' addresses")


def _answers(control: Path) -> bool:
    """Whether somebody listens: the file of a killed instance is left behind."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(str(control))
        except OSError:
            return False
    return True
