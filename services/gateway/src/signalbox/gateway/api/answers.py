"""Answers that callers get: a provider's, with what must not be passed on taken out, and Signalbox's own errors."""

import math
from http import HTTPStatus

from signalbox.core.ids import new_id
from signalbox.gateway.api.exchange import Exchange, Header
from signalbox.gateway.domain.events import ResponseHead
from signalbox.gateway.domain.key_limits import ratelimit_lines
from signalbox.gateway.domain.order import Order
from signalbox.gateway.domain.refusal import Refusal
from signalbox.gateway.domain.request import Verbatim
from signalbox.wire.errors import OWN_ERRORS, envelope
from signalbox.wire.headers import downstream, lines

JSON: Header = (b"content-type", b"application/json")


def marks(order: Order) -> bytes:
    """Return the lines of a head by which Signalbox tells what it did."""
    return b"x-signalbox-request-id: %b\r\nx-signalbox-attempts: %d\r\n%b%b" % (
        order.request_id.encode(), order.attempts, order.limit_lines,
        b"x-signalbox-repinned: true\r\n" if order.repinned else b"",
    )


def begin_providers(exchange: Exchange, order: Order, head: ResponseHead, length: int | None) -> None:
    """Begin to pass a provider's answer on; `length` None: a stream."""
    exchange.start(head.status, lines(downstream(head.headers, head.fields)) + marks(order), length)


def send_verbatim(exchange: Exchange, order: Order, answer: Verbatim) -> None:
    """Pass a provider's own error on."""
    begin_providers(exchange, order, answer.head, len(answer.body))
    exchange.send(answer.body, last=True)


def send_refusal(exchange: Exchange, order: Order, refusal: Refusal) -> int:
    """Answer with an error of the contract's table; return its status."""
    if refusal.limits:
        order.limit_lines = ratelimit_lines(refusal.limits)
    status, headers, body = render(refusal, order.request_id)
    exchange.respond(status, lines(headers) + marks(order) + lines(exchange.date()), body)
    return status


def send_defect(exchange: Exchange, order: Order) -> None:
    """Answer after a defect of ours; cut off what can't be finished."""
    if exchange.gone or exchange.response_complete:
        return
    if exchange.started:
        exchange.break_off()
        return
    body = envelope("api_error", "Signalbox failed on this request.", "internal_error", order.request_id)
    exchange.respond(500, lines([JSON]) + marks(order) + lines(exchange.date()), body)


def to_unreadable(message: str) -> bytes:
    """Return a whole answer, head and body, to what is no request, after which the connection ends."""
    request_id = new_id("sbx_req_")
    body = envelope("invalid_request_error", message, "request_invalid", request_id)
    head = (
        f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        f"x-signalbox-request-id: {request_id}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


def render(refusal: Refusal, request_id: str) -> tuple[int, list[Header], bytes]:
    """Return status, headers and body of an error in the caller's wire format."""
    row = OWN_ERRORS.get(refusal.code, OWN_ERRORS["scheduler_unavailable"])
    headers = [JSON]
    if refusal.retry_after_ms > 0:
        headers.append((b"retry-after", b"%d" % math.ceil(refusal.retry_after_ms / 1000)))
    # Without it Claude Code tries an unknown key again for minutes.
    if refusal.never_fits or row.status == HTTPStatus.UNAUTHORIZED:
        headers.append((b"x-should-retry", b"false"))
    return row.status, headers, envelope(row.type, refusal.message, refusal.code, request_id)
