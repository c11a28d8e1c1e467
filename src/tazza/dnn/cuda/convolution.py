"""Plans for a convolution and its gradients. They enqueue on the state's stream and return."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

from tazza.contexts.cuda_handles import call_library
from tazza.core.runtime import DeviceRuntime
from tazza.dnn.cuda.calls import ONE, ZERO, Descriptors, chosen, pointer
from tazza.dnn.library import Choice, Layout, Operation, Plan
from tazza.dnn.workspace import Lease
from tazza.drivers.cuda.libraries import NativeLibrary
from tazza.errors import ArgumentError, TazzaError, UnsupportedError
from tazza.hot import Buffer

__all__ = ["BackwardPlan", "ForwardPlan"]

_ALIGNMENT = 256


def _refuse_what_cannot_be(operation: Operation) -> None:
    activation = operation.options[4]
    if activation not in (None, "relu"):
        raise UnsupportedError(f"cudnn: the activation {activation!r} is not fused here; use None or 'relu'")
    weights = operation.inputs[1 if operation.name == "conv2d" else 2]
    packed = _packed(_given(weights).shape)
    if _given(weights).strides != packed:
        raise UnsupportedError(f"cudnn: weights lie in memory as OIHW here, with strides {packed}")


def _given(layout: Layout | None) -> Layout:
    assert layout is not None, "the table of operations says that it is given"
    return layout


def _packed(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [0] * len(shape), 1
    for axis in reversed(range(len(shape))):
        strides[axis] = step
        step *= shape[axis]
    return tuple(strides)


def _addresses(operation: Operation, arrays: Sequence[Any]) -> list[int]:
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


class _CudnnPlan(Plan):
    """What both directions share."""

    def __init__(self, runtime: DeviceRuntime, library: NativeLibrary, operation: Operation) -> None:
        _refuse_what_cannot_be(operation)
        self.operation = operation
        self._runtime, self._library = runtime, library
        self._descriptors = Descriptors(library)
        self._how = self._descriptors.convolution(operation.options)
        self._activation = None if operation.options[4] is None else self._descriptors.relu()

    def _call(self, name: str, *args: Any) -> None:
        call_library(self._runtime, self._library, name, *args)

    @contextmanager
    def _using(self, arrays: Sequence[Any], state: Any) -> Iterator[None]:
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


@final
class ForwardPlan(_CudnnPlan):
    """``conv2d``: the convolution, then bias and relu in place."""

    def __init__(
        self, runtime: DeviceRuntime, library: NativeLibrary, operation: Operation, choice: Choice, handle: int
    ) -> None:
        super().__init__(runtime, library, operation)
        (x, w, bias), [y] = operation.inputs, operation.outputs
        make = self._descriptors
        self._x, self._w, self._y = make.tensor(_given(x)), make.filters(_given(w)), make.tensor(_given(y))
        self._bias = None if bias is None else make.channels(bias.shape[0])
        found = chosen(runtime, library, handle, "Forward", (self._x, self._w, self._how, self._y), choice)
        self._number, self.workspace_bytes = found
        self.algorithm = f"forward {found.number}"

    def execute(self, state: Any, arrays: Sequence[Any], lease: Lease | None) -> None:
        scratch = state.leased(lease, self.workspace_bytes, _ALIGNMENT)
        x, w, bias, y = (pointer(one) for one in _addresses(self.operation, arrays))
        handle = pointer(state.handle)
        with self._using(arrays, state):
            room = self._number, pointer(scratch), _size(self.workspace_bytes)
            self._call(
                "cudnnConvolutionForward", handle, ONE, self._x, x, self._w, w, self._how, *room, ZERO, self._y, y
            )
            if self._bias is not None:
                self._call("cudnnAddTensor", handle, ONE, self._bias, bias, ONE, self._y, y)
            if self._activation is not None:
                self._call("cudnnActivationForward", handle, self._activation, ONE, self._y, y, ZERO, self._y, y)


@final
class BackwardPlan(_CudnnPlan):
    """``conv2d.backward``: the gradient before relu, in the lease, then those of image, weights and bias."""

    def __init__(
        self, runtime: DeviceRuntime, library: NativeLibrary, operation: Operation, choice: Choice, handle: int
    ) -> None:
        super().__init__(runtime, library, operation)
        dy, x, w, y = operation.inputs
        make = self._descriptors
        self._dy, self._x, self._w = make.tensor(_given(dy)), make.tensor(_given(x)), make.filters(_given(w))
        self._bias = make.channels(_given(w).shape[0])
        self._before = self._y = self._dy  # of the gradient before relu, and of the result
        self._kept = 0
        if self._activation is not None:
            self._before = self._y = make.tensor(_given(y))  # it lies as the result does
            self._kept = -(-4 * math.prod(_given(y).shape) // _ALIGNMENT) * _ALIGNMENT
        left = None if choice.max_workspace is None else choice.max_workspace - self._kept
        within = Choice(choice.algorithm, left, choice.seconds)
        args = self._x, self._before, self._how, self._w
        self._filter = chosen(runtime, library, handle, "BackwardFilter", args, within)
        args = self._w, self._before, self._how, self._x
        self._data = (
            None if operation.outputs[0] is None else chosen(runtime, library, handle, "BackwardData", args, within)
        )
        most = max(self._filter.nbytes, 0 if self._data is None else self._data.nbytes)
        self.workspace_bytes = self._kept + most
        self.algorithm = f"filter {self._filter.number}" + ("" if self._data is None else f", data {self._data.number}")

    def execute(self, state: Any, arrays: Sequence[Any], lease: Lease | None) -> None:
        address = state.leased(lease, self.workspace_bytes, _ALIGNMENT)
        dy, x, w, y, dx, dw, dbias = (pointer(one) for one in _addresses(self.operation, arrays))
        handle, scratch = pointer(state.handle), pointer(address + self._kept)
        with self._using(arrays, state):
            before = dy
            if self._activation is not None:
                before, ours = pointer(address), (self._y, y, self._dy, dy, self._y, y)
                call = "cudnnActivationBackward"
                self._call(call, handle, self._activation, ONE, *ours, ZERO, self._before, before)
            if self._data is not None:
                room = self._how, self._data.number, scratch, _size(self._data.nbytes)
                sent = self._w, w, self._before, before
                self._call("cudnnConvolutionBackwardData", handle, ONE, *sent, *room, ZERO, self._x, dx)
            room = self._how, self._filter.number, scratch, _size(self._filter.nbytes)
            sent = self._x, x, self._before, before
            self._call("cudnnConvolutionBackwardFilter", handle, ONE, *sent, *room, ZERO, self._w, dw)
            self._call("cudnnConvolutionBackwardBias", handle, ONE, self._before, before, ZERO, self._bias, dbias)


def _size(nbytes: int) -> Any:
    return ctypes.c_size_t(nbytes)
