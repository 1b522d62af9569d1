"""Token usage as Anthropic reports it: merged over a stream, completed where the end is missing, split by model.

Source: Anthropic's API documentation and SDK types of 17 Nov 2026. What tokens cost is prices.py's business.
"""

import json
import re
from typing import Annotated, Any, NamedTuple

import msgspec

from signalbox.wire.json_object import outline
from signalbox.wire.models import base_name

MAX_COUNT = 10**12
BYTES_PER_ESTIMATED_TOKEN = 3
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


class Usage(NamedTuple):
    """Tokens and priced extras, as billed.

    `other_models` are iterations billed beside these counts, never within them: another model's, and compactions.
    """

    input_tokens: int = 0            # uncached
    output_tokens: int = 0           # thinking included
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    cache_read_tokens: int = 0
    web_search_requests: int = 0
    service_tier: str = ""           # standard, priority, batch
    inference_geo: str = ""
    speed: str = ""
    other_models: tuple[tuple[str, "Usage"], ...] = ()

    def plus(self, other: "Usage") -> "Usage":
        """Return this usage with the other's counts added; tier, geography and speed stay this one's."""
        return self._replace(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cache_write_5m_tokens=self.cache_write_5m_tokens + other.cache_write_5m_tokens,
            cache_write_1h_tokens=self.cache_write_1h_tokens + other.cache_write_1h_tokens,
            cache_read_tokens=self.cache_read_tokens + other.cache_read_tokens,
            web_search_requests=self.web_search_requests + other.web_search_requests,
        )


def told_usage(told: Any) -> Usage:
    """Return what rooms tell each other of a usage (a TokenUsage message) as a value: its fields are costly to read."""
    others = told.other_models
    return Usage(
        told.input_tokens, told.output_tokens, told.cache_write_5m_tokens, told.cache_write_1h_tokens,
        told.cache_read_tokens, told.web_search_requests, told.service_tier, told.inference_geo, told.speed,
        tuple([(other.model, told_usage(other.usage)) for other in others]) if others else (),
    )


class MessageUsage(NamedTuple):
    """What a whole, not streamed, answer says of itself."""

    usage: Usage
    model: str
    stop_reason: str = ""


class UsageMeter:
    """Follows one stream: `message_start` sets, a `message_delta` replaces what it names (cumulative)."""

    __slots__ = ("_reported", "final")

    def __init__(self) -> None:
        self._reported: dict[str, Any] = {}
        self.final = False               # the last report came after all content

    def start(self, usage: object) -> None:
        """Take `message_start.message.usage`."""
        if isinstance(usage, dict):
            self._reported = {name: value for name, value in usage.items() if value is not None}

    def report(self, usage: object) -> None:
        """Take a `message_delta.usage`."""
        if not isinstance(usage, dict):
            return
        self._reported.update((name, value) for name, value in usage.items() if value is not None)
        self.final = self.final or isinstance(usage.get("output_tokens"), int)

    def content_after_report(self) -> None:
        """Note that content followed the last report, so that it was not the final one."""
        self.final = False

    def usage(self, model: str) -> Usage:
        """Return what has been reported so far; `model` served the reply."""
        return parse_usage(self._reported, model)

    def billed(self, model: str, delta_bytes: int) -> tuple[Usage, bool]:
        """Return what counts, and whether output is an estimate.

        Without a final report, output is the larger of what was last reported and a third of the deltas' bytes.
        """
        usage = self.usage(model)
        if self.final:
            return usage, False
        estimate = -(-delta_bytes // BYTES_PER_ESTIMATED_TOKEN)
        return usage._replace(output_tokens=max(usage.output_tokens, estimate)), True


def usage_of_message(body: bytes) -> MessageUsage | None:
    """Return the usage and model of a Message (or of a count_tokens answer), None where the body is no JSON object."""
    try:
        parsed = _message_decoder.decode(body)
    except (ValueError, RecursionError):
        return _usage_of_odd_message(body)
    told = parsed.usage
    if told is None:
        return MessageUsage(Usage(), parsed.model or "", parsed.stop_reason or "")
    if told.iterations:
        return _usage_of_odd_message(body)
    return MessageUsage(told.counts(), parsed.model or "", parsed.stop_reason or "")


_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)] | None


class _Split(msgspec.Struct):
    ephemeral_5m_input_tokens: _Count = None
    ephemeral_1h_input_tokens: _Count = None


class _Tools(msgspec.Struct):
    web_search_requests: _Count = None


class _Told(msgspec.Struct):
    """A usage object as it should be; whatever else is there goes the general way."""

    input_tokens: _Count = None
    output_tokens: _Count = None
    cache_creation_input_tokens: _Count = None
    cache_read_input_tokens: _Count = None
    cache_creation: _Split | None = None
    server_tool_use: _Tools | None = None
    service_tier: str | None = None
    inference_geo: str | None = None
    speed: str | None = None
    iterations: list[msgspec.Raw] | None = None

    def counts(self) -> Usage:
        """Return what is told, iterations left out."""
        split, tools = self.cache_creation, self.server_tool_use
        short, long = _divided(
            (split.ephemeral_5m_input_tokens or 0) if split is not None else 0,
            (split.ephemeral_1h_input_tokens or 0) if split is not None else 0,
            self.cache_creation_input_tokens,
        )
        return Usage(
            self.input_tokens or 0, self.output_tokens or 0, short, long, self.cache_read_input_tokens or 0,
            (tools.web_search_requests or 0) if tools is not None else 0, self.service_tier or "",
            self.inference_geo or "", self.speed or "",
        )


