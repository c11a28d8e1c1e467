"""Raw words, half words and uniform floats: NumPy's own compiled Philox, set to a cursor."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tazza.rng.cursor import Cursor
from tazza.rng.filling import Affine, blocks

__all__ = ["fill_halves", "fill_random", "fill_words"]


def fill_words(cursor: Cursor, out: NDArray[np.uint64]) -> None:
    """Write the stream's 64-bit words."""
    bits = cursor.bit_generator()
    for _, block in blocks(out):
        block[:] = bits.random_raw(block.size)


def fill_halves(cursor: Cursor, out: NDArray[np.uint32]) -> None:
    """Write the stream's 32-bit half words, the reserved one first."""
    generator = np.random.Generator(cursor.bit_generator())
    for _, block in blocks(out):
        block[:] = generator.integers(0, 0xFFFFFFFF, block.size, dtype=np.uint32, endpoint=True)


def fill_random(cursor: Cursor, out: NDArray[Any], *, affine: Affine | None = None) -> None:
    """Write uniform floats of [0, 1): ``(word >> 11) * 2**-53`` or, for float32, ``(half >> 8) * 2**-24``."""
    generator = np.random.Generator(cursor.bit_generator())
    if affine is None:
        generator.random(out=out, dtype=out.dtype.type)
        return
    for _, block in blocks(out):
        generator.random(out=block, dtype=block.dtype.type)
        affine(block)
