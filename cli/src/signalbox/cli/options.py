"""Options that several commands share, as annotations for Typer."""
# ruff: noqa: PLC0415 - imported where it is used, so that --help and check stay quick

import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from signalbox.cli.output import Format, ReportFormat

if TYPE_CHECKING:
    from signalbox.cli.commands.documents import Home
    from signalbox.cli.commands.registry import Place


class LogFormats(StrEnum):
    """How log lines are written."""

    TEXT = "text"
    JSON = "json"


Data = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", show_default=False,
        help="Data directory of the instance. Default: what SIGNALBOX_ADDR says, else ~/.local/state/signalbox.",
    ),
]
Manifests = Annotated[
    Path | None,
    typer.Option("--manifests", metavar="DIR", show_default=False, help="Documents to edit. Default: the instance's."),
]
InCluster = Annotated[
    bool,
    typer.Option(
        "--cluster", help="Work on the documents in the cluster that the kubeconfig (in a pod: its account) names.",
    ),
]
Context = Annotated[
    str | None,
    typer.Option("--context", metavar="NAME", show_default=False, help="Context of the kubeconfig; implies --cluster."),
]
Output = Annotated[Format, typer.Option("--output", "-o", help="table for people, json for programs.")]
ReportOutput = Annotated[ReportFormat, typer.Option("--output", "-o", help="table, json or csv.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="name, or namespace/name.")]
Since = Annotated[
    str | None,
    typer.Option("--since", metavar="WHEN", help="24h, 7d, a date or an RFC 3339 time.", show_default=False),
]
Until = Annotated[str | None, typer.Option("--until", metavar="WHEN", help="As --since.", show_default=False)]
Reason = Annotated[
    str | None, typer.Option("--reason", metavar="TEXT", help="Shown wherever the state is shown.", show_default=False),
]
KeyFilter = Annotated[
    str | None, typer.Option("--key", metavar="NAME", help="Only this relay key.", show_default=False),
]
AccountFilter = Annotated[
    str | None, typer.Option("--account", metavar="NAME", help="Only this account.", show_default=False),
]
LogFormat = Annotated[
    LogFormats | None,
    typer.Option("--log-format", help="Default: text on a terminal, else json.", show_default=False),
]


def log_format(chosen: LogFormats | None) -> str:
    """Return the format of the logs: what was chosen, else what suits who reads stderr."""
    return (chosen or (LogFormats.TEXT if sys.stderr.isatty() else LogFormats.JSON)).value


@dataclass(frozen=True)
class Editing:
    """Which documents a command edits, and which instance it then waits for."""

    manifests: Path | None
    data: Path | None
    cluster: bool = False
    context: str | None = None

    def home(self) -> "Home":
        """Return where the documents are: in a cluster, or in a directory with the running instance if there is one.

        Raises BadUsage where none is known.
        """
        from signalbox.cli.commands.homes import Files
        from signalbox.cli.errors import BadUsage, NotRunning
        from signalbox.cli.locate import locate

        if self.cluster or self.context:
            from signalbox.cli.commands.kubehome import KubeHome

            if self.manifests is not None:
                raise BadUsage("--manifests and --cluster exclude each other: the documents are in one place")
            return KubeHome(self.context)
        try:
            target = locate(self.data)
        except NotRunning:
            if self.manifests is None:
                raise
            target = None
        return Files.of(target, self.manifests)


def place(data: Path | None, cluster: bool, context: str | None) -> "Place":
    """Return where objects are read: a running instance, or a cluster."""
    if cluster or context:
        from signalbox.cli.commands.kubehome import KubeHome

        return KubeHome(context)
    from signalbox.cli.commands.registry import Instance
    from signalbox.cli.locate import locate

    return Instance(locate(data))
