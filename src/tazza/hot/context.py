# cython: language_level=3, annotation_typing=False
"""The compiled base of every context: entering, leaving and allocating."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy.typing as npt

from tazza.errors import ArgumentError, InternalError
from tazza.hot import _native
from tazza.hot._layout import Layout, allocation_layout, whole_nbytes
from tazza.hot.account import Account
from tazza.hot.buffer import Buffer, make_buffer
from tazza.hot.frame import Frame, Scope, _pop, _push, frame_of, make_frame, top
from tazza.hot.hooks import Operation, emit, point
from tazza.hot.lane import Lane, StreamCore
from tazza.hot.pool import Pool
from tazza.hot.process import process
from tazza.memory.sizing import LARGEST

__all__ = ["ContextCore"]

_LATER: Any = None  # the subclass's __init__ sets it before anything can be allocated
C = TypeVar("C", bound="ContextCore")


class ContextCore(Scope):
    """What a context does around every operation of a user's program.

    Attributes:
        stream0: the context's own stream.
        account: what it holds and may hold.
        pool: where its memory comes from; a stream's lane may belong to another pool of the device.
        task_lane: where running tasks take memory, or None for their stream's own lane. A task on a device's queue
            runs ahead of what is queued behind it, and that may still use memory of its stream's lane.
        task_enqueues: running tasks only enqueue, so that the queue uses their memory after they have dropped it.
        phase: 0 open, 1 closing, 2 closed, 3 lost with its device.
        generation: the process generation in which it was made.

    >>> ContextCore().phase
    0
    """

    def __init__(self) -> None:
        self.stream0: StreamCore = _LATER
        self.account: Account = _LATER
        self.pool: Pool = _LATER
        self.task_lane: Lane | None = None
        self.task_enqueues = False
        self.phase = 0
        self.generation = process.generation

    def __enter__(self) -> Self:
        """Make this the current context here; nested and concurrent entries are fine. Returns the context."""
        if self.phase == 2 or self.generation != process.generation:
            self._refuse("enter")
        _push(self._own_frame(top()))
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Restore what was current before; closes nothing.

        A MemoryError of NumPy that a limit of the context caused becomes OutOfMemoryError, and other libraries' get the
        context's account as a note.
        """
        del traceback  # whoever keeps an error that is raised below keeps this frame
        _pop(self)
        if exc is not None and self.generation == process.generation:
            self._explain(exc)

    def allocate(
        self,
        nbytes: int,
        *,
        dtype: npt.DTypeLike | None = None,
        shape: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        label: str | None = None,
    ) -> Buffer:
        """Return `nbytes` uninitialised bytes on the current stream of this context.

        Args:
            nbytes: size in bytes; 0 is fine.
            dtype: makes the buffer typed; one axis unless `shape` says otherwise.
            shape: elements along each axis, which must fit into `nbytes`.
            strides: bytes between elements along each axis; C order where omitted.
            label: the name under which reports list the memory.

        Raises:
            ArgumentError: a size is negative, absurd or no whole number, or the layout does not fit.
            OutOfMemoryError: there is no room within the limits, after every relief was tried.
        """
        if self.phase != 0 or self.generation != process.generation:
            self._refuse("allocate")
        size = _size(nbytes)
        if label is not None and type(label) is not str:
            raise ArgumentError.of("label", label, "a str or None")
        if dtype is not None or shape is not None or strides is not None:
            resolved, layout = allocation_layout(size, dtype, shape, strides)
            return self._announce(_typed(self._take(size, label), resolved, layout))
        buffer = self._take(size, label)
        return buffer if point.listeners is None else self._announce(buffer)

    def place(
        self, lane: Lane, requested: int, layout: Layout, dtype: Any, *, label: str | None, readonly: bool = False
    ) -> Buffer:
        """Return a buffer in a block of `requested` bytes from another pool's lane, charged as `allocate` charges.

        Internal: pinned and shared memory are allocated by it.

        Args:
            lane: where the block comes from.
            requested: bytes of the block.
            layout: what the buffer sees of it, with ``offset`` counted from the block's first byte.
            dtype: of the elements, or None for plain bytes.
            label: the name under which reports list the memory.
            readonly: host exports refuse writing.
        """
        if self.phase != 0 or self.generation != process.generation:
            self._refuse("allocate")
        frame = frame_of(self)
        account = self.account if frame is None or frame.account is None else frame.account
        pool: Pool = lane.pool
        buffer = make_buffer(pool.take(requested, lane, account, label))
        buffer.address += layout.offset
        buffer.nbytes = layout.nbytes
        buffer.readonly = readonly
        if dtype is not None:
            _typed(buffer, dtype, layout)
        return self._announce(buffer)

    def _take(self, nbytes: int, label: str | None) -> Buffer:
        stream: Any = self.stream0
        account: Any = self.account
        frame = top()
        if frame is not None and frame.context is not self:
            frame = frame_of(self)
        if frame is not None:
            stream = frame.stream
            if frame.account is not None:
                account = frame.account
        lane = None if stream is None else stream.lane
        if frame is not None and frame.task is not None and self.task_lane is not None:
            lane = self.task_lane
        if stream is not None and stream.arena is not None and stream.captor == _native.thread_ident():
            lane = stream.arena
        if lane is None or account is None:
            raise InternalError(f"{self!r} has no stream or account yet")
        pool = lane.pool
        buffer = make_buffer(pool.take(nbytes, lane, account, label))
        if self.task_enqueues and lane is self.task_lane:
            buffer.used_on(stream)
        return buffer

    def _announce(self, buffer: Buffer) -> Buffer:
        if point.listeners is not None:
            frame = frame_of(self)
            stream = self.stream0 if frame is None else frame.stream
            emit(Operation("allocate", stream, buffer.label, buffer.nbytes, (), (), buffer))
        return buffer

    def _frame(self, parent: Frame | None) -> Frame:
        return self._own_frame(parent)

    def _own_frame(self, parent: Frame | None) -> Frame:
        """Return this context's frame: entered again below one of its own frames, it keeps their stream and account."""
        inner = parent
        while inner is not None and inner.context is not self:
            inner = inner.parent
        task = None if parent is None else parent.task
        if inner is None:
            return make_frame(self, self, self.stream0, self.account, task, parent)
        return make_frame(self, self, inner.stream, inner.account, task, parent)

    def _explain(self, error: BaseException) -> None:
        """Say what is known of an exception that leaves the context; slow path, for subclasses."""

    def _refuse(self, action: str) -> None:
        """Raise why `action` cannot be done now, or return where it can after all; slow path, for subclasses."""
        raise InternalError(f"{type(self).__name__} must implement _refuse({action!r})")


def _size(nbytes: Any) -> int:
    if type(nbytes) is int:
        try:
            size: int = nbytes
        except OverflowError:  # compiled: it does not fit into 64 bits
            return whole_nbytes(nbytes)
        if 0 <= size <= LARGEST:
            return size
    return whole_nbytes(nbytes)


def _typed(buffer: Buffer, dtype: Any, layout: Layout) -> Buffer:
    buffer.dtype = dtype
    buffer.nbytes = layout.nbytes  # without what the layout leaves over: copies move as many bytes
    buffer._shape = layout.shape
    buffer._strides = layout.strides
    return buffer
