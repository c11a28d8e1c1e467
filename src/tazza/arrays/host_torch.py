"""PyTorch on a device whose memory the host can address: arrays are ordinary CPU tensors in pooled memory.

A tensor is made over a block through NumPy (``torch.from_numpy``), the cheapest public way (docs/design/0007): its
storage holds the block and cannot be resized. Autograd is the user's: nothing here detaches a tensor unless it copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Final, final

import numpy as np

from tazza.core import transfer
from tazza.core.arraylib import ArrayLibrary, elements, namespace_of
from tazza.core.device import Device
from tazza.core.dtypes import dtype_on
from tazza.core.task import Task
from tazza.errors import ArgumentError, BackendUnavailableError, UnsupportedError
from tazza.hot import Buffer, array_of, array_over

__all__ = ["HostTorch"]

Array = np.ndarray[Any, np.dtype[Any]]
Tensor = Any

_BYTE = np.dtype(np.uint8)
_LACKING: Final = {"bfloat16": "float32"}
"""Dtypes that torch has and NumPy lacks, each with the smallest one of NumPy's that holds all its values."""


@final
class HostTorch(ArrayLibrary):
    """PyTorch's CPU tensors, with torch's namespace through array-api-compat.

    Raises:
        BackendUnavailableError: torch cannot be imported.
    """

    name = "torch"

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._torch = torch = _import_torch()
        # By name: torch.float32 and numpy.float32 are one type to users, and a torch.dtype knows no NumPy dtype.
        names = (*context.device.capabilities.dtypes, *_LACKING)
        self._types = {name: getattr(torch, name) for name in names if hasattr(torch, name)}
        self._names = {dtype: name for name, dtype in self._types.items()}
        # To ask a NumPy dtype for its name takes longer than to make the tensor.
        self._numpys = {self._types[name]: np.dtype("uint16" if name in _LACKING else name) for name in self._types}
        self._torches = {np.dtype(name): self._types[name] for name in self._types if name not in _LACKING}

    def namespace(self) -> Any:
        self.check_eager()
        return namespace_of("torch")

    def owns(self, value: object) -> bool:
        if isinstance(value, self._torch.Tensor):
            return bool(value.device.type == "cpu")
        return isinstance(value, np.ndarray)

    def dtype(self, dtype: Any, device: Device) -> Any:
        name = dtype if isinstance(dtype, str) else self._names.get(dtype) if self._is_dtype(dtype) else None
        if name in self._types:
            return self._types[name]
        if self._is_dtype(dtype):
            short, nearest = str(dtype).removeprefix("torch."), "complex64" if dtype.is_complex else "float32"
            raise UnsupportedError(f"{device} has no {short}; the nearest is {nearest}")
        return self._types[dtype_on(device, dtype).name]

    def sink(self) -> HostTorch:
        return self

    def place(self, shape: tuple[int, ...], dtype: np.dtype[Any], fill: Callable[[Array], None]) -> Tensor:
        """Make a tensor that `fill` writes at once; what a generator calls."""
        tensor, view = self._fresh(shape, self.dtype(dtype, self.context.device))
        fill(view)
        return tensor

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Tensor:
        return self._fresh(shape, dtype)[0]

    def empty_with_view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Tensor, Array]:
        return self._fresh(shape, self._torches[dtype])

    # Conversion ----------------------------------------------------------------------------------------------------

    def asarray(self, value: object, dtype: Any, copy: bool | None) -> Tensor:
        if isinstance(value, Task):
            value = value.result()
        if isinstance(value, Buffer):
            value, copied = self._from_buffer(value, copy)
            copy = None if copied else copy
        if not isinstance(value, self._torch.Tensor):
            value, copied = self._from_host(value, copy)
            copy = None if copied else copy
        return self._converted(value, dtype, copy)

    def _converted(self, tensor: Tensor, dtype: Any, copy: bool | None) -> Tensor:
        wanted = tensor.dtype if dtype is None else dtype
        if tensor.device.type == "cpu" and tensor.dtype == wanted and not copy:
            return tensor
        if copy is False:
            raise ArgumentError(
                f"obj: a {tensor.dtype} tensor on {tensor.device} cannot become {wanted} on {self.context.device} "
                "without a copy"
            )
        if tensor.layout is not self._torch.strided:
            raise ArgumentError.of("obj", tensor.layout, "a dense tensor; convert it with x.to_dense()")
        fresh = self._fresh(tuple(tensor.shape), self.dtype(wanted, self.context.device))[0]
        try:
            fresh.copy_(tensor.detach())
        except (NotImplementedError, RuntimeError) as error:  # a meta tensor, a quantised one
            raise ArgumentError(f"obj: this tensor on {tensor.device} cannot be copied: {error}") from None
        return fresh

    def _from_host(self, value: object, copy: bool | None) -> tuple[Tensor, bool]:
        """Return a tensor of host data and whether it is a private copy already."""
        try:
            array = np.asarray(value, copy=False if copy is False else None)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ArgumentError(f"obj: {type(value).__name__} cannot become an array here: {error}") from None
        dtype = self.dtype(array.dtype, self.context.device)
        fits = array.flags.writeable and array.dtype.isnative and all(stride >= 0 for stride in array.strides)
        if copy is False and not fits:
            raise ArgumentError(
                "obj: PyTorch has no read-only tensors, negative strides or foreign byte orders: that needs a copy"
            )
        if fits and not copy and isinstance(value, np.ndarray):
            return self._torch.from_numpy(array), False
        tensor, view = self._fresh(array.shape, dtype)
        np.copyto(view, array)
        return tensor, True

    def _from_buffer(self, buffer: Buffer, copy: bool | None) -> tuple[Tensor, bool]:
        context = self.context
        if self.reaches(buffer):
            buffer.block.owner.host_access(buffer)
            if not copy and not (copy is None and buffer.readonly):
                return self.inside(buffer), False
        elif copy is False:
            raise ArgumentError(f"obj: memory of {buffer.device} cannot be used on {context.device} without a copy")
        tensor, view = self._fresh(buffer.shape, self._dtype_of(buffer))
        transfer.copy(context.own_stream, view, buffer)
        return tensor, True

    def receive(self, result: Buffer) -> Tensor:
        tensor, view = self._fresh(result.shape, self._dtype_of(result))
        transfer.fetch(self.context.own_stream, view, result)
        return tensor

    def to_numpy(self, value: object) -> Array:
        if isinstance(value, Buffer):
            if self.reaches(value) and (value.readonly or any(stride < 0 for stride in value.strides)):
                return np.array(value)  # there is no tensor of it
            return self.to_numpy(self._from_buffer(value, None)[0])
        if not isinstance(value, self._torch.Tensor):
            return np.asarray(value)
        self._check_numpy_has(value)
        array: Array = value.numpy(force=True)
        return array

    def stored(self, value: object) -> Any:
        if isinstance(value, self._torch.Tensor) and self._names.get(value.dtype) in _LACKING:
            value = value.to(self._types[_LACKING[self._names[value.dtype]]])
        return self.to_numpy(value)

    def restored(self, array: Array) -> Tensor:
        return self._torch.from_numpy(array)

    # Copies and fills ----------------------------------------------------------------------------------------------

    def tracks(self, values: Sequence[Any]) -> bool:
        torch = self._torch
        return torch.is_grad_enabled() and any(isinstance(one, torch.Tensor) and one.requires_grad for one in values)

    def plain(self, value: Any, *, writes: bool = False) -> Any:
        if not isinstance(value, self._torch.Tensor):
            return value
        if value.device.type != "cpu" or value.layout is not self._torch.strided:
            raise ArgumentError.of("dst" if writes else "src", value.device, "a dense tensor on the CPU")
        if writes:
            if value.requires_grad:
                raise ArgumentError("dst: this tensor requires grad; give dst.detach(), or use dst.copy_ yourself")
            # What autograd saved of it is stale from now on, and backward() must be able to see that.
            self._torch.autograd.graph.increment_version(value)
        if value.requires_grad:
            value = value.detach()
        if value.is_conj() or value.is_neg():
            value = value.resolve_conj().resolve_neg()
        if self._names.get(value.dtype) in _LACKING:
            value = value.view(self._torch.uint16)
        return value.numpy()

    def cell(self, dst: Any, value: object) -> object:
        if not isinstance(dst, self._torch.Tensor) or self._names.get(dst.dtype) not in _LACKING:
            return value
        if isinstance(value, bytes):
            return value
        try:
            cell = self._torch.tensor([value], dtype=dst.dtype)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ArgumentError(f"value: {value!r} is no {dst.dtype}: {error}") from None
        return cell.view(self._torch.uint8).numpy().tobytes()

    # Tasks ---------------------------------------------------------------------------------------------------------

    def inside(self, buffer: Buffer) -> Tensor:
        if buffer.readonly:
            raise UnsupportedError("PyTorch has no read-only tensors; copy it with ctx.asarray(buffer, copy=True)")
        array = array_of(buffer._unwaited())
        if any(stride < 0 for stride in array.strides):
            raise UnsupportedError("PyTorch has no negative strides; copy it with ctx.asarray(buffer, copy=True)")
        return self._over(buffer, array, self._dtype_of(buffer))

    def outcome(self, array: Any, seen: list[tuple[Any, Buffer]]) -> Any:
        return array

    def origin(self, value: Any) -> Buffer | None:
        while isinstance(value, np.ndarray) and value.base is not None:
            value = value.base
        if isinstance(value, self._torch.Tensor) and value.layout is self._torch.strided:
            found = getattr(value.untyped_storage(), "_tazza_buffer", None)
            return found if isinstance(found, Buffer) else None
        return super().origin(value)

    # Making --------------------------------------------------------------------------------------------------------

    def _fresh(self, shape: tuple[int, ...], dtype: Any) -> tuple[Tensor, Array]:
        """Make a tensor in pooled memory; also return its memory as NumPy sees it."""
        nbytes = elements(shape) * dtype.itemsize
        buffer = self.context.allocate(nbytes)
        view = array_over(buffer, self._numpys[dtype], tuple(shape))
        return self._over(buffer, view, dtype), view

    def _over(self, buffer: Buffer, array: Array, dtype: Any) -> Tensor:
        tensor = self._torch.from_numpy(array)
        tensor.untyped_storage()._tazza_buffer = buffer  # torch keeps a storage's attributes as long as its memory
        return tensor if tensor.dtype == dtype else tensor.view(dtype)

    def _dtype_of(self, buffer: Buffer) -> Any:
        return self._types[(_BYTE if buffer.dtype is None else buffer.dtype).name]

    def _is_dtype(self, dtype: Any) -> bool:
        return isinstance(dtype, self._torch.dtype)

    def _check_numpy_has(self, tensor: Tensor) -> None:
        name = self._names.get(tensor.dtype)
        if name is None or name in _LACKING:
            short, wider = str(tensor.dtype).removeprefix("torch."), _LACKING.get(name or "", "float32")
            raise UnsupportedError(f"NumPy has no {short}; the nearest is {wider}: x.to(torch.{wider})")


def _import_torch() -> ModuleType:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: one of its libraries does not load
        raise BackendUnavailableError("torch", f"{type(error).__name__}: {error}", "pip install torch") from error
    library: ModuleType = torch
    return library
