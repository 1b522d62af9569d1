"""`room-certificates`: makes and renews what the rooms of a release show one another, in two Secrets.

The chart's Job runs it before an installation and an upgrade, its CronJob every day. It needs no more than to create
Secrets and to read and replace these two. The authority's own key lies in a Secret that no room mounts.
"""

import asyncio
import base64
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from signalbox.cli.authority import Kept, due
from signalbox.cli.errors import CommandFailed
from signalbox.kube import Cluster, connect

_MANAGER = "signalbox-certificates"


def room_certificates(rooms: str, authority: str, names: Sequence[str], days: int) -> None:
    """See to the Secrets `rooms` (tls.crt, tls.key, ca.crt) and `authority` (tls.crt, tls.key) of this namespace.

    Raises CommandFailed where they hold something else, Unavailable and Refused as the API server says; a `Conflict`
    is somebody else at the same work.
    """
    print(asyncio.run(_see_to(rooms, authority, names, timedelta(days=days))))


async def _see_to(rooms: str, authority: str, names: Sequence[str], life: timedelta) -> str:
    async with connect(_MANAGER) as cluster:
        shown = await cluster.get("Secret", rooms, cluster.namespace)
        signer = await cluster.get("Secret", authority, cluster.namespace)
        kept = Kept(
            authority=_value(signer, "tls.crt"), authority_key=_value(signer, "tls.key"),
            trusted=_value(shown, "ca.crt"), cert=_value(shown, "tls.crt"), key=_value(shown, "tls.key"),
        )
        try:
            wanted = due(kept, names, life, datetime.now(UTC))
        except ValueError as e:
            raise CommandFailed(f"the Secrets {rooms} and {authority} hold what is no certificate; delete them") from e
        if wanted == kept:
            return "nothing is due"
        # The authority first: what it has signed is of no use without it, while it is of use alone.
        if wanted.authority != kept.authority:
            await _keep(cluster, authority, signer, {"tls.crt": wanted.authority, "tls.key": wanted.authority_key})
        await _keep(cluster, rooms, shown, {
            "tls.crt": wanted.cert, "tls.key": wanted.key, "ca.crt": wanted.trusted,
        })
    new = [what for what, before, now in (
        ("authority", kept.authority, wanted.authority), ("certificate", kept.cert, wanted.cert),
    ) if before != now]
    return f"made anew: {', '.join(new) or 'the list of authorities'}"


async def _keep(cluster: Cluster, name: str, present: dict[str, Any] | None, values: dict[str, bytes]) -> None:
    data = {key: base64.b64encode(value).decode() for key, value in values.items()}
    if present is not None:
        await cluster.replace({**present, "apiVersion": "v1", "kind": "Secret", "data": {**present["data"], **data}})
        return
    await cluster.create({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "data": data,
        "metadata": {
            "name": name, "namespace": cluster.namespace,
            "labels": {"app.kubernetes.io/name": "signalbox", "app.kubernetes.io/managed-by": _MANAGER},
        },
    })


def _value(secret: dict[str, Any] | None, key: str) -> bytes:
    try:
        return base64.b64decode((secret or {}).get("data", {}).get(key, ""), validate=True)
    except ValueError as e:
        raise CommandFailed(f"the Secret's {key} is not base64") from e
