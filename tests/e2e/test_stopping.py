"""SIGTERM under load: nobody new is let in, running streams end within the grace or say that they were cut, no row is lost."""

import signal
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.caller import eventually
from tests.support.load import count
from tests.support.machine import busy
from tests.support.rig import SLACK_S, Rig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

GRACE_S = 8.0
LAST_WORDS_S = 15.0    # for cut streams, settlements and the journal, after the grace
SHORT, LONG = 6, 6


def test_what_runs_ends_or_is_cut_truthfully_and_everything_is_delivered(tmp_path: Path) -> None:
    with Rig(tmp_path, environment={"SIGNALBOX_STOP_GRACE_SECONDS": str(GRACE_S)}) as rig:
        instance = rig.instance
        with rig.load(1, callers=6, hang_ups=0, troubles=False) as load:
            short, long = load.hold(SHORT, for_s=3.0), load.hold(LONG, for_s=GRACE_S + 30)
            eventually(lambda: rig.sim.summary()["in_flight"], within_s=10, wanted=lambda n: n >= SHORT + LONG)
            time.sleep(1.0)    # so that all of them have had content
            url = urlsplit(instance.url)
            instance.process.send_signal(signal.SIGTERM)
            began_s = time.monotonic()
            eventually(lambda: not _accepts(url.hostname or "", url.port or 0), within_s=1 + SLACK_S)
            assert time.monotonic() - began_s < GRACE_S, "callers are turned away at once, not when all is over"
            ended = [stream.result(60) for stream in short]
            cut = [stream.result(60) for stream in long]
            assert instance.process.wait(GRACE_S + LAST_WORDS_S + SLACK_S * busy()) == 0
        assert all(seen.whole for seen in ended), count(ended)
        assert {(seen.status, seen.error_code) for seen in cut} == {(200, "upstream_truncated")}, count(cut)
        assert min(seen.ended_s for seen in cut) - began_s > GRACE_S - 1, "they are given the whole grace"
        assert max(seen.ended_s for seen in cut) - began_s < GRACE_S + SLACK_S * busy()
        assert not list((instance.data / "journal").glob("*/*.journal")), "the ledger has everything"
        broken = {seen.kind for seen in load.seen if not seen.whole} - {"upstream_truncated"}
        assert all(kind.startswith("connection: ") for kind in broken), broken
        instance.start()
        found = rig.settled(by_s=time.monotonic() + 15)
        print(f"\n{dict(count(load.seen))}; {dict(found.counts)}")


def _accepts(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True
