# cython: language_level=3
"""NumPy arrays over host addresses, without the dictionary that NumPy's protocol takes."""

from __future__ import annotations

from typing import Any

import numpy as np

from tazza.hot import _array
from tazza.util.hostmemory import HostMemory

__all__ = ["array_of", "array_over"]

_COMPILED = not __file__.endswith((".py", ".pyc"))
_MOST_AXES = 32  # more are newer NumPys' alone


def array_of(memory: HostMemory) -> np.ndarray[Any, np.dtype[Any]]:
    """Return ``memory.array()``."""
    return _array.over(memory.address, memory.dtype, memory.shape, memory.strides, memory.readonly, memory)


def array_over(buffer: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[Any]]:
    """Return an array without gaps over the first bytes of a fresh Buffer, which it keeps.

    Fresh memory has no users to wait for, so the export protocols, which would ask, are passed by. The buffer stays
    plain bytes: working out a layout for it costs more than the rest of the array.
    """
    address = buffer.address
    if not _COMPILED or address == 0 or dtype.hasobject or len(shape) > _MOST_AXES:
        return array_of(HostMemory(address, dtype, shape, None, owner=buffer))
    return _array.over(address, dtype, shape, None, False, buffer)
