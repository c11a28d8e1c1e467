"""NumPy on a device with its own address space: arrays are Buffers, and NumPy views of them in launched functions."""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np

from tazza.core import transfer
from tazza.core.arraylib import ArrayLibrary, elements, host_array, namespace_of
from tazza.core.dtypes import dtype_on
from tazza.core.generator import Sink
from tazza.core.placer import Placer
from tazza.core.stream import making
from tazza.core.submission import Call
from tazza.core.task import Task
from tazza.errors import ArgumentError, UsageError, WrongDeviceError
from tazza.hot import Buffer

__all__ = ["DeviceNumpy"]

Array = np.ndarray[Any, np.dtype[Any]]
_BYTE = np.dtype(np.uint8)


@final
class DeviceNumpy(ArrayLibrary):
    """NumPy semantics in device memory, for devices that run host functions in their queues."""

    name = "numpy"

    def check_eager(self) -> None:
        if not self.context.inside_task:
            raise UsageError(
                f"the host cannot compute on memory of {self.context.device}: put the operations into a function, give "
                "that to ctx.launch, and use ctx.xp inside it"
            )

    def namespace(self) -> Any:
        self.check_eager()
        return namespace_of("numpy")

    def sink(self) -> Sink:
        return Placer(self.context)

    def owns(self, value: object) -> bool:
        return isinstance(value, Buffer) and self.reaches(value)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        kind, count = np.dtype(dtype), elements(shape)
        if self.context.inside_task:
            return np.empty(shape, kind)  # what ctx.xp makes there: the device's own temporary
        return self._buffer(shape, kind, count)

    def _buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any], count: int) -> Buffer:
        buffer: Buffer = self.context.allocate(count * dtype.itemsize, dtype=dtype, shape=shape)
        return buffer

    def _like(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Buffer:
        return self._buffer(shape, dtype, math.prod(shape))

    def asarray(self, value: object, dtype: Any, copy: bool | None) -> Any:
        if isinstance(value, Task):
            value = value.result()
        if self.context.inside_task:
            return self._asarray_inside(value, dtype, copy)
        if isinstance(value, Buffer) and self.reaches(value):
            return self._from_own(value, dtype, copy)
        if copy is False:
            raise ArgumentError(f"obj: host data cannot be used on {self.context.device} without a copy")
        if isinstance(value, Buffer):
            fresh = self._like(value.shape, _BYTE if value.dtype is None else value.dtype)
            self._copy(fresh, value)
            return fresh if dtype is None else self._from_own(fresh, dtype, None)
        array = _host_array(value, dtype, None)
        fresh = self._like(array.shape, dtype_on(self.context.device, array.dtype))
        self._copy(fresh, array)
        return fresh

    def _copy(self, fresh: Buffer, source: object) -> None:
        stream = self.context.stream
        transfer.copy(stream, fresh, source)
        fresh.block.made = stream.mark()

    def _asarray_inside(self, value: object, dtype: Any, copy: bool | None) -> Array:
        if isinstance(value, Buffer):
            if not self.reaches(value):
                raise WrongDeviceError(
                    f"obj: a function launched on {self.context.device} cannot reach memory of {value.device}; "
                    "give it to ctx.launch as a task's result, or move it before"
                )
            value = self.inside(value)
        return _host_array(value, dtype, copy)

    def _from_own(self, buffer: Buffer, dtype: Any, copy: bool | None) -> Buffer:
        own = _BYTE if buffer.dtype is None else buffer.dtype
        wanted = own if dtype is None else np.dtype(dtype)
        if wanted == own and not copy:
            return buffer
        if copy is False:
            raise ArgumentError(f"obj: {own} cannot become {wanted} without a copy")
        fresh, stream = self._like(buffer.shape, wanted), self.context.stream
        needs = making(buffer, stream)

        def convert() -> None:
            np.copyto(self.inside(fresh), self.inside(buffer), casting="unsafe")

        stream.submit(Call(stream, "asarray", convert, needs=needs))
        fresh.block.made = stream.mark()
        buffer.used_on(stream)
        return fresh

    def receive(self, result: Buffer) -> Buffer:
        fresh = self._like(result.shape, _BYTE if result.dtype is None else result.dtype)
        transfer.fetch(self.context.stream, fresh, result)
        return fresh

    def to_numpy(self, value: object) -> Array:
        if not isinstance(value, Buffer):
            return np.array(value)
        if not self.reaches(value):
            raise WrongDeviceError(f"x: memory of {value.device}; use to_numpy of a context there")
        if self.context.inside_task:
            return np.array(self.inside(value))
        result = np.empty(value.shape, _BYTE if value.dtype is None else value.dtype)
        stream = self.context.stream
        for used in value._streams():
            if used.runner is not stream.runner:
                stream.wait(used.mark())
        transfer.copy(stream, result, value if transfer.is_contiguous(value) else self._from_own(value, None, True))
        return result

    def inside(self, buffer: Buffer) -> Array:
        dtype = _BYTE if buffer.dtype is None else buffer.dtype
        runtime = buffer.block.owner
        view: Array = runtime.driver.view(
            runtime.info, buffer.address, dtype, buffer.shape, buffer.strides, buffer.readonly
        )
        return view

    def outcome(self, array: Any, seen: list[tuple[Any, Buffer]]) -> Any:
        if not isinstance(array, np.ndarray):
            return array
        for view, buffer in seen:
            if array is view:
                return buffer
        kept = self._like(array.shape, dtype_on(self.context.device, array.dtype))
        if kept.nbytes:
            np.copyto(self.inside(kept), array)
        return kept


def _host_array(value: object, dtype: Any, copy: bool | None) -> Array:
    seen = host_array(value)
    try:
        return np.asarray(seen, dtype=dtype, order="C", copy=copy)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"obj: {type(value).__name__} cannot become an array: {error}") from None
