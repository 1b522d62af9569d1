"""A protobuf message put together from parts that are serialised already.

The library copies each part into a list by writing and reading it, and then writes it once more; where messages
travel in batches, that is most of what a batch costs.
"""

from collections.abc import Iterable
from functools import lru_cache

_LENGTH_DELIMITED = 2
_MORE, _LOW = 0x80, 0x7F


def embedded(field_number: int, messages: Iterable[bytes]) -> bytes:
    """Return the entries of a repeated message field, as they stand in its message's own bytes.

    A protobuf message is the concatenation of its fields, in any order.
    """
    tag = _varint(field_number << 3 | _LENGTH_DELIMITED)
    return b"".join([tag + _varint(len(message)) + message for message in messages])


@lru_cache(maxsize=4096)
def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > _LOW:
        digits.append(number & _LOW | _MORE)
        number >>= 7
    digits.append(number)
    return bytes(digits)
