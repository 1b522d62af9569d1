"""`signalbox demo` as a newcomer meets it, and the ledger's commands on what it did."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.support import commands

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SIGNALBOX = str(Path(sys.executable).parent / "signalbox")
LAST_LINE = "export SIGNALBOX_ADDR="


def late(ledger: Path) -> None:
    """Let the ledger take nothing for three seconds, as on a busy machine: the tour waits for what it shows."""
    lock = sqlite3.connect(ledger, isolation_level=None, check_same_thread=False)
    lock.execute("BEGIN IMMEDIATE")
    threading.Timer(3, lock.close).start()


class Demo:
    def __init__(self, data: Path) -> None:
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("SIGNALBOX_")}
        self.process = subprocess.Popen(
            [SIGNALBOX, "demo", "--port", "0", "--data", str(data)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=self.env,
        )
        self.said: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith("ready "):
                late(data / "ledger" / "ledger.db")
            if LAST_LINE in line:
                break
        else:
            raise AssertionError("".join(self.said) + self.process.stderr.read())  # type: ignore[union-attr]
        self.env["SIGNALBOX_ADDR"] = self.said[-1].split(LAST_LINE)[1].split()[0]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return commands.run(arguments, self.env, 60)

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    made = Demo(tmp_path_factory.mktemp("d"))
    yield made
    made.process.send_signal(signal.SIGTERM)
    assert made.process.wait(60) == 0


def test_the_tour_shows_a_failover_that_no_caller_noticed(demo: Demo) -> None:
    text = "".join(demo.said)
    assert text.startswith("ready http://127.0.0.1:")
    assert "200, attempts: 2" in text
    assert "200, attempts: 1" in text
    shown = text[text.index("$ signalbox requests"):text.index("$ signalbox explain")]
    accounts = [line.split()[4] for line in shown.splitlines() if "sbx_req_" in line]
    assert (len(accounts), accounts[-1]) == (3, "default/busy")


def test_requests_usage_and_explain_agree(demo: Demo) -> None:
    rows = demo.json("requests", "--last", "10")
    assert [(r["account"], r["attempt"], r["outcome"]) for r in rows][-2:] == [
        (rows[-2]["account"], 2, "ok"), ("default/busy", 1, "upstream_error"),
    ]
    assert demo.json("requests", "--account", "busy", "--outcome", "upstream_error") == [rows[-1]]
    assert demo.json("requests", "--since", "2000-01-01", "--until", "2000-01-02") == []
    usage = demo.json("usage", "--by", "account,day", "--since", "1h")
    assert demo.json("usage", "--by", "account", "--by", "day", "--since", "1h") == usage
    assert {u["account"] for u in usage} == {r["account"] for r in rows}
    for field in ("input_tokens", "output_tokens"):
        assert sum(u[field] for u in usage) == sum(r[field] for r in rows)
    assert sum(Decimal(u["cost_usd"]) for u in usage) == sum(Decimal(r["cost_usd"]) for r in rows) > 0
    explained = demo.json("explain", rows[-1]["request_id"])
    assert [e["attempt"] for e in explained] == [1, 2]
    assert explained[0]["decision"]["chosen"] == "default/busy"
    assert {k: explained[0][k] for k in rows[-1]} == rows[-1]
    told = demo.run("explain", rows[-1]["request_id"]).stdout
    assert "attempt 1 default/busy" in told
    assert "attempt 2" in told


def test_a_denial_can_be_explained(demo: Demo) -> None:
    assert demo.run("keys", "pause", "you").returncode == 0
    url = demo.said[0].split()[1]
    token = next(line for line in demo.said if "ANTHROPIC_AUTH_TOKEN=" in line).split("ANTHROPIC_AUTH_TOKEN=")[1].strip()
    request = urllib.request.Request(f"{url}/v1/messages", data=b"{}", headers={"authorization": f"Bearer {token}"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert refused.value.code == 401
    request_id = refused.value.headers["x-signalbox-request-id"]
    for _ in range(50):
        done = demo.run("explain", request_id)
        if done.returncode == 0:
            break
    assert "refused   key_paused with status 401" in done.stdout
    assert demo.json("requests", "--denials", "--last", "1")[0]["outcome"] == "denied"
    assert demo.json("requests", "--last", "1")[0]["attempt"] > 0
    assert demo.run("keys", "resume", "you").returncode == 0


def test_an_account_that_works_passes_its_test(demo: Demo) -> None:
    row = demo.json("accounts", "test", "left")[0]
    assert row["ok"] is True
    assert row["input_tokens"] > 0
    limited = next(a for a in demo.json("accounts", "list") if a["name"] == "busy")
    assert (limited["available"], limited["reason"]) == (False, "Limited")
    assert limited["limited_until"]
