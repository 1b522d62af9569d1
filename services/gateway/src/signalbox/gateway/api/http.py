"""Every route that is not relayed: models, a key's own limits and usage, health. All else is `route_unknown`."""

import asyncio
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from signalbox.core import logs
from signalbox.core.clock import Clock
from signalbox.core.errors import Unavailable
from signalbox.core.ids import new_id
from signalbox.core.telemetry import Readiness
from signalbox.gateway.adapters.model_lists import ModelLists
from signalbox.gateway.adapters.usage_reports import UsageReports
from signalbox.gateway.api import views
from signalbox.gateway.api.answers import JSON, render
from signalbox.gateway.api.keycheck import KeyCheck
from signalbox.gateway.api.routes import plain_path
from signalbox.gateway.api.seldom import Application, Message, Receive, Scope, Send
from signalbox.gateway.domain import records
from signalbox.gateway.domain.caller import Caller, plain_address
from signalbox.gateway.domain.key_limits import ratelimit_headers
from signalbox.gateway.domain.models import Model, page, visible
from signalbox.gateway.domain.order import Order
from signalbox.gateway.domain.ports import Journal
from signalbox.gateway.domain.refusal import Refusal
from signalbox.v1.scheduler_pb2 import InspectResponse
from signalbox.wire.errors import envelope

log = logs.logger(__name__)

READABLE = frozenset(("key_paused",))    # a paused key may still be looked at
GROUPS = ("", "day", "model")
UNGUARDED = ("/", "/health", "/healthz")


class PlainPaths:
    """Takes prefixes and doubled slashes off before the application routes, and names every request."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = new_id("sbx_req_")
        header = (b"x-signalbox-request-id", request_id.encode())

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], header]
            await send(message)

        path = plain_path(scope["path"].encode()).decode()
        await self._app({**scope, "path": path, "state": {"request_id": request_id}}, receive, named)


class CallerRoutes:
    """The handlers' dependencies."""

    def __init__(
        self, *, clock: Clock, keys: KeyCheck, journal: Journal, models: ModelLists, reports: UsageReports,
        readiness: Readiness,
    ) -> None:
        self._clock = clock
        self._keys = keys
        self._journal = journal
        self._models = models
        self._reports = reports
        self._readiness = readiness

    def application(self) -> PlainPaths:
        """Return the ASGI application."""
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
        for path in UNGUARDED:
            app.add_api_route(path, self.alive, methods=["GET", "HEAD"])
        app.add_api_route("/readyz", self.ready, methods=["GET", "HEAD"])
        app.add_api_route("/v1/models", self.list_models)
        app.add_api_route("/v1/models/{model_id:path}", self.get_model)
        app.add_api_route("/v1/key-info", self.key_info)
        app.add_api_route("/v1/usage", self.usage)
        app.add_exception_handler(Refusal, self._refused)
        app.add_exception_handler(HTTPException, self._unknown)
        app.add_exception_handler(Exception, self._defect)
        return PlainPaths(app)

    # ---------------------------------------------------------------- routes

    async def alive(self) -> Response:
        """Say that the event loop turns; depends on nothing else."""
        return _json({"status": "ok"})

    async def ready(self) -> Response:
        """Say what is missing before requests can be served."""
        missing = self._readiness.report()
        return _json({"ready": not missing, "missing": missing}, 503 if missing else 200)

    async def list_models(self, request: Request) -> Response:
        """List the models that this key may ask for."""
        query = request.query_params
        wanted = page(query.get("limit", ""), query.get("after_id", ""), query.get("before_id", ""))
        return _json(wanted.of(await self._visible_models(request)))

    async def get_model(self, request: Request, model_id: str) -> Response:
        """Describe one of them."""
        for model in await self._visible_models(request):
            if model["id"] == model_id:
                return _json(model)
        raise Refusal("no_account_for_model", "No account that this key may use has such a model.")

    async def key_info(self, request: Request) -> Response:
        """Show the caller's key: state, limits and what is used of them."""
        answer = await self._inspect(request, "key-info", with_limits=True, allowed=READABLE)
        response = _json(views.key_info(answer))
        for name, value in ratelimit_headers(answer.limits):
            response.headers[name.decode()] = value.decode()
        return response

    async def usage(self, request: Request) -> Response:
        """Show what the caller's key has used."""
        query = request.query_params
        by = ",".join(query.getlist("by"))
        if by not in GROUPS:
            raise Refusal("request_invalid", "by: must be day or model")
        since_ms = views.moment_ms(query.get("since", ""), "since")
        until_ms = views.moment_ms(query.get("until", ""), "until")
        answer = await self._inspect(request, "usage", allowed=READABLE)
        try:
            rows = await self._reports.of_key(answer.key_id, by, since_ms, until_ms)
        except Unavailable as e:
            raise Refusal(
                "ledger_unavailable", "The ledger can't be asked at the moment; try again shortly.",
                retry_after_ms=1000,
            ) from e
        return _json(views.usage_rows(rows, by))

    # ---------------------------------------------------------------- keys

    async def _visible_models(self, request: Request) -> list[Model]:
        answer = await self._inspect(request, "models", with_accounts=True)
        listings = await asyncio.gather(*(self._models.of(account) for account in answer.accounts))
        listed = [(a, models) for a, models in zip(answer.accounts, listings, strict=True) if models is not None]
        if answer.accounts and not listed:
            raise Refusal("upstream_failed", "No provider could be asked for its models; try again.")
        return visible(listed, answer.key_models)

    async def _inspect(
        self, request: Request, route: str, *, with_limits: bool = False, with_accounts: bool = False,
        allowed: frozenset[str] = frozenset(),
    ) -> InspectResponse:
        peer = plain_address(request.client.host) if request.client is not None else ""
        order = Order(request.state.request_id, route, Caller(request.scope["headers"], peer))
        try:
            self._keys.identify(order.caller)
            return await self._keys.inspect(
                order, with_limits=with_limits, with_accounts=with_accounts, allowed=allowed,
            )
        except Refusal as refusal:
            status, _, _ = render(refusal, order.request_id)
            self._journal.deny(records.denial(order, refusal, status, self._clock.now_ms()))
            raise

    # ---------------------------------------------------------------- errors

    async def _refused(self, request: Request, refusal: Exception) -> Response:
        assert isinstance(refusal, Refusal)
        status, headers, body = render(refusal, request.state.request_id)
        return Response(body, status, {name.decode(): value.decode() for name, value in headers})

    async def _unknown(self, request: Request, _: Exception) -> Response:
        return await self._refused(
            request, Refusal("route_unknown", f"Signalbox has no route {request.method} {request.url.path}."),
        )

    async def _defect(self, request: Request, _: Exception) -> Response:
        log.error("route_defect", request_id=request.state.request_id, path=request.url.path)
        body = envelope("api_error", "Signalbox failed on this request.", "internal_error", request.state.request_id)
        return Response(body, 500, {JSON[0].decode(): JSON[1].decode()})


def _json(content: dict[str, Any], status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")
