"""Commands that write documents: `pause`, `resume`, `keys create` and `keys rotate`.

Where documents live (a directory that a running instance watches, or a cluster) is homes.py's and kubehome.py's
business; each command waits until its change is in force there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from signalbox.cli.commands.registry import KEYS, Noun
from signalbox.cli.output import Format, note, print_json
from signalbox.core.keys import hash_key, new_key
from signalbox.core.rows import Row
from signalbox.resources.documents import rotation_changes, state_changes
from signalbox.resources.reading import Identity

RELAY_KEY = "relay-key"


@dataclass(frozen=True)
class NewKey:
    """What `keys create` was asked for: the document's spec without the key itself."""

    name: str
    spec: Mapping[str, Any]
    with_secret: bool


class Home(Protocol):
    """Where documents are written. Every method raises a SignalboxError that says what to do."""

    def identity(self, kind: str, name: str) -> Identity:
        """Return what a name as people type it stands for."""
        ...

    def spec(self, identity: Identity) -> Mapping[str, Any]:
        """Return a document's spec as it is written."""
        ...

    def present_hash(self, identity: Identity, spec: Mapping[str, Any]) -> str:
        """Return the hash of a key's present text."""
        ...

    def change(self, identity: Identity, changes: Mapping[str, Any]) -> None:
        """Change fields of a spec (None takes one away) and wait until that is in force."""
        ...

    def create(self, identity: Identity, spec: Mapping[str, Any], secret: Mapping[str, str] | None) -> None:
        """Write a new document, with a Secret of its name and `-relay-key`, and wait until it is in force."""
        ...

    def where(self, identity: Identity) -> str:
        """Return where a document is, for people and programs."""
        ...


def set_state(home: Home, noun: Noun, name: str, state: str, reason: str | None) -> None:
    """Pause or resume an account or a key, and wait until that is in force."""
    identity = home.identity(noun.kind, name)
    home.change(identity, state_changes(state, reason, kind=noun.kind))
    print(f"{noun.kind} {identity.id} is {state}")


def create_key(home: Home, wanted: NewKey, output: Format) -> None:
    """Write a new RelayKey with a generated key and print the key, once. Raises CommandFailed, EditRefused."""
    identity = home.identity(KEYS.kind, wanted.name)
    key = new_key()
    if wanted.with_secret:
        source: dict[str, Any] = {"secretRef": {"name": secret_name(identity), "key": RELAY_KEY}}
    else:
        source = {"keyHash": hash_key(key)}
    home.create(identity, {**wanted.spec, **source}, {RELAY_KEY: key} if wanted.with_secret else None)
    _print_key(home, identity, key, output)


def rotate_key(home: Home, name: str, overlap: timedelta, output: Format) -> None:
    """Give a key a new text, let the former one work for `overlap`, and print the new one, once."""
    identity = home.identity(KEYS.kind, name)
    spec = home.spec(identity)
    now = datetime.now(UTC)
    key = new_key()
    changes = rotation_changes(
        spec, old_hash=home.present_hash(identity, spec), new_hash=hash_key(key), until=now + overlap, now=now,
    )
    home.change(identity, changes)
    note(f"The former key works until {now + overlap:%Y-%m-%d %H:%M} UTC.")
    _print_key(home, identity, key, output)


def secret_name(identity: Identity) -> str:
    """Return the name of the Secret that `keys create --secret` makes."""
    return f"{identity.name}-{RELAY_KEY}"


def _print_key(home: Home, identity: Identity, key: str, output: Format) -> None:
    if output is Format.JSON:
        row: Row = {
            "name": identity.name, "namespace": identity.namespace, "key": key, "file": home.where(identity),
        }
        print_json([row])
        return
    note(f"{identity.kind} {identity.id} is in {home.where(identity)}. Its key, shown this once:")
    print(key)