class _Message(msgspec.Struct):
    """The fields of a Message that matter here; the rest is skipped without being built."""

    model: str | None = None
    stop_reason: str | None = None
    usage: _Told | None = None


_message_decoder = msgspec.json.Decoder(_Message)


def _usage_of_odd_message(body: bytes) -> MessageUsage | None:
    """Read what can be read where some field is other than it should be."""
    try:
        parsed = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        parsed = _read_leniently(body)
    if not isinstance(parsed, dict):
        return None
    usage = parsed.get("usage")
    reported = usage if isinstance(usage, dict) else {}
    model = serving_model(reported, _text(parsed.get("model")))
    return MessageUsage(parse_usage(reported, model), model, _text(parsed.get("stop_reason")))


def _read_leniently(body: bytes) -> Any:
    """Read an answer that holds what the strict parser refuses, None where it is no JSON at all.

    A caller can have a tool called with half of a surrogate pair or a thousand brackets; what it cost still counts.
    """
    body = _SURROGATE.sub(b"?", body)    # or a name could hold what nobody can write down
    try:
        return json.loads(body.decode("utf-8-sig"))
    except RecursionError:
        members = outline(body, ("model", "usage", "stop_reason"))
    except ValueError:
        return None
    try:
        return members and {name: json.loads(value) for name, value in members.items()}
    except (ValueError, RecursionError):
        return None


def parse_usage(reported: dict[str, Any], model: str) -> Usage:
    """Return a usage object, as served by `model`, as counts; what is missing or no sensible number counts as zero.

    Compactions and advisors are never in the top-level totals. Iterations of a model that declined may be: they are
    taken out where the totals are large enough to hold them. All of these are kept apart, to be priced by their own
    model and size (SDK types of 17 Nov 2026).
    """
    usage = _counts(reported)
    iterations = reported.get("iterations")
    if not isinstance(iterations, list) or not iterations:
        return usage
    entries = [entry for entry in iterations if isinstance(entry, dict)]
    apart = [entry for entry in entries if entry.get("type") in _NEVER_IN_TOTALS]
    sampled = [entry for entry in entries if entry.get("type") not in _NEVER_IN_TOTALS]
    served = base_name(model)
    others = [entry for entry in sampled if base_name(_text(entry.get("model")) or model) != served]
    if others:
        usage = _without(usage, _sum(others), _sum(sampled))
    told = (usage.service_tier, usage.inference_geo, usage.speed)
    return usage._replace(other_models=tuple(
        (_text(entry.get("model")) or model, _told(_counts(entry), *told)) for entry in (*others, *apart)
    ))


def serving_model(reported: dict[str, Any], model: str) -> str:
    """Return the model that served: the fallback's where one took over, else `model`, which the message names."""
    iterations = reported.get("iterations")
    for entry in reversed(iterations) if isinstance(iterations, list) else ():
        if isinstance(entry, dict) and entry.get("type") == "fallback_message":
            return _text(entry.get("model")) or model
    return model


_NEVER_IN_TOTALS = ("compaction", "advisor_message")


def _told(usage: Usage, tier: str, geo: str, speed: str) -> Usage:
    """Give an iteration what only the whole answer says; the prices depend on it."""
    return usage._replace(service_tier=tier, inference_geo=geo, speed=speed)


def _sum(entries: list[dict[str, Any]]) -> Usage:
    total = Usage()
    for entry in entries:
        total = total.plus(_counts(entry))
    return total


def _without(total: Usage, others: Usage, sampled: Usage) -> Usage:
    """Return `total` less `others`, or as it is where it does not hold all that was `sampled`."""
    names = ("input_tokens", "output_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "cache_read_tokens")
    if any(getattr(total, name) < getattr(sampled, name) for name in names):
        return total
    return total._replace(**{name: getattr(total, name) - getattr(others, name) for name in names})


def _counts(reported: dict[str, Any]) -> Usage:
    try:
        return msgspec.convert(reported, _Told).counts()
    except msgspec.ValidationError:
        return _odd_counts(reported)


def _odd_counts(reported: dict[str, Any]) -> Usage:
    """Read what can be read where some field is other than it should be."""
    short, long = _writes(reported)
    get, tools = reported.get, reported.get("server_tool_use")
    return Usage(
        _count(get("input_tokens")), _count(get("output_tokens")), short, long,
        _count(get("cache_read_input_tokens")),
        _count(tools.get("web_search_requests")) if isinstance(tools, dict) else 0,
        _text(get("service_tier")), _text(get("inference_geo")), _text(get("speed")),
    )


def _writes(reported: dict[str, Any]) -> tuple[int, int]:
    """Split cache writes by time to live; only message_start has the split, so the total may be newer than it."""
    split = reported.get("cache_creation")
    short = long = 0
    if isinstance(split, dict):
        short, long = _count(split.get("ephemeral_5m_input_tokens")), _count(split.get("ephemeral_1h_input_tokens"))
    total = reported.get("cache_creation_input_tokens")
    return _divided(short, long, None if total is None else _count(total))


def _divided(short: int, long: int, total: int | None) -> tuple[int, int]:
    if total is None:
        return short, long
    if long and not short:
        return 0, total
    long = min(long, total)
    return total - long, long


def _count(value: object) -> int:
    if value is None or value == 0:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return 0
    return min(value, MAX_COUNT)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
