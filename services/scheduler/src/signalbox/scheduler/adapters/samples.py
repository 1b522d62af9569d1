"""What requests have used, as all schedulers have lately seen it, so that each reserves the same for the next.

A short stream in Redis: each appends what it has learned a few times a second and reads what the others have; one that
starts reads all of it. It may be lost; estimates are learned anew then.
"""

import contextlib

import msgspec

from signalbox.scheduler.adapters.store import Store
from signalbox.scheduler.domain.estimates import Estimates, Sample

_STREAM = "sb:used"
_KEPT = 500
"""Entries; each holds what one scheduler learned between two looks, five hundred samples at most."""
_PAGE = 50
_BEGINNING = b"0-0"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Sample]).decode


class Samples:
    """One scheduler's end of the stream."""

    def __init__(self, store: Store, estimates: Estimates, instance: str) -> None:
        self._store = store
        self._estimates = estimates
        self._instance = instance.encode()
        self._seen = _BEGINNING
        self._epoch = ""

    async def exchange(self) -> None:
        """Tell what was learned here and learn what the others told. Raises Unavailable."""
        if self._epoch != self._store.epoch:  # the stream may have begun anew, at an earlier time
            self._epoch, self._seen = self._store.epoch, _BEGINNING
        if samples := self._estimates.unshared():
            await self._store.command(
                "XADD", _STREAM, "MAXLEN", "~", _KEPT, "*", "by", self._instance, "used", _encode(samples),
            )
        while await self._read_page():
            pass

    async def _read_page(self) -> bool:
        """Read one page; return whether there may be more."""
        entries = await self._store.command("XRANGE", _STREAM, b"(" + self._seen, "+", "COUNT", _PAGE)
        for number, (_, by, _, used) in entries:
            self._seen = number
            if by != self._instance:
                with contextlib.suppress(msgspec.MsgspecError):
                    for key_id, model, tokens, cost in _decode(used):
                        self._estimates.take(key_id, model, (tokens, cost))
        return len(entries) == _PAGE
