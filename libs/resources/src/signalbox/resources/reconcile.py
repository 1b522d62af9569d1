"""From documents to what should be in force: one pure function, shared by the file watcher and the operator.

Gather (the caller), decide (here), act (the caller, by actions.diff). Which version of a document counts is decided
in accepting.py; what an object looks like is compiling.py's business. What has not changed since the last plan is not
made again, so that a plan over ten thousand keys takes a fraction of a second.
"""

from collections.abc import Mapping
from datetime import datetime

from signalbox.resources.accepting import accept
from signalbox.resources.amending import amended
from signalbox.resources.compiling import Claims, age_of, make_account, make_key, make_pool
from signalbox.resources.loading import LoadResult
from signalbox.resources.models import Resource
from signalbox.resources.reading import Identity
from signalbox.resources.state import Desired, DesiredObject, Made, Policy, State
from signalbox.resources.world import World, secrets_in


def plan(
    loaded: LoadResult, previous: State, *, now: datetime, policy: Policy | None = None,
    healings: Mapping[str, int] | None = None, kept: Mapping[Identity, DesiredObject] | None = None,
) -> Desired:
    """Return what should be in force, given all documents, what was in force before, and the time.

    `healings` tells by account how often its credential became good again (the token-refresher's Status): each time
    makes a new revision of the account, so that the scheduler tries it again, as after a change of its document.
    `kept` is what the registry had when this process started, of documents that were refused then: where no good
    version is known, that serves on (see amending.py).

    Pure. A refused document keeps its last good version (see accepting.py); what cannot serve is still an object,
    with Ready=False and the reason. The same arguments always give the same revisions.
    """
    accepted = accept(loaded, previous)
    serving_on = amended(kept, loaded, accepted.good, secrets_in(accepted), now) if kept else []
    world = World.of(accepted, previous.made, now, policy or Policy(), serving_on)
    healed = healings or {}
    made: dict[Identity, Made] = {}
    for account in world.accounts.values():
        made[_identity("ClaudeAccount", account)] = make_account(account, world, healed.get(account.id, 0))
    for pool in world.pools.values():
        made[_identity("AccountPool", pool)] = make_pool(pool, world)
    claims = Claims(world)
    for key in sorted(world.keys.values(), key=age_of):
        made[_identity("RelayKey", key)] = make_key(key, world, claims)
    return Desired(
        objects=(*serving_on, *(one.item for one in made.values())),
        grants=tuple(one.grant for one in made.values() if one.grant is not None),
        problems=tuple(sorted({*loaded.problems, *accepted.problems})),
        state=State(accepted.good, made),
        next_change_at=_next_change(world),
    )


def _identity(kind: str, resource: Resource) -> Identity:
    return Identity(kind, resource.metadata.namespace, resource.metadata.name)


def _next_change(world: World) -> datetime | None:
    times = [a.spec.expires_at for a in world.accounts.values()]
    for key in world.keys.values():
        times += [key.spec.expires_at, *(h.until for h in key.spec.also_accept)]
    return min((t for t in times if t is not None and t > world.now), default=None)
