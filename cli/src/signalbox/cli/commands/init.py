"""`signalbox init`: a starter directory that `up` and `kubectl apply -f` can use as it is."""

import getpass
import json
import os
import sys
from importlib.resources import files
from pathlib import Path

from signalbox.cli.errors import BadUsage, CommandFailed
from signalbox.cli.output import note
from signalbox.core.keys import hash_key, new_key
from signalbox.resources.documents import render, write_file

API_KEY_VARIABLE = "ANTHROPIC_API_KEY"


def init(directory: Path, owner: str) -> None:
    """Write the starter documents and print the first relay key, once. Raises CommandFailed, BadUsage, EditRefused."""
    starter = files("signalbox.cli.starter")
    templates = {item.name: item.read_text("utf-8") for item in starter.iterdir() if item.name.endswith(".yaml")}
    in_the_way = sorted(name for name in templates if (directory / name).exists())
    if in_the_way:
        raise CommandFailed(f"{directory / in_the_way[0]} exists already: choose another directory")
    key = new_key()
    render("RelayKey", "first", {"spec": {"owner": owner, "keyHash": hash_key(key)}})    # refuses what check would
    api_key = _api_key()
    values = {"$api_key": api_key, "$owner": json.dumps(owner), "$key_hash": hash_key(key)}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in sorted(templates):
            text = templates[name]
            for placeholder, value in values.items():
                text = text.replace(placeholder, value)
            write_file(directory / name, text)
    except OSError as e:
        raise CommandFailed(f"{e.filename or directory}: {e.strerror}") from e
    _tell_next(directory, key, from_environment=api_key.startswith("$"))


def _api_key() -> str:
    """Return what the Secret holds: a reference to the variable where it is set, else the value that is typed."""
    if os.environ.get(API_KEY_VARIABLE):
        return f"${{{API_KEY_VARIABLE}}}"
    if sys.stdin.isatty():
        typed = getpass.getpass("API key of the first account (not shown): ").strip()
    else:
        typed = sys.stdin.readline().strip()
    if not typed:
        raise BadUsage(f"an API key is needed: set {API_KEY_VARIABLE}, or give the key on standard input")
    if not (typed.isascii() and typed.isprintable()) or "$" in typed:
        raise BadUsage("this is no API key: it holds other characters than letters, digits and signs")
    return json.dumps(typed)


def _tell_next(directory: Path, key: str, *, from_environment: bool) -> None:
    note(f"Wrote {directory}: one account, one pool, one relay key. The key, shown this once:")
    print(key)
    source = f" ({API_KEY_VARIABLE} must be set there)" if from_environment else ""
    note(
        "\nNext:\n"
        f"  signalbox check {directory}\n"
        f"  signalbox up --manifests {directory}{source}\n"
        "  ANTHROPIC_BASE_URL=http://127.0.0.1:8080 ANTHROPIC_AUTH_TOKEN=<the key above> claude",
    )
