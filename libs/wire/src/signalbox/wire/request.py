"""Reads of a Messages request only what the relay needs, without building the whole tree, and refuses what is unclear.

Sources: contract §2, wire-facts §1 (fields a gateway reads) and §2 (session identity). How field names are proved to
stand once is json_object.py's business.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from signalbox.wire.json_object import Ambiguous, NotAnObject, members, tree

MAX_TOKENS = 10**9
MAX_MODEL_CHARS = 256
READ_FIELDS = frozenset((
    "model", "stream", "max_tokens", "metadata", "prompt_cache_key", "system", "messages", "tools", "fallbacks",
    "container", "thread", "speed", "inference_geo", "service_tier", "context_management", "compaction", "mcp_servers",
))
_OLD_SESSION = re.compile(r"_session_([0-9A-Za-z-]+)$")
_string_decoder = msgspec.json.Decoder(str)
_ESCAPE = b"\\u00"
# An escape that spells an ASCII letter or an underscore: nobody writes names so, except to be misread.
_ESCAPED_LETTER = re.compile(rb"\\u00(?:[46][1-9a-fA-F]|[57][0-9aA]|5[fF])")
# Places below the top level where a model that can serve may be named.
_MODEL_PLACES = ("fallbacks", "context_management", "compaction")
# Inside a tool these describe or hold the caller's own data, not a model that can serve.
_NO_MODELS_BELOW = frozenset(("input_schema", "input_examples", "input"))


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
        """Return system and first user turn as sent: what a conversation without a session id is known by."""
        return self._system + b"\0" + _first_user_turn(self._messages)


def read_request(body: bytes) -> RequestFacts:
    """Return the facts of a Messages body. Raises RequestInvalid."""
    try:
        return _read(body)
    except Ambiguous as e:
        raise RequestInvalid(str(e), e.name) from None
    except NotAnObject as e:
        raise RequestInvalid(f"The body is not a JSON object that can be read: {e}") from None


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
    escaped = _ESCAPE in body and _ESCAPED_LETTER.search(body) is not None
    files = escaped or _file_ids(raw)
    if "model" not in places:
        places = {"model": _locate_model(body, raw["model"])}
    return RequestFacts(
        model=model,
        models=(model, *(m for m in dict.fromkeys(_other_models(raw, escaped=escaped)) if m != model)),
        stream=_boolean(raw, "stream"),
        max_tokens=_natural(raw, "max_tokens"),
        session=_session(raw.get("metadata", b"")),
        prompt_cache_key=_string(raw, "prompt_cache_key"),
        state_bound=files or _present(raw, "container") or _present(raw, "thread"),
        unseen_input=files or _urls(raw) or _server_tools(raw),
        speed=_string(raw, "speed"),
        inference_geo=_string(raw, "inference_geo"),
        service_tier=_string(raw, "service_tier"),
        input_bytes=len(body),
        _model_at=(places["model"], places["model"] + len(raw["model"])),
        _system=raw.get("system", b""),
        _messages=raw.get("messages", b""),
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
    if not _present(raw, name):
        return ""
    try:
        return _string_decoder.decode(raw[name])
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


# ---------------------------------------------------------------------------------------- other models


def _other_models(raw: dict[str, bytes], *, escaped: bool) -> Iterator[str]:
    """Yield the models that can serve besides the top-level one: fallbacks, advisor tools, compaction and the like.

    Input schemas of tools, tool inputs and message content name no serving models.
    """
    for name in _MODEL_PLACES:
        yield from _models_of(raw.get(name, b""), escaped=escaped)
    for tool in _items(raw.get("tools", b"")):
        yield from _models_of(tool, escaped=escaped)


def _models_of(text: bytes, *, escaped: bool) -> Iterator[str]:
    if text and (escaped or b'"model"' in text):
        yield from _models_in(tree(text, ("model",)))


def _models_in(value: object) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _models_in(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name == "model" and isinstance(item, str):
                yield item
            elif name not in _NO_MODELS_BELOW:
                yield from _models_in(item)


def _items(text: bytes) -> list[bytes]:
    try:
        return [bytes(item) for item in msgspec.json.decode(text, type=list[msgspec.Raw])] if text else []
    except (msgspec.DecodeError, RecursionError):
        return [text]


# ---------------------------------------------------------------------------------------- what lies deeper

_SERVER_TOOL = re.compile(rb'"type"\s*+:\s*+"(?:web_search|web_fetch|code_execution|advisor|tool_search)[^"]*+"')
_FILE_SOURCE = re.compile(rb'"file_id"\s*+:\s*+"')
_URL_SOURCE = re.compile(rb'"type"\s*+:\s*+"url"')


def _file_ids(raw: dict[str, bytes]) -> bool:
    """Whether some content block refers to a file that the provider keeps."""
    messages = raw.get("messages", b"")
    return b"file_id" in messages and _FILE_SOURCE.search(messages) is not None


def _urls(raw: dict[str, bytes]) -> bool:
    """Whether the provider is asked to fetch something: URL sources, remote tool servers."""
    messages = raw.get("messages", b"")
    return _present(raw, "mcp_servers") or (b'"url"' in messages and _URL_SOURCE.search(messages) is not None)


def _server_tools(raw: dict[str, bytes]) -> bool:
    """Whether the provider may run tools of its own, whose results become input."""
    return _SERVER_TOOL.search(raw.get("tools", b"")) is not None


class _Role(msgspec.Struct):
    role: str = ""


def _first_user_turn(messages: bytes) -> bytes:
    for turn in _items(messages):
        try:
            if msgspec.json.decode(turn, type=_Role).role == "user":
                return turn
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return messages
    return b""
