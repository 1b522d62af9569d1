"""`signalbox pools ...`"""
# ruff: noqa: PLC0415 - imported where it is used, so that --help and check stay quick

import typer

from signalbox.cli import options
from signalbox.cli.output import Format

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Pools: which accounts serve together.")


@app.command("list")
def list_(
    data: options.Data = None, cluster: options.InCluster = False, context: options.Context = None,
    output: options.Output = Format.TABLE,
) -> None:
    """Show all pools with their accounts by state."""
    from signalbox.cli.commands.registry import POOLS, show_list

    show_list(options.place(data, cluster, context), POOLS, output)


@app.command()
def describe(
    name: options.Name, data: options.Data = None, cluster: options.InCluster = False, context: options.Context = None,
    output: options.Output = Format.TABLE,
) -> None:
    """Show everything about one pool."""
    from signalbox.cli.commands.registry import POOLS
    from signalbox.cli.commands.registry import describe as show

    show(options.place(data, cluster, context), POOLS, name, output)
