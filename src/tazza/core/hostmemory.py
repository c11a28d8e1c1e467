"""Host memory for special purposes: ``ctx.memory.pinned`` and ``ctx.memory.shared``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast, final

import numpy as np
import numpy.typing as npt

from tazza.core import segment
from tazza.core.holders import is_charged
from tazza.core.segment import PAGE, Header, Segment
from tazza.core.supply import SegmentSupply
from tazza.errors import ArgumentError, SharedMemoryError
from tazza.hot import Buffer, Lane
from tazza.hot._layout import Layout, allocation_layout, view_layout, whole_nbytes

__all__ = ["PinnedMemory", "SharedMemory", "SharedSpec"]


class _HostMemory:
    """What pinned and shared memory have in common: a pool beside the context's own, charged to the same account."""

    _kind = ""

    def __init__(self, context: Any, lane: Callable[[], Lane]) -> None:
        self._context = context
        self._lane_of_kind = lane

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._context!r}>"

    def _lane(self) -> Lane:
        # Asked first: in a forked child the pool is not to be touched, nor another one made.
        self._context._runtime.check_process()
        lane = self._lane_of_kind()
        lane.pool.drain()
        return lane

    @property
    def reserved(self) -> int:
        """Bytes that the device's pool of this kind holds from the system now, for all contexts."""
        return int(self._lane().pool.reserved)

    @property
    def live(self) -> int:
        """Bytes of this kind that are charged to this context, those of freed memory in use by a stream included."""
        account = self._context.account
        return sum(block.nbytes for block in self._lane().pool.live_blocks() if is_charged(block, account))


@final
class PinnedMemory(_HostMemory):
    """Page-locked host memory: ``ctx.memory.pinned``.

    It stays where it is, so that a device's queues read and write it directly: copies from and to it are asynchronous
    and need no snapshot. Sizes are exact to a page. What is freed is kept for reuse, in the order of the streams that
    used it, until `trim`, or until a tenth more than was ever live is held.

    >>> import numpy as np
    >>> import tazza as tz
    >>> with tz.open("sim:0") as ctx:
    ...     staging = ctx.memory.pinned.allocate(4 * 4, dtype="float32")
    ...     np.asarray(staging)[:] = 7
    ...     x = ctx.allocate(4 * 4, dtype="float32")
    ...     ctx.copy(x, staging)  # asynchronous: do not change `staging` before the stream is done with it
    ...     ctx.to_numpy(x).tolist(), staging.device.name, ctx.memory.pinned.live
    ([7.0, 7.0, 7.0, 7.0], 'cpu:0', 4096)
    """

    _kind = "pinned"

    def allocate(
        self,
        nbytes: int,
        *,
        dtype: npt.DTypeLike | None = None,
        shape: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        label: str | None = None,
    ) -> Buffer:
        """Return `nbytes` uninitialised bytes in the host's memory domain; NumPy sees them without a copy.

        Args:
            nbytes, dtype, shape, strides, label: as in `Context.allocate`.

        Raises:
            ArgumentError: a size or layout cannot be right.
            OutOfMemoryError: the system locks no more, or a limit of this context refuses.
            UnsupportedError: this device, or this system, has none (``Capabilities.pinned``).
        """
        resolved, layout = _layout(nbytes, dtype, shape, strides)
        requested = whole_nbytes(nbytes)
        return cast(Buffer, self._context.place(self._lane(), requested, layout, resolved, label=_label(label)))

    def trim(self, keep: int = 0) -> int:
        """Unlock and give back unused memory while more than `keep` bytes are reserved; returns bytes given back."""
        return int(self._lane().pool.trim(whole_nbytes(keep, "keep")))


@final
@dataclass(frozen=True, slots=True)
class SharedSpec:
    """Where another process finds shared memory: a picklable value that owns nothing.

    Attributes:
        name: of the segment; `multiprocessing.shared_memory` opens it under this name too.
        offset: byte of element ``[0, 0, ...]`` among the user's bytes of the segment.
        nbytes: bytes from the first to the last element, gaps included.
        dtype: of the elements, or None for plain bytes.
        shape, strides: of the elements.
        readonly: whoever attaches it may only read.

    >>> import pickle
    >>> import tazza as tz
    >>> with tz.open("cpu") as ctx:
    ...     table = ctx.memory.shared.allocate(80, dtype="float64")
    ...     spec = pickle.loads(pickle.dumps(tz.SharedSpec.of(table[2:4])))
    ...     spec.offset, spec.shape, spec.dtype
    ...     table.close()
    (16, (2,), dtype('float64'))
    """

    name: str
    offset: int
    nbytes: int
    dtype: np.dtype[Any] | None
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    readonly: bool = False

    @classmethod
    def of(cls, buffer: Buffer) -> SharedSpec:
        """Describe a buffer of shared memory, or a slice or view of one.

        Raises:
            ArgumentError: it is no buffer, or not in shared memory.
            ClosedError: it is closed.
        """
        expected = "a Buffer that ctx.memory.shared made"
        if not isinstance(buffer, Buffer):
            raise ArgumentError.of("buffer", buffer, expected)
        buffer._check()
        supply = getattr(buffer.block.pool.source, "supply", None)
        if not isinstance(supply, SegmentSupply):
            raise ArgumentError.of("buffer", buffer, expected)
        one = supply.segments[buffer.block.address]
        offset = buffer.address - one.address - PAGE
        return cls(one.name, offset, buffer.nbytes, buffer.dtype, buffer.shape, buffer.strides, buffer.readonly)


