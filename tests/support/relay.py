"""A relay with two accounts behind one key, watched on both sides: what clients say, what the provider gets, the ledger.

The pool hands accounts out in turns, so that whatever stays on one account does so because it was pinned there.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import compare
from tests.support.instance import Instance, account, pool, relay_key, secret
from tests.support.machine import busy
from tests.support.sim import Simulator
from tests.support.tap import Exchange, Headers, Tap

ACCOUNTS = {"a": "sk-ant-clients-account-a", "b": "sk-ant-clients-account-b"}
KEY = "relay-key-of-the-client-tests"
MODEL = "claude-sonnet-5-5"
LEDGER_LIMIT_S = 10.0
REST_LIMIT_S = 30.0

CLIENTS = Path(__file__).parents[1] / "clients"
CLAUDE = CLIENTS / "node_modules/@anthropic-ai/claude-code/bin/claude.exe"
TYPESCRIPT_SDK = CLIENTS / "node_modules/@anthropic-ai/sdk/package.json"
needs_claude = pytest.mark.skipif(not CLAUDE.exists(), reason="Claude Code is not installed: scripts/setup.sh clients")
needs_typescript = pytest.mark.skipif(
    not TYPESCRIPT_SDK.exists(), reason="the TypeScript SDK is not installed: scripts/setup.sh clients"
)

# What a request may lose and gain on its way: the credential, and what belongs to one connection.
_EXCHANGED = {"host", "connection", "content-length", "accept-encoding", "authorization", "x-api-key"}


@dataclass
class Relayed:
    """One exchange with its attempts: the ledger's rows and the provider's, the last attempt last."""

    exchange: Exchange
    rows: list[dict[str, Any]]
    truths: list[dict[str, Any]]

    @property
    def account(self) -> str:
        """The account that served, without its namespace."""
        return str(self.rows[-1]["account"]).removeprefix("default/")


class Relay:
    """The watched relay; clients talk to `url`."""

    def __init__(self, directory: Path) -> None:
        self.sim = Simulator({"accounts": [{"name": name, "key": key} for name, key in ACCOUNTS.items()]}).start()
        documents = [
            secret("ada", **{"relay-key": KEY}), relay_key("ada"),
            pool("default", list(ACCOUNTS), strategy="RoundRobin", queue={"maxWait": "500ms"}),
        ]
        for name, key in ACCOUNTS.items():
            documents += [secret(name, **{"api-key": key}), account(name, self.sim.url)]
        self.instance = Instance(directory, documents, environment={"SIGNALBOX_STOP_GRACE_SECONDS": "2"})

    def start(self) -> None:
        """Start it; `url` is known from then on."""
        self.instance.start()
        self.tap = Tap(self.instance.url)
        self.url = self.tap.url

    def reset(self) -> None:
        """Forget what was said, and make the provider well again."""
        self.sim.wait_quiet()
        self.sim.clear_script()
        self.sim.default({})
        self.sim.clear_truth()
        self.tap.exchanges.clear()

    def wait_well(self) -> None:
        """Wait until no account rests from what an earlier test did to it."""
        began_s = time.monotonic()
        while not all(a["available"] for a in self.instance.json("accounts", "list")):
            assert time.monotonic() < began_s + REST_LIMIT_S * busy(), self.instance.run("accounts", "list").stdout
            time.sleep(0.2)

    def check(self, client: str) -> list[Relayed]:
        """Hold every message relayed since `reset` against the provider's truth and the ledger; return them in order.

        Raises AssertionError where a header, a byte, an account, a token or a cent is not what it should be, or the
        client program was not recognised.
        """
        truth = {row["request_id"]: row for row in self.sim.wait_quiet()}
        relayed = [Relayed(e, rows, []) for e, rows in self._with_rows()]
        for one in relayed:
            for row in one.rows:
                assert row["client"] == client, row
                received = truth.pop(row["upstream_request_id"])
                one.truths.append(received)
                _check_sent(one.exchange, received)
                _check_billed(row, received)
            if one.rows:
                _check_answer(one.exchange, one.truths[-1])
        left = [row for row in truth.values() if row["method"] == "POST"]
        assert not left, f"the provider got what no client sent: {left}"
        return relayed

    def rows_of(self, request_id: str, attempts: int) -> list[dict[str, Any]]:
        """Return a request's rows once the ledger has as many attempts as the caller was told of."""
        return self._rows({request_id: attempts})[request_id]

    def _with_rows(self) -> list[tuple[Exchange, list[dict[str, Any]]]]:
        """Return the exchanges about messages, each with its rows."""
        asked = [e for e in self.tap.exchanges if e.path.startswith("/v1/messages")]
        wanted = {e.answer.header("x-signalbox-request-id"): int(e.answer.header("x-signalbox-attempts") or 0) for e in asked}
        assert len(wanted) == len(asked), "every answer bears a request id of its own"
        found = self._rows(wanted)
        return [(e, found[e.answer.header("x-signalbox-request-id")]) for e in asked]

    def _rows(self, wanted: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
        began_s = time.monotonic()
        while True:
            found: dict[str, list[dict[str, Any]]] = {request_id: [] for request_id in wanted}
            for row in sorted(self.instance.requests(), key=lambda r: int(r["attempt"])):
                found.get(row["request_id"], []).append(row)
            if {request_id: len(rows) for request_id, rows in found.items()} == wanted:
                return found
            assert time.monotonic() < began_s + LEDGER_LIMIT_S * busy(), f"the ledger has {found}, the callers were told {wanted}"
            time.sleep(0.1)


@contextmanager
def running(directory: Path) -> Iterator[Relay]:
    """Run a relay, and see to it that neither it nor the simulator ends with a fault."""
    relay = Relay(directory)
    try:
        relay.start()
        yield relay
        relay.tap.close()
        assert relay.instance.stop() == 0
    finally:
        relay.instance.process.kill()
        relay.sim.stop()
    assert not relay.sim.errors()


def environment(home: Path, relay_url: str, key: str = KEY) -> dict[str, str]:
    """Return what a client program needs: the relay, a home of its own, and no way out to any other host."""
    nowhere = "http://127.0.0.1:9"
    return {
        "PATH": os.environ["PATH"], "HOME": str(home), "CLAUDE_CONFIG_DIR": str(home / ".claude"),
        "ANTHROPIC_BASE_URL": relay_url, "ANTHROPIC_AUTH_TOKEN": key, "ANTHROPIC_MODEL": MODEL,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1",
        "HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere, "NO_PROXY": "127.0.0.1",
    }


# ---------------------------------------------------------------------------------------------- one attempt


def _check_sent(exchange: Exchange, received: dict[str, Any]) -> None:
    sent = exchange.request
    assert sent.start == received["path"] + (f"?{received['query']}" if received["query"] else "")
    assert sent.sha256 == received["request_sha256"], "the body went on byte for byte"
    headers = [(name.lower(), value) for name, value in received["headers"]]
    assert _kept(headers) == _kept(sent.headers), "nothing is added to what the client sent, nothing taken away"
    named = dict(headers)
    assert named["x-api-key"] == ACCOUNTS[received["account"]]
    assert named["accept-encoding"] == "identity"
    assert "authorization" not in named
    assert KEY not in str(received["headers"])


def _kept(headers: Headers) -> Headers:
    return [(name, value) for name, value in headers if name not in _EXCHANGED]


def _check_billed(row: dict[str, Any], received: dict[str, Any]) -> None:
    assert (row["account"], row["status"]) == (f"default/{received['account']}", received["status"])
    least, most = compare.bounds(received, row, None)
    if row["route"] == "count_tokens":
        least = most = compare.NOTHING
    billed = {name: row[name] for name in compare.TOKENS}
    assert least == most == billed, (received["usage"], row)
    assert round(float(row["cost_usd"]) * 1e9) == compare.price(row), row
    assert not row["estimated"]
    assert not row["price_assumed"]


def _check_answer(exchange: Exchange, received: dict[str, Any]) -> None:
    answer = exchange.answer
    assert answer.whole
    if not answer.header("request-id"):  # no attempt was good enough: the relay's own words
        assert exchange.status >= 400
        assert answer.header("x-signalbox-request-id") in answer.body.decode()
        return
    assert (exchange.status, answer.sha256) == (received["status"], received["sent_sha256"])
    assert answer.header("request-id") == received["request_id"]
    own = {"anthropic-organization-id", "set-cookie"}
    assert not own & {name for name, _ in answer.headers}, "nothing tells which account served"
