"""Keeping a child process: restarts, last words, output, stopping, and dying with the parent. Real processes."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from signalbox.cli.supervisor import redis
from signalbox.cli.supervisor.layout import Layout
from signalbox.cli.supervisor.logs import LogSink
from signalbox.cli.supervisor.process import Backoff, Kept, Spec, last_words
from signalbox.cli.supervisor.rooms import Plan, specs
from tests.support.machine import busy

SERVES = "import signal, sys, time; print('up', flush=True); signal.signal(15, lambda *_: sys.exit(0)); time.sleep(60)"
DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def spec(code: str, output: io.StringIO) -> Spec:
    async def probe() -> dict[str, str]:
        return {} if "up" in output.getvalue() else {"child": "starting"}

    return Spec("child", "child", (sys.executable, "-c", code), dict(os.environ), probe)


async def until(condition: object, limit_s: float = 30.0) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end_s, "did not happen in time"
        await asyncio.sleep(0.01)


async def test_a_killed_process_is_back_within_two_seconds() -> None:
    output = io.StringIO()
    ready: list[float] = []
    kept = Kept(spec(SERVES, output), LogSink("text", stream=output), lambda: ready.append(time.monotonic()))
    kept.start()
    await until(lambda: kept.ready)
    first = kept.pid
    assert first is not None
    killed_s = time.monotonic()
    os.kill(first, signal.SIGKILL)
    await until(lambda: len(ready) == 2)
    assert kept.pid not in (None, first)
    assert kept.restarts == 1
    assert ready[1] - killed_s < 2.0 * busy()
    await kept.stop(5.0)
    assert kept.pid is None


async def test_a_process_that_cannot_start_leaves_its_verdict() -> None:
    output = io.StringIO()
    code = "import sys; print('noise'); sys.exit('signalbox.x: cannot start: SIGNALBOX_X: must be a number')"
    kept = Kept(spec(code, output), LogSink("text", stream=output), lambda: None)
    kept.start()
    assert await asyncio.wait_for(kept.died, 30.0) == "SIGNALBOX_X: must be a number"
    assert kept.restarts == 0
    await kept.stop(1.0)


async def test_a_program_that_does_not_exist_is_named() -> None:
    output = io.StringIO()
    missing = Spec("child", "child", ("/nowhere/at-all",), {}, spec("", output).probe)
    kept = Kept(missing, LogSink("text", stream=output), lambda: None)
    kept.start()
    assert "/nowhere/at-all" in await asyncio.wait_for(kept.died, 30.0)
    await kept.stop(1.0)    # its word comes before its end


async def test_a_deaf_process_is_killed_after_the_grace() -> None:
    output = io.StringIO()
    kept = Kept(spec(DEAF, output), LogSink("text", stream=output), lambda: None)
    kept.start()
    await until(lambda: kept.ready)
    pid = kept.pid
    assert pid is not None
    await kept.stop(0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_output_is_passed_on_line_by_line_with_the_processs_name() -> None:
    output = io.StringIO()
    logs = LogSink("text", stream=output)
    code = "import time; print('up'); print('x' * 200_000); print('end', end='', flush=True); time.sleep(60)"
    kept = Kept(spec(code, output), logs, lambda: None)
    kept.start()
    await until(lambda: kept.ready)
    await kept.stop(1.0)
    logs.close()
    lines = output.getvalue().splitlines()
    assert lines[0].split() == ["child", "up"]
    assert sum(line.count("x") for line in lines) == 200_000
    assert any(line.split() == ["child", "end"] for line in lines)


def test_backoff_grows_only_while_it_dies_before_it_serves() -> None:
    backoff = Backoff()
    assert {backoff.after(served=True) for _ in range(9)} == {Backoff.FIRST_S}
    waits = [backoff.after(served=False) for _ in range(6)]
    assert waits == sorted(waits)
    assert waits[-1] == Backoff.LONGEST_S
    assert backoff.after(served=True) == Backoff.FIRST_S


def test_last_words_prefer_the_verdict_over_what_follows_it() -> None:
    assert last_words(["a", "signalbox.usage: cannot start: URL: wrong", "bye"]) == "URL: wrong"
    assert last_words(["a", "Error: b"]) == "Error: b"
    assert last_words([]) == ""


@pytest.mark.slow
def test_a_reader_that_stalls_does_not_stall_the_writer() -> None:
    release = threading.Event()

    class Stalled(io.StringIO):
        def write(self, text: str) -> int:
            release.wait(60)
            return super().write(text)

    stream = Stalled()
    logs = LogSink("text", stream=stream)
    started_s = time.monotonic()
    for n in range(30_000):
        logs.child_line("child", f"line {n}")
    assert time.monotonic() - started_s < 5.0 * busy()
    release.set()
    logs.close()
    assert "log lines dropped" in stream.getvalue()


def test_json_logs_stay_json() -> None:
    stream = io.StringIO()
    logs = LogSink("json", stream=stream)
    logs.child_line("usage", '{"event":"a","room":"usage"}')
    logs.child_line("redis", "# WARNING")
    logs.event("restarting", process="usage")
    logs.close()
    import json

    rows = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [r["room"] for r in rows] == ["usage", "redis", "supervisor"]


@pytest.mark.slow
def test_children_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", """
import asyncio, sys
from signalbox.cli.supervisor.process import Spec, spawn
async def main():
    child = await spawn(Spec("c", "c", (sys.executable, "-c", "import time; time.sleep(60)"), {}, None))
    print(child.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""], stdout=subprocess.PIPE, text=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    end_s = time.monotonic() + 30
    while "time.sleep(60)" not in Path(f"/proc/{child}/cmdline").read_text():
        assert time.monotonic() < end_s, "the launcher does not become the program"
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end_s = time.monotonic() + 30.0
    while Path(f"/proc/{child}").exists() and "State:\tZ" not in Path(f"/proc/{child}/status").read_text():
        assert time.monotonic() < end_s
        time.sleep(0.02)


