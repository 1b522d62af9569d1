"""A running local instance: brings up the processes and the file watcher, keeps them, takes them down in order.

How one process is kept is process.py's business, what the processes are rooms.py's, the documents watch.py's.
"""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from signalbox.cli.supervisor import redis, rooms
from signalbox.cli.supervisor.layout import PRIVATE_UMASK, Layout
from signalbox.cli.supervisor.logs import LogSink
from signalbox.cli.supervisor.pages import Pages, Source
from signalbox.cli.supervisor.process import NOT_RUNNING, SILENT, Kept, Spec
from signalbox.cli.watch import Watcher
from signalbox.core.errors import StartupError
from signalbox.core.settings import RoomSettings, load
from signalbox.rooms.client import Rooms

# A start with something unusable must have said so and ended within ten seconds.
_UNUSABLE_AFTER_S = 9.0
# A process that does not even answer yet is only slow: a busy machine takes its time to import.
_SLOW_AFTER_S = 60.0
# After the last process began to answer: what its neighbours need to find it, and the scheduler to rebuild its
# counters, for which it waits five seconds for the gateways' journals.
_CONNECTED_AFTER_S = 10.0
# From here on it is noted who is silent.
_LISTENING_FROM_S = 6.0
_GRACE_MARGIN_S = 3.0
_ABORT_GRACE_S = 0.5
_POLL_S = 0.05
_BACKLOG = 2048

OnReady = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Options:
    """What `signalbox up` was asked for."""

    manifests: Path
    data: Path
    host: str = "127.0.0.1"
    port: int = 8080
    telemetry_port: int = 0
    workers: int = 1
    schedulers: int = 1
    log_format: str = "json"


