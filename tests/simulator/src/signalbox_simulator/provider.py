"""The simulated provider: who asks, which behaviour they meet, and which endpoint answers.

Faults come first (a broken provider breaks before it looks at anybody), then the credential, then the endpoint.
"""

import asyncio
import hashlib
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from signalbox_simulator import control, messages, oauth, play, resources
from signalbox_simulator.accounts import Account, Accounts
from signalbox_simulator.behaviour import NOTHING, Behaviour, BehaviourError, parse_marker
from signalbox_simulator.content import PromptCache, last_user_turn
from signalbox_simulator.errors import ApiError, dumps
from signalbox_simulator.http1 import ClientGoneError, Connection, Exchange
from signalbox_simulator.plan import body_steps, compressed
from signalbox_simulator.script import Script, Subject
from signalbox_simulator.truth import Row, Truth

CONTROL = "/_sim/"
AUTHORIZE_PATH = "/oauth/authorize"
TOKEN_PATHS = ("/v1/oauth/token", "/oauth/token")
OAUTH_BETA = "oauth-2025-04-20"
MARKER = b"[[sim "
MAX_MESSAGE_BYTES = 32 * 1024 * 1024


@dataclass(slots=True)
class Settings:
    """What the process is started with."""

    seed: int = 1
    truth_rows: int = 200_000
    capture_body_bytes: int = 8192
    capture_budget_bytes: int = 32 * 1024 * 1024
    send_buffer_bytes: int = 0


@dataclass(slots=True)
class Call:
    """One request on its way through the provider."""

    exchange: Exchange
    row: Row
    account: Account | None
    behaviour: Behaviour = NOTHING
    parsed: Any = None

    @property
    def digest(self) -> bytes:
        """Return the request body's digest."""
        return self.exchange.request.hasher.digest()

    def headers(self, content_type: str = "application/json") -> list[tuple[str, str]]:
        """Return the headers that every answer has."""
        return [("content-type", content_type), ("request-id", self.row.request_id), ("server", "simulator")]


