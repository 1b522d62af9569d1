"""AccountPool: which accounts serve together, and how one of them is chosen."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from signalbox.resources.models.base import Model, Resource
from signalbox.resources.rules import Rule, exactly_one
from signalbox.resources.values import MAX_LIST, MAX_MEMBERS, Duration, LabelKey, LabelValue, Name, PoolRef


class NamespacesFrom(StrEnum):
    """Whose relay keys may name a pool."""

    SAME = "Same"
    ALL = "All"
    SELECTOR = "Selector"


class Strategy(StrEnum):
    """How an account is chosen among those of one priority."""

    HEADROOM = "Headroom"
    PRIORITY = "Priority"
    ROUND_ROBIN = "RoundRobin"
    LEAST_CONNECTIONS = "LeastConnections"


class AffinityMode(StrEnum):
    """Whether conversations stay with their account."""

    SESSION = "Session"
    NONE = "None"


class OnUnavailable(StrEnum):
    """What happens to a pinned conversation whose account cannot serve."""

    REPIN = "Repin"
    REFUSE = "Refuse"


Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=MAX_LIST)]


def matches_labels(wanted: dict[str, str], labels: dict[str, str]) -> bool:
    """Whether `labels` hold every wanted pair; nothing wanted matches all."""
    return all(labels.get(k) == v for k, v in wanted.items())


class Members(Model):
    """The accounts of a pool, all of its own namespace: by label or by name."""

    rules: ClassVar[tuple[Rule, ...]] = (
        exactly_one("matchLabels", "accounts", attributes=("match_labels", "accounts"), what="way to choose members"),
    )

    match_labels: Labels | None = Field(
        default=None, description="Accounts with all of these labels; {} means every account."
    )
    accounts: Annotated[tuple[Name, ...], Field(max_length=MAX_MEMBERS)] | None = Field(
        default=None, description="Accounts by name."
    )


class AllowedNamespaces(Model):
    """Whose relay keys may name the pool."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=(
                "(has(self.from) && self.from == 'Selector') ?"
                " (has(self.matchLabels) && size(self.matchLabels) > 0) : !has(self.matchLabels)"
            ),
            message="matchLabels is needed with from: Selector (at least one label), and only with it",
            holds=lambda m: bool(m.match_labels) if m.from_ is NamespacesFrom.SELECTOR else m.match_labels is None,
            field="matchLabels",
        ),
    )

    from_: NamespacesFrom = Field(
        default=NamespacesFrom.SAME,
        alias="from",
        description="Same (default): keys of the pool's namespace; All; Selector: namespaces with matchLabels.",
    )
    match_labels: Labels | None = Field(
        default=None, description="Labels of the allowed namespaces, with from: Selector."
    )

    def permit(self, labels: dict[str, str]) -> bool:
        """Whether keys of another namespace, which has these labels, may name the pool."""
        if self.from_ is NamespacesFrom.ALL:
            return True
        return self.from_ is NamespacesFrom.SELECTOR and matches_labels(self.match_labels or {}, labels)


class Affinity(Model):
    """How conversations stay with the account that began them."""

    mode: AffinityMode = Field(default=AffinityMode.SESSION, description="Session (default) or None.")
    ttl: Duration = Field(default=3600.0, description="How long an idle pin is kept. Default: 1h.")
    on_unavailable: OnUnavailable = Field(
        default=OnUnavailable.REPIN, description="Repin (default): move to another account; Refuse: refuse the request."
    )


class Failover(Model):
    """What happens when an attempt fails before anything reached the caller."""

    max_attempts: Annotated[int, Field(ge=1, le=10)] = Field(default=3, description="All sends counted. Default: 3.")
    fallback_pools: Annotated[tuple[PoolRef, ...], Field(max_length=MAX_LIST)] = Field(
        default=(), description="Pools to try when this one cannot serve; their own fallbacks are not followed."
    )


class Queue(Model):
    """Waiting for an account that frees up soon, rather than refusing."""

    max_wait: Duration = Field(default=10.0, description="Longest wait. Default: 10s.")
    max_depth: Annotated[int, Field(ge=0, le=100_000)] = Field(
        default=100, description="Most requests waiting. Default: 100."
    )


class Timeouts(Model):
    """Time limits of one attempt."""

    connect: Duration = Field(default=5.0, description="To connect, TLS and proxy included. Default: 5s.")
    headers: Duration = Field(default=120.0, description="To the reply's headers, streamed requests. Default: 120s.")
    headers_unstreamed: Duration = Field(default=600.0, description="The same, other requests. Default: 600s.")
    first_content: Duration = Field(default=30.0, description="From the headers to the first content. Default: 30s.")
    idle: Duration = Field(default=60.0, description="Between two reads of the reply. Default: 60s.")
    total: Duration = Field(default=3600.0, description="The whole attempt. Default: 1h.")


class AccountPoolSpec(Model):
    """Which accounts serve together, for whom, and how."""

    members: Members = Field(description="The pool's accounts; never across namespaces.")
    allowed_namespaces: AllowedNamespaces = Field(
        default=AllowedNamespaces(),
        description="Whose relay keys may name the pool. Default: those of its own namespace.",
    )
    strategy: Strategy = Field(
        default=Strategy.HEADROOM, description="Headroom (default), Priority, RoundRobin or LeastConnections."
    )
    affinity: Affinity = Field(default=Affinity(), description="How conversations stay with their account.")
    failover: Failover = Field(default=Failover(), description="What happens when an attempt fails.")
    queue: Queue = Field(default=Queue(), description="Waiting for an account that frees up soon.")
    timeouts: Timeouts = Field(default=Timeouts(), description="Time limits of one attempt.")


class AccountPool(Resource):
    """Accounts that serve together."""

    spec: AccountPoolSpec