class Instance:
    """One local instance, from its first process to its last. Use `serve` once.

    `age_s`: how many seconds of the time that a start may take are over.
    """

    def __init__(self, options: Options, *, age_s: float = 0.0) -> None:
        self.options = options
        self.layout = Layout.at(options.data)
        self.url = ""
        self.telemetry_url = ""
        self._began_s = time.monotonic() - age_s
        self._silent_until_s = 0.0
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._kept: list[Kept] = []
        self._watcher: Watcher | None = None

    def stop(self) -> None:
        """Begin to stop; asked twice, do not wait for running requests."""
        (self._hurry if self._stop.is_set() else self._stop).set()

    @property
    def stopping(self) -> bool:
        """Whether the instance is being stopped."""
        return self._stop.is_set()

    async def serve(self, on_ready: OnReady) -> None:
        """Bring everything up, await `on_ready`, and serve until `stop`. Raises StartupError.

        `on_ready` runs when every room is ready and the documents are in force.
        """
        os.umask(PRIVATE_UMASK)
        if not self.options.manifests.is_dir():
            raise StartupError(f"manifests directory {self.options.manifests}", "is not a directory")
        with self._stopping_on_signals(), self.layout.held(), contextlib.ExitStack() as sockets:
            settings = load(RoomSettings, shared_secret_file=self.layout.shared_secret)
            logs = LogSink(self.options.log_format, settings.log_level)
            try:
                await self._serve(sockets, settings, logs, on_ready)
            finally:
                logs.close()

    async def status(self) -> dict[str, Any]:
        """Return what `signalbox status` shows."""
        missing = await asyncio.gather(*(kept.missing() for kept in self._kept))
        documents_in_force = self._watcher is not None and self._watcher.in_force
        return {
            "ready": bool(self._kept) and not any(missing) and documents_in_force and not self.stopping,
            "url": self.url,
            "telemetry_url": self.telemetry_url,
            "rooms": [self._room_status(k, lacks) for k, lacks in zip(self._kept, missing, strict=True)],
            "pid": os.getpid(),
            "data": str(self.layout.data),
            "manifests": str(self.options.manifests),
            "problems": self._watcher.all_problems() if self._watcher else [],
        }

    # ------------------------------------------------------------------ up

    async def _serve(
        self, sockets: contextlib.ExitStack, settings: RoomSettings, logs: LogSink, on_ready: OnReady,
    ) -> None:
        listener = sockets.enter_context(_listen(self.options.host, self.options.port, "--port"))
        telemetry = sockets.enter_context(_listen("127.0.0.1", self.options.telemetry_port, "--telemetry-port"))
        own = sockets.enter_context(_listen_unix(self.layout.socket("supervisor")))
        self.url, self.telemetry_url = _url(listener), _url(telemetry)
        plan = rooms.Plan(
            self.layout, listener.fileno(), self.url, self.options.workers, self.options.schedulers,
            self.options.log_format,
        )
        specs = rooms.specs(plan)
        pages = Pages([_source(s) for s in specs], self.status)
        await pages.start([telemetry, own])
        self.layout.write_instance(self._description(plan))
        async with Rooms(plan.addresses, settings) as clients:
            self._watcher = Watcher(self.options.manifests, clients, self.layout.next_fence(), logs)
            served = False
            try:
                served = await self._bring_up(plan, specs, logs)
                if served:
                    await on_ready()
                    await self._stop.wait()
            finally:
                self._stop.set()
                listener.close()  # no new connections; the gateways still hold theirs
                await (self._bring_down(settings.stop_grace_s + _GRACE_MARGIN_S) if served else self._abort())
                await pages.close()
                self.layout.instance.unlink(missing_ok=True)

    async def _bring_up(self, plan: rooms.Plan, specs: list[Spec], logs: LogSink) -> bool:
        """Start everything and wait until it serves; False when it was stopped meanwhile. Raises StartupError."""
        assert self._watcher is not None
        if plan.embedded_redis:
            self._keep(redis.spec(self.layout, quiet=plan.environ.get("SIGNALBOX_LOG_LEVEL") == "error"), logs)
            if not await self._until(lambda: self._kept[0].ready):
                return False
        # Rooms with a store that is not our own find out first whether it serves: all at once would share the
        # processor, and a busy machine takes its time to import.
        first = [spec for spec in specs if spec.room in plan.with_foreign_stores]
        for spec in first:
            self._keep(spec, logs)
        if not await self._until(lambda: all(kept.answers for kept in self._kept)):
            return False
        for spec in specs:
            if spec not in first:
                self._keep(spec, logs)
        order = [spec.name for spec in specs]  # in which they also stop, backwards; our own Redis is the last to go
        self._kept.sort(key=lambda kept: order.index(kept.spec.name) if kept.spec.name in order else -1)
        self._watcher.start()
        watcher = self._watcher
        return await self._until(lambda: watcher.in_force and all(kept.ever_ready for kept in self._kept))

    def _keep(self, spec: Spec, logs: LogSink) -> None:
        assert self._watcher is not None
        # A room that came back may have lost what it was told.
        kept = Kept(spec, logs, self._watcher.trigger)
        self._kept.append(kept)
        kept.start()

    async def _until(self, done: Callable[[], bool]) -> bool:
        """Wait until `done`; False when the instance is stopped first. Raises StartupError when it cannot be."""
        while not done():
            if self._stop.is_set():
                return False
            for kept in self._kept:
                if kept.died.done():
                    raise StartupError(kept.spec.name, kept.died.result())
            if self._elapsed_s() > _LISTENING_FROM_S:
                await self._give_up_if_unusable()
            await asyncio.sleep(_POLL_S)
        return True

    async def _give_up_if_unusable(self) -> None:
        """Raise StartupError for the first process that says what it misses, or that is far too slow.

        While some process does not answer at all, what others miss may be just that one: a busy machine takes its
        time to import. A room that finds its own neighbours (Redis, the ledger) unusable ends by itself.
        """
        lacking = [(kept.spec.name, await kept.missing()) for kept in self._kept if not kept.ever_ready]
        elapsed_s = self._elapsed_s()
        late = any({NOT_RUNNING, SILENT} & set(missing.values()) for _, missing in lacking)
        if late and elapsed_s < _SLOW_AFTER_S:
            self._silent_until_s = elapsed_s
        if elapsed_s < max(_UNUSABLE_AFTER_S, self._silent_until_s + _CONNECTED_AFTER_S):
            return
        for name, missing in lacking:
            if not missing:
                continue    # it has become ready this moment
            raise StartupError(name, "; ".join(f"{need}: {why}" for need, why in missing.items()))
        if self._watcher is not None and self._watcher.failure:
            raise StartupError("documents", self._watcher.failure)

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._began_s

    # ------------------------------------------------------------------ down

    async def _bring_down(self, grace_s: float) -> None:
        """Stop the watcher, then the rooms in the reverse order of their start, those of one kind together."""
        if self._watcher is not None:
            await self._watcher.stop()
        for room in reversed(dict.fromkeys(kept.spec.room for kept in self._kept)):
            together = [kept for kept in self._kept if kept.spec.room == room]
            room_grace_s = _ABORT_GRACE_S if self._hurry.is_set() else grace_s
            stopping = asyncio.gather(*(kept.stop(room_grace_s) for kept in together))
            hurry = asyncio.create_task(self._hurry.wait())
            either: list[asyncio.Future[Any]] = [stopping, hurry]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
            if not stopping.done():
                for kept in together:
                    kept.kill()
            await stopping

    async def _abort(self) -> None:
        """Stop everything at once: nothing was served yet."""
        if self._watcher is not None:
            await self._watcher.stop()
        await asyncio.gather(*(kept.stop(_ABORT_GRACE_S) for kept in self._kept))

    @contextlib.contextmanager
    def _stopping_on_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        signals = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup: stay so
            signals.append(signal.SIGHUP)
        for number in signals:
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    # ------------------------------------------------------------------ shown

    def _room_status(self, kept: Kept, missing: dict[str, str]) -> dict[str, Any]:
        spec = kept.spec
        status: dict[str, Any] = {
            "room": spec.room,
            "pid": kept.pid,
            "ready": not missing,
            "restarts": kept.restarts,
            "sockets": list(spec.sockets),
            "telemetry_url": f"{self.telemetry_url}/rooms/{spec.name}" if spec.telemetry else None,
            "missing": missing,
        }
        return status if spec.worker is None else {**status, "worker": spec.worker}

    def _description(self, plan: rooms.Plan) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "url": self.url,
            "telemetry_url": self.telemetry_url,
            "manifests": str(self.options.manifests),
            "scheduler": list(plan.addresses.scheduler),
            "token_refresher": plan.addresses.token_refresher,
            "usage": plan.addresses.usage,
        }


def _source(spec: Spec) -> Source:
    assert spec.telemetry is not None
    return Source(spec.name, spec.room, spec.worker, Path(spec.telemetry))


@contextlib.contextmanager
def _listen(host: str, port: int, option: str) -> Iterator[socket.socket]:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as e:
        raise StartupError(f"{option} {host}:{port}", e.strerror or str(e)) from e
    except OverflowError as e:
        raise StartupError(f"{option} {port}", "a port is a number up to 65535") from e
    with listener:
        yield listener


@contextlib.contextmanager
def _listen_unix(path: Path) -> Iterator[socket.socket]:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o600)  # the umask leaves a socket its owner's execute bit
        listener.listen()
        yield listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
