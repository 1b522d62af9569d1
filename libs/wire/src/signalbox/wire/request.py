"""Reads of a Messages request only what the relay needs, without building the whole tree, and refuses what is unclear.

Sources: Anthropic's SDK types of 17 Nov 2026, docs/clients.md for sessions. How field names are proved to
stand once is json_object.py's business.
"""

import re
from dataclasses import dataclass
from itertools import compress, repeat
from operator import is_not

import msgspec
from msgspec import UNSET, Raw, UnsetType
from msgspec.structs import astuple

from signalbox.wire.content import (
    RAW_LIST,
    MessageNode,
    Seen,
    ToolHead,
    look_through,
    read_messages,
    read_tools,
    serving_models,
)
from signalbox.wire.json_object import Ambiguous, NotAnObject, members

MAX_TOKENS = 10**9
WARMING_TOKENS = 1    # what `max_tokens: 0`, which only warms a cache, counts as
MAX_MODEL_CHARS = 256
MAX_USUAL_BYTES = 16 << 10    # beyond it, walking the members is faster than looking for each name
READ_FIELDS = frozenset((
    "model", "stream", "max_tokens", "metadata", "prompt_cache_key", "system", "messages", "tools", "fallbacks",
    "container", "thread", "speed", "inference_geo", "service_tier", "context_management", "compaction", "mcp_servers",
))
_OLD_SESSION = re.compile(r"_session_([0-9A-Za-z-]+)$")
_string_decoder = msgspec.json.Decoder(str)
# Places below the top level where a model that can serve may be named.
_MODEL_PLACES = ("fallbacks", "context_management", "compaction")
# Moves from turn to turn, so it is no part of what a conversation is known by. White space is taken only after a
# comma: begun at each of many spaces, the search would be quadratic.
_CACHE_MARK = re.compile(rb'(?:,\s*+)?+"cache_control"\s*+:\s*+\{[^{}"]*+(?:"[^"\\]*+"[^{}"]*+)*+\}')


