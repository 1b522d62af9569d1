"""The difference between what should be and what is, as actions in an order that is safe to stop after any of them."""

from collections.abc import Mapping

from signalbox.resources.models import SIGNALBOX_KINDS
from signalbox.resources.state import Action, DeleteGrant, DeleteObject, Desired, PutGrant, PutObject


def diff(desired: Desired, current: Mapping[tuple[str, str], str], grants_current: Mapping[str, str]) -> list[Action]:
    """Return what turns `current` into `desired`; an empty list when they are equal.

    `current` maps (kind, id) to the registry's revision, `grants_current` maps account ids to the refresher's seed
    version. What withdraws access comes first: deleted keys, then keys and accounts that nobody may use any more. Then
    a grant precedes its account, accounts precede pools and pools precede keys, so that nothing is reachable before
    what it needs; removals go the other way round.
    """
    wanted = desired.revisions()
    gone = sorted(set(current) - set(wanted))
    deletions = {kind: [DeleteObject(k, i) for k, i in gone if k == kind] for kind in SIGNALBOX_KINDS}
    changed = [o for o in desired.objects if current.get((o.kind, o.id)) != o.revision]
    withdrawn = [o for o in changed if not o.serves and o.kind != "AccountPool"]
    actions: list[Action] = [*deletions["RelayKey"]]
    # Those without a hash before those that keep one: it is free before another one claims it.
    actions += [PutObject(o) for o in sorted(withdrawn, key=lambda o: (o.kind != "RelayKey", o.ready.status, o.id))]
    actions += [PutGrant(g) for g in desired.grants if grants_current.get(g.account) != g.seed_version]
    for kind in SIGNALBOX_KINDS:
        rest = [o for o in changed if o.kind == kind and (o.serves or kind == "AccountPool")]
        actions += [PutObject(o) for o in sorted(rest, key=lambda o: o.id)]
    actions += deletions["AccountPool"] + deletions["ClaudeAccount"]
    granted = desired.seed_versions()
    actions += [DeleteGrant(account) for account in sorted(set(grants_current) - set(granted))]
    return actions
