"""The grant store in a cluster: one Secret a grant in the release's own namespace, shared by any number of replicas.

The Secret's resourceVersion is the revision that writes compare. The lease is an annotation on the same Secret, so that
taking it moves that revision: a holder that slept through the end of its lease finds its next write refused. A lease
that its holder did not give back ends when it was seen unchanged for its whole length, by this process's own clock;
clocks of different nodes are never compared. What lies in the Secret is sealed, as files are.
"""

import asyncio
import base64
import contextlib
import hashlib
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from signalbox.core import logs
from signalbox.core.errors import Refused, SignalboxError, Unavailable
from signalbox.kube import Cluster
from signalbox.token_refresher.adapters.records import opened, sealed
from signalbox.token_refresher.adapters.sealing import Keyring, Unopened
from signalbox.token_refresher.domain.grants import Grant
from signalbox.token_refresher.domain.ports import (
    Conflict,
    Found,
    LeaseBusy,
    Stored,
    StoreUnavailable,
    Unreadable,
)

log = logs.logger(__name__)

SECRET_TYPE = "signalbox.dev/grant"  # noqa: S105 - the name of a type
ACCOUNT = "signalbox.dev/account"
LEASE = "signalbox.dev/lease"
POLL_S = 5.0
_LABEL = "signalbox.dev/grants-of"
_KEY = "grant"
_LEASE_POLL_S = 0.2
_RELEASE_TRIES = 3
_NAME_CHARS = 24

Object = dict[str, Any]
T = TypeVar("T")


