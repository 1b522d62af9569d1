"""How a question about a span of time is answered from the coarsest sums that fit, and counters from what is kept.

Pure arithmetic on Unix milliseconds; spans are half-open.
"""

from typing import NamedTuple

from signalbox.usage.domain.rollups import DAY_MS, HOUR_MS, MINUTE_MS
from signalbox.usage.domain.rows import MAX_MS

SECOND_MS = 1_000
FINE_MS = 2 * MINUTE_MS
MEDIUM_MS = 2 * HOUR_MS


class Span(NamedTuple):
    """From `start_ms` up to but without `end_ms`, in steps of `width_ms` (1: single rows)."""

    start_ms: int
    end_ms: int
    width_ms: int


def cover(since_ms: int, until_ms: int) -> list[Span]:
    """Split [since, until) into spans of whole days, whole hours and rows that do not overlap; 0 leaves an end open."""
    start, end = max(since_ms, 0), until_ms if 0 < until_ms < MAX_MS else MAX_MS + 1
    spans: list[Span] = []
    _cover(start, end, (DAY_MS, HOUR_MS), spans)
    return sorted(spans)


def _cover(start: int, end: int, widths: tuple[int, ...], spans: list[Span]) -> None:
    if start >= end:
        return
    if not widths:
        spans.append(Span(start, end, 1))
        return
    width, *finer = widths
    # Nothing lies after MAX_MS, so an open end needs no rounding.
    first, last = -(-start // width) * width, end if end > MAX_MS else end - end % width
    if first >= last:
        _cover(start, end, tuple(finer), spans)
        return
    _cover(start, first, tuple(finer), spans)
    spans.append(Span(first, last, width))
    _cover(last, end, tuple(finer), spans)


def counter_spans(now_ms: int) -> list[Span]:
    """Return the spans of the limit counters: days, then minutes for two hours, then seconds for two minutes.

    They do not overlap: the sum of all buckets that start in a period is the period's. The last day's bucket
    therefore holds only what was before the minutes begin.
    """
    minute = now_ms - now_ms % MINUTE_MS
    medium, fine = max(minute - MEDIUM_MS, 0), max(minute - FINE_MS, 0)
    return [Span(0, medium, DAY_MS), Span(medium, fine, MINUTE_MS), Span(fine, MAX_MS + 1, SECOND_MS)]
