"""Plans for a convolution and its gradients. They enqueue on the state's stream and return.

Making one by ``algorithm="measure"`` runs the candidates, on a queue and memory of the search's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, final

from tazza.core.runtime import DeviceRuntime
from tazza.dnn.cuda.calls import ONE, ZERO, Algorithm, candidates, pointer
from tazza.dnn.cuda.execution import ALIGNMENT, CudnnPlan, addresses, given, packed, size
from tazza.dnn.cuda.search import Search, refuse_in_capture
from tazza.dnn.library import Choice, Layout, Operation
from tazza.dnn.measuring import span
from tazza.dnn.workspace import Lease
from tazza.drivers.cuda.libraries import NativeLibrary
from tazza.errors import UnsupportedError

__all__ = ["BackwardPlan", "ForwardPlan"]


class _ConvolutionPlan(CudnnPlan):
    """What both directions share."""

    def __init__(self, runtime: DeviceRuntime, library: NativeLibrary, operation: Operation) -> None:
        weights = given(operation.inputs[1 if operation.name == "conv2d" else 2])
        if weights.strides != packed(weights.shape):
            expected = packed(weights.shape)
            raise UnsupportedError(f"cudnn: weights lie in memory as OIHW here, with strides {expected}")
        super().__init__(runtime, library, operation, operation.options[4])
        self._how = self._descriptors.convolution(operation.options)

    def _chosen(
        self,
        what: str,
        descriptors: Sequence[Any],
        layouts: Sequence[Layout],
        call: Callable[..., None],
        choice: Choice,
        handle: int,
    ) -> Algorithm:
        """The first algorithm by cuDNN's own order that fits, or the fastest.

        Args:
            layouts: of the arrays that `call` takes between the handle and the algorithm.
        """
        if choice.algorithm == "measure":
            refuse_in_capture()
        found = candidates(self._runtime, self._library, handle, what, descriptors, choice)
        if choice.algorithm != "measure" or len(found) == 1:
            return found[0]
        with Search(self._runtime, self._library) as search:
            arrays = [search.array(one) for one in layouts]
            return search.fastest(
                found, choice.seconds, lambda handle, by, scratch: call(handle, *arrays, by, pointer(scratch))
            )


@final
class ForwardPlan(_ConvolutionPlan):
    """``conv2d``: the convolution, then bias and relu in place."""

    def __init__(
        self, runtime: DeviceRuntime, library: NativeLibrary, operation: Operation, choice: Choice, handle: int
    ) -> None:
        super().__init__(runtime, library, operation)
        (x, w, bias), [y] = operation.inputs, operation.outputs
        make = self._descriptors
        self._x, self._w, self._y = make.tensor(given(x)), make.filters(given(w)), make.tensor(given(y))
        self._bias = None if bias is None else make.channels(bias.shape[0])
        args, layouts = (self._x, self._w, self._how, self._y), (given(x), given(w), given(y))
        self._by = self._chosen("Forward", args, layouts, self._convolve, choice, handle)
        self.workspace_bytes = self._by.nbytes
        self.algorithm = f"forward {self._by.number}"

    def _convolve(self, handle: Any, x: Any, w: Any, y: Any, by: Algorithm, scratch: Any) -> None:
        room = by.number, scratch, size(by.nbytes)
        self._call("cudnnConvolutionForward", handle, ONE, self._x, x, self._w, w, self._how, *room, ZERO, self._y, y)

    def execute(self, state: Any, arrays: Sequence[Any], lease: Lease | None) -> None:
        scratch = state.leased(lease, self.workspace_bytes, ALIGNMENT)
        x, w, bias, y = (pointer(one) for one in addresses(self.operation, arrays))
        handle = pointer(state.handle)
        with self._using(arrays, state):
            self._convolve(handle, x, w, y, self._by, pointer(scratch))
            if self._bias is not None:
                self._call("cudnnAddTensor", handle, ONE, self._bias, bias, ONE, self._y, y)
            if self._activation is not None:
                self._call("cudnnActivationForward", handle, self._activation, ONE, self._y, y, ZERO, self._y, y)


@final
class BackwardPlan(_ConvolutionPlan):
    """``conv2d.backward``: the gradient before relu, in the lease, then those of image, weights and bias."""

    def __init__(
        self, runtime: DeviceRuntime, library: NativeLibrary, operation: Operation, choice: Choice, handle: int
    ) -> None:
        super().__init__(runtime, library, operation)
        dy, x, w, y = operation.inputs
        make = self._descriptors
        self._dy, self._x, self._w = make.tensor(given(dy)), make.tensor(given(x)), make.filters(given(w))
        self._bias = make.channels(given(w).shape[0])
        self._before = self._y = self._dy  # of the gradient before relu, and of the result
        self._kept = self._first = 0
        if self._activation is not None:
            self._before = self._y = make.tensor(given(y))  # it lies as the result does, gaps and all
            count, first = span(given(y))
            self._kept, self._first = -(-4 * count // ALIGNMENT) * ALIGNMENT, 4 * first
        left = None if choice.max_workspace is None else choice.max_workspace - self._kept
        dx = operation.outputs[0]
        within = replace(choice, max_workspace=left, seconds=choice.seconds / (1 if dx is None else 2))
        before = given(dy if self._activation is None else y)
        choose = partial(self._chosen, choice=within, handle=handle)
        args, layouts = (self._x, self._before, self._how, self._w), (given(x), before, given(w))
        self._filter = choose("BackwardFilter", args, layouts, self._to_filters)
        self._data: Algorithm | None = None
        if dx is not None:
            self._dx = make.tensor(dx)
            args, layouts = (self._w, self._before, self._how, self._dx), (given(w), before, dx)
            self._data = choose("BackwardData", args, layouts, self._to_data)
        most = max(self._filter.nbytes, 0 if self._data is None else self._data.nbytes)
        self.workspace_bytes = self._kept + most
        self.algorithm = f"filter {self._filter.number}" + ("" if self._data is None else f", data {self._data.number}")

    def _to_data(self, handle: Any, w: Any, before: Any, dx: Any, by: Algorithm, scratch: Any) -> None:
        sent, room = (self._w, w, self._before, before), (self._how, by.number, scratch, size(by.nbytes))
        self._call("cudnnConvolutionBackwardData", handle, ONE, *sent, *room, ZERO, self._dx, dx)

    def _to_filters(self, handle: Any, x: Any, before: Any, dw: Any, by: Algorithm, scratch: Any) -> None:
        sent, room = (self._x, x, self._before, before), (self._how, by.number, scratch, size(by.nbytes))
        self._call("cudnnConvolutionBackwardFilter", handle, ONE, *sent, *room, ZERO, self._w, dw)

    def execute(self, state: Any, arrays: Sequence[Any], lease: Lease | None) -> None:
        address = state.leased(lease, self.workspace_bytes, ALIGNMENT)
        dy, x, w, y, dx, dw, dbias = (pointer(one) for one in addresses(self.operation, arrays))
        handle, scratch = pointer(state.handle), pointer(address + self._kept)
        with self._using(arrays, state):
            before = dy
            if self._activation is not None:
                before, ours = pointer(address + self._first), (self._y, y, self._dy, dy, self._y, y)
                call = "cudnnActivationBackward"
                self._call(call, handle, self._activation, ONE, *ours, ZERO, self._before, before)
            if self._data is not None:
                self._to_data(handle, w, before, dx, self._data, scratch)
            self._to_filters(handle, x, before, dw, self._filter, scratch)
            self._call("cudnnConvolutionBackwardBias", handle, ONE, self._before, before, ZERO, self._bias, dbias)