class SecretStore:
    """Implements ports.GrantStore over the Secrets of one namespace; `owner` is the release's name."""

    def __init__(self, cluster: Cluster, keyring: Keyring, owner: str, *, lease_s: float, margin_s: float) -> None:
        """A lease is no longer relied upon `margin_s` seconds before it ends: what was begun must come to its end."""
        self._cluster = cluster
        self._keyring = keyring
        self._owner = owner
        self._lease_s = lease_s
        self._margin_s = margin_s
        self._holder = f"{socket.gethostname()}-{os.getpid()}"
        self._seen: dict[str, tuple[str, float]] = {}    # leases of others, and since when they are unchanged

    # ------------------------------------------------------------------ ports.GrantStore

    async def everything(self) -> list[Stored | Unreadable]:
        """Return everything that is there."""
        return [found for secret in await self._secrets() if (found := self._found(secret)) is not None]

    async def read(self, account_id: str) -> Found:
        """Return what is stored for one account."""
        secret = await self._get(account_id)
        return self._found(secret) if secret is not None else None

    async def write(self, grant: Grant, expected: str) -> Stored:
        """Replace the state of that revision by `grant`; see ports."""
        account_id = grant.account_id
        secret = await self._get(account_id)
        await self._compare(secret, expected)
        changed = secret or self._new(account_id)
        kept = await self._put({**changed, "data": {_KEY: _text(sealed(grant, 0, self._keyring))}})
        return Stored(grant, kept["metadata"]["resourceVersion"])

    async def delete(self, account_id: str, expected: str) -> None:
        """Forget the state of that revision; see ports."""
        secret = await self._get(account_id)
        await self._compare(secret, expected)
        if secret is None:
            return
        emptied = await self._put({**secret, "data": {}})    # by its revision; deleting knows none
        if LEASE not in _annotations(emptied):
            await self._remove(secret["metadata"]["name"])

    @contextlib.asynccontextmanager
    async def lease(self, account_id: str, patience_s: float) -> AsyncIterator[Callable[[], bool]]:
        """Hold the account's lease; see ports."""
        end_s = time.monotonic() + patience_s
        token = f"{self._holder}-{secrets.token_hex(8)}"
        while (until_s := await self._try_lease(account_id, token)) is None:
            if time.monotonic() >= end_s:
                raise LeaseBusy(f"another token-refresher is renewing the grant of {account_id}")
            await asyncio.sleep(_LEASE_POLL_S)
        try:
            yield lambda: time.monotonic() < until_s - self._margin_s
        finally:
            await self._release(account_id, token)

    async def changes(self) -> AsyncIterator[str]:
        """Yield accounts whose Secrets changed, by looking every few seconds."""
        known: dict[str, tuple[str, str]] = {}
        while True:
            there = [secret["metadata"] | {"account": _account_of(secret)} for secret in await self._secrets()]
            now = {metadata["name"]: (metadata["resourceVersion"], metadata["account"]) for metadata in there}
            for name in [n for n in {*known, *now} if known.get(n) != now.get(n)]:
                yield (now.get(name) or known[name])[1]
            known = now
            await asyncio.sleep(POLL_S)

    async def reseal(self) -> int:
        """Encrypt with the newest key what an older one encrypts."""
        done = 0
        for secret in await self._secrets():
            data = _data(secret)
            if not data or self._keyring.is_newest(data):
                continue
            with contextlib.suppress(Unopened, Conflict):
                grant, _ = opened(data, self._keyring)
                await self._put({**secret, "data": {_KEY: _text(sealed(grant, 0, self._keyring))}})
                done += 1
        return done

    # ------------------------------------------------------------------ leases

    async def _try_lease(self, account_id: str, token: str) -> float | None:
        """Return until when the lease is ours (monotonic), None where somebody else has it."""
        secret = await self._get(account_id) or self._new(account_id)
        held = _annotations(secret).get(LEASE, "")
        now_s = time.monotonic()
        if held:
            seen, since_s = self._seen.get(account_id, ("", now_s))
            if seen != held:
                self._seen[account_id] = (held, now_s)
                return None
            if now_s - since_s < self._lease_s:
                return None
            log.warning("lease_taken_over", account=account_id)
        try:
            await self._put(_with_lease(secret, token))
        except Conflict:
            return None
        self._seen.pop(account_id, None)
        return now_s + self._lease_s

    async def _release(self, account_id: str, token: str) -> None:
        """Give the lease back. Where that fails it ends by itself."""
        for _ in range(_RELEASE_TRIES):
            with contextlib.suppress(Conflict, StoreUnavailable):
                secret = await self._get(account_id)
                if secret is None or _annotations(secret).get(LEASE) != token:
                    return
                freed = await self._put(_with_lease(secret, ""))
                if not freed.get("data"):
                    await self._remove(freed["metadata"]["name"])
                return

    # ------------------------------------------------------------------ Secrets

    def _found(self, secret: Object) -> Found:
        data = _data(secret)
        if not data:
            return None
        try:
            grant, _ = opened(data, self._keyring)
            if self._name(grant.account_id) != secret["metadata"]["name"]:
                raise Unopened(f"the Secret holds the grant of {grant.account_id}")
            return Stored(grant, secret["metadata"]["resourceVersion"])
        except Unopened as e:
            return Unreadable(_account_of(secret), str(e))

    async def _compare(self, secret: Object | None, expected: str) -> None:
        """Raise Conflict where another state is there than the expected one; set aside what can't be read."""
        there = self._found(secret) if secret is not None else None
        if (there.revision if isinstance(there, Stored) else "") != expected:
            raise Conflict("the grant was changed by somebody else")
        if secret is not None and isinstance(there, Unreadable):
            metadata = {"name": f"{secret['metadata']['name']}-{secrets.token_hex(4)}-unreadable",
                        "annotations": {ACCOUNT: there.account_id}}
            await self._put({"apiVersion": "v1", "kind": "Secret", "type": SECRET_TYPE, "metadata": metadata,
                             "data": secret["data"]})

    def _new(self, account_id: str) -> Object:
        return {
            "apiVersion": "v1", "kind": "Secret", "type": SECRET_TYPE, "data": {},
            "metadata": {
                "name": self._name(account_id), "labels": {_LABEL: self._owner}, "annotations": {ACCOUNT: account_id},
            },
        }

    def _name(self, account_id: str) -> str:
        digest = hashlib.sha256(account_id.encode()).hexdigest()[:_NAME_CHARS]
        return f"{self._owner}-grant-{digest}"

    async def _secrets(self) -> list[Object]:
        found: list[Object] = []
        where = self._cluster.namespace
        await _asked(self._cluster.list("Secret", where, found.append, labels={_LABEL: self._owner}))
        return found

    async def _get(self, account_id: str) -> Object | None:
        return await _asked(self._cluster.get("Secret", self._name(account_id), self._cluster.namespace))

    async def _put(self, secret: Object) -> Object:
        """Create the Secret, or replace that very revision of it. Raises Conflict."""
        metadata = {**secret["metadata"], "namespace": self._cluster.namespace}
        metadata.pop("managedFields", None)
        body = {**secret, "apiVersion": "v1", "kind": "Secret", "metadata": metadata}
        if metadata.get("resourceVersion"):
            return await _asked(self._cluster.replace(body))
        return await _asked(self._cluster.create(body))

    async def _remove(self, name: str) -> None:
        with contextlib.suppress(Conflict):
            await _asked(self._cluster.delete("Secret", name, self._cluster.namespace))


async def _asked(call: Awaitable[T]) -> T:
    """Say what the API server said in the words of ports."""
    try:
        return await call
    except Unavailable as e:
        raise StoreUnavailable(e.why) from e
    except Refused as e:
        if e.code in ("Conflict", "AlreadyExists", "NotFound"):
            raise Conflict("the Secret was changed by somebody else") from e
        raise StoreUnavailable(f"the API server refuses: {e.code}") from e
    except SignalboxError as e:
        raise StoreUnavailable(str(e)) from e


def _with_lease(secret: Object, token: str) -> Object:
    annotations = {name: value for name, value in _annotations(secret).items() if name != LEASE}
    if token:
        annotations[LEASE] = token
    return {**secret, "metadata": {**secret["metadata"], "annotations": annotations}}


def _annotations(secret: Object) -> dict[str, str]:
    return dict(secret["metadata"].get("annotations") or {})


def _account_of(secret: Object) -> str:
    return _annotations(secret).get(ACCOUNT) or str(secret["metadata"]["name"])


def _data(secret: Object) -> bytes:
    return base64.b64decode((secret.get("data") or {}).get(_KEY, ""))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
