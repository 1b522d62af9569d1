"""The HTTP side that callers talk to: uvicorn's protocol, with the relay's routes served on the transport itself.

Parsing, keep-alive and pipelining stay uvicorn's and llhttp's business; every other route falls through to the
application. Here are the bounds that a public port needs: head size, slow heads and bodies, lingering closes.
"""

import asyncio
from collections.abc import Callable, Coroutine
from enum import Enum, auto
from typing import Any, Protocol

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from signalbox.core import logs
from signalbox.gateway.api.answers import to_unreadable
from signalbox.gateway.api.exchange import Exchange, Header
from signalbox.gateway.api.routes import relayed_target
from signalbox.gateway.api.running import Running
from signalbox.gateway.api.strangers import Strangers
from signalbox.gateway.api.unread import Unread
from signalbox.gateway.domain.buffers import Buffers
from signalbox.gateway.domain.caller import Caller, plain_address
from signalbox.gateway.domain.repeated import RepeatedHead
from signalbox.gateway.settings import GatewaySettings

log = logs.logger(__name__)

MAX_HEAD_BYTES = 64 << 10
MAX_BARE_BYTES = 64 << 10    # of trailers and framing in a row, without any of the body
MAX_AHEAD_BYTES = 64 << 10
MAX_BODY_S = 600.0
LINGER_S = 2.0

_HEAD_TOO_LARGE = f"The request's head is larger than {MAX_HEAD_BYTES} bytes."


class Relay(Protocol):
    """Who answers relayed requests."""

    def serve(self, exchange: Exchange) -> Coroutine[Any, None, None]:
        """Answer `exchange`; never raises."""
        ...


class _Unserved(Exception):
    """Stops the parser on a head that is valid and still not served; says why."""


class _Reading(Enum):
    NOTHING = auto()
    HEAD = auto()
    BODY = auto()


