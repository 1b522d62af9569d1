"""Which models a provider lists for an account, asked at most every five minutes. Who may see them is domain's."""

import asyncio
import ssl
import time
from importlib.metadata import version
from typing import Any

import httpx2
import msgspec

from signalbox.core import logs
from signalbox.core.errors import Unavailable
from signalbox.gateway.domain.models import Model
from signalbox.gateway.domain.ports import Credentials, CredentialUnusable
from signalbox.v1.scheduler_pb2 import AccountModels

log = logs.logger(__name__)

KEPT_S = 300.0
FAILURE_KEPT_S = 30.0
CALL_LIMIT_S = 10.0
MAX_PAGES = 5
MAX_PAGE_BYTES = 4 << 20
_USER_AGENT = f"signalbox/{version('signalbox-gateway')}"


class _Listing(msgspec.Struct):
    data: list[dict[str, Any]]
    has_more: bool = False
    last_id: str | None = None


class ModelLists:
    """Caches lists by account and base URL; many callers that want one list wait for one answer."""

    def __init__(self, credentials: Credentials, tls: ssl.SSLContext) -> None:
        self._credentials = credentials
        self._client = httpx2.AsyncClient(timeout=CALL_LIMIT_S, follow_redirects=False, trust_env=False, verify=tls)
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

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

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
        if credential.proxy_url:
            raise Unavailable(account_id, "models are not listed through proxies yet")
        headers = {name.decode(): value.decode() for name, value in credential.headers}
        headers |= {"anthropic-version": "2023-06-01", "user-agent": _USER_AGENT}
        models: list[Model] = []
        params = {"limit": "1000"}
        for _ in range(MAX_PAGES):
            listing = await self._page(account_id, f"{base_url.rstrip('/')}/v1/models", params, headers)
            models += [entry for entry in listing.data if isinstance(entry.get("id"), str)]
            if not listing.has_more or not listing.last_id:
                break
            params["after_id"] = listing.last_id
        return models

    async def _page(
        self, account_id: str, url: str, params: dict[str, str], headers: dict[str, str],
    ) -> _Listing:
        try:
            answer = await self._client.get(url, params=params, headers=headers)
        except httpx2.HTTPError as e:
            raise Unavailable(account_id, type(e).__name__) from e
        if answer.status_code != httpx2.codes.OK or len(answer.content) > MAX_PAGE_BYTES:
            raise Unavailable(account_id, f"HTTP {answer.status_code}")
        try:
            return msgspec.json.decode(answer.content, type=_Listing)
        except (msgspec.DecodeError, RecursionError) as e:
            raise Unavailable(account_id, "the answer is not a list of models") from e
