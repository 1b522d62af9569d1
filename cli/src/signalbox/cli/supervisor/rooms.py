"""The rooms of a local instance as processes: their command lines, their environments, how their readiness is read."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from signalbox.cli.supervisor import unixhttp
from signalbox.cli.supervisor.layout import Layout
from signalbox.cli.supervisor.process import Probe, Spec
from signalbox.rooms.addresses import Addresses

REDIS_URL = "SIGNALBOX_REDIS_URL"
DATABASE_URL = "SIGNALBOX_DATABASE_URL"

# What a room gets of our own environment. A list of what is let through, because the environment of `up` holds
# what `${NAME}` in Secrets is filled with, and only the token-refresher may know credentials.
_PASSED = frozenset({
    "PATH", "HOME", "USER", "TMPDIR", "TZ", "LANG", "LANGUAGE", "SSL_CERT_FILE", "SSL_CERT_DIR", "LD_LIBRARY_PATH",
    "XDG_RUNTIME_DIR", "VIRTUAL_ENV",
})
_PASSED_PREFIXES = ("LC_", "PYTHON", "MALLOC_", "GRPC_", "OTEL_", "COVERAGE_")
# Each of these goes to the one room that needs it.
_PRIVATE = {REDIS_URL: "scheduler", DATABASE_URL: "usage"}
_MODULES = {
    "usage": "signalbox.usage",
    "token-refresher": "signalbox.token_refresher",
    "scheduler": "signalbox.scheduler",
    "gateway": "signalbox.gateway",
}


@dataclass(frozen=True)
class Plan:
    """How many of what, and where the callers' socket is."""

    layout: Layout
    listen_fd: int
    url: str
    workers: int = 1
    schedulers: int = 1
    log_format: str = "json"
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)

    @property
    def embedded_redis(self) -> bool:
        """Whether the instance brings its own Redis."""
        return not self.environ.get(REDIS_URL)

    @property
    def with_foreign_stores(self) -> frozenset[str]:
        """The rooms whose store the instance does not bring itself."""
        return frozenset(room for variable, room in _PRIVATE.items() if self.environ.get(variable))

    @property
    def addresses(self) -> Addresses:
        """Where the rooms find each other, and the commands them."""
        return Addresses(
            scheduler=tuple(f"unix:{self.layout.socket(f'scheduler-{n}')}" for n in range(self.schedulers)),
            token_refresher=f"unix:{self.layout.socket('token-refresher')}",
            usage=f"unix:{self.layout.socket('usage')}",
        )

    def session_socket(self, scheduler: int) -> Path:
        """The Unix socket on which a scheduler answers the gateways' sessions."""
        return self.layout.socket(f"scheduler-{scheduler}.session")


def specs(plan: Plan) -> list[Spec]:
    """Return the rooms in the order in which they start; they stop in the reverse one."""
    return [
        _spec(plan, "usage"),
        _spec(plan, "token-refresher"),
        *(_spec(plan, "scheduler", n) for n in range(plan.schedulers)),
        *(_spec(plan, "gateway", n) for n in range(plan.workers)),
    ]


def _spec(plan: Plan, room: str, worker: int | None = None) -> Spec:
    name = room if worker is None else f"{room}-{worker}"
    layout = plan.layout
    telemetry = layout.telemetry_socket(name)
    if room == "gateway":
        serving, listen = plan.url.removeprefix("http://"), f"fd:{plan.listen_fd}"
    else:
        serving = str(layout.socket(name))
        listen = f"unix:{serving}"
    sockets: tuple[str, ...] = (serving, str(telemetry))
    if worker is not None and room == "scheduler":
        sockets += (str(plan.session_socket(worker)),)
    env = _inherited(plan.environ, room) | {
        "SIGNALBOX_SHARED_SECRET_FILE": str(layout.shared_secret),
        "SIGNALBOX_TELEMETRY_ADDRESS": f"unix:{telemetry}",
        "SIGNALBOX_LOG_FORMAT": plan.log_format,
        f"{_prefix(room)}LISTEN": listen,
        **_own(plan, room, worker),
    }
    return Spec(
        name=name,
        room=room,
        argv=(sys.executable, "-m", _MODULES[room]),
        env=env,
        probe=_probe(name, telemetry),
        sockets=sockets,
        pass_fds=(plan.listen_fd,) if room == "gateway" else (),
        worker=worker,
        telemetry=str(telemetry),
    )


def _own(plan: Plan, room: str, worker: int | None) -> dict[str, str]:
    """Return what only this process is told."""
    layout = plan.layout
    if room == "usage":
        return {DATABASE_URL: plan.environ.get(DATABASE_URL) or f"sqlite:///{layout.ledger}"}
    if room == "token-refresher":
        return {
            "SIGNALBOX_TOKEN_REFRESHER_STORE_DIR": str(layout.data / "credentials"),
            "SIGNALBOX_TOKEN_REFRESHER_ENCRYPTION_KEY_FILE": str(layout.encryption_key),
        }
    if room == "scheduler":
        assert worker is not None
        return {
            "SIGNALBOX_SCHEDULER_SESSION_LISTEN": f"unix:{plan.session_socket(worker)}",
            REDIS_URL: plan.environ.get(REDIS_URL) or f"unix://{layout.socket('redis')}",
            "SIGNALBOX_USAGE_ADDRESS": plan.addresses.usage,
        }
    return {
        "SIGNALBOX_SCHEDULER_ADDRESS": ",".join(plan.addresses.scheduler),
        "SIGNALBOX_SCHEDULER_SESSION_ADDRESS": ",".join(
            f"unix:{plan.session_socket(n)}" for n in range(plan.schedulers)
        ),
        "SIGNALBOX_TOKEN_REFRESHER_ADDRESS": plan.addresses.token_refresher,
        "SIGNALBOX_USAGE_ADDRESS": plan.addresses.usage,
        "SIGNALBOX_GATEWAY_JOURNAL_DIR": str(layout.data / "journal"),
    }


def _inherited(environ: Mapping[str, str], room: str) -> dict[str, str]:
    others = tuple(_prefix(other) for other in _MODULES if other != room)
    return {
        name: value
        for name, value in environ.items()
        if name in _PASSED
        or name.startswith(_PASSED_PREFIXES)
        or (name.startswith("SIGNALBOX_") and not name.startswith(others) and _PRIVATE.get(name, room) == room)
    }


def _prefix(room: str) -> str:
    return f"SIGNALBOX_{room.upper().replace('-', '_')}_"


def _probe(name: str, telemetry: Path) -> Probe:
    async def probe() -> dict[str, str]:
        if not telemetry.exists():    # while it imports it is asked often, and a look costs next to nothing
            raise FileNotFoundError(telemetry)
        status, body = await unixhttp.get(telemetry, "/readyz")
        if status == 200:
            return {}
        try:
            missing: dict[str, str] = json.loads(body)["missing"]
        except (ValueError, KeyError, TypeError):
            missing = {}
        return missing or {name: f"answers {status}"}

    return probe
