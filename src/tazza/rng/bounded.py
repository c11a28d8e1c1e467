"""Integers of a range, one word each.

Source: D. Lemire, "Fast random integer generation in an interval", ACM TOMACS 29 (2019): the value is the upper half of
``word * span``, and words whose lower half is under ``2**64 % span`` are rejected. A rejected word is not replaced by
the next one of the stream, which would move every later value, but by a word of a child stream at a counter made of the
element's position and the attempt. So every element depends on its own position only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tazza.rng.cursor import Cursor
from tazza.rng.filling import blocks
from tazza.rng.keys import derived_key
from tazza.rng.philox import WORD_MASK, high_product, philox

__all__ = ["Redraw", "bounded", "fill_integers"]


class Redraw(NamedTuple):
    """The source of replacement words for a draw.

    Attributes:
        cursor: the place of the draw's first element.
        turn: different turns give different words.
        slots: the places in the draw that indices stand for, or None where they are the same.
    """

    cursor: Cursor
    turn: int = 0
    slots: NDArray[np.intp] | None = None

    def __call__(self, indices: NDArray[np.intp], attempt: int) -> NDArray[np.uint64]:
        """Return one fresh word for each index; it depends on the index, the attempt and the turn only."""
        slots = indices if self.slots is None else self.slots[indices]
        start = np.uint64(self.cursor.position & WORD_MASK)
        counters = np.zeros((4, slots.size), np.uint64)
        counters[0] = slots.astype(np.uint64) + start
        counters[1] = np.uint64(self.cursor.position >> 64)
        counters[1] += counters[0] < start
        counters[2:] = [[attempt], [self.turn]]
        words: NDArray[np.uint64] = philox(derived_key(self.cursor.key, "redraw"), counters)[0]
        return words


def fill_integers(cursor: Cursor, out: NDArray[Any], *, low: int, span: int) -> None:
    """Write integers of ``[low, low + span)``; ``1 <= span <= 2**64`` and the range fits the array's dtype."""
    bits = cursor.bit_generator()
    for start, block in blocks(out):
        values = bounded(bits.random_raw(block.size), span, Redraw(cursor.after_words(start)))
        values += np.uint64(low & WORD_MASK)
        # Two's complement: the low bits of the sum modulo 2**64 are the value in every integer dtype.
        np.copyto(block, values, casting="unsafe")


def bounded(words: NDArray[np.uint64], span: int, redraw: Redraw) -> NDArray[np.uint64]:
    """Map words to unbiased integers of ``[0, span)`` as a new array, redrawing the rejected ones."""
    if span == 1 << 64:
        return words.copy()
    factor, threshold = np.uint64(span), np.uint64((1 << 64) % span)
    values = high_product(words, factor)
    rejected = np.flatnonzero(words * factor < threshold) if threshold else np.empty(0, np.intp)
    attempt = 1
    while rejected.size:
        again = redraw(rejected, attempt)
        values[rejected] = high_product(again, factor)
        rejected = rejected[again * factor < threshold]
        attempt += 1
    return values
