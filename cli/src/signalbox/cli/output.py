"""How commands speak: JSON and CSV for programs, tables for people, progress and hints on stderr."""
# ruff: noqa: PLC0415 - imported where it is used, so that --help and check stay quick

import contextlib
import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

Row = Mapping[str, Any]


class Format(StrEnum):
    """What `-o` accepts."""

    TABLE = "table"
    JSON = "json"


class ReportFormat(StrEnum):
    """What `-o` accepts where spreadsheets are likely readers."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def plain(text: str) -> str:
    """Return a text that moves no terminal's cursor: names come from documents and from what providers answer."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines for people."""
    for line in lines:
        print(plain(line))


def print_json(value: Any) -> None:
    """Print one JSON value on stdout."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def print_csv(columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Print rows as CSV with a header line."""
    writer = csv.DictWriter(sys.stdout, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = (), empty: str,
) -> None:
    """Print a table for people; `empty` says what to do where there is nothing to show."""
    if not rows:
        note(empty)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    # Without a terminal nothing says how wide the reader is; wrapping would break what greps and cuts.
    width = None if sys.stdout.isatty() else 10_000
    Console(file=sys.stdout, width=width, soft_wrap=width is not None).print(table)


def note(text: str) -> None:
    """Tell people something on stderr, out of the way of what programs read."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(what: str) -> Iterator[None]:
    """Show a spinner on stderr while something takes its time; nothing where no person watches."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield
