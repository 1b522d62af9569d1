"""`accounts|pools|keys list`, `describe` and `accounts test`: what an instance's rooms or a cluster's objects say."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from signalbox.cli.commands.common import object_id
from signalbox.cli.errors import CommandFailed
from signalbox.cli.locate import Target
from signalbox.cli.output import Format, print_json, print_lines, print_table, progress
from signalbox.cli.shapes import READY, account_row, key_row, pool_row
from signalbox.core.rows import Row
from signalbox.rooms.client import Rooms
from signalbox.v1 import scheduler_pb2, token_refresher_pb2

Grants = Mapping[str, token_refresher_pb2.GrantStatus]


@dataclass(frozen=True)
class Noun:
    """A kind of document as the command line shows it."""

    kind: str
    plural: str
    row: Callable[[scheduler_pb2.ObjectWithStatus, Grants], Row]
    columns: Mapping[str, Callable[[Row], str]]


class Place(Protocol):
    """Where objects are read."""

    def rows(self, kind: str, name: str | None) -> list[Row]:
        """Return one object of a kind as a row, or all; [] where there is none."""
        ...


@dataclass(frozen=True)
class Instance:
    """The objects in force in a running instance."""

    target: Target

    def rows(self, kind: str, name: str | None) -> list[Row]:
        """Return one object of a kind, or all."""
        noun = next(n for n in (ACCOUNTS, POOLS, KEYS) if n.kind == kind)
        return asyncio.run(_rows(self.target, noun, [] if name is None else [object_id(name)]))


def show_list(place: Place, noun: Noun, output: Format) -> None:
    """Print all objects of a kind."""
    with progress(f"Reading {noun.plural}"):
        rows = place.rows(noun.kind, None)
    if output is Format.JSON:
        print_json(rows)
        return
    cells = [[cell(row) for cell in noun.columns.values()] for row in rows]
    print_table(
        list(noun.columns), cells, right=("IN FLIGHT",),
        empty=f"There are no {noun.plural}: add documents of kind {noun.kind}.",
    )


def describe(place: Place, noun: Noun, name: str, output: Format) -> None:
    """Print everything about one object. Raises CommandFailed where there is none of this name."""
    rows = place.rows(noun.kind, name)
    if not rows:
        raise CommandFailed(f"there is no {noun.kind} {object_id(name)}: `signalbox {noun.plural} list` shows all")
    if output is Format.JSON:
        print_json(rows)
        return
    for row in rows:
        _print_details(row)


def describe_any(place: Place, name: str, output: Format) -> None:
    """Print everything about the objects of any kind with this name. Raises CommandFailed where there is none."""
    nouns = (ACCOUNTS, POOLS, KEYS)
    rows: list[Row] = [{"kind": noun.kind, **row} for noun in nouns for row in place.rows(noun.kind, name)]
    if not rows:
        raise CommandFailed(f"there is no account, pool or key {object_id(name)}: their `list` commands show all")
    if output is Format.JSON:
        print_json(rows)
        return
    for i, row in enumerate(rows):
        print("\n" * bool(i), end="")
        _print_details(row)


def test_account(target: Target, name: str, model: str, output: Format) -> None:
    """Make one count_tokens call with an account's credential. Raises CommandFailed when the provider refuses."""
    account = object_id(name)
    with progress(f"Asking the provider with {account}"):
        answer = asyncio.run(_probe(target, account, model))
    row: Row = {
        "account": account,
        "ok": answer.ok,
        "status": answer.status,
        "error_type": answer.error_type,
        "message": answer.message,
        "duration_ms": answer.duration_ms,
        "input_tokens": answer.input_tokens,
    }
    if output is Format.JSON:
        print_json([row])
    elif answer.ok:
        print(f"{account} works: count_tokens answered {answer.status} in {answer.duration_ms} ms")
    if not answer.ok:
        what = " ".join(part for part in (str(answer.status or ""), answer.error_type, answer.message) if part)
        raise CommandFailed(f"{account} does not work: {what}")


async def _rows(target: Target, noun: Noun, ids: Sequence[str]) -> list[Row]:
    async with target.rooms() as rooms:
        listed, grants = await asyncio.gather(rooms.list_objects(noun.kind, ids), _grants(rooms, noun, ids))
    return [noun.row(item, grants) for item in sorted(listed, key=lambda i: i.object.id)]


