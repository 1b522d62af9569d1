"""The `signalbox` command: its sub-commands and their options. What they do is in commands/, imported when they run,
so that `--help` and `check` stay quick."""
# ruff: noqa: PLC0415, PLR0917 - imported where used, so that --help stays quick; options are parameters

import gc
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from signalbox.cli import options
from signalbox.cli.apps import accounts, keys, pools
from signalbox.cli.errors import EXIT_FAILED, EXIT_USAGE, BadUsage
from signalbox.cli.output import Format, ReportFormat, note
from signalbox.core.errors import SignalboxError, StartupError

app = typer.Typer(
    name="signalbox", no_args_is_help=True, pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich help takes a quarter of a second to import
    help="A relay for Claude accounts: one URL and a key for each person, a pool of accounts behind.",
    epilog="Exit status: 0 done, 1 it did not work, 2 wrong usage or unable to start.",
)
app.add_typer(accounts.app, name="accounts")
app.add_typer(pools.app, name="pools")
app.add_typer(keys.app, name="keys")


def main() -> None:
    """Run the command line; every error that is raised on purpose becomes one line on stderr."""
    # What a command imports stays: looking for cycles in it every 700 objects takes a tenth of the time.
    gc.set_threshold(20_000, 20, 20)
    if sys.stdout is None:    # closed by whoever called
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except (StartupError, BadUsage) as e:
        what = "cannot start: " if isinstance(e, StartupError) else ""
        note(f"signalbox: {what}{e}")
        sys.exit(EXIT_USAGE)
    except SignalboxError as e:
        note(f"signalbox: {e}")
        sys.exit(EXIT_FAILED)
    except BrokenPipeError:
        # `signalbox requests | head`: the reader has enough.
        sys.stderr.close()
        sys.exit(EXIT_FAILED)
    except OSError as e:
        # A full disk behind stdout, mostly. What is left in its buffer can't be written when the process ends either.
        note(f"signalbox: {e.strerror or e}" + (f": {e.filename}" if e.filename else ""))
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
        sys.exit(EXIT_FAILED)


@app.command()
def up(
    manifests: Annotated[Path, typer.Option(metavar="DIR", help="Documents; watched for changes.")],
    data: options.Data = None,
    host: Annotated[str, typer.Option(help="Address that callers reach.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port that callers reach; 0 takes any free one.", min=0, max=65535)] = 8080,
    workers: Annotated[int, typer.Option(help="Gateway processes.", min=1, max=64)] = 1,
    schedulers: Annotated[int, typer.Option(help="Scheduler processes.", min=1, max=16)] = 1,
    telemetry_port: Annotated[
        int, typer.Option(help="Port of metrics and health, on 127.0.0.1; 0 takes any free one.", min=0, max=65535),
    ] = 0,
    log_format: options.LogFormat = None,
) -> None:
    """Run everything on this machine, with an embedded Redis and a SQLite ledger.

    Prints `ready URL` when it serves. SIGNALBOX_REDIS_URL and SIGNALBOX_DATABASE_URL switch to stores of your own.
    """
    from signalbox.cli.commands.up import up as serve
    from signalbox.cli.supervisor.instance import Options
    from signalbox.cli.supervisor.layout import default_data

    serve(Options(
        manifests=manifests, data=data or default_data(), host=host, port=port, telemetry_port=telemetry_port,
        workers=workers, schedulers=schedulers, log_format=options.log_format(log_format),
    ))


@app.command()
def status(data: options.Data = None, output: options.Output = Format.TABLE) -> None:
    """Show the processes of a local instance and whether they serve."""
    from signalbox.cli.commands.status import show_status
    from signalbox.cli.locate import locate

    show_status(locate(data), output)


