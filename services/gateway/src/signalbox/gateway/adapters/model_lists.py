"""Which models a provider lists for an account, asked at most every five minutes. Who may see them is domain's."""

import asyncio
import time
from http import HTTPStatus
from importlib.metadata import version
from typing import Any
from urllib.parse import urlencode

import msgspec

from signalbox.core import logs
from signalbox.core.errors import Unavailable
from signalbox.gateway.adapters.origins import Route, origin_of
from signalbox.gateway.adapters.upstream_pool import Unreachable, UpstreamPool
from signalbox.gateway.domain.events import Lost, ResponseHead
from signalbox.gateway.domain.models import Model
from signalbox.gateway.domain.ports import Credentials, CredentialUnusable
from signalbox.v1.scheduler_pb2 import AccountModels

log = logs.logger(__name__)

KEPT_S = 300.0
FAILURE_KEPT_S = 30.0
CALL_LIMIT_S = 10.0
MAX_PAGES = 5
MAX_PAGE_BYTES = 4 << 20
_USER_AGENT = f"signalbox/{version('signalbox-gateway')}".encode()


class _Listing(msgspec.Struct):
    data: list[dict[str, Any]]
    has_more: bool = False
    last_id: str | None = None


class ModelLists:
    """Caches lists by account and base URL; many callers that want one list wait for one answer."""

    def __init__(self, credentials: Credentials, pool: UpstreamPool) -> None:
        self._credentials = credentials
        self._pool = pool
        self._known: dict[tuple[str, str], tuple[float, list[Model] | None]] = {}
        self._asking: dict[tuple[str, str], asyncio.Task[list[Model] | None]] = {}

    async def of(self, account: AccountModels) -> list[Model] | None:
        """Return the account's models, or None where the provider could not be asked."""
        key = (account.account_id, account.base_url)
        until_s, listed = self._known.get(key, (0.0, None))
        if time.monotonic() < until_s:
            return listed
        asking = self._asking.get(key)
        if asking is None:
            asking = asyncio.create_task(self._refresh(key, listed))
            self._asking[key] = asking
            asking.add_done_callback(lambda _: self._asking.pop(key, None))
        return await asyncio.shield(asking)

    async def _refresh(self, key: tuple[str, str], before: list[Model] | None) -> list[Model] | None:
        try:
            listed: list[Model] | None = await self._ask(*key)
            kept_s = KEPT_S
        except Unavailable as e:
            log.info("models_not_listed", account=key[0], why=e.why)
            listed, kept_s = before, FAILURE_KEPT_S
        self._known[key] = (time.monotonic() + kept_s, listed)
        return listed

    async def _ask(self, account_id: str, base_url: str) -> list[Model]:
        try:
            credential = await self._credentials.get(account_id)
        except CredentialUnusable as e:
            raise Unavailable(account_id, e.reason) from e
        origin = origin_of(base_url)
        fields = [
            (b"host", origin.authority), *credential.headers, (b"anthropic-version", b"2023-06-01"),
            (b"user-agent", _USER_AGENT), (b"accept", b"application/json"), (b"accept-encoding", b"identity"),
        ]
        head = b"".join(b"%b: %b\r\n" % field for field in fields)
        route = Route(account_id, base_url, credential.proxy_url)
        models: list[Model] = []
        query = "limit=1000"
        for _ in range(MAX_PAGES):
            target = origin.path + b"/v1/models?" + query.encode()
            listing = await self._page(route, b"GET %b HTTP/1.1\r\n%b\r\n" % (target, head))
            models += [entry for entry in listing.data if isinstance(entry.get("id"), str)]
            if not listing.has_more or not listing.last_id:
                break
            query = urlencode({"limit": "1000", "after_id": listing.last_id})
        return models

    async def _page(self, route: Route, request: bytes) -> _Listing:
        answer = _Answer()
        try:
            async with asyncio.timeout(CALL_LIMIT_S):
                connection = await self._pool.connect(route, CALL_LIMIT_S)
                try:
                    connection.send(request, b"", answer)
                    await answer.done
                finally:
                    if not answer.whole:
                        connection.abandon()
        except TimeoutError as e:
            raise Unavailable(route.account_id, f"no answer within {CALL_LIMIT_S:g} s") from e
        except Unreachable as e:
            raise Unavailable(route.account_id, str(e)) from e
        if answer.status != HTTPStatus.OK or not answer.whole:
            raise Unavailable(route.account_id, f"HTTP {answer.status}" if answer.whole else "the answer broke off")
        try:
            return msgspec.json.decode(answer.body, type=_Listing)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise Unavailable(route.account_id, "the answer is not a list of models") from e


class _Answer:
    """Gathers one answer, up to a bound."""

    def __init__(self) -> None:
        self.status = 0
        self.body = bytearray()
        self.whole = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def received(self, head: ResponseHead | None, data: bytes, whole: bool) -> None:
        if head is not None:
            self.status = head.status
        self.body += data
        self.whole = whole
        if (whole or len(self.body) > MAX_PAGE_BYTES) and not self.done.done():
            self.done.set_result(None)

    def lost(self, how: Lost) -> None:
        if not self.done.done():
            self.done.set_result(None)
