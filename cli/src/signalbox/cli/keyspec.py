"""From the options of `keys create` to a RelayKey's spec. Ranges and cross rules are the documents' to check.

A limit is typed as `PER:NUMBER=VALUE,...`, such as `minute:requests=60,tokens=100000`.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from signalbox.cli.errors import BadUsage
from signalbox.cli.times import parse_when
from signalbox.resources.models import Admission, Period
from signalbox.resources.values import format_time

EXAMPLES = "minute:requests=60,tokens=100000  day:cost=20.00,strict  week:cost=50,models=claude-opus-*|claude-fable-*"
_COUNTS = ("requests", "tokens")
_COUNT = re.compile(r"[0-9]{1,20}")


def key_spec(
    *,
    owner: str,
    pools: Sequence[str] | None = None,
    limits: Sequence[str] | None = None,
    concurrency: int | None = None,
    allow: Sequence[str] | None = None,
    deny: Sequence[str] | None = None,
    clients: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
    expires: str | None = None,
    lifetime: str | None = None,
) -> dict[str, Any]:
    """Return the spec in the documents' notation, without the key itself; what was not asked for is left out.

    Raises BadUsage.
    """
    models = {name: list(globs) for name, globs in (("allow", allow), ("deny", deny)) if globs}
    spec: dict[str, Any] = {
        "owner": owner,
        "pools": list(pools or ()),
        "expiresAt": format_time(_expiry(expires)) if expires else None,
        "lifetime": {"duration": lifetime} if lifetime else None,
        "models": models,
        "clients": {"allow": list(clients)} if clients else None,
        "sourceCIDRs": list(sources or ()),
        "concurrency": concurrency,
        "limits": [parse_limit(limit) for limit in limits or ()],
    }
    return {name: value for name, value in spec.items() if value not in (None, [], {})}


def _expiry(text: str) -> datetime:
    now = datetime.now(UTC)
    expiry = parse_when(text, "--expires", now, forward=True)
    if expiry <= now:
        raise BadUsage(f"--expires {text}: is in the past")
    return expiry


def parse_limit(text: str) -> dict[str, Any]:
    """Return one limit in the documents' notation. Ranges are the documents' rules to check. Raises BadUsage."""
    per, _, rest = text.partition(":")
    period = next((p for p in Period if p.lower() == per.lower()), None)
    if period is None:
        raise BadUsage(f"--limit {text}: must begin with one of {', '.join(p.lower() for p in Period)} and a colon")
    limit: dict[str, Any] = {"per": period.value}
    given_names: set[str] = set()
    for part in (p.strip() for p in rest.split(",")):
        name, given, value = part.partition("=")
        if name in given_names:
            raise BadUsage(f"--limit {text}: {name} is given twice")
        given_names.add(name)
        if name in _COUNTS and _COUNT.fullmatch(value):
            limit[name] = int(value)
        elif name == "cost" and value:
            limit["costUSD"] = value
        elif name == "models" and value:
            limit["models"] = value.split("|")
        elif name == "name" and value:
            limit["name"] = value
        elif part in (a.lower() for a in Admission) and not given:
            limit["admission"] = part.capitalize()
        else:
            raise BadUsage(
                f"--limit {text}: {part or 'nothing'!r} is none of requests=N, tokens=N, cost=USD, models=GLOB|GLOB, "
                f"name=NAME, strict; for example: {EXAMPLES}",
            )
    return limit
