"""No array library at all: on a device that computes by kernels alone, arrays are typed Buffers, inside tasks too."""

from __future__ import annotations

from typing import Any, NoReturn, final

import numpy as np

from tazza.core import transfer
from tazza.core.arraylib import ArrayLibrary, elements, host_array
from tazza.core.dtypes import dtype_on
from tazza.core.generator import Sink
from tazza.core.placer import Placer
from tazza.core.task import Task
from tazza.errors import ArgumentError, UnsupportedError, UsageError, WrongDeviceError
from tazza.hot import Buffer

__all__ = ["DeviceBuffers"]

Array = np.ndarray[Any, np.dtype[Any]]
_BYTE = np.dtype(np.uint8)


@final
class DeviceBuffers(ArrayLibrary):
    """Typed device memory that is copied, filled and handed to kernels; a launched function sees the Buffers."""

    name = "buffers"

    def check_eager(self) -> NoReturn:
        raise UsageError(
            f"arrays='buffers' on {self.context.device} computes nothing by itself: launch kernels of "
            "ctx.compile, or a function that enqueues another library's on `tz.current().stream.native`"
        )

    def check_bindable(self) -> None:
        """Always possible: other libraries enqueue on the device themselves."""

    def namespace(self) -> Any:
        self.check_eager()

    def sink(self) -> Sink:
        return Placer(self.context)

    def owns(self, value: object) -> bool:
        return isinstance(value, Buffer) and self.reaches(value)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Buffer:
        kind = np.dtype(dtype)
        made: Buffer = self.context.allocate(elements(shape) * kind.itemsize, dtype=kind, shape=shape)
        return made

    def asarray(self, value: object, dtype: Any, copy: bool | None) -> Buffer:
        if isinstance(value, Task):
            value = value.result()
        if isinstance(value, Buffer) and self.reaches(value):
            return self._from_own(value, dtype, copy)
        if copy is False:
            raise ArgumentError(f"obj: host data cannot be used on {self.context.device} without a copy")
        if isinstance(value, Buffer):
            self._refuse_conversion(value, dtype)
            return self._made(value.shape, _dtype_of(value), value)
        array = _host_array(value, dtype)
        return self._made(array.shape, dtype_on(self.context.device, array.dtype), array)

    def _from_own(self, buffer: Buffer, dtype: Any, copy: bool | None) -> Buffer:
        self._refuse_conversion(buffer, dtype)
        return self._made(buffer.shape, _dtype_of(buffer), buffer) if copy else buffer

    def _refuse_conversion(self, buffer: Buffer, dtype: Any) -> None:
        if dtype is not None and np.dtype(dtype) != _dtype_of(buffer):
            raise UnsupportedError(
                f"{self.context.device} has no kernel here that makes {np.dtype(dtype)} of {_dtype_of(buffer)}; "
                "convert in the host: ctx.asarray(ctx.to_numpy(x).astype(...))"
            )

    def _made(self, shape: tuple[int, ...], dtype: Any, source: object) -> Buffer:
        fresh, stream = self.empty(shape, dtype), self.context.stream
        transfer.copy(stream, fresh, source)
        fresh.block.made = stream.mark()
        return fresh

    def receive(self, result: Buffer) -> Buffer:
        fresh = self.empty(result.shape, _dtype_of(result))
        transfer.fetch(self.context.stream, fresh, result)
        return fresh

    def to_numpy(self, value: object) -> Array:
        if not isinstance(value, Buffer):
            return np.array(value)
        if not self.reaches(value):
            raise WrongDeviceError(f"x: memory of {value.device}; use to_numpy of a context there")
        result = np.empty(value.shape, _dtype_of(value))
        stream = self.context.stream
        for used in value._streams():
            if used.runner is not stream.runner:
                stream.wait(used.mark())
        transfer.copy(stream, result, value)
        return result

    def inside(self, buffer: Buffer) -> Buffer:
        return buffer

    def outcome(self, array: Any, seen: list[tuple[Any, Buffer]]) -> Any:
        return self._made(array.shape, array.dtype, array) if isinstance(array, np.ndarray) else array


def _dtype_of(buffer: Buffer) -> Any:
    return _BYTE if buffer.dtype is None else buffer.dtype


def _host_array(value: object, dtype: Any) -> Array:
    try:
        return np.asarray(host_array(value), dtype=dtype, order="C")
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"obj: {type(value).__name__} cannot become an array: {error}") from None
