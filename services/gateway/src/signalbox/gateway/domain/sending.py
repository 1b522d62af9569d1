"""The request as it leaves for the provider: the caller's own bytes and headers, under the account's credential.

Nothing is added that the caller did not send, but for the credential with the headers that it requires, the host,
the length and the wish for an unencoded answer.
"""

from signalbox.gateway.domain.caller import Caller
from signalbox.wire.headers import upstream

Header = tuple[bytes, bytes]

MAX_HEADS = 8    # kept of one caller: its accounts' and routes', rotated credentials among them
_MERGED = b"anthropic-beta"    # a list: a credential's entry joins the caller's instead of replacing it


def request_head(
    target: bytes, authority: bytes, caller: Caller, credential: tuple[Header, ...], length: int,
) -> bytes:
    """Return the head of a POST to `target` (path and query) with a body of `length` bytes."""
    kind = (target, authority, credential)
    head = caller.heads.get(kind)
    if head is None:
        if len(caller.heads) >= MAX_HEADS:
            caller.heads.clear()
        head = caller.heads[kind] = _without_length(target, authority, caller, credential)
    return b"%bcontent-length: %d\r\n\r\n" % (head, length)


def _without_length(target: bytes, authority: bytes, caller: Caller, credential: tuple[Header, ...]) -> bytes:
    parts = [b"POST ", target, b" HTTP/1.1\r\nhost: ", authority, b"\r\n"]
    added = dict(credential)
    for name, value in upstream(caller.headers, caller.fields):
        if name in added:
            if name != _MERGED:
                continue
            value = _joined(value, added.pop(name))  # noqa: PLW2901
        parts += (name, b": ", value, b"\r\n")
    for name, value in added.items():
        parts += (name, b": ", value, b"\r\n")
    parts.append(b"accept-encoding: identity\r\n")
    return b"".join(parts)


def _joined(own: bytes, required: bytes) -> bytes:
    if required in (part.strip() for part in own.split(b",")):
        return own
    return own + b"," + required
