"""A request that repeats the head of the one before on its connection, but for the length of its body.

Clients send the same head again and again. Where a whole request came in one read, the parser need not see it: it
would say the same of every line, and would stand where it stands now, between two messages.
"""

from signalbox.gateway.domain.caller import Caller

_LENGTH = b"\r\ncontent-length: "
_END = b"\r\n\r\n"
_MOST_DIGITS = 9    # longer bodies do not come in one read
_MOST_BYTES = 8 << 10    # of a head that is remembered, since every connection may


class RepeatedHead:
    """What a parsed head came to, and the text that it must be found by."""

    __slots__ = ("_after", "_before", "caller", "query", "route")

    def __init__(self, before: bytes, after: bytes, route: str, query: bytes, caller: Caller) -> None:
        self._before = before
        self._after = after
        self.route = route
        self.query = query
        self.caller = caller

    @classmethod
    def of(cls, request: bytes, route: str, query: bytes, caller: Caller) -> "RepeatedHead | None":
        """Return how to find the head of `request` again: one whole request, parsed, with a body of stated length.

        None where its length is not stated in the usual place and spelling, once.
        """
        end = request.find(_END) + len(_END)
        head = request[:end].lower()
        at = head.find(_LENGTH) + len(_LENGTH)
        if at < len(_LENGTH) or len(head) > _MOST_BYTES or head.count(b"content-length") != 1:
            return None
        stop = head.find(b"\r", at)
        if not head[at:stop].isdigit() or len(request) != end + int(head[at:stop]):
            return None
        return cls(request[:at], request[stop:end], route, query, caller)

    def body(self, data: bytes) -> bytes | None:
        """Return the body if `data` is one whole request with this head; None where it is anything else."""
        before, after = self._before, self._after
        if not data.startswith(before):
            return None
        start = len(before)
        stop = data.find(b"\r", start, start + _MOST_DIGITS + 1)
        length = data[start:stop]
        if not length.isdigit() or not data.startswith(after, stop):
            return None
        start = stop + len(after)
        return data[start:] if len(data) - start == int(length) else None
