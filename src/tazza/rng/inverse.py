"""Normal and exponential values from one word each: inverse distribution functions by table and polynomial.

A word gives 63 bits, which become a float ``x`` in [1, 2**63] by one correctly rounded conversion. The float's own bits
then say the rest: its exponent and the first 6 bits of its mantissa number a segment (so segments shrink with the tail
probability, down to 2**-64), the other mantissa bits are the argument ``t`` of the segment's polynomial. Only
conversions, ``+``, ``-``, ``*``, comparisons, integer operations and table look-ups occur, each rounded once: any
device that computes them as IEEE 754 says, without contracting ``a * b + c``, gives the same bits.

==============  =======  ======  ==========================================
distribution    dtype    degree  largest error against the exact inverse
==============  =======  ======  ==========================================
normal          float64  5       2e-15 (values to 9.1)
normal          float32  2       1e-6
exponential     float64  5       8e-15 (values to 43.7)
exponential     float32  2       4e-6
==============  =======  ======  ==========================================

Besides, float32 values have a granularity of ``2**-24`` of the tail probability, like every float32 uniform.
The tables come from ``tools/make_random_tables.py``.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tazza.rng.cursor import Cursor
from tazza.rng.filling import BLOCK, Affine, blocks

__all__ = ["fill_exponential", "fill_normal"]

_SEGMENT_BITS = 6
_SIGN = np.uint64(1 << 63)
_MAGNITUDE = np.uint64((1 << 63) - 1)
_ONE = np.uint64(1)


def fill_normal(cursor: Cursor, out: NDArray[Any], *, affine: Affine | None = None) -> None:
    """Write standard normal values: the word's top bit is the sign, the others the tail probability."""
    bits = cursor.bit_generator()
    table = _table("normal", out.dtype)
    scratch = table.scratch(out)
    for _, block in blocks(out):
        words = bits.random_raw(block.size)
        table.evaluate(words & _MAGNITUDE, block, scratch)
        _flip_signs(block, words)
        if affine is not None:
            affine(block)


def fill_exponential(cursor: Cursor, out: NDArray[Any], *, affine: Affine | None = None) -> None:
    """Write standard exponential values: the word's upper 63 bits are the probability to exceed the value."""
    bits = cursor.bit_generator()
    table = _table("exponential", out.dtype)
    scratch = table.scratch(out)
    for _, block in blocks(out):
        words = bits.random_raw(block.size)
        words >>= _ONE
        table.evaluate(words, block, scratch)
        np.maximum(block, 0, out=block)  # the last segment ends at 0 and may fall below it by its rounding error
        if affine is not None:
            affine(block)


class _Scratch(NamedTuple):
    """Memory for one block: number of the segment, argument of the polynomial, coefficients."""

    segment: NDArray[np.intp]
    t: NDArray[Any]
    term: NDArray[Any]


class _Table:
    """The polynomials of one distribution for one float dtype.

    Args:
        coefficients: shape ``(degree + 1, segments)``, the constant first; kept.
    """

    def __init__(self, coefficients: NDArray[Any]) -> None:
        info = np.finfo(coefficients.dtype)
        self._highest, *self._lower = coefficients[::-1]
        self._one = info.dtype.type(1)
        self._integer = np.dtype(f"int{info.bits}")
        self._shift = self._integer.type(info.nmant - _SEGMENT_BITS)
        self._mantissa = self._integer.type((1 << (info.nmant - _SEGMENT_BITS)) - 1)
        self._first_segment = (1 - info.minexp) << _SEGMENT_BITS

    def scratch(self, out: NDArray[Any]) -> _Scratch:
        """Return memory for the longest block of an array."""
        size, dtype = min(out.size, BLOCK), out.dtype
        return _Scratch(np.empty(size, np.intp), np.empty(size, dtype), np.empty(size, dtype))

    def evaluate(self, magnitudes: NDArray[np.uint64], out: NDArray[Any], scratch: _Scratch) -> None:
        """Write the values for 63-bit magnitudes (overwritten) into ``out``."""
        segment, t, term = (memory[: out.size] for memory in scratch)
        magnitudes |= _ONE  # never 0, where the inverse is infinite
        np.copyto(out, magnitudes.view(np.int64), casting="unsafe")
        pattern = out.view(self._integer)
        np.right_shift(pattern, self._shift, out=segment)
        segment -= self._first_segment
        pattern &= self._mantissa
        pattern |= self._one.view(self._integer)
        np.subtract(out, self._one, out=t)
        # Clipping never happens; it is the mode in which NumPy writes straight into `out`.
        self._highest.take(segment, out=out, mode="clip")
        for coefficients in self._lower:
            out *= t
            out += coefficients.take(segment, out=term, mode="clip")


@cache
def _table(distribution: str, dtype: np.dtype[Any]) -> _Table:
    with np.load(os.path.join(os.path.dirname(__file__), "tables.npz")) as tables:
        return _Table(tables[f"{distribution}_{dtype.name}"])


def _flip_signs(values: NDArray[Any], words: NDArray[np.uint64]) -> None:
    """Negate the values whose word (overwritten) has its top bit set."""
    words &= _SIGN
    if values.dtype.itemsize == 8:
        pattern = values.view(np.uint64)
        pattern ^= words
    else:
        words >>= np.uint64(32)
        narrow = values.view(np.uint32)
        narrow ^= words.astype(np.uint32)
