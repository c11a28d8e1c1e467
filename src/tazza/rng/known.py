"""NumPy's Philox with a known key. A module of its own because it loads numpy.random, a seventh of ``import numpy``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import DTypeLike, NDArray

from tazza.rng.philox import WORD_MASK

__all__ = ["KnownKey"]


class KnownKey(ISeedSequence):
    """A seed sequence that yields a given 128-bit key. (``Philox(key=...)`` would read the system's entropy: 7 us.)"""

    def __init__(self, key: int) -> None:
        self._words = (key & WORD_MASK, key >> 64)

    def generate_state(self, n_words: int, dtype: DTypeLike = np.uint32) -> NDArray[Any]:
        """Return the key's words; Philox asks for two of 64 bits."""
        return np.array(self._words[:n_words], dtype)
