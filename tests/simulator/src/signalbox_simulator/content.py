"""What the simulated model says: a reply made from the request and a seed alone, with the usage that belongs to it.

The same request gets the same words. Prompt caching really happens, per organisation and model.
"""

import base64
import hashlib
import json
import math
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from signalbox_simulator.behaviour import Behaviour
from signalbox_simulator.errors import dumps

WORDS = ["signal", "box", "lever", "track", "points", "frame", "block", "lamp", "bell", "shunt", "yard", "platform", "café", "naïve", "Zürich", "信号", "列車", "駅", "поезд", "🚦", "🚂", "guard", "distant", "home", "caution", "clear", "danger", "token", "staff", "section", "junction", "siding", "coupling"]
BYTES_PER_TOKEN = 4
CACHE_ENTRIES = 10_000
TTL_S = {"5m": 300.0, "1h": 3600.0}
SIGNATURE_PREFIX = "sim1."
TOOL_INPUT_PIECE = 12


@dataclass(slots=True)
class Block:
    """One content block: how it begins, its deltas (type, field, piece), and what it is as a whole."""

    start: dict[str, Any]
    deltas: list[tuple[str, str, str]]
    whole: dict[str, Any]


@dataclass(slots=True)
class Reply:
    """A whole answer, before it is cut into frames or not."""

    id: str
    model: str
    blocks: list[Block]
    stop_reason: str
    stop_sequence: str | None
    stop_details: dict[str, Any] | None
    start_usage: dict[str, Any]
    usage: dict[str, Any]
    foreign_thinking: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    def message(self) -> dict[str, Any]:
        """Return the answer of a request that was not streamed."""
        return {
            "id": self.id, "type": "message", "role": "assistant", "model": self.model,
            "content": [b.whole for b in self.blocks], "stop_reason": self.stop_reason,
            "stop_sequence": self.stop_sequence, "stop_details": self.stop_details, "usage": self.usage,
        }


class PromptCache:
    """Which prefixes an organisation has written, per model, until when."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._entries: OrderedDict[bytes, float] = OrderedDict()

    def use(self, scope: str, request: dict[str, Any]) -> dict[str, int]:
        """Return the bytes of the request read from the cache and written for 5 minutes and an hour; write them."""
        parts, marks = _prefix_parts(request)
        hasher = hashlib.sha256(scope.encode())
        now_s = self._clock()
        read, done = 0, 0
        found: list[tuple[int, bytes, str]] = []
        for index, part in enumerate(parts):
            hasher.update(part)
            done += len(part)
            if index in marks:
                found.append((done, hasher.digest(), marks[index]))
        for end, key, _ in found:
            if self._entries.get(key, 0.0) > now_s:
                read = end
        written = {"5m": 0, "1h": 0}
        last = read
        for end, key, ttl in found:
            self._entries.pop(key, None)
            self._entries[key] = now_s + TTL_S[ttl]
            if end > last:
                written[ttl] += end - last
                last = end
        while len(self._entries) > CACHE_ENTRIES:
            self._entries.popitem(last=False)
        return {"read": read, **written}


def _prefix_parts(request: dict[str, Any]) -> tuple[list[bytes], dict[int, str]]:
    """Return the request's parts in the order in which a cache sees them, and the lifetimes of those that are marked."""
    parts: list[bytes] = []
    marks: dict[int, str] = {}

    def add(block: Any) -> None:
        control = block.get("cache_control") if isinstance(block, dict) else None
        if isinstance(block, dict):
            block = {k: v for k, v in block.items() if k != "cache_control"}
        if isinstance(control, dict):
            marks[len(parts)] = _ttl(control)
        parts.append(dumps(block))

    for tool in request.get("tools") or []:
        add(tool)
    for block in _blocks(request.get("system")):
        add(block)
    for message in request.get("messages") or []:
        for block in _blocks(message.get("content")):
            add(block)
    control = request.get("cache_control")
    if isinstance(control, dict) and parts:
        marks[len(parts) - 1] = _ttl(control)
    return parts, marks


def _ttl(control: dict[str, Any]) -> str:
    ttl = str(control.get("ttl", "5m"))
    return ttl if ttl in TTL_S else "5m"


