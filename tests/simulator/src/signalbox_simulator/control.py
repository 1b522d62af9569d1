"""The control API under `/_sim/`: what a test says to the provider and asks of it. Its calls leave no rows."""

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from signalbox_simulator.accounts import AccountError, parse_account
from signalbox_simulator.behaviour import BehaviourError, parse
from signalbox_simulator.errors import dumps
from signalbox_simulator.http1 import Exchange
from signalbox_simulator.oauth import TokenError

if TYPE_CHECKING:
    from signalbox_simulator.provider import Provider

BATCH_ROWS = 200
JSON_HEADERS = [("content-type", "application/json")]


async def handle(provider: "Provider", exchange: Exchange) -> None:
    """Answer one control call: 200 with what was asked, 400 with what is wrong, 404."""
    request = exchange.request
    name = request.path.removeprefix("/_sim/").strip("/")
    if (request.method, name) == ("GET", "truth"):
        await _send_truth(provider, exchange)
        return
    if (request.method, name) == ("DELETE", "connections"):
        await exchange.respond(200, JSON_HEADERS, dumps(_cut_connections(provider, exchange)))
        return
    action = ACTIONS.get((request.method, name))
    if action is None:
        await exchange.respond(404, JSON_HEADERS, dumps({"error": f"{request.method} {request.path}: no such call"}))
        return
    try:
        document = json.loads(request.body) if request.body else {}
        result = action(provider, document, request.query)
    except (ValueError, BehaviourError, AccountError, TokenError, KeyError, TypeError) as e:
        await exchange.respond(400, JSON_HEADERS, dumps({"error": f"{type(e).__name__}: {e}"}))
        return
    await exchange.respond(200, JSON_HEADERS, dumps(result))


async def _send_truth(provider: "Provider", exchange: Exchange) -> None:
    """Stream the rows as a JSON list, a batch at a time, so that answers under way are not held up."""
    query = exchange.request.query
    account, closed = query.get("account"), query.get("closed") == "true"
    exchange.raw(b"".join(exchange.head(200, JSON_HEADERS, length=None)))
    batch: list[bytes] = []
    opening = b"["
    for number, row in enumerate(provider.truth.rows(int(query.get("since", 0))), start=1):
        if (account is None or row.account == account) and not (closed and row.outcome == "open"):
            batch.append(dumps(row.as_json()))
        if number % BATCH_ROWS == 0 and batch:
            exchange.send(opening + b",\n".join(batch))
            opening, batch = b",\n", []
            await exchange.drain()
            await asyncio.sleep(0)
    exchange.send((opening + b",\n".join(batch) if batch else b"" if opening != b"[" else opening) + b"]")
    exchange.end()
    await exchange.drain()


def _put_accounts(provider: "Provider", document: Any, _: dict[str, str]) -> Any:
    accounts = [parse_account(a) for a in document["accounts"]]
    provider.accounts.clear()
    provider.accounts.open = bool(document.get("open", False))
    for account in accounts:
        provider.accounts.put(account)
    return {"accounts": len(accounts)}


def _add_accounts(provider: "Provider", document: Any, _: dict[str, str]) -> Any:
    accounts = [parse_account(a) for a in document["accounts"]]
    for account in accounts:
        provider.accounts.put(account)
    return {"accounts": len(provider.accounts.all())}


def _list_accounts(provider: "Provider", _: Any, __: dict[str, str]) -> Any:
    return {"accounts": [a.as_json() for a in provider.accounts.all()], "open": provider.accounts.open}


def _add_rule(provider: "Provider", document: Any, _: dict[str, str]) -> Any:
    return {"id": provider.script.add(document)}


def _clear_rules(provider: "Provider", _: Any, query: dict[str, str]) -> Any:
    provider.script.clear(query.get("account"))
    return {}


def _set_default(provider: "Provider", document: Any, _: dict[str, str]) -> Any:
    provider.script.default = parse(document)
    return {}


def _clear_truth(provider: "Provider", _: Any, __: dict[str, str]) -> Any:
    provider.truth.clear()
    return {"next": provider.truth.next_seq}


def _cut_connections(provider: "Provider", exchange: Exchange) -> dict[str, int]:
    """Reset every connection but the one that asks."""
    others = [c for c in provider.connections if c is not exchange.connection]
    for connection in others:
        connection.cut()
    return {"connections": len(others)}


def _configure_tokens(provider: "Provider", document: Any, _: dict[str, str]) -> Any:
    provider.tokens.configure(document)
    return {}


def _clear_tokens(provider: "Provider", _: Any, __: dict[str, str]) -> Any:
    provider.tokens.clear()
    return {}


def _revoke_tokens(provider: "Provider", document: Any, _: dict[str, str]) -> Any:
    provider.tokens.revoke(document["account"], family=bool(document.get("family", False)))
    return {}


def apply_config(provider: "Provider", document: dict[str, Any]) -> None:
    """Take a configuration file's sections: `accounts` (+ `open`), `default`, `script`, `oauth`."""
    if "accounts" in document or "open" in document:
        _put_accounts(provider, {"accounts": [], **document}, {})
    if "default" in document:
        _set_default(provider, document["default"], {})
    for rule in document.get("script", []):
        provider.script.add(rule)
    if "oauth" in document:
        provider.tokens.configure(document["oauth"])


Action = Callable[["Provider", Any, dict[str, str]], Any]
ACTIONS: dict[tuple[str, str], Action] = {
    ("GET", "health"): lambda _, __, ___: {"ok": True},
    ("GET", "accounts"): _list_accounts,
    ("PUT", "accounts"): _put_accounts,
    ("POST", "accounts"): _add_accounts,
    ("GET", "script"): lambda provider, _, __: provider.script.as_json(),
    ("POST", "script"): _add_rule,
    ("DELETE", "script"): _clear_rules,
    ("PUT", "default"): _set_default,
    ("GET", "summary"): lambda provider, _, __: provider.truth.summary(),
    ("GET", "concurrent"): lambda provider, _, __: provider.truth.concurrent(),
    ("DELETE", "truth"): _clear_truth,
    ("GET", "oauth"): lambda provider, _, __: provider.tokens.as_json(),
    ("POST", "oauth"): _configure_tokens,
    ("DELETE", "oauth"): _clear_tokens,
    ("POST", "oauth/revoke"): _revoke_tokens,
}
