"""One side of a copy or fill: whose memory it is, and how its elements lie."""

from __future__ import annotations

import copy
import math
from typing import Any, final

import numpy as np

from tazza.core.event import Event
from tazza.core.runner import Runner
from tazza.core.runtime import DeviceRuntime
from tazza.core.stream import Stream, making
from tazza.errors import ArgumentError
from tazza.hot import Buffer
from tazza.util.hostmemory import address_of

__all__ = ["HOST", "Array", "Side", "host_side", "is_contiguous"]

Array = np.ndarray[Any, np.dtype[Any]]
HOST = "host"
"""The memory domain of the host."""


@final
class Side:
    """One side of a copy: a Buffer, or ordinary host memory."""

    def __init__(self, value: object, *, argument: str, write: bool) -> None:
        if isinstance(value, Buffer):
            value._check()  # the memory of a closed one may be another's, or nobody's
            self.buffer: Buffer | None = value
            self.domain = value.block.owner.info.memory_domain
            self.address, self.nbytes = value.address, value.nbytes
            self.dtype, self.shape, self.strides = value.dtype, value.shape, value.strides
            self.readonly = value.readonly
            self.array: Array | None = None
        else:
            self.array = array = host_side(value, argument)
            self.buffer, self.domain = None, HOST
            self.address, self.nbytes = address_of(array), array.nbytes
            self.dtype, self.shape, self.strides = array.dtype, array.shape, array.strides
            self.readonly = not array.flags.writeable
        self.owner = value if self.array is None else self.array
        if write and self.readonly:
            raise ArgumentError.of(argument, value, "writable memory")

    @property
    def runtime(self) -> DeviceRuntime:
        assert self.buffer is not None
        owner: DeviceRuntime = self.buffer.block.owner
        return owner

    @property
    def is_contiguous(self) -> bool:
        return is_contiguous(self)

    @property
    def size(self) -> int:
        """Bytes of the elements, without gaps between them."""
        return self.nbytes if self.dtype is None else math.prod(self.shape) * self.dtype.itemsize

    def view(self) -> Array:
        """The memory as an array, where the calling thread may see it."""
        if self.array is not None:
            return self.array
        dtype = np.dtype(np.uint8) if self.dtype is None else self.dtype
        shape = (self.nbytes,) if self.dtype is None else tuple(self.shape)
        return self.runtime.driver.view(self.runtime.info, self.address, dtype, shape, self.strides, self.readonly)

    def snapshot(self) -> Array:
        """A private contiguous copy of ordinary host memory, so that its owner may change it at once."""
        assert self.array is not None
        return np.array(self.array, order="C", copy=True)

    def bytes_around(self, first: int, nbytes: int) -> Side:
        """This side as plain bytes, `first` of them from element ``[0, 0, ...]`` on, gaps included."""
        around = copy.copy(self)
        around.address, around.nbytes = self.address + first, nbytes
        around.dtype, around.shape, around.strides = None, (nbytes,), (1,)
        return around

    def mark_used(self, stream: Stream | Runner) -> None:
        if self.buffer is not None and not stream.is_inline:
            self.buffer.used_on(stream)

    def making(self, stream: Stream | Runner) -> tuple[Event, ...]:
        return () if self.buffer is None else making(self.buffer, stream)

    def streams(self) -> list[Any]:
        return [] if self.buffer is None else [used for used in self.buffer._streams() if not used.is_inline]


def host_side(value: object, argument: str) -> Array:
    """What NumPy makes of ordinary host memory; ArgumentError where that is nothing."""
    if isinstance(value, np.ndarray):
        return value
    try:
        return np.asarray(memoryview(value))  # type: ignore[arg-type]
    except TypeError:
        raise ArgumentError.of(argument, value, "a Buffer, a NumPy array or anything with a buffer") from None


def is_contiguous(memory: Any) -> bool:
    """Tell whether something with dtype, shape, strides and nbytes fills its bytes in C order."""
    if memory.dtype is None or memory.strides is None or memory.nbytes == 0:
        return True
    expected = memory.dtype.itemsize
    for extent, stride in zip(reversed(memory.shape), reversed(memory.strides), strict=True):
        if extent != 1 and stride != expected:
            return False
        expected *= extent
    return True