class Provider:
    """The application behind all connections, and everything it remembers."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.send_buffer_bytes = settings.send_buffer_bytes
        self.truth: Truth = Truth(settings.truth_rows, settings.capture_budget_bytes)
        self.accounts: Accounts = Accounts(time.monotonic, time.time)
        self.script: Script = Script(time.monotonic)
        self.cache: PromptCache = PromptCache(time.monotonic)
        self.tokens: oauth.TokenServer = oauth.TokenServer(time.time)
        self.store: resources.Store = resources.Store(time.time)
        self._sequence = 0
        self._nonce = secrets.token_hex(4)
        self._open: dict[Exchange, Call] = {}
        self.connections: set[Connection] = set()

    # ------------------------------------------------------------------ connections (http1.Application)

    def connected(self, connection: Connection) -> None:
        """Count a connection."""
        self.connections.add(connection)
        self.truth.connections += 1
        self.truth.open_connections += 1

    def disconnected(self, connection: Connection) -> None:
        """Count a connection's end."""
        self.connections.discard(connection)
        self.truth.open_connections -= 1

    def received(self, exchange: Exchange) -> bool:
        """Open the row; tell whether the script wants an answer before the body is here."""
        if exchange.request.path.startswith(CONTROL):
            return False
        call = self._open_call(exchange)
        early = None if exchange.connection.deaf else self.script.take_early(self._subject(call, body=None))
        if early is None:
            return False
        call.behaviour = early
        if early.unread_s:
            exchange.connection.read(False)
        return True

    def abandoned(self, exchange: Exchange) -> None:
        """Close the row of a request that was never handled: its client left, or the script made us deaf to it."""
        call = self._open.pop(exchange, None)
        if call is not None:
            self._close(call, "swallowed" if exchange.gone_at is None else _left(exchange))

    async def handle(self, exchange: Exchange) -> None:
        """Answer a request, as the script wants it."""
        if exchange.request.path.startswith(CONTROL):
            await control.handle(self, exchange)
            return
        call = self._open.pop(exchange)
        outcome = "failed"
        try:
            outcome = await self._serve(call)
        except ClientGoneError:
            exchange.gone_at = exchange.gone_at or time.time()
            outcome = _left(exchange)
        except asyncio.CancelledError:
            outcome = _left(exchange) if exchange.gone_at is not None else "stopped"
            raise
        finally:
            self._close(call, outcome)

    # ------------------------------------------------------------------ rows

    def _open_call(self, exchange: Exchange) -> Call:
        request, connection = exchange.request, exchange.connection
        seq = self.truth.next_seq
        credential, secret = _credential(request.named)
        account = self._account(secret)
        path, _, query = request.target.partition("?")
        row = Row(
            seq=seq, request_id=f"req_{self.new_id()}", connection=connection.number, ordinal=exchange.ordinal,
            connected_at=connection.connected_at, received_at=request.received_at, method=request.method,
            path=path, query=query, headers=request.headers, account=account.name if account else None,
            credential=credential,
        )
        self.truth.open(row)
        call = Call(exchange, row, account)
        self._open[exchange] = call
        return call

    def _close(self, call: Call, outcome: str) -> None:
        row, exchange, request = call.row, call.exchange, call.exchange.request
        row.body_at = request.body_at or None
        row.request_complete = request.complete
        row.request_bytes = request.body_bytes
        row.request_sha256 = request.hasher.digest()
        if request.body_bytes <= self.settings.capture_body_bytes:
            row.request_body = bytes(request.body)
        row.connection_bytes = exchange.connection.received_bytes
        row.status = exchange.status
        row.response_headers = exchange.response_headers
        row.sent_bytes = exchange.sent_bytes
        row.sent_sha256 = exchange.sent_hasher.digest()
        row.client_gone_at = exchange.gone_at
        if call.account is not None and row.usage is not None and row.model is not None:
            self.accounts.produced(call.account, row.model, int(row.usage.get("output_tokens") or 0))
        self.truth.close(row, outcome, time.time())

    def new_id(self) -> str:
        """Return what a new request's id and its message's are made from: unique over processes, in order within one."""
        self._sequence += 1
        digest = hashlib.blake2b(f"{self._nonce}:{self._sequence}".encode(), digest_size=9).hexdigest()
        return f"sim{digest}{self._sequence:06x}"

    # ------------------------------------------------------------------ serving

    async def _serve(self, call: Call) -> str:
        request = call.exchange.request
        try:
            self._read_body(call)
            if call.behaviour is NOTHING:
                call.behaviour = self._choose(call)
            b = call.behaviour
            call.row.behaviour = b
            if b.delay_s:
                await asyncio.sleep(b.delay_s)
            if b.drop is not None and not b.apply_first:
                return await play.drop(call.exchange, b.drop)
            if b.status is not None and b.status != 200:
                return await self.scripted_error(call)
            endpoint = self._endpoint(request.method, request.path)
            return await endpoint(self, call)
        except BehaviourError as e:
            return await self.error(call, ApiError(400, f"simulator: {e}"))
        except ApiError as e:
            return await self.error(call, e)

    def _read_body(self, call: Call) -> None:
        """Parse the body of a JSON request as far as the script's rules need it."""
        request, row = call.exchange.request, call.row
        if not request.complete or not request.body or request.body_bytes > MAX_MESSAGE_BYTES:
            return
        if "json" not in request.header("content-type"):
            return
        try:
            call.parsed = json.loads(request.body)
        except ValueError:
            return
        if isinstance(call.parsed, dict):
            model, stream = call.parsed.get("model"), call.parsed.get("stream")
            row.model = model if isinstance(model, str) else None
            row.stream = bool(stream)

    def _choose(self, call: Call) -> Behaviour:
        """Return the script's behaviour with what a marker in the last turn says laid over it."""
        chosen = self.script.take(self._subject(call, body=bytes(call.exchange.request.body)))
        if MARKER not in call.exchange.request.body or not isinstance(call.parsed, dict):
            return chosen
        marked = parse_marker(last_user_turn(call.parsed)[0])
        if marked is None or not self.script.mark(marked, call.digest):
            return chosen
        return marked.over(chosen)

    def _subject(self, call: Call, body: bytes | None) -> Subject:
        request = call.exchange.request
        return Subject(account=call.row.account, path=request.path, headers=request.named, model=call.row.model,
                       stream=call.row.stream, body=body)

    def _endpoint(self, method: str, path: str) -> Callable[["Provider", Call], Awaitable[str]]:
        if method == "POST" and path in TOKEN_PATHS:
            return oauth.token
        if (method, path) == ("GET", AUTHORIZE_PATH):
            return oauth.authorize
        if path == "/v1/messages" and method == "POST":
            return messages.create
        if path == "/v1/messages/count_tokens" and method == "POST":
            return messages.count_tokens
        return resources.serve

    def authenticate(self, call: Call) -> Account:
        """Return the caller's account. Raises ApiError 401 or 403."""
        if call.account is None:
            if call.row.credential == "none":
                raise ApiError(401, "x-api-key header is required")
            bearer = call.row.credential == "bearer"
            raise ApiError(401, "Invalid bearer token" if bearer else "invalid x-api-key")
        if call.account.disabled:
            raise ApiError(403, "This organization has been disabled.", error_code=call.account.disabled)
        betas = call.exchange.request.header("anthropic-beta")
        _, secret = _credential(call.exchange.request.named)
        if self.tokens.issued(secret) and OAUTH_BETA not in [b.strip() for b in betas.split(",")]:
            raise ApiError(401, "OAuth authentication is currently not supported.")
        if not call.exchange.request.header("anthropic-version"):
            raise ApiError(400, "anthropic-version: header is required")
        return call.account

    def _account(self, secret: str) -> Account | None:
        name = self.tokens.account_of(secret)
        return self.accounts.named(name) if name is not None else self.accounts.by_key(secret)

    # ------------------------------------------------------------------ answering

    async def answer(self, call: Call, body: bytes, *, status: int = 200, content_type: str = "application/json",
                     headers: list[tuple[str, str]] | None = None) -> str:
        """Send a whole body under the call's behaviour and return the outcome."""
        b, exchange = call.behaviour, call.exchange
        if b.drop is not None:
            return await play.drop(exchange, b.drop)
        sent, encoding = compressed(body, b)
        own = [*call.headers(content_type), *encoding, *(headers or [])]
        if call.account is not None:
            own += self.accounts.headers(call.account, call.row.model)
        await play.send_head(exchange, b, b.status or status, own, length=len(sent))
        outcome = await play.play(exchange, call.row, body_steps(sent, b))
        if b.unread_s:
            await asyncio.sleep(b.unread_s)
            exchange.connection.read(True)
        if outcome == play.COMPLETE:
            await play.finish(exchange, b)
        return outcome

    async def error(self, call: Call, error: ApiError) -> str:
        """Answer with an error."""
        if error.status == 413:  # the body may not have been read
            call.exchange.keep_alive = False
        return await self.answer(call, dumps(error.document(call.row.request_id)), status=error.status,
                                 headers=error.headers)

    async def scripted_error(self, call: Call) -> str:
        """Answer with the status, and the body where one is given, that the behaviour names."""
        b = call.behaviour
        assert b.status is not None
        headers = [] if b.retry_after is None else [("retry-after", str(b.retry_after))]
        if b.body is not None:
            body = b.body.encode() if isinstance(b.body, str) else dumps(b.body)
            return await self.answer(call, body, status=b.status, headers=headers)
        return await self.error(call, ApiError(b.status, b.message, error_type=b.error_type, error_code=b.error_code,
                                               details=b.details, headers=headers))


def _left(exchange: Exchange) -> str:
    """Return how a call ended whose connection is gone."""
    return play.CUT if exchange.connection.was_cut else "client_gone"


def _credential(named: dict[str, str]) -> tuple[str, str]:
    """Return how the caller authenticates and with what."""
    key, authorization = named.get("x-api-key", ""), named.get("authorization", "")
    bearer = authorization[7:].strip() if authorization[:7].lower() == "bearer " else ""
    if key and bearer:
        return "both", key
    if key:
        return "x-api-key", key
    return ("bearer", bearer) if bearer else ("none", "")
