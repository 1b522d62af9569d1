"""Reads of a Messages request only what the relay needs, without building the whole tree, and refuses what is unclear.

Sources: contract §2, wire-facts §1 (fields a gateway reads) and §2 (session identity). How field names are proved to
stand once is json_object.py's business.
"""

import re
from dataclasses import dataclass, field

import msgspec

from signalbox.wire.content import RAW_LIST, read_messages, read_tools, serving_models
from signalbox.wire.json_object import Ambiguous, NotAnObject, members

MAX_TOKENS = 10**9
MAX_MODEL_CHARS = 256
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
    max_tokens: int                      # 0: not given
    session: str                         # the session part of metadata.user_id
    prompt_cache_key: str
    state_bound: bool                    # container, file id or thread: belongs to the account that made it
    unseen_input: bool                   # URLs, file ids, server tools: input that bytes do not bound
    speed: str
    inference_geo: str
    service_tier: str
    input_bytes: int
    _model_at: tuple[int, int]           # where the top-level model's value lies in the body
    _system: bytes = field(repr=False)
    _messages: bytes = field(repr=False)

    def conversation_seed(self) -> bytes:
        """Return system and first user turn as sent: what a conversation without a session id is known by.

        Cache marks are left out, since clients move them along as the conversation grows.
        """
        seed = self._system + b"\0" + _first_user_turn(self._messages)
        return _CACHE_MARK.sub(b"", seed) if b"cache_control" in seed else seed


def read_request(body: bytes) -> RequestFacts:
    """Return the facts of a Messages body. Raises RequestInvalid."""
    try:
        return _read(body)
    except Ambiguous as e:
        raise RequestInvalid(str(e), e.name) from None
    except NotAnObject as e:
        raise RequestInvalid(f"The body is not a JSON object that can be read: {e}") from None
    except RecursionError:
        raise RequestInvalid("The body is nested too deeply") from None


def rewrite_model(body: bytes, facts: RequestFacts, new_model: str) -> bytes:
    """Return the body with the top-level model replaced; every other byte stays as it is."""
    start, end = facts._model_at
    return body[:start] + msgspec.json.encode(new_model) + body[end:]


def _read(body: bytes) -> RequestFacts:
    raw, places = members(body, READ_FIELDS)
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
    if "model" not in places:
        places = {"model": _locate_model(body, raw["model"])}
    return RequestFacts(
        model=model,
        models=tuple(dict.fromkeys((model, *others, *tool_models, *seen.models))),
        stream=_boolean(raw, "stream"),
        max_tokens=_natural(raw, "max_tokens"),
        session=_session(raw.get("metadata", b"")),
        prompt_cache_key=_string(raw, "prompt_cache_key"),
        state_bound=seen.files or _present(raw, "container") or _present(raw, "thread"),
        unseen_input=seen.files or seen.urls or provider_tools or _present(raw, "mcp_servers"),
        speed=_string(raw, "speed"),
        inference_geo=_string(raw, "inference_geo"),
        service_tier=_string(raw, "service_tier"),
        input_bytes=len(body),
        _model_at=(places["model"], places["model"] + len(raw["model"])),
        _system=raw.get("system", b""),
        _messages=messages,
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


def _natural(raw: dict[str, bytes], name: str) -> int:
    if not _present(raw, name):
        return 0
    try:
        value = msgspec.json.decode(raw[name], type=int)
    except msgspec.DecodeError:
        raise RequestInvalid(f"{name}: Input should be a whole number", name) from None
    if not 0 <= value <= MAX_TOKENS:
        raise RequestInvalid(f"{name}: must lie between 0 and {MAX_TOKENS}", name)
    return value


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
    old = _OLD_SESSION.search(user_id)
    return old.group(1) if old else ""


class _Role(msgspec.Struct):
    role: str = ""


_role_decoder = msgspec.json.Decoder(_Role)


def _first_user_turn(messages: bytes) -> bytes:
    try:
        for turn in RAW_LIST.decode(messages or b"[]"):
            if _role_decoder.decode(turn).role == "user":
                return bytes(turn)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return messages
    return b""
