"""What the reconciler takes and gives: policy, last good state, desired objects, grants, actions. Data only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from signalbox.resources.conditions import READY, Condition
from signalbox.resources.models import Resource
from signalbox.resources.reading import Identity, Problem

# Where projected identity tokens are mounted.
TOKEN_FILE_ROOT = "/var/run/secrets/signalbox/tokens/"  # noqa: S105 - a directory, not a token


@dataclass(frozen=True)
class Policy:
    """What the installation allows, beyond the documents.

    `cluster`: credentials go to allowed hosts only and token files lie under TOKEN_FILE_ROOT; on one machine whoever
    writes documents could read the files anyway. `allowed_upstream_hosts` (exact names or `*.suffix`) replaces the
    default: the providers' domains and Services of the account's own namespace.
    """

    cluster: bool = False
    allowed_upstream_hosts: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Good:
    """The version of a document that is in force, and the file that it came from."""

    resource: Resource
    file: str
    line: int = 0

    @property
    def source(self) -> str:
        """`file:line`, to be shown to people."""
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True)
class State:
    """What was in force after the last plan, and what that plan made. In memory only: it holds Secrets."""

    good: Mapping[Identity, Good] = field(default_factory=dict, repr=False)
    made: Mapping[Identity, "Made"] = field(default_factory=dict, repr=False)
    """Spares the next plan what has not changed; it decides nothing."""

    def owners(self) -> dict[Identity, str]:
        """Return which file each document in force came from; a copy elsewhere does not displace it."""
        return {identity: good.file for identity, good in self.good.items()}


@dataclass(frozen=True)
class DesiredObject:
    """One object for the scheduler's registry. `spec_json` is a compiled spec (see compiled.py)."""

    kind: str
    id: str
    revision: str
    spec_json: str
    conditions: tuple[Condition, ...]
    uid: str = ""
    created_at: datetime | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    serves: bool = True
    """Whether requests may use it, as far as the documents say: it is ready and nobody has paused it."""

    @property
    def ready(self) -> Condition:
        """The Ready condition."""
        return next(c for c in self.conditions if c.type == READY)


@dataclass(frozen=True)
class Grant:
    """What the token-refresher needs to speak for an account.

    `material` holds secret values by role (`apiKey`, `refreshToken`, `clientSecret`, `proxyURL`), `config` what is not
    secret, under the documents' names (`baseURL`, `tokenURL`, ...; `headers` as JSON).
    `seed_version` is the SHA-256 of kind, material and config; the same one again changes nothing. Whether a changed
    seed replaces what a refresh has earned since is for the refresher to tell, role by role.
    """

    account: str
    kind: str
    material: Mapping[str, str] = field(repr=False)
    config: Mapping[str, str]
    seed_version: str


@dataclass(frozen=True, slots=True)
class Made:
    """One object, and a grant where it has one, with everything they were made from: the same again makes the same."""

    inputs: tuple[object, ...] = field(repr=False)
    item: DesiredObject
    grant: Grant | None = None
    secrets: Mapping[tuple[str, str], Mapping[str, bytes] | None] = field(default_factory=dict, repr=False)
    """The Secrets that were looked at, by (namespace, name); None: there was none."""

    def holds(self, inputs: tuple[object, ...], secrets: Mapping[tuple[str, str], Mapping[str, bytes]]) -> bool:
        """Whether these inputs would make the same."""
        return self.inputs == inputs and all(secrets.get(name) == values for name, values in self.secrets.items())


@dataclass(frozen=True)
class Desired:
    """What should be in force now.

    `problems` are those of refused documents; `state` goes into the next plan; `next_change_at` is the soonest time
    at which the same documents would give another plan (an expiry), None where time changes nothing.
    """

    objects: tuple[DesiredObject, ...]
    grants: tuple[Grant, ...]
    problems: tuple[Problem, ...]
    state: State
    next_change_at: datetime | None = None

    def revisions(self) -> dict[tuple[str, str], str]:
        """Return the revision of each object by (kind, id): `current` of a diff once everything was carried out."""
        return {(o.kind, o.id): o.revision for o in self.objects}

    def seed_versions(self) -> dict[str, str]:
        """Return the seed version of each grant by account: `grants_current` of a diff afterwards."""
        return {g.account: g.seed_version for g in self.grants}


@dataclass(frozen=True)
class PutObject:
    """Create or replace an object in the registry."""

    object: DesiredObject


@dataclass(frozen=True)
class DeleteObject:
    """Remove an object from the registry."""

    kind: str
    id: str


@dataclass(frozen=True)
class PutGrant:
    """Create or replace a grant in the token-refresher."""

    grant: Grant


@dataclass(frozen=True)
class DeleteGrant:
    """Remove a grant from the token-refresher."""

    account: str


Action = PutObject | DeleteObject | PutGrant | DeleteGrant
