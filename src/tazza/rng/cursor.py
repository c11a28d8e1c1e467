"""A place in a random stream."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["Cursor"]


class Cursor(NamedTuple):
    """A place in the Philox4x64-10 stream of a key, as a value that can be kept, cut and sent.

    Most draws take whole 64-bit words. ``random(dtype="float32")`` and ``bytes`` take half words, low half first; when
    they take an odd number, the high half stays in reserve until the next such draw, across draws of whole words. That
    is NumPy's rule, and the reason for ``half``.

    Attributes:
        key: 128 bits, the first key word in the low half.
        position: index of the next unused word.
        half: index of the word whose high half is in reserve, or None.

    >>> Cursor(key=7, position=0).after_halves(3)
    Cursor(key=7, position=2, half=1)
    """

    key: int
    position: int
    half: int | None = None

    def after_words(self, count: int) -> Cursor:
        """Return the cursor behind ``count`` words; the reserved half stays."""
        return self._replace(position=self.position + count)

    def after_halves(self, count: int) -> Cursor:
        """Return the cursor behind ``count`` half words, of which the reserved one is the first."""
        if not count:
            return self
        fresh = count - (self.half is not None)
        position = self.position + (fresh + 1) // 2
        return Cursor(self.key, position, position - 1 if fresh % 2 else None)

    def bit_generator(self) -> np.random.Philox:
        """Return a new NumPy bit generator at this place, its spare half word included."""
        bits = self._at(self.position)
        if self.half is not None:
            state = bits.state
            state["has_uint32"] = 1
            state["uinteger"] = int(self._at(self.half).random_raw()) >> 32
            bits.state = state
        return bits

    def _at(self, position: int) -> np.random.Philox:
        from tazza.rng.known import KnownKey  # here, so that importing tazza does not load numpy.random

        # NumPy counts blocks of four words and steps before it draws: counter 0 yields block 1 first.
        block, skip = divmod(position, 4)
        bits = np.random.Philox(KnownKey(self.key))  # type: ignore[arg-type]  # the stub knows only SeedSequence itself
        if block:
            bits.advance(block)
        if skip:
            bits.random_raw(skip, output=False)
        return bits