class RequestInvalid(ValueError):
    """The body can't be read as a Messages request. `message` is safe to show; `param` names the field."""

    def __init__(self, message: str, param: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.param = param


@dataclass(slots=True)
class RequestFacts:
    """What the relay knows of a request's body."""

    model: str
    models: tuple[str, ...]              # every model named where it can serve, the first being `model`
    stream: bool
    max_tokens: int                      # at least WARMING_TOKENS; 0: not given
    session: str                         # the session part of metadata.user_id
    prompt_cache_key: str
    state_bound: bool                    # container, file id or thread: belongs to the account that made it
    unseen_input: bool                   # URLs, file ids, server tools: input that bytes do not bound
    speed: str
    inference_geo: str
    service_tier: str
    input_bytes: int


def read_request(body: bytes) -> RequestFacts:
    """Return the facts of a Messages body. Raises RequestInvalid."""
    if len(body) <= MAX_USUAL_BYTES and (usual := _read_usual(body)) is not None:
        return usual
    try:
        return _read(body)
    except Ambiguous as e:
        raise RequestInvalid(str(e), e.name) from None
    except NotAnObject as e:
        raise RequestInvalid(f"The body is not a JSON object that can be read: {e}") from None
    except RecursionError:
        raise RequestInvalid("The body is nested too deeply") from None


def conversation_seed(body: bytes) -> bytes:
    """Return system and first user turn of a body that was read: what a conversation without a session id is known by.

    Cache marks are left out, since clients move them along as the conversation grows.
    """
    conversation = _conversation_decoder.decode(body)
    seed = b"\0".join((conversation.system, _first_user_turn(conversation.messages)))
    return _CACHE_MARK.sub(b"", seed) if b"cache_control" in seed else seed


def rewrite_model(body: bytes, new_model: str) -> bytes:
    """Return a body that was read with its top-level model replaced; every other byte stays as it is."""
    raw, places = members(body, READ_FIELDS)
    start = places["model"] if "model" in places else _locate_model(body, raw["model"])
    return body[:start] + msgspec.json.encode(new_model) + body[start + len(raw["model"]) :]


# ---------------------------------------------------------------------------------------- bodies as nearly all are


class _Metadata(msgspec.Struct):
    user_id: str | None = None


class _UserId(msgspec.Struct):
    session_id: str | None = None


class _Usual(msgspec.Struct):
    """Every field that is read, in its proper type."""

    model: str
    stream: bool | UnsetType | None = UNSET
    max_tokens: int | UnsetType | None = UNSET
    metadata: _Metadata | UnsetType | None = UNSET
    prompt_cache_key: str | UnsetType | None = UNSET
    system: Raw | UnsetType = UNSET
    messages: list[MessageNode] | UnsetType = UNSET
    tools: list[ToolHead] | UnsetType = UNSET
    speed: str | UnsetType | None = UNSET
    inference_geo: str | UnsetType | None = UNSET
    service_tier: str | UnsetType | None = UNSET
    # A body with one of these is not usual.
    fallbacks: Raw | UnsetType = UNSET
    container: Raw | UnsetType = UNSET
    thread: Raw | UnsetType = UNSET
    context_management: Raw | UnsetType = UNSET
    compaction: Raw | UnsetType = UNSET
    mcp_servers: Raw | UnsetType = UNSET


_usual_decoder = msgspec.json.Decoder(_Usual)
_user_id_decoder = msgspec.json.Decoder(_UserId)
_QUOTED = [b'"%s"' % name.encode() for name in _Usual.__struct_fields__]
_UNUSUAL = slice(_Usual.__struct_fields__.index("fallbacks"), None)
_NONE_OF_THEM = (UNSET,) * len(_QUOTED[_UNUSUAL])
_ONCE = frozenset((1,))


def _read_usual(body: bytes) -> RequestFacts | None:
    """Return the facts in one typed pass, None where the body wants the careful way: `_read` decides what it holds.

    A name that stands nowhere else in the whole text, in a text without escaped letters, stands once in its object.
    """
    try:
        usual = _usual_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    values = astuple(usual)
    if values[_UNUSUAL] != _NONE_OF_THEM or b"\\u00" in body:
        return None
    there = compress(_QUOTED, map(is_not, values, repeat(UNSET)))
    if set(map(body.count, there)) != _ONCE:
        return None
    if usual.tools and any(tool.type is not None or tool.model is not UNSET for tool in usual.tools):
        return None
    seen = look_through(usual.messages) if usual.messages else Seen()
    max_tokens, model = usual.max_tokens or (WARMING_TOKENS if usual.max_tokens == 0 else 0), usual.model
    session = _usual_session(usual.metadata, body) if usual.metadata else ""
    if seen.models is None or session is None or not 0 <= max_tokens <= MAX_TOKENS or not _names_a_model(model):
        return None
    return RequestFacts(
        model, (model,), usual.stream or False, max_tokens, session, usual.prompt_cache_key or "", seen.files,
        seen.files or seen.urls, usual.speed or "", usual.inference_geo or "", usual.service_tier or "", len(body),
    )


def _usual_session(metadata: _Metadata, body: bytes) -> str | None:
    user_id = metadata.user_id or ""
    if body.count(b'"user_id"') > 1:
        return None
    if not user_id.startswith("{"):
        return _old_session(user_id)
    if user_id.count('"session_id"') != 1 or "\\u00" in user_id:
        return None
    try:
        return _user_id_decoder.decode(user_id).session_id or ""
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return None


def _names_a_model(model: str) -> bool:
    return 0 < len(model) <= MAX_MODEL_CHARS and model.isprintable()


# ---------------------------------------------------------------------------------------- all others


def _read(body: bytes) -> RequestFacts:
    raw, _ = members(body, READ_FIELDS)
    model = _string(raw, "model")
    if not model:
        raise RequestInvalid("model: Field required", "model")
    if len(model) > MAX_MODEL_CHARS:
        raise RequestInvalid("model: too long", "model")
    if not model.isprintable():
        raise RequestInvalid("model: holds characters that no name has", "model")
    messages, tools = raw.get("messages", b""), raw.get("tools", b"")
    seen = read_messages(messages)
    provider_tools, tool_models = read_tools(tools)
    others = [m for name in _MODEL_PLACES if name in raw for m in serving_models(raw[name])]
    return RequestFacts(
        model=model,
        models=tuple(dict.fromkeys((model, *others, *tool_models, *(seen.models or ())))),
        stream=_boolean(raw, "stream"),
        max_tokens=_max_tokens(raw, "max_tokens"),
        session=_session(raw.get("metadata", b"")),
        prompt_cache_key=_string(raw, "prompt_cache_key"),
        state_bound=seen.files or _present(raw, "container") or _present(raw, "thread"),
        unseen_input=seen.files or seen.urls or provider_tools or _present(raw, "mcp_servers"),
        speed=_string(raw, "speed"),
        inference_geo=_string(raw, "inference_geo"),
        service_tier=_string(raw, "service_tier"),
        input_bytes=len(body),
    )


def _locate_model(body: bytes, value: bytes) -> int:
    """Return where the top-level model's value begins, in a body whose other members repeat or are escaped."""
    depth = 0
    for match in re.finditer(rb'"((?:[^"\\]++|\\.)*+)"([ \t\r\n]*+:[ \t\r\n]*+)?|[{}\[\]]', body, re.DOTALL):
        token = match.group()
        if token in (b"{", b"["):
            depth += 1
        elif token in (b"}", b"]"):
            depth -= 1
        elif depth == 1 and match.group(2) and match.group(1) == b"model" and body.startswith(value, match.end()):
            return match.end()
    raise RequestInvalid("model: Field required", "model")


# ---------------------------------------------------------------------------------------- single fields


def _present(raw: dict[str, bytes], name: str) -> bool:
    return raw.get(name, b"null") != b"null"


def _string(raw: dict[str, bytes], name: str) -> str:
    value = raw.get(name, b"null")
    if value == b"null":
        return ""
    try:
        return _string_decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise RequestInvalid(f"{name}: Input should be a string", name) from None


def _boolean(raw: dict[str, bytes], name: str) -> bool:
    value = raw.get(name, b"null")
    if value not in (b"true", b"false", b"null"):
        raise RequestInvalid(f"{name}: Input should be a boolean", name)
    return value == b"true"


def _max_tokens(raw: dict[str, bytes], name: str) -> int:
    if not _present(raw, name):
        return 0
    try:
        value = msgspec.json.decode(raw[name], type=int)
    except msgspec.DecodeError:
        raise RequestInvalid(f"{name}: Input should be a whole number", name) from None
    if not 0 <= value <= MAX_TOKENS:
        raise RequestInvalid(f"{name}: must lie between 0 and {MAX_TOKENS}", name)
    return value or WARMING_TOKENS


def _session(metadata: bytes) -> str:
    """Return the session part of metadata.user_id: a JSON text with session_id, or the older `…_session_<id>`."""
    if metadata in (b"", b"null"):
        return ""
    try:
        raw, _ = members(metadata, ("user_id",))
        user_id = _string(raw, "user_id")
    except (NotAnObject, RequestInvalid):
        return ""
    if user_id.startswith("{"):
        try:
            inner, _ = members(user_id.encode(), ("session_id",))
            return _string(inner, "session_id")
        except (NotAnObject, RequestInvalid, UnicodeEncodeError):
            return ""
    return _old_session(user_id)


def _old_session(user_id: str) -> str:
    old = _OLD_SESSION.search(user_id)
    return old.group(1) if old else ""


class _Role(msgspec.Struct):
    role: str = ""


_role_decoder = msgspec.json.Decoder(_Role)


class _Conversation(msgspec.Struct):
    system: Raw = Raw(b"")
    messages: Raw = Raw(b"")


_conversation_decoder = msgspec.json.Decoder(_Conversation)


def _first_user_turn(messages: Raw) -> Raw:
    """Return a view of the body, which may be of many megabytes."""
    try:
        for turn in RAW_LIST.decode(messages) if messages != Raw(b"") else ():
            if _role_decoder.decode(turn).role == "user":
                return turn
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return messages
    return Raw(b"")
