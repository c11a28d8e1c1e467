"""Plans for a convolution and its gradients. They enqueue on the state's stream and return."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

from tazza.core.runtime import DeviceRuntime
from tazza.dnn.cuda.calls import ONE, ZERO, chosen, pointer
from tazza.dnn.cuda.execution import ALIGNMENT, CudnnPlan, addresses, given, packed, size
from tazza.dnn.library import Choice, Operation
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
        found = chosen(runtime, library, handle, "Forward", (self._x, self._w, self._how, self._y), choice)
        self._number, self.workspace_bytes = found
        self.algorithm = f"forward {found.number}"

    def execute(self, state: Any, arrays: Sequence[Any], lease: Lease | None) -> None:
        scratch = state.leased(lease, self.workspace_bytes, ALIGNMENT)
        x, w, bias, y = (pointer(one) for one in addresses(self.operation, arrays))
        handle = pointer(state.handle)
        with self._using(arrays, state):
            room = self._number, pointer(scratch), size(self.workspace_bytes)
            self._call(
                "cudnnConvolutionForward", handle, ONE, self._x, x, self._w, w, self._how, *room, ZERO, self._y, y
            )
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
        self._kept = 0
        if self._activation is not None:
            self._before = self._y = make.tensor(given(y))  # it lies as the result does
            self._kept = -(-4 * math.prod(given(y).shape) // ALIGNMENT) * ALIGNMENT
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
        address = state.leased(lease, self.workspace_bytes, ALIGNMENT)
        dy, x, w, y, dx, dw, dbias = (pointer(one) for one in addresses(self.operation, arrays))
        handle, scratch = pointer(state.handle), pointer(address + self._kept)
        with self._using(arrays, state):
            before = dy
            if self._activation is not None:
                before, ours = pointer(address), (self._y, y, self._dy, dy, self._y, y)
                call = "cudnnActivationBackward"
                self._call(call, handle, self._activation, ONE, *ours, ZERO, self._before, before)
            if self._data is not None:
                room = self._how, self._data.number, scratch, size(self._data.nbytes)
                sent = self._w, w, self._before, before
                self._call("cudnnConvolutionBackwardData", handle, ONE, *sent, *room, ZERO, self._x, dx)
            room = self._how, self._filter.number, scratch, size(self._filter.nbytes)
            sent = self._x, x, self._before, before
            self._call("cudnnConvolutionBackwardFilter", handle, ONE, *sent, *room, ZERO, self._w, dw)
            self._call("cudnnConvolutionBackwardBias", handle, ONE, self._before, before, ZERO, self._bias, dbias)
