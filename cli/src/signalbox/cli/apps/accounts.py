"""`signalbox accounts ...`"""
# ruff: noqa: PLC0415, PLR0917 - imported where used, so that --help stays quick; options are parameters

from typing import Annotated

import typer

from signalbox.cli import options
from signalbox.cli.output import Format

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Accounts: who can serve, and why not.")


@app.command("list")
def list_(
    data: options.Data = None, cluster: options.InCluster = False, context: options.Context = None,
    output: options.Output = Format.TABLE,
) -> None:
    """Show all accounts with their state, limits and requests in flight."""
    from signalbox.cli.commands.registry import ACCOUNTS, show_list

    show_list(options.place(data, cluster, context), ACCOUNTS, output)


@app.command()
def describe(
    name: options.Name, data: options.Data = None, cluster: options.InCluster = False, context: options.Context = None,
    output: options.Output = Format.TABLE,
) -> None:
    """Show everything about one account."""
    from signalbox.cli.commands.registry import ACCOUNTS
    from signalbox.cli.commands.registry import describe as show

    show(options.place(data, cluster, context), ACCOUNTS, name, output)


@app.command()
def pause(
    name: options.Name, reason: options.Reason = None, manifests: options.Manifests = None, data: options.Data = None,
    cluster: options.InCluster = False, context: options.Context = None,
) -> None:
    """Take an account out of service, by editing its document."""
    _set_state(name, "Paused", reason, options.Editing(manifests, data, cluster, context))


@app.command()
def resume(
    name: options.Name, manifests: options.Manifests = None, data: options.Data = None,
    cluster: options.InCluster = False, context: options.Context = None,
) -> None:
    """Put a paused account back into service."""
    _set_state(name, "Active", None, options.Editing(manifests, data, cluster, context))


@app.command("test")
def probe(
    name: options.Name,
    model: Annotated[str, typer.Option(help="Model to count tokens for.")] = "claude-haiku-4-5",
    data: options.Data = None,
    output: options.Output = Format.TABLE,
) -> None:
    """Make one count_tokens call with an account's credential; costs nothing."""
    from signalbox.cli.commands.registry import test_account
    from signalbox.cli.locate import locate

    test_account(locate(data), name, model, output)


@app.command()
def authorize(
    name: options.Name,
    browser: Annotated[bool, typer.Option(help="Open the address in a browser.")] = True,
    data: options.Data = None,
) -> None:
    """Sign in at the provider for an OAuth account, with the client that its document names."""
    from signalbox.cli.commands.authorize import authorize as run
    from signalbox.cli.locate import locate

    run(locate(data), name, browser=browser)


def _set_state(name: str, state: str, reason: str | None, editing: options.Editing) -> None:
    from signalbox.cli.commands.documents import set_state
    from signalbox.cli.commands.registry import ACCOUNTS

    set_state(editing.home(), ACCOUNTS, name, state, reason)
