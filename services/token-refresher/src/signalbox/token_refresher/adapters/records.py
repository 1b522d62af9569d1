"""Grants as sealed records: what every kind of grant store keeps, whatever it keeps it in."""

import json
from dataclasses import asdict, fields

from signalbox.token_refresher.adapters.sealing import Keyring, Unopened
from signalbox.token_refresher.domain.grants import Fault, Grant, Reason, Seed

_VERSION = 2
_READABLE = (1, _VERSION)     # 1 knew API keys only, and no revision
_KNOWN = frozenset(field.name for field in fields(Grant)) - {"seed"}


def sealed(grant: Grant, revision: int, keyring: Keyring) -> bytes:
    """Return the grant as encrypted bytes; `revision` grows with every write."""
    seed = grant.seed
    record = {name: value for name, value in asdict(grant).items() if name != "seed"} | {
        "record": _VERSION, "revision": revision, "kind": seed.kind, "material": dict(seed.material),
        "config": dict(seed.config), "seed_version": seed.version,
    }
    return keyring.seal(grant.account_id, json.dumps(record).encode())


def opened(data: bytes, keyring: Keyring) -> tuple[Grant, int]:
    """Return what `sealed` made. Raises Unopened, whose text is for people."""
    account_id, plain = keyring.open(data)
    try:
        record = json.loads(plain)
        if record.pop("record") not in _READABLE:
            raise Unopened("another version of Signalbox wrote it")
        revision = record.pop("revision", 0)
        seed = Seed(
            account_id, record.pop("kind"), record.pop("material"), record.pop("config"), record.pop("seed_version"),
        )
        fault = record.pop("fault", None)
        # What a later release notes besides may be left out: its replicas write while this one still serves.
        kept = {name: value for name, value in record.items() if name in _KNOWN}
        return Grant(
            seed, **kept | {
                "spent": tuple(record.get("spent", ())),
                "fault": Fault(Reason(fault["reason"]), fault["message"]) if fault else None,
            },
        ), revision
    except (ValueError, KeyError, TypeError):
        raise Unopened("its record has a shape that this version can't read") from None
