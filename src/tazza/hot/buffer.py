# cython: language_level=3
"""Buffers: memory that a user holds, with its layout and the streams that used it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from tazza.errors import ArgumentError, ClosedError, ExportError, ForkedError, UsageError, WrongDeviceError
from tazza.hot import _native
from tazza.hot._layout import Layout, extent, slice_bytes, slice_elements, view_layout
from tazza.hot.block import Block
from tazza.hot.hostarray import array_of
from tazza.hot.process import locked, process
from tazza.util.hostmemory import HostMemory

try:
    import cython  # type: ignore[import-not-found, import-untyped, unused-ignore]
except ImportError:
    from tazza.hot import _cython as cython

__all__ = ["HAS_BUFFER_PROTOCOL", "Buffer", "lent_buffer", "make_buffer"]

HAS_BUFFER_PROTOCOL = not __file__.endswith((".py", ".pyc")) or sys.version_info >= (3, 12)
"""Whether ``memoryview(buffer)`` works: compiled, or on Python 3.12 and newer."""

LOCKED = locked(__file__)
_BYTE = np.dtype(np.uint8)
_DLPACK_CPU = (1, 0)  # kDLCPU


@cython.no_gc
@cython.freelist(64)
@cython.cclass
class Buffer:
    """Bytes in one memory domain; made by ``ctx.allocate``.

    Dropping it gives the memory back in the order of the streams that used it. Slices and views share the memory and
    keep it. Where the host can address the device, a buffer offers itself to NumPy (``__array_interface__``), DLPack
    and the buffer protocol, each of which first waits for the streams known to have used it. Memory of a CUDA device
    goes to other libraries by DLPack and ``__cuda_array_interface__``, in the order of the streams that these name.

    Attributes:
        block: the pool's `Block` that holds the bytes.
        base: the Buffer that this one is a slice or view of, or None.
        address: first byte, an integer in the device's memory domain.
        nbytes: bytes from the first to the last element, gaps included.
        dtype: the elements' dtype, or None for plain bytes.
        readonly: host exports refuse writing.

    >>> import tazza as tz
    >>> with tz.open("cpu") as ctx:
    ...     buffer = ctx.allocate(16)
    ...     len(buffer), buffer[4:8].nbytes, buffer.view("float32").shape
    (16, 4, (4,))
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_exported",
        "_owned",
        "_shape",
        "_strides",
        "_watch",
        "address",
        "base",
        "block",
        "dtype",
        "generation",
        "nbytes",
        "readonly",
    )

    def __init__(self) -> None:
        self._owned = self._closed = False  # for the finaliser
        raise UsageError("buffers are made by a context: ctx.allocate(nbytes), or slices and views of a buffer")

    def __dealloc__(self) -> None:
        # Runs in any thread, inside the garbage collector, inside the pool. In a forked child nobody takes what is
        # given.
        if self._owned:
            self._let_go()

    def __repr__(self) -> str:
        layout = "bytes" if self.dtype is None else f"bytes, {self.dtype.name} {self.shape}"
        state = "closed " if self.is_closed else ""
        return f"<tazza.Buffer {state}on {_name(self.device)}: {self.nbytes} {layout}>"

    def __reduce__(self) -> NoReturn:
        raise UsageError("a buffer cannot be pickled; send the array that ctx.to_numpy(buffer) returns")

    def __len__(self) -> int:
        shape = self.shape
        if not shape:
            raise ArgumentError("a buffer of shape () has no length; use buffer.nbytes")
        return int(shape[0])

    def __getitem__(self, key: object) -> Buffer:
        """Return ``buffer[a:b]``: bytes of an untyped buffer, elements along axis 0 of a typed one; shares memory."""
        self._check()
        if not isinstance(key, slice):
            raise ArgumentError.of("key", key, "a slice, as in buffer[0:64]; single elements live on the device")
        if self.dtype is None:
            return self._part(slice_bytes(key, self.nbytes), None)
        return self._part(slice_elements(key, self.shape, self.strides, self.dtype.itemsize), self.dtype)

    def view(
        self, dtype: npt.DTypeLike, shape: Sequence[int] | None = None, strides: Sequence[int] | None = None
    ) -> Buffer:
        """Return the same memory with another dtype, shape and strides (in bytes; C order where omitted).

        Raises:
            ArgumentError: the layout does not fit into this buffer's bytes, its elements overlap, or strides are
                omitted although this buffer's elements are not dense in C order.
        """
        self._check()
        first, dense = 0, True
        if self.dtype is not None:
            first, dense = extent(self.shape, self.strides, self.dtype.itemsize)
        resolved, layout = view_layout(first, self.nbytes, dense, dtype, shape, strides)
        return self._part(layout, resolved)

    def used_on(self, stream: Any) -> None:
        """Say that work submitted to `stream` so far uses the memory: it is not reused before that is done.

        Copies, fills and launches of tazza say so themselves; call it after handing the address to other libraries.
        """
        self._check()
        runner = stream.runner
        number = runner.submitted
        lane = self.block.lane
        if (runner.lane is lane and not lane.shared) or runner.reached(number):
            return
        with process.lock:  # another thread may have noted a later use by now
            users = self.block.users or []
            for user, earlier in users:
                if user is runner and earlier > number:
                    number = earlier
            self.block.users = [*(use for use in users if use[0] is not runner), (runner, number)]

    def close(self) -> None:
        """Give the memory back now rather than when the last reference is gone; idempotent.

        Memory that host arrays made from this buffer, or its slices, still see goes back when they are gone.
        """
        if self._closed:
            return
        self._closed = True
        if not self._owned:
            return
        if not self._exported:
            self._let_go()
        pool = self.block.pool
        if pool.exact and self.generation == process.generation:
            pool.source.closed(self.block)

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each axis; ``(nbytes,)`` for plain bytes."""
        return (self.nbytes,) if self._shape is None else self._shape

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one element to the next along each axis."""
        return (1,) if self._strides is None else self._strides

    @property
    def device(self) -> Any:
        """The device whose memory this is."""
        return self.block.owner.device

    @property
    def label(self) -> str | None:
        """What the memory was called when it was allocated, or None."""
        return self.block.label

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called here or on the buffer that this one is a part of."""
        return self._gone()

    # Host exports --------------------------------------------------------------------------------------------------

    @property
    def __array_interface__(self) -> dict[str, Any]:
        if self._is_lent():
            raise AttributeError("borrowed memory gives no bare address away: nobody could tell when it is unused")
        return self._memory().__array_interface__

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        owner = self.block.owner
        if owner.host_addressable or owner.capabilities.exports != "cuda":
            raise AttributeError(f"{self!r} is not in memory of a CUDA device")
        if self._is_lent():
            raise AttributeError("borrowed memory gives no bare address away: nobody could tell when it is unused")
        self._check()
        interface: dict[str, Any] = owner.exports.interface(self)
        return interface

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        array = self._array()
        return array if dtype is None and copy is None else np.array(array, dtype=dtype, copy=copy)

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Return a capsule as the Array API standard says: of DLPack 1.x where the consumer knows that.

        The consumer may use the memory at once, and keeps it. A copy of host memory is made only where `copy` is True.
        Memory of a CUDA device comes in the order of the `stream` that the consumer names (None is the legacy default
        stream, -1 none at all), and is given out again after what that stream has when the consumer lets go.

        Raises:
            ExportError: a `BufferError`. The consumer named a stream of a host, which has none, or another device; or
                the memory is read-only, or of a dtype, that the consumer's version of DLPack cannot say.
        """
        here = self.__dlpack_device__()
        if here != _DLPACK_CPU:
            if self._is_lent():
                raise ExportError(f"{self!r} is borrowed; have its own library export it")
            return self.block.owner.exports.capsule(self, stream, max_version, dl_device, copy)
        if stream is not None:
            raise ExportError(f"stream: got {stream!r}, expected None: {self!r} is host memory, which has no streams")
        if dl_device is not None and tuple(dl_device) != here:
            raise ExportError(f"dl_device: got {dl_device!r}, expected {here}: copy it there with ctx.asarray(buffer)")
        array = self._array()
        try:
            return array.__dlpack__(max_version=max_version, copy=copy)
        except (BufferError, TypeError, ValueError) as error:
            raise ExportError(f"{self!r} cannot be told in DLPack: {error}") from error

    def __dlpack_device__(self) -> tuple[int, int]:
        self._check()
        owner = self.block.owner
        if not owner.host_addressable and owner.capabilities.exports:
            number: tuple[int, int] = owner.exports.number
            return number
        self._check_host()
        return _DLPACK_CPU

    def __getbuffer__(self, view: _native.BufferView, flags: int) -> None:
        _native.get_buffer(self._array(), view, flags)

    def __buffer__(self, flags: int) -> memoryview:
        return self._array().data

    # Internals -----------------------------------------------------------------------------------------------------

    def _fill(self, block: Block) -> None:
        self.block: Block = block
        if not cython.compiled:  # compiled attributes are born as None and False
            self._fill_empty()
        self.address: int = block.address
        self.nbytes: int = block.requested
        self.generation: int = process.generation
        self._owned = True

    def _fill_empty(self) -> None:
        self.base: Buffer | None = None
        self.dtype: np.dtype[Any] | None = None
        self._shape: tuple[int, ...] | None = None
        self._strides: tuple[int, ...] | None = None
        self.readonly: bool = False
        self._closed = False
        self._exported: bool = False
        self._watch: Callable[[HostMemory], None] | None = None

    def _let_go(self) -> None:
        self._owned = False
        block = self.block
        pool = block.pool
        pool.give(block)

    def _streams(self) -> list[Any]:
        """Return the long-lived halves of the streams known to have used the memory, the home stream's first."""
        home = self.block.lane.home
        first = home() if home is not None else None
        others = [stream for stream, _ in self.block.users or ()]
        return others if first is None else [first, *others]

    def _check(self) -> None:
        if self.generation != process.generation:
            raise ForkedError(f"{self!r} was made before this process was forked; allocate in the child")
        if self.is_closed:
            raise ClosedError(f"{self!r} is closed; its memory may hold other data by now")

    def _part(self, layout: Layout, dtype: np.dtype[Any] | None) -> Buffer:
        part = make_buffer(self.block)
        part._owned = False
        part.base = self if self.base is None or self._watch is not None else self.base
        part.address = self.address + layout.offset
        part.nbytes = layout.nbytes
        part.dtype = dtype
        part.readonly = self.readonly
        if dtype is not None:
            part._shape, part._strides = layout.shape, layout.strides
        return part

    def _gone(self) -> bool:
        part: Buffer | None = self
        while part is not None:
            if part._closed:
                return True
            part = part.base
        return False

    def _is_lent(self) -> bool:
        """Whether the memory came through `lent_buffer`, here or in what this is a part of."""
        part: Buffer | None = self
        while part is not None:
            if part._watch is not None:
                return True
            part = part.base
        return False

    def _check_host(self) -> None:
        self._check()
        if not self.block.owner.host_addressable:
            raise WrongDeviceError(
                f"{self!r} is not in memory that the host can address; ctx.to_numpy(buffer) copies it to the host"
            )

    def _memory(self) -> HostMemory:
        self._check_host()
        self.block.owner.host_access(self)
        memory = self._unwaited()
        self._check()  # another thread may have closed it before it was marked
        return memory

    def _unwaited(self) -> HostMemory:
        """Return the memory for host code that is already in order; `close` then leaves it to the last such array."""
        dtype = _BYTE if self.dtype is None else self.dtype
        memory = HostMemory(self.address, dtype, self.shape, self.strides, readonly=self.readonly, owner=self)
        root = self
        while True:
            if root._watch is not None:
                root._watch(memory)
            if root.base is None:
                break
            root = root.base
        root._exported = True
        return memory

    def _array(self) -> npt.NDArray[Any]:
        return array_of(self._memory())


