"""What cuDNN's plans share: which arrays they take, how they call, and what the device is told of their use."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from tazza.contexts.cuda_handles import call_library
from tazza.core.runtime import DeviceRuntime
from tazza.dnn.cuda.calls import Descriptors
from tazza.dnn.library import Layout, Operation, Plan
from tazza.drivers.cuda.libraries import NativeLibrary
from tazza.errors import ArgumentError, TazzaError, UnsupportedError
from tazza.hot import Buffer

__all__ = ["ALIGNMENT", "CudnnPlan", "addresses", "given", "packed", "size", "using"]

ALIGNMENT = 256
"""Of scratch memory, in bytes."""


def given(layout: Layout | None) -> Layout:
    """The layout of an input or output that may not be left out."""
    assert layout is not None, "the table of operations says that it is given"
    return layout


def packed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of an array that lies in the order of its axes, without gaps."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(range(len(shape))):
        strides[axis] = step
        step *= shape[axis]
    return tuple(strides)


def addresses(operation: Operation, arrays: Sequence[Any]) -> list[int]:
    """The addresses of the arrays, 0 for one that is left out.

    Raises:
        ArgumentError: they are not those that the plan was made for.
    """
    layouts = (*operation.inputs, *operation.outputs)
    if len(arrays) != len(layouts):
        raise ArgumentError.of("arrays", len(arrays), f"{len(layouts)} arrays, None where one is left out")
    found = []
    for number, (array, layout) in enumerate(zip(arrays, layouts, strict=True)):
        fits = array is None if layout is None else isinstance(array, Buffer) and _lies_as(array, layout)
        if not fits:
            raise ArgumentError.of(f"arrays[{number}]", array, "None" if layout is None else f"a Buffer of {layout}")
        found.append(0 if array is None else array.address)
    return found


def _lies_as(array: Buffer, layout: Layout) -> bool:
    kind = array.dtype
    if kind is None or kind.name != layout.dtype or tuple(array.shape) != layout.shape:
        return False
    return tuple(step // kind.itemsize for step in array.strides) == layout.strides


class CudnnPlan(Plan):
    """A plan that enqueues on the stream of a `CudnnState` and returns.

    Abstract.

    Args:
        activation: what follows the operation, or None.
    """

    def __init__(
        self, runtime: DeviceRuntime, library: NativeLibrary, operation: Operation, activation: str | None
    ) -> None:
        if activation not in (None, "relu"):
            raise UnsupportedError(f"cudnn: the activation {activation!r} is not fused here; use None or 'relu'")
        self.operation = operation
        self._runtime, self._library = runtime, library
        self._descriptors = Descriptors(library)
        self._activation = None if activation is None else self._descriptors.relu()

    def _call(self, name: str, *args: Any) -> None:
        call_library(self._runtime, self._library, name, *args)

    def _using(self, arrays: Sequence[Any], state: Any) -> AbstractContextManager[None]:
        return using(arrays, state)


@contextmanager
def using(arrays: Sequence[Any], state: Any) -> Iterator[None]:
    """Have the arrays know that the state's stream uses them, with all that is queued inside."""
    try:
        yield
    except BaseException as error:
        try:
            _say_used(arrays, state)  # some of the calls may have queued their work
        except TazzaError as second:
            error.add_note(f"saying what the queue uses also failed: {second}")
        raise
    _say_used(arrays, state)


def _say_used(arrays: Sequence[Any], state: Any) -> None:
    state.stream.record()  # a use is known by what was submitted to the stream, and these calls went past it
    for array in arrays:
        if array is not None:
            array.used_on(state.stream)


def size(nbytes: int) -> Any:
    """A number of bytes for a call."""
    return ctypes.c_size_t(nbytes)
