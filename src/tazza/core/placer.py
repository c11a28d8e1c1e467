"""Where a context's random draws land: in arrays of its device, filled in stream order."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, final

import numpy as np

from tazza.core import transfer
from tazza.core.submission import Call
from tazza.errors import ClosedError, OutOfMemoryError

__all__ = ["Placer"]


@final
class Placer:
    """The generator's sink on a context whose device has memory of its own."""

    def __init__(self, owner: Any) -> None:
        self._context = weakref.ref(owner)

    def place(self, shape: tuple[int, ...], dtype: np.dtype[Any], fill: Callable[[Any], None]) -> Any:
        owner = self._context()
        if owner is None:
            raise ClosedError("the generator's context is gone; use ctx.random of a context that is alive")
        array = owner.empty(shape, dtype)
        if isinstance(array, np.ndarray):  # a task's own memory, which is its turn already
            fill(array)
        elif array.nbytes and not owner._runtime.capabilities.host_functions:
            _place_from_host(owner, array, dtype, fill)
        elif array.nbytes:
            stream = owner.stream
            stream.submit(Call(stream, "random", lambda: fill(owner.arrays.inside(array))))
            array.block.made = stream.mark()
        return array


def _place_from_host(owner: Any, array: Any, dtype: np.dtype[Any], fill: Callable[[Any], None]) -> None:
    """Draw in the host and copy, for a device that runs no host functions: the bits are the same."""
    stream = owner.stream
    try:
        drawn = owner.memory.pinned.allocate(array.nbytes, dtype=dtype, shape=array.shape)
    except OutOfMemoryError:  # ordinary memory is slower to copy from, and is all that is left
        drawn = np.empty(array.shape, dtype)
    fill(np.asarray(drawn))
    transfer.copy(stream, array, drawn)
    array.block.made = stream.mark()