def _blocks(content: Any) -> list[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return content if isinstance(content, list) else []


def last_user_turn(request: dict[str, Any]) -> tuple[str, bool]:
    """Return the text that the user has said since the assistant's last turn and whether tool results are with it.

    Clients put messages of role `system` between and after the user's: these are passed over.
    """
    text: list[str] = []
    has_result = False
    for message in reversed(request.get("messages") or []):
        if not isinstance(message, dict) or message.get("role") == "assistant":
            break
        blocks = [b for b in _blocks(message.get("content")) if isinstance(b, dict)]
        if message.get("role") == "user":
            text.insert(0, "\n".join(str(b.get("text", "")) for b in blocks if b.get("type") == "text"))
            has_result = has_result or any(b.get("type") == "tool_result" for b in blocks)
    return "\n".join(text), has_result


def input_usage(body_bytes: int, cached: dict[str, int]) -> dict[str, Any]:
    """Return the input's token fields: the body's bytes by four, less what came from or went to the cache."""
    read, short, long = (math.ceil(cached[k] / BYTES_PER_TOKEN) for k in ("read", "5m", "1h"))
    total = max(math.ceil(body_bytes / BYTES_PER_TOKEN), read + short + long + 1)
    return {
        "input_tokens": total - read - short - long,
        "cache_creation_input_tokens": short + long,
        "cache_read_input_tokens": read,
        "cache_creation": {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": long},
    }


def make_reply(
    request: dict[str, Any], b: Behaviour, *, digest: bytes, seed: int, message_id: str, organization: str,
    input_fields: dict[str, Any],
) -> Reply:
    """Make the reply to a request under a behaviour. `input_fields` are the input's part of the usage."""
    rng = random.Random(digest + seed.to_bytes(8, "big", signed=True))
    blocks, stop_reason = _content(request, b, rng, organization)
    thinking = sum(_size(block) for block in blocks if block.start["type"] == "thinking")
    size = sum(_size(block) for block in blocks)
    output_tokens = math.ceil(size / BYTES_PER_TOKEN)
    limit = int(request["max_tokens"])
    if output_tokens > limit:
        output_tokens = limit
    usage: dict[str, Any] = {
        **input_fields, "output_tokens": output_tokens,
        "output_tokens_details": {"thinking_tokens": min(output_tokens, math.ceil(thinking / BYTES_PER_TOKEN))},
        "service_tier": "standard", **b.usage,
    }
    start_usage = {**usage, "output_tokens": min(1, usage["output_tokens"]), **b.start_usage}
    start_usage.pop("output_tokens_details", None)
    return Reply(
        id=message_id, model=b.model or request["model"], blocks=blocks, stop_reason=b.stop_reason or stop_reason,
        stop_sequence=None, stop_details=b.stop_details, start_usage=start_usage, usage=usage,
        foreign_thinking=_foreign_thinking(request, organization),
    )


def _content(
    request: dict[str, Any], b: Behaviour, rng: random.Random, organization: str
) -> tuple[list[Block], str]:
    if b.blocks is not None:
        return [_given(block) for block in b.blocks], "end_turn"
    budget = int(request["max_tokens"]) * BYTES_PER_TOKEN
    if budget == 0:
        return [], "max_tokens"
    blocks = []
    if _wants_thinking(request, b):
        pieces, _ = _words(rng, 4, budget // 2)
        blocks.append(_thinking(pieces, organization))
        budget -= _size(blocks[0])
    tool = _wanted_tool(request, b)
    if tool is None:
        pieces, whole = _text(b, rng, budget)
        return [*blocks, _text_block(pieces)], "end_turn" if whole else "max_tokens"
    pieces, _ = _words(rng, 3, budget // 2)
    tool_input = b.tool_input if b.tool_input is not None else _example(tool.get("input_schema") or {}, rng)
    return [*blocks, _text_block(pieces), _tool_use(tool["name"], tool_input, rng)], "tool_use"


def _text(b: Behaviour, rng: random.Random, budget: int) -> tuple[list[str], bool]:
    if b.text is not None:
        n = b.deltas or max(1, min(8, len(b.text)))
        step = max(1, math.ceil(len(b.text) / n))
        pieces = [b.text[i : i + step] for i in range(0, len(b.text), step)]
    elif b.text_bytes is not None:
        n = b.deltas or max(1, b.text_bytes // 4096)
        pieces = [("signalbox " * (b.text_bytes // n // 10 + 1))[: max(1, b.text_bytes // n)] for _ in range(n)]
    else:
        return _words(rng, b.deltas or rng.randint(5, 12), budget)
    return _fitting(pieces, budget)


def _words(rng: random.Random, n: int, budget: int) -> tuple[list[str], bool]:
    return _fitting([" ".join(rng.choices(WORDS, k=3)) + " " for _ in range(n)], budget)


def _fitting(pieces: list[str], budget: int) -> tuple[list[str], bool]:
    """Return as many pieces as the budget of bytes allows (one at least), and whether these are all."""
    kept: list[str] = []
    for piece in pieces:
        budget -= len(piece.encode())
        if budget < 0 and kept:
            return kept, False
        kept.append(piece)
    return kept, True


def _text_block(pieces: list[str]) -> Block:
    return Block({"type": "text", "text": ""}, [("text_delta", "text", p) for p in pieces],
                 {"type": "text", "text": "".join(pieces)})


def _thinking(pieces: list[str], organization: str) -> Block:
    text = "".join(pieces)
    signature = SIGNATURE_PREFIX + base64.urlsafe_b64encode(f"{organization}:{hash_of(text)}".encode()).decode()
    deltas = [("thinking_delta", "thinking", p) for p in pieces] + [("signature_delta", "signature", signature)]
    return Block({"type": "thinking", "thinking": "", "signature": ""}, deltas,
                 {"type": "thinking", "thinking": text, "signature": signature})


def _tool_use(name: str, tool_input: dict[str, Any], rng: random.Random) -> Block:
    tool_id = f"toolu_{rng.getrandbits(96):024x}"
    text = json.dumps(tool_input, ensure_ascii=False)
    pieces = [""] + [text[i : i + TOOL_INPUT_PIECE] for i in range(0, len(text), TOOL_INPUT_PIECE)]
    head = {"type": "tool_use", "id": tool_id, "name": name}
    return Block({**head, "input": {}}, [("input_json_delta", "partial_json", p) for p in pieces],
                 {**head, "input": tool_input})


def _given(block: dict[str, Any]) -> Block:
    """Make a block of any type from what a script says; text in one delta, everything else in its start."""
    if block.get("type") == "text":
        return _text_block([str(block.get("text", ""))])
    if block.get("type") == "tool_use":
        return _tool_use(str(block["name"]), block.get("input") or {}, random.Random(hash_of(dumps(block).decode())))
    return Block(block, [], block)


def _size(block: Block) -> int:
    return sum(len(piece.encode()) for kind, _, piece in block.deltas if kind != "signature_delta")


def hash_of(text: str) -> str:
    """Return a short digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _wants_thinking(request: dict[str, Any], b: Behaviour) -> bool:
    if b.thinking is not None:
        return b.thinking
    thinking = request.get("thinking")
    return isinstance(thinking, dict) and thinking.get("type") in {"enabled", "adaptive", "between_tools"}


def _wanted_tool(request: dict[str, Any], b: Behaviour) -> dict[str, Any] | None:
    """Return the tool to call: the one that is scripted, or that `tool_choice` asks for; none after its result."""
    tools = [t for t in request.get("tools") or [] if isinstance(t, dict) and "input_schema" in t]
    _, has_result = last_user_turn(request)
    if not tools or has_result or b.tool is False:
        return None
    choice = request.get("tool_choice") or {}
    if isinstance(b.tool, str):
        name: Any = b.tool
    elif b.tool or choice.get("type") == "any":
        name = tools[0]["name"]
    elif choice.get("type") == "tool":
        name = choice.get("name")
    else:
        return None
    return next((t for t in tools if t["name"] == name), None)


def _example(schema: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Return an input that has what the schema requires."""
    properties = schema.get("properties") or {}
    return {name: _example_value(properties.get(name) or {}, rng) for name in schema.get("required") or []}


def _example_value(schema: dict[str, Any], rng: random.Random) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "string")
    if kind == "object":
        return _example(schema, rng)
    return {"integer": 1, "number": 1.5, "boolean": True, "array": [], "null": None}.get(kind, rng.choice(WORDS))


def _foreign_thinking(request: dict[str, Any], organization: str) -> int:
    """Count signed thinking blocks of other organisations: a real provider drops them without a word."""
    count = 0
    for message in request.get("messages") or []:
        for block in _blocks(message.get("content")):
            signature = block.get("signature") if isinstance(block, dict) else None
            if isinstance(signature, str) and signature.startswith(SIGNATURE_PREFIX):
                try:
                    owner = base64.urlsafe_b64decode(signature[len(SIGNATURE_PREFIX) :]).decode().partition(":")[0]
                except ValueError:
                    owner = ""
                count += owner != organization
    return count
