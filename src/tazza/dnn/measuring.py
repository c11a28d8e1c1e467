"""``algorithm="measure"``: candidates for a plan are timed in turns, by one rule for all libraries."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from tazza.dnn.library import Layout

__all__ = ["fastest", "span"]

_MOST_ROUNDS: Final = 50


def fastest(
    candidates: Sequence[Callable[[], float | None]], seconds: float, typical: Callable[[Sequence[float]], float]
) -> int | None:
    """Time candidates in turns until the time is over, at least twice each; returns the number of the fastest.

    One that is alone is not timed. Calls nothing under a lock.

    Args:
        candidates: each does its work, on memory that nobody else has, and returns the seconds that it took; None where
            it cannot do it after all, and is asked no more.
        seconds: after which no further round begins.
        typical: what the times of one are judged by, such as `min` or `statistics.median`.

    Returns:
        None: none of them can do it.
    """
    if len(candidates) == 1:
        return 0
    seen: dict[int, list[float]] = {number: [] for number in range(len(candidates))}
    end, rounds = time.monotonic() + seconds, 0
    while len(seen) > 1 and (rounds < 2 or (rounds < _MOST_ROUNDS and time.monotonic() < end)):
        for number in list(seen):
            took = candidates[number]()
            if took is None:
                del seen[number]
            else:
                seen[number].append(took)
        rounds += 1
    return min(seen, key=lambda number: typical(seen[number]), default=None)


def span(layout: Layout) -> tuple[int, int]:
    """The elements from the lowest to the highest address of an array, and which of them its first one is."""
    steps = [step * (extent - 1) for step, extent in zip(layout.strides, layout.shape, strict=True)]
    low, high = sum(min(0, step) for step in steps), sum(max(0, step) for step in steps)
    return high - low + 1, -low
