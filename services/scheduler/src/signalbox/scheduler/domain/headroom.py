"""How well an account's quota stands, by the windows that its provider told of.

A quota (5 hours, 7 days) is held against the time until it begins anew: what would be left then expires, so it is worth
spending first; one that is used up faster than time goes by is spared. A rate (a minute's requests and tokens) refills
all the time, so only what is used of it counts. Pure. Source of names and lengths: Anthropic's response headers.
"""

from collections.abc import Iterable
from typing import Final

from signalbox.v1.common_pb2 import Window

_LENGTHS_MS: Final = {"5h": 5 * 3_600_000, "7d": 7 * 86_400_000}
NO_QUOTA: Final = ("overage", "unified")
"""What may be spent beyond a window, and the summary of all: neither is a quota of its own."""
TIGHT = 0.01
"""A share left that one request may overrun; below it an account is kept for last."""
SPENT = -2.0
_SHARE_OF_ONE = 0.002
"""What one running request takes of a window that is known as a share only."""


def is_unified(name: str) -> bool:
    """Whether a window is one of a subscription's, which hold for all models unless their names say otherwise."""
    return name in NO_QUOTA or name.partition("_")[0] in _LENGTHS_MS


def applies(name: str, of_class: str, model_class: str) -> bool:
    """Whether a window limits requests for models of `model_class`; `of_class` is the class that it was told for."""
    if name in NO_QUOTA:
        return False
    if of_class:
        return of_class == model_class
    _, separator, family = name.partition("_")
    return not separator or family in (model_class, "oi")


def surplus(windows: Iterable[Window], model_class: str, running: int, typical: float, now_ms: int) -> float:
    """Return how much quota there is beyond what time demands, -1 to 1, by the tightest window; 0 where none is known.

    For a quota that is the share left less the share of time left: above 0 some would expire unused at an even pace,
    below 0 it would not last. For a rate it is what is used of it, below 0. SPENT where next to nothing is left.
    `running`: requests in flight against these windows, of `typical` tokens each: what they will take is not left.
    """
    least: float | None = None
    for w in windows:
        if not applies(w.name, w.model_class, model_class) or (w.resets_at_ms and w.resets_at_ms <= now_ms):
            continue
        left = _left(w, running, typical)
        if left < TIGHT:
            return SPENT + left
        length_ms = _LENGTHS_MS.get(w.name.partition("_")[0])
        if length_ms is None:
            spare = left - 1.0
        else:
            spare = left - (min(1.0, (w.resets_at_ms - now_ms) / length_ms) if w.resets_at_ms else 1.0)
        least = spare if least is None else min(least, spare)
    return least or 0.0


def _left(window: Window, running: int, typical: float) -> float:
    """Return the share of a window that is left once what is in flight has taken its part."""
    if window.limit > 0 and window.remaining >= 0:
        taken = running if window.name.endswith("requests") else running * typical
        return min(1.0 - window.utilization, (window.remaining - taken) / window.limit)
    return 1.0 - window.utilization - running * _SHARE_OF_ONE
