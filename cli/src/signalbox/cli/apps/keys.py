"""`signalbox keys ...`"""
# ruff: noqa: PLC0415, PLR0917 - imported where used, so that --help stays quick; options are parameters

from typing import Annotated, Any

import typer

from signalbox.cli import options
from signalbox.cli.output import Format

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Relay keys: who may use the relay, for what, and how much.",
)

_Texts = list[str] | None


def _several(flag: str, metavar: str, help_: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=f"{help_} May be repeated.", show_default=False)


@app.command("list")
def list_(
    data: options.Data = None, cluster: options.InCluster = False, context: options.Context = None,
    output: options.Output = Format.TABLE,
) -> None:
    """Show all keys with their state and how much of their limits is used."""
    from signalbox.cli.commands.registry import KEYS, show_list

    show_list(options.place(data, cluster, context), KEYS, output)


@app.command()
def describe(
    name: options.Name, data: options.Data = None, cluster: options.InCluster = False, context: options.Context = None,
    output: options.Output = Format.TABLE,
) -> None:
    """Show everything about one key but its text, which nobody knows."""
    from signalbox.cli.commands.registry import KEYS
    from signalbox.cli.commands.registry import describe as show

    show(options.place(data, cluster, context), KEYS, name, output)


@app.command()
def pause(
    name: options.Name, manifests: options.Manifests = None, data: options.Data = None,
    cluster: options.InCluster = False, context: options.Context = None,
) -> None:
    """Refuse a key until it is resumed, by editing its document."""
    _set_state(name, "Paused", options.Editing(manifests, data, cluster, context))


@app.command()
def resume(
    name: options.Name, manifests: options.Manifests = None, data: options.Data = None,
    cluster: options.InCluster = False, context: options.Context = None,
) -> None:
    """Accept a paused key again."""
    _set_state(name, "Active", options.Editing(manifests, data, cluster, context))


@app.command()
def create(
    name: options.Name,
    owner: Annotated[str, typer.Option(help="Who uses the key; spend is reported by it.")],
    pool: Annotated[_Texts, _several("--pool", "POOL", "Pool to use, in this order.")] = None,
    limit: Annotated[_Texts, _several("--limit", "LIMIT", "Such as minute:requests=60 or day:cost=20,strict.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Requests at once.", show_default=False)] = None,
    model: Annotated[_Texts, _several("--model", "GLOB", "Model that may be asked for.")] = None,
    deny_model: Annotated[_Texts, _several("--deny-model", "GLOB", "Model that may not.")] = None,
    client: Annotated[_Texts, _several("--client", "CLIENT", "Program that may use it, such as ClaudeCode.")] = None,
    source: Annotated[_Texts, _several("--source", "CIDR", "Network that callers may come from.")] = None,
    expires: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="Expiry: a duration from now, a date or a time.", show_default=False),
    ] = None,
    lifetime: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Expiry counted from first use, such as 720h.", show_default=False),
    ] = None,
    secret: Annotated[
        bool, typer.Option("--secret", help="Keep the key's text in a Secret beside the document, not only its hash."),
    ] = False,
    manifests: options.Manifests = None,
    data: options.Data = None,
    cluster: options.InCluster = False,
    context: options.Context = None,
    output: options.Output = Format.TABLE,
) -> None:
    """Make a new key: writes its document and prints the key, once, on stdout."""
    from signalbox.cli.commands.documents import NewKey, create_key
    from signalbox.cli.keyspec import key_spec

    spec = key_spec(
        owner=owner, pools=pool, limits=limit, concurrency=concurrency, allow=model, deny=deny_model, clients=client,
        sources=source, expires=expires, lifetime=lifetime,
    )
    create_key(options.Editing(manifests, data, cluster, context).home(), NewKey(name, spec, secret), output)


@app.command()
def rotate(
    name: options.Name,
    overlap: Annotated[str, typer.Option(metavar="DURATION", help="How long the former key still works.")] = "24h",
    manifests: options.Manifests = None,
    data: options.Data = None,
    cluster: options.InCluster = False,
    context: options.Context = None,
    output: options.Output = Format.TABLE,
) -> None:
    """Give a key a new text and print it, once, on stdout."""
    from signalbox.cli.commands.documents import rotate_key
    from signalbox.cli.times import parse_span

    home = options.Editing(manifests, data, cluster, context).home()
    rotate_key(home, name, parse_span(overlap, "--overlap"), output)


def _set_state(name: str, state: str, editing: options.Editing) -> None:
    from signalbox.cli.commands.documents import set_state
    from signalbox.cli.commands.registry import KEYS

    set_state(editing.home(), KEYS, name, state, None)
