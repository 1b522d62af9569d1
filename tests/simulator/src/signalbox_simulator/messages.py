"""`/v1/messages` and `count_tokens`: what the request must have, what the limits say, and the reply."""

from typing import TYPE_CHECKING, Any

from signalbox_simulator import play
from signalbox_simulator.accounts import Account, Refusal
from signalbox_simulator.catalogue import is_served
from signalbox_simulator.content import Reply, input_usage, make_reply
from signalbox_simulator.errors import ApiError, dumps
from signalbox_simulator.plan import compressed_stream, stream_steps

if TYPE_CHECKING:
    from signalbox_simulator.provider import Call, Provider

MAX_BODY_BYTES = 32 * 1024 * 1024
LIMIT_NAMES = {"requests": "requests", "input_tokens": "input tokens", "output_tokens": "output tokens"}


async def create(provider: "Provider", call: "Call") -> str:
    """Answer `POST /v1/messages`, streamed or not."""
    account = provider.authenticate(call)
    request = _validated(call)
    body_bytes = call.exchange.request.body_bytes
    scope = f"{account.organization}:{request['model']}"
    fields = input_usage(body_bytes, provider.cache.use(scope, request))
    billed = fields["input_tokens"] + fields["cache_creation_input_tokens"]
    refusal = provider.accounts.admit(account, request["model"], billed)
    if refusal is not None:
        raise _limited(refusal)
    reply = make_reply(request, call.behaviour, digest=call.digest, seed=provider.settings.seed,
                       message_id="msg_" + call.row.request_id.removeprefix("req_"), organization=account.organization, input_fields=fields)
    call.row.message_id, call.row.served_model = reply.id, reply.model
    call.row.foreign_thinking = reply.foreign_thinking
    if request.get("stream") is True:
        return await _stream(provider, call, account, reply)
    return await _whole(provider, call, reply)


async def count_tokens(provider: "Provider", call: "Call") -> str:
    """Answer `POST /v1/messages/count_tokens`."""
    provider.authenticate(call)
    _validated(call, needs_max_tokens=False)
    tokens = input_usage(call.exchange.request.body_bytes, {"read": 0, "5m": 0, "1h": 0})["input_tokens"]
    return await provider.answer(call, dumps({"input_tokens": tokens}))


async def _stream(provider: "Provider", call: "Call", account: Account, reply: Reply) -> str:
    b, exchange = call.behaviour, call.exchange
    if b.drop is not None:
        return await play.drop(exchange, b.drop)
    steps = stream_steps(reply, b)
    headers = [*call.headers("text/event-stream; charset=utf-8"), ("cache-control", "no-cache"),
               *provider.accounts.headers(account, call.row.model)]
    if b.gzip:
        steps = compressed_stream(steps)
        headers.append(("content-encoding", "gzip"))
    await play.send_head(exchange, b, 200, headers, length=None)
    outcome = await play.play(exchange, call.row, steps)
    if outcome == play.COMPLETE:
        await play.finish(exchange, b)
    return outcome


async def _whole(provider: "Provider", call: "Call", reply: Reply) -> str:
    outcome = await provider.answer(call, dumps(reply.message()))
    if outcome == play.COMPLETE:
        call.row.usage, call.row.usage_final = reply.usage, True
    return outcome


def _validated(call: "Call", *, needs_max_tokens: bool = True) -> dict[str, Any]:
    """Return the request's body. Raises ApiError as the provider would."""
    if call.exchange.request.body_bytes > MAX_BODY_BYTES:
        raise ApiError(413)
    request = call.parsed
    if not isinstance(request, dict):
        raise ApiError(400, "The request body is not valid JSON")
    kinds: list[tuple[str, type]] = [("model", str), ("messages", list)]
    if needs_max_tokens:
        kinds.append(("max_tokens", int))
    for name, kind in kinds:
        if name not in request:
            raise ApiError(400, f"{name}: Field required")
        if not isinstance(request[name], kind) or isinstance(request[name], bool):
            raise ApiError(400, f"{name}: Input should be a valid {kind.__name__}")
    if not request["messages"] or not all(isinstance(m, dict) for m in request["messages"]):
        raise ApiError(400, "messages: at least one message is required")
    if not is_served(request["model"]):
        raise ApiError(404, f"model: {request['model']}")
    return request


def _limited(refusal: Refusal) -> ApiError:
    message = f"This request would exceed your organization's rate limit of {refusal.limit} " \
              f"{LIMIT_NAMES[refusal.kind]} per minute."
    return ApiError(429, message, headers=[("retry-after", str(refusal.retry_after_s))])
