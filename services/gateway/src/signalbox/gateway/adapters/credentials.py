"""Credentials from the token-refresher: pushed by Watch, cached until a minute before they expire, asked for on demand.

While the token-refresher is away what is cached goes on serving; a gateway that has nothing yet waits for it.
"""

import asyncio
import time
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from signalbox.core import logs
from signalbox.gateway.domain.ports import Credential, CredentialUnusable
from signalbox.v1 import token_refresher_pb2 as pb
from signalbox.v1.token_refresher_pb2_grpc import TokenRefresherStub

if TYPE_CHECKING:
    from signalbox.v1.token_refresher_pb2_grpc import TokenRefresherAsyncStub

log = logs.logger(__name__)

EXPIRY_MARGIN_MS = 60_000
CALL_LIMIT_S = 10.0
WATCH_RETRY_S = 0.5
# Why a credential can't be had at this moment, in the token-refresher's own words.
_PASSING = frozenset(("RefreshFailing", "RefreshPending"))


class CredentialCache:
    """Implements ports.Credentials."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: TokenRefresherAsyncStub = TokenRefresherStub(channel)
        self._known: dict[str, tuple[Credential, int]] = {}
        self._asking: dict[str, asyncio.Task[Credential]] = {}
        self._watching: asyncio.Task[None] | None = None
        self.synced = asyncio.Event()

    def start(self) -> None:
        """Begin to watch."""
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop watching."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    def cached(self, account_id: str) -> Credential | None:
        """Return the account's credential if one is here that lasts another minute."""
        known = self._known.get(account_id)
        if known is None:
            return None
        credential, expires_at_ms = known
        if expires_at_ms and expires_at_ms - EXPIRY_MARGIN_MS < time.time() * 1000:
            return None
        return credential

    async def get(self, account_id: str, rejected_version: str = "") -> Credential:
        """Ask the token-refresher, once for all that wait for the same account. Raises CredentialUnusable."""
        if rejected_version:
            self._forget(account_id, rejected_version)
        elif (known := self.cached(account_id)) is not None:
            return known
        key = f"{account_id}\n{rejected_version}"
        asking = self._asking.get(key)
        if asking is None:
            asking = asyncio.create_task(self._ask(account_id, rejected_version))
            self._asking[key] = asking
            asking.add_done_callback(lambda _: self._asking.pop(key, None))
        return await asyncio.shield(asking)

    # ------------------------------------------------------------------ inside

    def _forget(self, account_id: str, version: str) -> None:
        known = self._known.get(account_id)
        if known is not None and known[0].version == version:
            del self._known[account_id]

    def _keep(self, message: pb.Credential) -> Credential:
        headers = tuple((h.name.encode(), h.value.encode()) for h in message.headers)
        credential = Credential(message.account_id, message.version, headers, message.proxy_url)
        self._known[message.account_id] = (credential, message.expires_at_ms)
        return credential

    async def _ask(self, account_id: str, rejected_version: str) -> Credential:
        request = pb.GetCredentialRequest(account_id=account_id, rejected_version=rejected_version)
        try:
            # A gateway that has just started knows no credential at all: to fail would fail on every account. It waits
            # for a token-refresher that is about to come; later on another account's credential is here to serve.
            new = not self.synced.is_set()
            return self._keep(await self._stub.GetCredential(request, timeout=CALL_LIMIT_S, wait_for_ready=new))
        except grpc.aio.AioRpcError as e:
            reason = e.details() or ""
            if e.code() is grpc.StatusCode.FAILED_PRECONDITION:
                raise CredentialUnusable(reason, "the account's credential is not usable", transient=False) from e
            if e.code() is grpc.StatusCode.NOT_FOUND:
                raise CredentialUnusable("CredentialMissing", "the account has no credential", transient=False) from e
            if reason in _PASSING:
                raise CredentialUnusable(reason, "the account's token can't be renewed now", transient=True) from e
            raise CredentialUnusable("TokenRefresherUnavailable", reason, transient=True) from e

    async def _watch(self) -> None:
        while True:
            try:
                await self._follow()
            except grpc.aio.AioRpcError as e:
                log.info("credential_watch_lost", why=e.details())
            await asyncio.sleep(WATCH_RETRY_S)

    async def _follow(self) -> None:
        """Keep what is pushed; once the initial list is complete, drop what was not in it."""
        listed: set[str] | None = set()
        async for event in self._stub.Watch(pb.WatchCredentialsRequest()):
            if event.type == pb.CredentialEvent.PUT:
                self._keep(event.credential)
                if listed is not None:
                    listed.add(event.account_id)
            elif event.type == pb.CredentialEvent.REMOVED:
                self._known.pop(event.account_id, None)
            elif event.type == pb.CredentialEvent.SYNCED and listed is not None:
                self._known = {account: kept for account, kept in self._known.items() if account in listed}
                listed = None
                self.synced.set()