class RelayProtocol(HttpToolsProtocol):
    """One client connection. `bind` makes the class that uvicorn instantiates."""

    relay: Relay
    settings: GatewaySettings
    buffers: Buffers
    strangers: Strangers
    unread: Unread
    write: Callable[[bytes], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reading = _Reading.NOTHING
        self._reading_since_s = 0.0
        self._read_at_s = 0.0
        self._head_bytes = 0
        self._bare_bytes = 0
        self._feeding = 0
        self._ahead_bytes = 0
        self._offered_upgrade = False
        self._unknown = False
        self._incoming: Exchange | None = None
        self._active: Exchange | None = None
        self._lingering = False
        self._read_timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle
        self._idle_since_s = 0.0
        self._peer = ""
        self._caller: Caller | None = None
        self._length: bytes | None = None    # the content-length header, kept apart: it alone differs between requests
        self._same_head = False    # as the request before
        self._usual: RepeatedHead | None = None    # how requests begin here, once two did so

    @classmethod
    def bind(cls, relay: Relay, settings: GatewaySettings, buffers: Buffers) -> type["RelayProtocol"]:
        """Return the class with what its connections share."""
        return type("BoundRelayProtocol", (cls,), {
            "relay": relay, "settings": settings, "buffers": buffers,
            "strangers": Strangers(settings.max_strangers), "unread": Unread(settings.max_buffered_bytes // 4),
        })

    # ---------------------------------------------------------------- asyncio

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.write = transport.write
        self._unknown = True
        self.strangers.enter(self)
        self._peer = plain_address(self.client[0]) if self.client else ""
        self._idle_since_s = self.loop.time()
        self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._idle_expired)

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        between = self._reading is _Reading.NOTHING
        if self._usual is not None and not self._busy() and (body := self._usual.body(data)) is not None:
            self._take_usual(self._usual, body)
            return
        self._feeding = len(data)
        self._bare_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as e:
            self._decline_upgrade(data[e.args[0]:])
            return
        except httptools.HttpParserError as e:
            self._refuse_unparsed(e)
            return
        self._bound_reading(len(data))
        if between:
            self._usual = self._learnt(data)

    def _learnt(self, data: bytes) -> RepeatedHead | None:
        """Return how to know such a request again if `data` was all of the one that is answered now."""
        exchange = self._active
        if not self._same_head or self._reading is not _Reading.NOTHING or self._lingering:
            return None
        if exchange is None or not exchange.plain or self.cycle is not exchange:  # type: ignore[comparison-overlap]
            return None
        return RepeatedHead.of(data, exchange.route, exchange.query, exchange.caller)

    def _take_usual(self, usual: RepeatedHead, body: bytes) -> None:
        """Begin the exchange of a request that needs no parsing."""
        exchange = Exchange(
            self, self.buffers, route=usual.route, query=usual.query, caller=usual.caller, length=len(body),
            max_body=self.settings.max_body_bytes, expects_continue=False, keep_alive=True, http10=False,
            now_s=self.loop.time(),
        )
        exchange.feed(body)
        exchange.feed_end()
        self.cycle = self._active = exchange  # type: ignore[assignment]
        self._ahead_bytes = 0
        self._begun(exchange).go_on()    # at once: no parser is under way that an answer could surprise

    def _decline_upgrade(self, rest: bytes) -> None:
        """Read the same request again without its offer: the parser skips the bodies of those that have one."""
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/1.1\r\n"]
        for name, value in self.headers:
            if name != b"upgrade":
                head += (name, b": ", value, b"\r\n")
        if self._length is not None:
            head += (b"content-length: ", self._length, b"\r\n")
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.data_received(b"".join((*head, b"\r\n", rest)))

    def _refuse_unparsed(self, error: httptools.HttpParserError) -> None:
        cause = error.__context__
        if isinstance(cause, _Unserved):
            self._refuse(str(cause))
            return
        if isinstance(error, httptools.HttpParserCallbackError) and not isinstance(
            cause, httptools.HttpParserInvalidURLError,
        ):
            log.error("protocol_defect", exc_info=cause or error)
        self._refuse("The request is not valid HTTP.")

    def connection_lost(self, exc: Exception | None) -> None:
        self._idle_timer.cancel()
        self.strangers.leave(self)
        self.unread.caught_up(self)
        if self._read_timer is not None:
            self._read_timer.cancel()
        for exchange in self._exchanges():
            if not exchange.response_complete:
                exchange.hung_up()
        cycle, self.cycle = self.cycle, None  # type: ignore[assignment]
        if not isinstance(cycle, Exchange):
            self.cycle = cycle
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.unread.fell_behind(self, self.transport.get_write_buffer_size())
        if self._active is not None and self._active.on_full is not None:
            self._active.on_full()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.unread.caught_up(self)
        if self._active is not None and self._active.on_drained is not None:
            self._active.on_drained()

    def shutdown(self) -> None:
        """Stop serving this connection: at once when idle, else after the answers that are owed."""
        owed = [e for e in self._exchanges() if not e.response_complete]
        for exchange in owed:
            exchange.keep_alive = False
        if not owed:
            super().shutdown()

    def cut_off(self) -> None:
        """Close at once, whatever is owed."""
        self.transport.abort()

    def make_room(self) -> None:
        """Close, after the answer that somebody is working on if there is one."""
        exchange = self._active
        waiting_for_body = exchange is not None and not exchange.begun
        if waiting_for_body or self.cycle is None or self.cycle.response_complete:
            self.transport.abort()
        else:
            self.shutdown()

    # ---------------------------------------------------------------- httptools

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self._length = None
        self.expect_100_continue = False
        self._reading = _Reading.HEAD
        self._reading_since_s = self.loop.time()
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reading is not _Reading.HEAD:
            return  # a trailer: nobody's header
        name = name.lower()
        if name == b"content-length":
            self._length = value
        else:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise _Unserved("This is no proxy: CONNECT is not served.")
        if self.parser.should_upgrade():
            self._offered_upgrade = True
            return
        self._offered_upgrade = False
        self._reading = _Reading.BODY
        if self._head_bytes + self._feeding > MAX_HEAD_BYTES and self._head_size() > MAX_HEAD_BYTES:
            raise _Unserved(_HEAD_TOO_LARGE)
        route, query = relayed_target(method, self.url)
        if route is None:
            self._incoming = None
            self._begin_for_application()
            super().on_headers_complete()
            return
        caller = self._caller
        self._same_head = caller is not None and caller.headers == self.headers
        if caller is None or not self._same_head:
            caller = self._caller = Caller(self.headers, self._peer)
        length = None if caller.chunked else int(self._length or 0)
        http10 = self.parser.get_http_version() == "1.0"
        exchange = Exchange(
            self, self.buffers, route=route, query=query, caller=caller, length=length,
            max_body=self.settings.max_body_bytes, expects_continue=caller.expects_continue and not http10,
            keep_alive=self.parser.should_keep_alive(), http10=http10, now_s=self._reading_since_s,
        )
        self._incoming = exchange
        busy = self.cycle is not None and not self.cycle.response_complete
        self.cycle = exchange  # type: ignore[assignment]
        if busy:
            self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]
        else:
            self._activate(exchange)

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _begin_for_application(self) -> None:
        """Let uvicorn lay out its scope, which relayed requests do without."""
        url, headers = self.url, self.headers
        if self._length is not None:
            headers.append((b"content-length", self._length))
        super().on_message_begin()
        self.url, self.headers = url, headers
        self.expect_100_continue = Caller(headers, self._peer).expects_continue
        self.scope["headers"] = headers

    def on_body(self, body: bytes) -> None:
        self._bare_bytes = 0
        exchange = self._incoming
        if exchange is None:
            super().on_body(body)
            return
        exchange.feed(body)
        if exchange is self._active and exchange.unread:
            self._serve(exchange)

    def on_message_complete(self) -> None:
        if self._offered_upgrade:
            return
        self._reading = _Reading.NOTHING
        exchange, self._incoming = self._incoming, None
        if exchange is None:
            super().on_message_complete()
            return
        exchange.feed_end()
        if exchange is self._active:
            self._serve(exchange)

    # ---------------------------------------------------------------- exchanges

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, Exchange):
            self._activate(cycle)
        else:
            self._active = None
            super()._start_asgi_task(cycle, app)

    def _activate(self, exchange: Exchange) -> None:
        """Make it the one that is answered now; begin when it is whole, or at once to ask whether to read on."""
        self._active = exchange
        self._ahead_bytes = 0
        if exchange.complete or exchange.unread:
            self._serve(exchange)

    def _serve(self, exchange: Exchange) -> None:
        if not exchange.begun:
            self.loop.call_soon(self._begun(exchange).go_on)

    def _begun(self, exchange: Exchange) -> Running:
        exchange.begun = True
        running = Running(self.relay.serve(exchange), self.tasks.discard)
        self.tasks.add(running)    # type: ignore[arg-type]  # the server stops when none is left
        return running

    def _exchanges(self) -> list[Exchange]:
        waiting: list[Any] = [cycle for cycle, _ in self.pipeline]
        return [cycle for cycle in (*waiting, self._active) if isinstance(cycle, Exchange)]

    # ---------------------------------------------------------------- exchange.Line

    def write_all(self, parts: list[bytes]) -> None:
        self.transport.writelines(parts)

    def hold(self) -> None:
        self.flow.pause_reading()

    def go_on(self) -> None:
        self.flow.resume_reading()

    def known(self) -> None:
        if self._unknown:
            self._unknown = False
            self.strangers.leave(self)

    def answered(self, exchange: Exchange, reusable: bool) -> None:
        if reusable:
            self.on_response_complete()
        elif exchange.complete:
            self.server_state.total_requests += 1
            self.transport.close()
        else:
            self._linger()

    def break_off(self) -> None:
        self.transport.abort()

    def date(self) -> list[Header]:
        return self.server_state.default_headers

    def is_full(self) -> bool:
        return self.flow.write_paused

    # ---------------------------------------------------------------- bounds

    def on_response_complete(self) -> None:
        if self._reading is _Reading.BODY and self._incoming is None:
            self._linger()  # the application answered without wanting the body
            return
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._idle_since_s = self.loop.time()
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())

    def _idle_expired(self) -> None:
        """Close a connection on which nothing happened for long; one timer serves all of its requests."""
        now_s = self.loop.time()
        deadline_s = (now_s if self._busy() else self._idle_since_s) + self.timeout_keep_alive
        if now_s < deadline_s:
            self._idle_timer = self.loop.call_at(deadline_s, self._idle_expired)
        elif unread := self.transport.get_write_buffer_size():
            self._idle_timer = self.loop.call_later(self.settings.client_stall_s, self._stalled, unread)
        else:
            self.timeout_keep_alive_handler()

    def _busy(self) -> bool:
        return self._reading is not _Reading.NOTHING or (self.cycle is not None and not self.cycle.response_complete)

    def _stalled(self, unread: int) -> None:
        """Cut off a caller that has taken nothing of an ended answer meanwhile: to close would wait for it for ever."""
        if not self._busy() and 0 < unread <= self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self._idle_expired()

    def _linger(self) -> None:
        """Close, but drop what the caller still sends for a moment, so that a reset does not eat the answer."""
        self._lingering = True
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.abort)

    def _refuse(self, message: str) -> None:
        """Answer what can't be read on; after answers that are owed only close."""
        exchange = self._incoming
        if exchange is not None and exchange is self._active and not exchange.response_complete:
            self._lingering = True
            exchange.broken(message)
            self._serve(exchange)
        elif self.cycle is not None and not self.cycle.response_complete:
            self._lingering = True
            self.shutdown()
        else:
            self.send_400_response(message)

    def send_400_response(self, msg: str) -> None:
        """Answer in the caller's format rather than uvicorn's plain text."""
        self.transport.write(to_unreadable(msg))
        self._linger()

    def _bound_reading(self, count: int) -> None:
        if self._reading is _Reading.NOTHING:
            if self._read_timer is not None:
                self._read_timer.cancel()
                self._read_timer = None
            return
        self._read_at_s = self.loop.time()
        if self._reading is _Reading.HEAD:
            self._head_bytes += count
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(_HEAD_TOO_LARGE)
                return
        elif self._bare_bytes > MAX_BARE_BYTES:
            self._refuse("The request's body is framed by more bytes than it has.")
            return
        if self._active is not None and self._incoming is not self._active and not self._active.response_complete:
            self._ahead_bytes += count
            if self._ahead_bytes > MAX_AHEAD_BYTES:
                self.flow.pause_reading()  # the next requests wait in the kernel; on_response_complete reads on
        if self._read_timer is None:
            self._read_timer = self.loop.call_at(self._reading_deadline_s(), self._reading_expired)

    def _reading_deadline_s(self) -> float:
        if self._reading is _Reading.HEAD:
            return self._reading_since_s + self.settings.head_timeout_s
        return min(self._read_at_s + self.settings.body_timeout_s, self._reading_since_s + MAX_BODY_S)

    def _reading_expired(self) -> None:
        self._read_timer = None
        if self._reading is _Reading.NOTHING or self.transport.is_closing():
            return
        deadline_s = self._reading_deadline_s()
        if self.loop.time() < deadline_s or self.flow.read_paused:
            at_s = max(deadline_s, self.loop.time() + 1.0)
            self._read_timer = self.loop.call_at(at_s, self._reading_expired)
        elif self._incoming is not None:
            if self._incoming is self._active:
                self._incoming.broken("The request's body did not arrive in time.")
                self._serve(self._incoming)
            else:
                self.shutdown()
        else:
            self.transport.abort()
