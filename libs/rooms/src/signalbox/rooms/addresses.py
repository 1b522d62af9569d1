"""Where an instance's rooms are. By itself, so that who only asks for addresses does not import gRPC."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Addresses:
    """Where the rooms are: `unix:/path` or `host:port`."""

    scheduler: tuple[str, ...]
    token_refresher: str
    usage: str = ""
    """Empty for callers that ask nothing of the ledger."""