async def _grants(rooms: Rooms, noun: Noun, ids: Sequence[str]) -> Grants:
    return await rooms.grants(ids) if noun is ACCOUNTS else {}


async def _probe(target: Target, account: str, model: str) -> token_refresher_pb2.ProbeResponse:
    async with target.rooms() as rooms:
        found = await rooms.list_objects(ACCOUNTS.kind, [account])
        if not found:
            raise CommandFailed(f"there is no ClaudeAccount {account}: `signalbox accounts list` shows all")
        row = account_row(found[0], None)
        if (await rooms.grants([account])).get(account) is None:
            raise CommandFailed(f"{account} has no credential to test{_because(row)}")
        return await rooms.probe(
            token_refresher_pb2.ProbeRequest(account_id=account, base_url=row["base_url"], model=model),
        )


def _because(row: Row) -> str:
    """Return the condition that says why an account is not ready, as the end of a sentence."""
    ready: Row = next((c for c in row["conditions"] if c["type"] == READY and c["status"] == "False"), {})
    return ": " + ", ".join(filter(None, (ready["reason"], ready["message"]))) if ready else ""


def _print_details(row: Row) -> None:
    width = max(len(name) for name in row)
    for name, value in row.items():
        first, *others = _lines(value) or ["-"]
        print_lines([f"{name + ':':<{width + 2}}{first}", *(" " * (width + 2) + line for line in others)])


def _lines(value: Any) -> list[str]:
    """Return a value as lines for people: one for a scalar, one for each member of a list."""
    if isinstance(value, list):
        return [line for item in value for line in _lines(item)]
    if isinstance(value, dict):
        return [", ".join(f"{k} {_scalar(v)}" for k, v in value.items() if v not in (None, "", [], {}))]
    return [_scalar(value)]


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "+".join(str(item) for item in value)
    if isinstance(value, dict):
        return "/".join(f"{k}:{v}" for k, v in value.items())
    return "-" if value in (None, "") else str(value)


def _name(row: Row) -> str:
    return str(row["name"] if row["namespace"] == "default" else f"{row['namespace']}/{row['name']}")


def _windows(row: Row) -> str:
    return " ".join(f"{w['window']}:{w['utilization']:.0%}" for w in row["windows"]) or "-"


def _limits(row: Row) -> str:
    parts = [
        f"{limit['name']}:{unit.removesuffix('_usd')} {amount['used']}/{amount['limit']}"
        for limit in row["limits"]
        for unit in ("requests", "tokens", "cost_usd")
        if (amount := limit.get(unit)) is not None
    ]
    return ", ".join(parts) or "-"


ACCOUNTS = Noun(
    "ClaudeAccount",
    "accounts",
    lambda item, grants: account_row(item, grants.get(item.object.id)),
    {
        "NAME": _name,
        "PROVIDER": lambda r: r["provider"],
        "STATE": lambda r: r["state"] + (f" ({r['state_reason']})" if r["state_reason"] else ""),
        "AVAILABLE": lambda r: _scalar(r["available"]),
        "REASON": lambda r: _scalar(r["reason"]),
        "LIMITED UNTIL": lambda r: _scalar(r["limited_until"]),
        "IN FLIGHT": lambda r: str(r["in_flight"]),
        "WINDOWS": _windows,
    },
)
POOLS = Noun(
    "AccountPool",
    "pools",
    lambda item, _: pool_row(item),
    {
        "NAME": _name,
        "STRATEGY": lambda r: r["strategy"],
        "READY": lambda r: f"{r['ready']}/{r['total']}",
        "ACCOUNTS": lambda r: ", ".join(f"{state} {n}" for state, n in r["accounts"].items()) or "-",
    },
)
KEYS = Noun(
    "RelayKey",
    "keys",
    lambda item, _: key_row(item),
    {
        "NAME": _name,
        "OWNER": lambda r: _scalar(r["owner"]),
        "STATE": lambda r: r["state"],
        "REASON": lambda r: _scalar(r["reason"]),
        "EXPIRES": lambda r: _scalar(r["expires_at"]),
        "IN FLIGHT": lambda r: str(r["concurrency"]["in_flight"]),
        "LIMITS": _limits,
    },
)
