"""Accounts behind proxies in a whole instance: each takes its own, a dead one costs its own account only, nothing leaks."""

import asyncio
import threading

import pytest

from tests.support.caller import Caller
from tests.support.instance import Instance, account, pool, relay_key, secret
from tests.support.proxies import TestProxy
from tests.support.sim import Simulator

pytestmark = pytest.mark.slow

KEY = "relay-key-of-the-proxy-tests"
KINDS = ("http", "socks5", "socks5h")


@pytest.fixture(scope="module")
def proxies():
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    made = {kind: TestProxy(kind, password=True) for kind in KINDS}
    for proxy in made.values():
        asyncio.run_coroutine_threadsafe(proxy.start(), loop).result(10)
    yield made
    for proxy in made.values():
        loop.call_soon_threadsafe(proxy.stop)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def test_each_account_takes_its_own_proxy_and_a_dead_one_is_named(tmp_path, proxies):
    names = [*KINDS, "dead"]
    with Simulator({"accounts": [{"name": name, "key": f"sk-ant-proxied-{name}"} for name in names]}) as sim:
        urls = {kind: proxy.url() for kind, proxy in proxies.items()}
        urls["dead"] = "socks5h://signal:hidden-word@127.0.0.1:1"
        documents = [secret("ada", **{"relay-key": KEY}), relay_key("ada", pools=[*names, "default"])]
        documents.append(pool("default", names, strategy="RoundRobin"))
        for name in names:
            documents += [
                secret(name, **{"api-key": f"sk-ant-proxied-{name}", "proxy-url": urls[name]}), pool(name, [name]),
                account(name, sim.url, proxy={"urlRef": {"name": name, "key": "proxy-url"}}),
            ]
        with Instance(tmp_path, documents) as instance:
            caller = Caller(instance.url, KEY)
            for n in range(16):
                assert caller.send(f"Question {n}").status == 200
            sim.wait_quiet()
            rows = instance.requests()
            served = {row["account"].removeprefix("default/") for row in rows if row["outcome"] == "ok"}
            failed = [row for row in rows if row["outcome"] != "ok"]
            assert served <= set(KINDS)
            assert {(row["account"], row["reason"]) for row in failed} <= {("default/dead", "proxy_unreachable")}
            assert sum(len(p.asked) for p in proxies.values()) >= len(served)
            dead = instance.run("accounts", "test", "dead", check=False)
            assert dead.returncode != 0
            assert "hidden-word" not in dead.stdout + dead.stderr + "".join(instance.log) + str(instance.json("accounts", "list"))
            assert "p:@ss" not in "".join(instance.log)
            assert "p%3A%40ss" not in "".join(instance.log)
