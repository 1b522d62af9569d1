"""The registry's objects as this scheduler knows them, compiled, with the indexes that admission needs.

Keeping it up to date is the adapters' business; Redis compares versions, so that a stale snapshot never admits.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from signalbox.scheduler.domain.policies import (
    ACCOUNT,
    KEY,
    POOL,
    AccountPolicy,
    KeyPolicy,
    PoolPolicy,
    compile_account,
    compile_key,
    compile_pool,
)
from signalbox.scheduler.domain.tiers import Tier
from signalbox.v1.scheduler_pb2 import Object

if TYPE_CHECKING:
    from signalbox.scheduler.domain.offering import Offer

_MOST_CACHED_MODELS = 256


class PoolIndex:
    """One pool's members, by priority and model; built on demand and dropped when a member changes."""

    def __init__(
        self, pool: PoolPolicy, find: Callable[[str], AccountPolicy | None], set_aside: set[str] | None = None,
    ) -> None:
        self.pool = pool
        self._set_aside: set[str] = set() if set_aside is None else set_aside
        self.members = tuple(a for a in map(find, pool.accounts) if a is not None)
        self._by_id = {a.id: a for a in self.members}
        self._tiers: dict[str, tuple[Tier, ...]] = {}
        self._names: dict[str, frozenset[str]] = {}

    def member(self, account_id: str) -> AccountPolicy | None:
        """Return a member, None where the account is none."""
        return self._by_id.get(account_id)

    def tiers(self, model: str) -> tuple[Tier, ...]:
        """Return the members that serve `model` by priority, lowest first."""
        known = self._tiers.get(model)
        if known is not None:
            return known
        by_priority: dict[int, list[AccountPolicy]] = {}
        for account in self.members:
            if account.sends(model) is not None:
                by_priority.setdefault(account.priority, []).append(account)
        tiers = tuple(Tier(p, tuple(by_priority[p]), self._set_aside) for p in sorted(by_priority))
        if len(self._tiers) < _MOST_CACHED_MODELS:
            self._tiers[model] = tiers
        return tiers

    def release(self, account_id: str) -> None:
        """Have an account looked at again that was set aside."""
        for tiers in self._tiers.values():
            for tier in tiers:
                tier.release(account_id)

    def sent_names(self, model: str) -> frozenset[str]:
        """Return the names under which the members serve `model`."""
        known = self._names.get(model)
        if known is None:
            sends = (a.sends(model) for tier in self.tiers(model) for a in tier.accounts)
            known = frozenset(name for name in sends if name is not None)
            if len(self._names) < _MOST_CACHED_MODELS:
                self._names[model] = known
        return known


class Reach(NamedTuple):
    """Where a key's requests may go, as the documents say."""

    indexes: list[PoolIndex]
    """Of its pools, in the order in which they are tried."""
    has_members: bool
    most_attempts: int
    pins: bool
    """Whether any of its pools pins conversations."""
    refuses: bool
    """Whether any keeps a conversation where it is pinned, come what may."""
    offers: "dict[tuple[Any, ...], Offer]"
    """What was offered, by what it depends on; see offering.py."""

    def index_of(self, account_id: str) -> PoolIndex | None:
        """Return the first of the pools that has an account."""
        return next((i for i in self.indexes if account_id in i.pool.members), None)

    def keeps_pins_of(self, account_id: str) -> bool:
        """Return whether a pool with the account keeps conversations that are pinned to it there, come what may."""
        return self.refuses and any(i.pool.refuses for i in self.indexes if account_id in i.pool.members)


NOWHERE = Reach([], has_members=False, most_attempts=0, pins=False, refuses=False, offers={})