async def test_the_embedded_redis_serves_on_its_socket_only(tmp_path: Path) -> None:
    layout = Layout.at(tmp_path / "d")
    with layout.held():
        kept = Kept(redis.spec(layout), LogSink("text", stream=io.StringIO()), lambda: None)
        kept.start()
        try:
            await until(lambda: kept.ready)
            pid = kept.pid
            assert b"redis-server" in Path(f"/proc/{pid}/cmdline").read_bytes()
            assert (layout.socket("redis").stat().st_mode & 0o777) == 0o600
            config = await ask(layout.socket("redis"), "CONFIG GET appendfsync maxmemory-policy port appendonly")
            assert {"everysec", "noeviction", "0", "yes"} <= set(config.split())
        finally:
            await kept.stop(5.0)
        assert not kept.died.done()


async def ask(socket: Path, command: str) -> str:
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(command.encode() + b"\r\n")
    answer = await asyncio.wait_for(reader.read(4096), 5.0)
    writer.close()
    return answer.decode()


def test_an_old_redis_on_the_path_is_passed_over(tmp_path: Path) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.2.14 sha=0 malloc=libc'\n")
    old.chmod(0o755)
    assert redis.find_binary(str(tmp_path)).name == "valkey-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=7.0.15 sha=0 malloc=libc'\n")
    assert redis.find_binary(str(tmp_path)) == old


def test_rooms_get_only_what_they_need_of_our_environment(tmp_path: Path) -> None:
    environ = {
        "PATH": "/bin", "ANTHROPIC_API_KEY": "sk-ant-secret", "SIGNALBOX_LOG_LEVEL": "debug",
        "SIGNALBOX_DATABASE_URL": "postgresql://u:p@h/d", "SIGNALBOX_REDIS_URL": "redis://:p@h",
        "SIGNALBOX_GATEWAY_MAX_BODY_BYTES": "1024", "LD_PRELOAD": "evil.so",
    }
    plan = Plan(Layout.at(tmp_path), 7, "http://127.0.0.1:1", workers=2, environ=environ)
    by_name = {s.name: s.env for s in specs(plan)}
    assert list(by_name) == ["usage", "token-refresher", "scheduler-0", "gateway-0", "gateway-1"]
    for name, env in by_name.items():
        assert "sk-ant-secret" not in env.values()
        assert "LD_PRELOAD" not in env
        assert env["SIGNALBOX_LOG_LEVEL"] == "debug"
        assert ("SIGNALBOX_DATABASE_URL" in env) == (name == "usage")
        assert ("SIGNALBOX_REDIS_URL" in env) == (name == "scheduler-0")
        assert ("SIGNALBOX_GATEWAY_MAX_BODY_BYTES" in env) == name.startswith("gateway")
        assert ("SIGNALBOX_TOKEN_REFRESHER_ENCRYPTION_KEY_FILE" in env) == (name == "token-refresher")
    assert not plan.embedded_redis
