# cython: language_level=3
"""NumPy arrays over host addresses, without the dictionary that NumPy's protocol takes."""

from __future__ import annotations

from typing import Any

import numpy as np

from tazza.hot import _array
from tazza.util.hostmemory import HostMemory

__all__ = ["array_of"]


def array_of(memory: HostMemory) -> np.ndarray[Any, np.dtype[Any]]:
    """Return ``memory.array()``."""
    return _array.over(memory.address, memory.dtype, memory.shape, memory.strides, memory.readonly, memory)