class Snapshot:
    """Keys, pools and accounts by id; keys by hash."""

    def __init__(self) -> None:
        self.version = 0
        self.objects: dict[tuple[str, str], Object] = {}
        self.versions: dict[tuple[str, str], str] = {}
        self.keys: dict[str, KeyPolicy] = {}
        self.pools: dict[str, PoolPolicy] = {}
        self.accounts: dict[str, AccountPolicy] = {}
        self._by_hash: dict[bytes, list[KeyPolicy]] = {}
        self._groups: dict[str, set[str]] = {}
        self._set_aside: set[str] = set()
        self._indexes: dict[str, PoolIndex] = {}
        self._pools_of: dict[str, set[str]] = {}
        self._reaches: dict[str, Reach] = {}

    def put(self, obj: Object, version: str) -> None:
        """Add or replace an object. Raises ValueError for a spec that no reconciler wrote, and then changes nothing."""
        self._reaches.clear()
        if obj.kind == KEY:
            self._put_key(compile_key(obj.id, version, obj.spec_json, obj.uid, obj.created_at_ms))
        elif obj.kind == POOL:
            self._put_pool(compile_pool(obj.id, version, obj.spec_json))
        elif obj.kind == ACCOUNT:
            account = compile_account(obj.id, version, obj.spec_json)
            self._leave_group(obj.id)
            self.accounts[obj.id] = account
            self._groups.setdefault(account.group, set()).add(obj.id)
            self._drop_indexes(obj.id)
        else:
            raise ValueError(f"unknown kind {obj.kind}")
        self.objects[obj.kind, obj.id] = obj
        self.versions[obj.kind, obj.id] = version

    def delete(self, kind: str, object_id: str) -> None:
        """Remove an object, if it is there."""
        self._reaches.clear()
        self.objects.pop((kind, object_id), None)
        self.versions.pop((kind, object_id), None)
        if kind == KEY and (key := self.keys.pop(object_id, None)):
            self._unlink(key)
        elif kind == POOL and (pool := self.pools.pop(object_id, None)):
            self._forget_pool(pool)
        elif kind == ACCOUNT:
            self._leave_group(object_id)
            self.accounts.pop(object_id, None)
            self._drop_indexes(object_id)

    def clear(self) -> None:
        """Forget everything."""
        self.__init__()  # type: ignore[misc]

    def key_by_hash(self, digest: bytes, now_ms: int) -> KeyPolicy | None:
        """Return the key that serves this hash now; of several the oldest document."""
        for key in self._by_hash.get(digest, ()):
            for known, until_ms in key.hashes:
                if known == digest and (not until_ms or now_ms < until_ms):
                    return key
        return None

    def index(self, pool_id: str) -> PoolIndex | None:
        """Return the index of a pool, None where there is no such pool."""
        index = self._indexes.get(pool_id)
        if index is None and (pool := self.pools.get(pool_id)) is not None:
            index = self._indexes[pool_id] = PoolIndex(pool, self.accounts.get, self._set_aside)
        return index

    def reach(self, key: KeyPolicy) -> Reach:
        """Return where the requests of one of the snapshot's keys may go; worked out once until a document changes."""
        known = self._reaches.get(key.id)
        if known is None:
            indexes = [i for p in key.pools if (i := self.index(p)) is not None]
            known = self._reaches[key.id] = Reach(
                indexes, any(i.members for i in indexes), max((i.pool.max_attempts for i in indexes), default=0),
                any(i.pool.pin_ttl_ms for i in indexes), any(i.pool.refuses for i in indexes), {},
            )
        return known

    def may_use(self, key_id: str, account_id: str) -> bool:
        """Return whether an account belongs to a pool of a key."""
        key = self.keys.get(key_id)
        return key is not None and any(i.member(account_id) is not None for i in self.reach(key).indexes)

    def release(self, account_id: str) -> None:
        """Have an account looked at again: it may have room, or be well."""
        if account_id not in self._set_aside:
            return
        self._set_aside.discard(account_id)
        for pool_id in self._pools_of.get(account_id, ()):
            if (index := self._indexes.get(pool_id)) is not None:
                index.release(account_id)

    def in_group(self, group: str) -> frozenset[str]:
        """Return the ids of the accounts that share a limit group."""
        return frozenset(self._groups.get(group, ()))

    def of_kind(self, kind: str) -> Iterator[Object]:
        """Yield the objects of one kind by id."""
        for k, object_id in sorted(self.objects):
            if k == kind:
                yield self.objects[k, object_id]

    def _put_key(self, key: KeyPolicy) -> None:
        if old := self.keys.get(key.id):
            self._unlink(old)
        self.keys[key.id] = key
        for digest, _ in key.hashes:
            holders = self._by_hash.setdefault(digest, [])
            holders.append(key)
            holders.sort(key=lambda k: k.rank)

    def _unlink(self, key: KeyPolicy) -> None:
        for digest, _ in key.hashes:
            holders = [k for k in self._by_hash.get(digest, ()) if k.id != key.id]
            if holders:
                self._by_hash[digest] = holders
            else:
                self._by_hash.pop(digest, None)

    def _put_pool(self, pool: PoolPolicy) -> None:
        if old := self.pools.get(pool.id):
            self._forget_pool(old)
        self.pools[pool.id] = pool
        for account in pool.accounts:
            self._pools_of.setdefault(account, set()).add(pool.id)

    def _forget_pool(self, pool: PoolPolicy) -> None:
        self._indexes.pop(pool.id, None)
        for account in pool.accounts:
            self._pools_of.get(account, set()).discard(pool.id)

    def _leave_group(self, account_id: str) -> None:
        if (old := self.accounts.get(account_id)) is not None and (group := self._groups.get(old.group)):
            group.discard(account_id)
            if not group:
                del self._groups[old.group]

    def _drop_indexes(self, account_id: str) -> None:
        for pool_id in self._pools_of.get(account_id, ()):
            self._indexes.pop(pool_id, None)