@app.command()
def demo(
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Data directory. Default: a temporary one.", show_default=False),
    ] = None,
    port: Annotated[int, typer.Option(help="Port that callers reach; 0 takes any free one.", min=0, max=65535)] = 8080,
    once: Annotated[bool, typer.Option("--once", help="Stop after the tour.")] = False,
) -> None:
    """Run everything against a simulated provider, and show around. Needs no account and no network."""
    from signalbox.cli.commands.demo import demo as show_around

    show_around(data, port, once=once)


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory to create.")],
    owner: Annotated[str, typer.Option(help="Owner of the first relay key.")] = "me",
) -> None:
    """Write a starter directory: one account, one pool, one relay key, with comments.

    The account's API key is taken from ANTHROPIC_API_KEY where that is set, else asked for.
    """
    from signalbox.cli.commands.init import init as write

    write(directory, owner)


@app.command()
def check(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of documents.")],
    output: options.Output = Format.TABLE,
) -> None:
    """Check documents against the schema and the rules; exit 1 with file:line: path: reason."""
    from signalbox.cli.commands.check import check as examine

    examine(directory, output)


@app.command()
def describe(
    name: options.Name, data: options.Data = None, cluster: options.InCluster = False, context: options.Context = None,
    output: options.Output = Format.TABLE,
) -> None:
    """Show everything about the account, pool or key of this name, or all of them."""
    from signalbox.cli.commands.registry import describe_any

    describe_any(options.place(data, cluster, context), name, output)


@app.command()
def usage(
    by: Annotated[list[str] | None, typer.Option(
        metavar="FIELDS", help="Of key,owner,account,model,day; with commas, or given again.", show_default="key",
    )] = None,
    since: options.Since = None,
    until: options.Until = None,
    key: options.KeyFilter = None,
    account: options.AccountFilter = None,
    data: options.Data = None,
    output: options.ReportOutput = ReportFormat.TABLE,
) -> None:
    """Show what was used and what it cost, from the ledger."""
    from signalbox.cli.commands.ledger import Span, UsageFilter, show_usage
    from signalbox.cli.locate import locate

    show_usage(locate(data), UsageFilter(",".join(by or ["key"]), key, account, Span(since, until)), output)


@app.command()
def requests(
    key: options.KeyFilter = None,
    account: options.AccountFilter = None,
    outcome: Annotated[str | None, typer.Option(help="Only this outcome, such as timeout.", show_default=False)] = None,
    since: options.Since = None,
    until: options.Until = None,
    last: Annotated[int, typer.Option(metavar="N", help="At most this many rows.", min=1)] = 50,
    denials: Annotated[bool, typer.Option("--denials", help="Refused requests too, as attempt 0.")] = False,
    data: options.Data = None,
    output: options.Output = Format.TABLE,
) -> None:
    """Show the newest requests, one row for each attempt at a provider."""
    from signalbox.cli.commands.ledger import RequestsFilter, Span, show_requests
    from signalbox.cli.locate import locate

    wanted = RequestsFilter(key, account, outcome, Span(since, until), last, denials)
    show_requests(locate(data), wanted, output)


@app.command()
def explain(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="As in the header x-signalbox-request-id.")],
    data: options.Data = None,
    output: options.Output = Format.TABLE,
) -> None:
    """Explain one request: why this account, what was tried, what it cost, or why it was refused."""
    from signalbox.cli.commands.ledger import explain as tell
    from signalbox.cli.locate import locate

    tell(locate(data), request_id, output)


@app.command("room-certificates", hidden=True)
def room_certificates(
    rooms: Annotated[str, typer.Option(metavar="SECRET", help="What the rooms mount.")],
    authority: Annotated[str, typer.Option(metavar="SECRET", help="The authority and its key; no room mounts it.")],
    name: Annotated[list[str], typer.Option(metavar="DNS", help="A name of a room's Service; several times.")],
    days: Annotated[int, typer.Option(help="How long a certificate is valid.", min=2)] = 90,
) -> None:
    """Make the certificates between a release's rooms, or renew what is due; the chart runs it in a Job."""
    from signalbox.cli.commands.room_certificates import room_certificates as see_to

    see_to(rooms, authority, name, days)