@final
class SharedMemory(_HostMemory):
    """Host memory that other processes map by name: ``ctx.memory.shared``.

    The process that allocates owns the name and removes it when the buffer is closed or gone, at the latest when the
    process ends. Whoever has attached keeps the memory. What a killed process leaves behind is removed by the last one
    that lets go of it, by the next `allocate` of any process, and by `sweep`.

    >>> import numpy as np
    >>> import tazza as tz
    >>> with tz.open("cpu") as ctx:
    ...     table = ctx.memory.shared.allocate(80, dtype="float64", label="table")
    ...     np.asarray(table)[:] = 1.5
    ...     spec = tz.SharedSpec.of(table)  # send this to the other process, which does:
    ...     again = ctx.memory.shared.attach(spec)
    ...     np.asarray(again).sum(), again.label
    ...     again.close(), table.close()
    (np.float64(15.0), 'table')
    (None, None)
    """

    _kind = "shared"

    def allocate(
        self,
        nbytes: int,
        *,
        dtype: npt.DTypeLike | None = None,
        shape: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        label: str | None = None,
    ) -> Buffer:
        """Return `nbytes` zero bytes in a new segment, which this process owns; sweeps first.

        The bytes are charged in whole pages, one more for the segment's header. Segments are files: make few large
        ones, and send slices of them.

        Args:
            nbytes, dtype, shape, strides, label: as in `Context.allocate`.

        Raises:
            ArgumentError: a size or layout cannot be right.
            OutOfMemoryError: the machine has no room for it, or a limit of this context refuses.
            UnsupportedError: this system has no shared memory with names and locks.
        """
        resolved, layout = _layout(nbytes, dtype, shape, strides)
        size = whole_nbytes(nbytes)
        header = Header(size, resolved, layout.shape, layout.strides, _label(label))
        supply: SegmentSupply = self._lane().pool.source.supply
        return self._take(partial(supply.create, header), size, layout, resolved, label)

    def attach(self, spec: SharedSpec | str, *, readonly: bool | None = None) -> Buffer:
        """Map memory that another process shares; closing the buffer, or dropping it, lets go of it again.

        It may be attached several times; each counts on its own in the account of the context that attached it.

        Args:
            spec: what `SharedSpec.of` returned in the other process, or the name alone for all of the segment.
            readonly: the memory can be read only, enforced by the system; None is as the spec says.

        Raises:
            ArgumentError: no spec and no name; ``readonly=False`` for a spec that is read-only.
            SharedMemoryError: there is no such segment (any more), it is not tazza's or damaged, or the spec does not
                fit into it.
            OutOfMemoryError: a limit of this context refuses.
        """
        if not isinstance(spec, SharedSpec | str):
            raise ArgumentError.of("spec", spec, "a SharedSpec or the name of a segment")
        only_read = not isinstance(spec, str) and spec.readonly
        if readonly is False and only_read:
            raise ArgumentError.of("readonly", readonly, "True or None, as the spec is read-only")
        self._context._runtime.check_process()
        one = segment.attach(spec if isinstance(spec, str) else spec.name, readonly=readonly or only_read)
        given = [one]
        try:
            dtype, layout = _fit(spec, one)
            return self._take(given.pop, one.header.nbytes, layout, dtype, one.header.label, readonly=one.readonly)
        finally:
            for unused in given:
                unused.close()

    def sweep(self) -> tuple[str, ...]:
        """Remove the segments of this user that no living process has mapped; returns their names."""
        self._lane()
        return segment.sweep()

    def _take(
        self,
        make: Callable[[], Segment],
        nbytes: int,
        layout: Layout,
        dtype: np.dtype[Any] | None,
        label: str | None,
        readonly: bool = False,
    ) -> Buffer:
        lane = self._lane()
        placed = layout._replace(offset=PAGE + layout.offset)
        with lane.pool.source.supply.providing(make):
            made = self._context.place(lane, PAGE + nbytes, placed, dtype, label=label, readonly=readonly)
        return cast(Buffer, made)


def _layout(
    nbytes: int, dtype: npt.DTypeLike | None, shape: Sequence[int] | None, strides: Sequence[int] | None
) -> tuple[np.dtype[Any] | None, Layout]:
    size = whole_nbytes(nbytes)
    if dtype is None and shape is None and strides is None:
        return None, Layout(0, size, (size,), (1,))
    return allocation_layout(size, dtype, shape, strides)


def _fit(spec: SharedSpec | str, one: Segment) -> tuple[np.dtype[Any] | None, Layout]:
    """Where a spec's elements lie in a segment, checked against its true size."""
    header = one.header
    whole = SharedSpec(one.name, 0, header.nbytes, header.dtype, header.shape, header.strides)
    spec = whole if isinstance(spec, str) else spec
    try:
        dtype = np.dtype(np.uint8) if spec.dtype is None else spec.dtype
        layout = view_layout(-spec.offset, header.nbytes, True, dtype, spec.shape, spec.strides)[1]
    except (ArgumentError, TypeError) as error:
        size = f"{one.name} has {header.nbytes} bytes"
        raise SharedMemoryError(f"{size}, into which {spec} does not fit: {error}") from None
    return spec.dtype, layout._replace(offset=spec.offset)


def _label(label: str | None) -> str | None:
    if label is not None and type(label) is not str:
        raise ArgumentError.of("label", label, "a str or None")
    return label
