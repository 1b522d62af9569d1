"""Which refusal an outcome means: what Redis answered, or that no account of the key's pools takes the request."""

from collections.abc import Collection, Sequence
from typing import Any, Final

from signalbox.scheduler.domain import denials
from signalbox.scheduler.domain.policies import KeyLimit, KeyPolicy
from signalbox.v1.scheduler_pb2 import Denial

TRANSIENT: Final = ("limited", "cooling", "full", "capped", "probing")
"""What keeps an account out for a while only."""
TOO_LARGE: Final = "too_large"
"""The account's own limits never have room for the request."""


def told_by_redis(answer: Sequence[Any], key: KeyPolicy, limits: Sequence[KeyLimit], now_ms: int) -> Denial:
    """Return the denial for the functions' answer: deny, what, which limit, when there is room, never, reports."""
    _, what, which, at_ms, never, _ = answer
    if what == b"expired":
        return denials.key_expired(key)
    if what == b"concurrency":
        return denials.key_limit_concurrency(key)
    dimension, wait_ms = int(what.removeprefix(b"limit_")), max(0, at_ms - now_ms) if at_ms else 0
    return denials.key_limit(key, dimension, limits[which - 1].name, wait_ms, never_fits=bool(never))


def nobody_takes_it(
    key: KeyPolicy, model: str, reasons: Collection[str], wait_ms: int, *, serving: int, pin_refused: bool,
) -> Denial:
    """Return the denial where every account is kept out for one of `reasons`; `serving`: how many serve the model."""
    if not serving:
        return denials.no_account_for_model(key, model)
    if not frozenset(TRANSIENT).isdisjoint(reasons):
        return denials.pin_refused(key, wait_ms, heals=True) if pin_refused else denials.pool_limited(key, wait_ms)
    if TOO_LARGE in reasons:
        return denials.larger_than_accounts(key)
    limits = [r for r in reasons if r.startswith("key_limit_")]
    if limits:
        what, _, name = limits[0].removeprefix("key_limit_").partition(" ")
        return denials.key_limit(key, denials.LIMITED.index(what) + 1, name, wait_ms, never_fits=False)
    return denials.pool_unavailable(key)