if not cython.compiled:
    Buffer.__del__ = Buffer.__dealloc__  # type: ignore[attr-defined]


def make_buffer(block: Block) -> Buffer:
    """Return a Buffer that owns `block`, as plain bytes; for contexts only."""
    buffer = Buffer.__new__(Buffer)
    buffer._fill(block)
    return buffer


def lent_buffer(
    block: Block,
    base: Buffer | None,
    address: int,
    nbytes: int,
    dtype: np.dtype[Any] | None,
    layout: tuple[tuple[int, ...], tuple[int, ...]] | None,
    readonly: bool,
    watch: Callable[[HostMemory], None],
) -> Buffer:
    """Return a Buffer over memory that it does not give back; for borrowing only.

    Args:
        block: of the lender's Buffer, or one that no pool knows.
        base: the lender's Buffer, or None where the memory is not tazza's.
        layout: shape and strides in bytes; None for plain bytes.
        watch: is told of every view that the host gets, before it gets it.
    """
    buffer = make_buffer(block)
    buffer._owned = False
    buffer.base = base
    buffer.address = address
    buffer.nbytes = nbytes
    buffer.dtype = dtype
    if layout is not None:
        buffer._shape, buffer._strides = layout
    buffer.readonly = readonly
    buffer._watch = watch
    return buffer


def _name(device: Any) -> str:
    return str(getattr(device, "name", device))
