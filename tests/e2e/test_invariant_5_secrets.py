"""Invariant 5, no secret leaks: after a run that succeeded, failed and died, known secrets are looked for everywhere.

Everywhere: what the processes said, every file below the data directory (ledger, journals, what Redis wrote, the
token store, which is encrypted), the live content of Redis, metrics, statuses and what the commands print, command
lines and environments of the rooms, and what callers were told when something went wrong. Only the documents hold
them, and they lie elsewhere.
"""

import base64
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.load import Load, message, model_of_its_own
from tests.support.rig import API_KEY, KEY, Rig, redis_command, stopped

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

PROMPT = "The-prompt-that-nobody-may-ever-read-4711"
SYSTEM = "The-system-text-that-nobody-may-ever-read-4712"
COMPLETION = "The-completion-that-nobody-may-ever-read-4713"
PROVIDER_ERROR = "The-provider-repeats-your-input-4714"
SESSION = "The-session-that-nobody-may-ever-read-4715"
WRONG_KEY = "sbx_e2e_a_key_that_is_none_but_is_presented_4716"
SECRETS = {
    "account key": API_KEY, "relay key": KEY, "unknown key": WRONG_KEY, "prompt": PROMPT, "system": SYSTEM,
    "completion": COMPLETION, "provider's error text": PROVIDER_ERROR, "session": SESSION,
}


def spellings(text: str) -> set[bytes]:
    """Return how a text may be written down: plain, in a URL, in hexadecimal digits, in base64 at any offset."""
    raw = text.encode()
    found = {raw, quote(text, safe="").encode(), raw.hex().encode(), raw.hex().upper().encode()}
    for shift in range(3):
        whole = base64.b64encode(b"\0" * shift + raw)
        # Without the characters that the neighbours share.
        found.add(whole[(0, 2, 3)[shift] : len(whole) // 4 * 4 - 4])
    return found


def leaks(where: str, content: bytes) -> list[str]:
    """Return which secrets stand in a content."""
    return [f"{name} in {where}" for name, text in SECRETS.items() if any(s in content for s in spellings(text))]


def files(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every regular file below a directory."""
    for path in sorted(directory.rglob("*")):
        with contextlib.suppress(FileNotFoundError):    # a journal that was delivered meanwhile
            if path.is_file() and not path.is_socket():
                yield str(path.relative_to(directory)), path.read_bytes()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Rig(tmp_path_factory.mktemp("i5"), workers=2) as made:
        yield made


def body(behaviour: str = "", *, stream: bool = True) -> dict[str, object]:
    """Return a request that is full of secrets."""
    return message(
        f"{PROMPT} [[sim text='{COMPLETION} {COMPLETION}' {behaviour}]]", stream=stream, model=model_of_its_own(),
        system=SYSTEM, metadata={"user_id": SESSION}, max_tokens=8192,
    )


BEHAVIOURS = (
    "", "deltas=5", "cut=fin cut.at=half", "cut=rst cut.at=content", "once status=500", "once drop=reset",
    f"status=400 message={PROVIDER_ERROR}", f"status=529 message={PROVIDER_ERROR}", "bad_chunk.at=content",
    f"error_event=overloaded_error error_event.message={PROVIDER_ERROR} error_event.at=content",
    f"malformed.text={PROVIDER_ERROR} malformed.at=content",
)


def use(rig: Rig, load: Load) -> list[bytes]:
    """Let everything happen that may write something down; return what callers were told by Signalbox itself."""
    for stream in (True, False):
        for behaviour in BEHAVIOURS:
            if not stream and "error_event" in behaviour:
                continue  # no event where there is no stream
            load.ask(body(behaviour, stream=stream)).result(30)
    refused = [
        load.ask(body(), key=WRONG_KEY), load.ask({**body(), "model": [PROMPT]}), load.ask({**body(), "max_tokens": PROMPT}),
    ]
    told = [r.result(30).body for r in refused]
    running = [load.ask(body("deltas=200 delta_delay_s=0.05")) for _ in range(4)]
    time.sleep(0.5)
    os.kill(rig.instance.room_pids("gateway")[0], signal.SIGKILL)
    for stream_ in running:
        stream_.result(30)
    return told


def test_no_secret_is_written_down_anywhere(rig: Rig) -> None:
    with rig.load(1, callers=0) as load:
        told = use(rig, load)
        # Journals and Redis are looked at while they are full, too: nothing is delivered, a stream is running.
        with stopped(rig.instance.room_pids("usage")):
            running = load.ask(body("deltas=100 delta_delay_s=0.05"))
            load.ask(body()).result(30)
            time.sleep(0.5)
            found = [leak for name, content in files(rig.instance.data) for leak in leaks(name, content)]
        assert running.result(30).whole
    assert COMPLETION.encode() in b"".join(s.body for s in load.seen), "the secrets were really there"
    found += [leak for content in told for leak in leaks("an error of Signalbox's own", content)]
    redis = rig.instance.data / "run" / "redis.sock"
    assert b"OK" in redis_command(redis, "SAVE")
    for name, content in files(rig.instance.data):
        found += leaks(name, content)
    found += leaks("logs", "".join(rig.instance.log).encode())
    found += leaks("metrics", rig.instance.metrics().encode())
    found += leaks("status", repr(rig.instance.status()).encode())
    found += leaks("key-info", repr(rig.instance.key_info(KEY)).encode())
    for command in (["accounts", "list"], ["pools", "list"], ["keys", "list"], ["requests", "--denials", "--last", "1000"]):
        found += leaks(" ".join(command), rig.instance.run(*command, "-o", "json").stdout.encode())
    found += leaks("usage", rig.instance.run("usage", "--by", "key,owner,account,model,day").stdout.encode())
    for row in rig.instance.requests()[:3]:
        found += leaks("explain", rig.instance.run("explain", row["request_id"]).stdout.encode())
    for name in ("a", "b"):
        found += leaks("describe", rig.instance.run("accounts", "describe", name).stdout.encode())
    for room in rig.instance.status()["rooms"]:
        for what in ("cmdline", "environ"):
            found += leaks(f"{what} of {room['room']}", Path(f"/proc/{room['pid']}/{what}").read_bytes())
    assert not found, sorted(set(found))


def test_a_secret_would_be_found() -> None:
    for name, text in SECRETS.items():
        for prefix in (b"", b"x", b"xy", b"xyz"):
            written = prefix + text.encode() + b" and more"
            for content in (written, base64.b64encode(written), written.hex().encode()):
                assert leaks("here", content) == [f"{name} in here"]
