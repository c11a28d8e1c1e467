"""NumPy on a device whose memory the host can address: arrays are ordinary NumPy arrays in pooled memory."""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np

from tazza.core import transfer
from tazza.core.arraylib import ArrayLibrary, elements, is_array, namespace_of
from tazza.core.dtypes import dtype_on
from tazza.core.task import Task
from tazza.errors import ArgumentError
from tazza.hot import Buffer, array_of, array_over

__all__ = ["HostNumpy"]

Array = np.ndarray[Any, np.dtype[Any]]
_BYTE = np.dtype(np.uint8)


@final
class HostNumpy(ArrayLibrary):
    """NumPy through array-api-compat."""

    name = "numpy"

    def namespace(self) -> Any:
        self.check_eager()
        return namespace_of("numpy")

    def owns(self, value: object) -> bool:
        return isinstance(value, np.ndarray)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self._fresh(shape, np.dtype(dtype))

    def empty_with_view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Array, Array]:
        made = array_over(self.context.allocate(math.prod(shape) * dtype.itemsize), dtype, shape)
        return made, made

    def asarray(self, value: object, dtype: Any, copy: bool | None) -> Array:
        if isinstance(value, Task):
            value = value.result()
        if isinstance(value, Buffer):
            value = self._from_buffer(value, copy)
            copy = None if copy else copy
        try:
            array = np.asarray(value, dtype=dtype, copy=False if copy is False else None)
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"obj: {type(value).__name__} cannot become an array here: {error}") from None
        if array.dtype.kind not in "biufc":
            dtype_on(self.context.device, array.dtype)
        if copy and is_array(value):
            fresh = self._fresh(array.shape, array.dtype)
            np.copyto(fresh, array)
            return fresh
        return array

    def _from_buffer(self, buffer: Buffer, copy: bool | None) -> Array:
        context = self.context
        dtype = _BYTE if buffer.dtype is None else buffer.dtype
        if self.reaches(buffer):
            buffer.block.owner.host_access(buffer)
            if not copy:
                return np.asarray(buffer)
        elif copy is False:
            raise ArgumentError(f"obj: memory of {buffer.device} cannot be used on {context.device} without a copy")
        fresh = self._fresh(buffer.shape, dtype)
        transfer.copy(context.own_stream, fresh, buffer)
        return fresh

    def receive(self, result: Buffer) -> Array:
        fresh = self._fresh(result.shape, _BYTE if result.dtype is None else result.dtype)
        transfer.fetch(self.context.own_stream, fresh, result)
        return fresh

    def to_numpy(self, value: object) -> Array:
        if isinstance(value, Buffer):
            return self.asarray(value, None, None)
        return np.asarray(value)

    def inside(self, buffer: Buffer) -> Array:
        # Not np.asarray(buffer): that would wait for the buffer's streams, of which this is one.
        return array_of(buffer._unwaited())

    def outcome(self, array: Any, seen: list[tuple[Any, Buffer]]) -> Any:
        return array

    def _fresh(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return array_over(self.context.allocate(elements(shape) * dtype.itemsize), dtype, tuple(shape))
