"""Plans for a linear layer and its gradients: products by cuBLAS, bias and relu by cuDNN."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any, final

from tazza.contexts.cuda_handles import CUBLAS_WORKSPACE, call_library
from tazza.core.runtime import DeviceRuntime
from tazza.dnn.cuda.calls import ONE, ZERO, pointer
from tazza.dnn.cuda.execution import ALIGNMENT, CudnnPlan, addresses, given
from tazza.dnn.library import Choice, Layout, Operation
from tazza.dnn.workspace import Lease
from tazza.drivers.cuda.libraries import NativeLibrary, load_library
from tazza.errors import UnsupportedError

__all__ = ["LinearBackwardPlan", "LinearPlan"]

_AS_IT_IS, _TRANSPOSED = 0, 1


def _rows(layout: Layout | None, argument: str) -> int:
    """Elements from one row of a matrix to the next.

    Raises:
        UnsupportedError: the elements of a row do not lie behind each other.
    """
    [_, columns], [row, column] = given(layout).shape, given(layout).strides
    if (column != 1 and columns > 1) or row < columns:
        raise UnsupportedError(f"cudnn: rows of {argument} lie in memory one after another here; copy it")
    return max(1, row)


def _column(layout: Layout) -> Layout:
    """A matrix as images of one pixel, whose channels are its columns."""
    (rows, columns), (row, column) = layout.shape, layout.strides
    return Layout(layout.dtype, (rows, columns, 1, 1), (max(row, columns), max(1, column), 1, 1))


class _ProductPlan(CudnnPlan):
    """What both directions share."""

    algorithm = "gemm"

    def __init__(
        self, runtime: DeviceRuntime, library: NativeLibrary, operation: Operation, choice: Choice, kept: int
    ) -> None:
        most = CUBLAS_WORKSPACE if choice.max_workspace is None else choice.max_workspace - kept
        if most < 0:
            raise UnsupportedError(
                f"cudnn: no plan within {choice.max_workspace} bytes of workspace; the smallest needs {kept}"
            )
        super().__init__(runtime, library, operation, operation.options[0])
        self._blas = load_library("cublas")
        self._kept = kept
        self.workspace_bytes = kept + min(CUBLAS_WORKSPACE, most) // ALIGNMENT * ALIGNMENT

    def _multiply(self, handle: int, turned: tuple[int, int], extents: Sequence[int], a: Any, b: Any, c: Any) -> None:
        """Column by column: ``c = op(a) op(b)``, each matrix as its address and its step between columns."""
        args = *map(ctypes.c_int, (*turned, *extents)), ONE, *a, *b, ZERO, *c
        call_library(self._runtime, self._blas, "cublasSgemm_v2", pointer(handle), *args)


@final
class LinearPlan(_ProductPlan):
    """``linear``: the product of x and the turned w, then bias and relu in place."""

    def __init__(
        self, runtime: DeviceRuntime, library: NativeLibrary, operation: Operation, choice: Choice, _: int
    ) -> None:
        (x, w, bias), [y] = operation.inputs, operation.outputs
        self._steps = _rows(x, "x"), _rows(w, "w"), _rows(y, "y")
        super().__init__(runtime, library, operation, choice, 0)
        self._y = self._descriptors.tensor(_column(given(y)))
        self._bias = None if bias is None else self._descriptors.channels(bias.shape[0])

    def execute(self, state: Any, arrays: Sequence[Any], lease: Lease | None) -> None:
        state.leased(lease, self.workspace_bytes, ALIGNMENT)
        x, w, bias, y = (pointer(one) for one in addresses(self.operation, arrays))
        (rows, inner), (columns, _) = given(self.operation.inputs[0]).shape, given(self.operation.inputs[1]).shape
        handle, blas = pointer(state.handle), state.cublas_handle(lease)
        [x_step, w_step, y_step] = map(ctypes.c_int, self._steps)
        with self._using(arrays, state):
            extents = columns, rows, inner
            self._multiply(blas, (_TRANSPOSED, _AS_IT_IS), extents, (w, w_step), (x, x_step), (y, y_step))
            if self._bias is not None:
                self._call("cudnnAddTensor", handle, ONE, self._bias, bias, ONE, self._y, y)
            if self._activation is not None:
                self._call("cudnnActivationForward", handle, self._activation, ONE, self._y, y, ZERO, self._y, y)


@final
class LinearBackwardPlan(_ProductPlan):
    """``linear.backward``: the gradient before relu, in the lease, then those of x, w and bias."""

    def __init__(
        self, runtime: DeviceRuntime, library: NativeLibrary, operation: Operation, choice: Choice, _: int
    ) -> None:
        dy, x, w, y = operation.inputs
        self._steps = _rows(dy, "dy"), _rows(x, "x"), _rows(w, "w")
        kept = 0 if operation.options[0] is None else -(-4 * math.prod(given(dy).shape) // ALIGNMENT) * ALIGNMENT
        super().__init__(runtime, library, operation, choice, kept)
        make = self._descriptors
        self._dy, self._bias = make.tensor(_column(given(dy))), make.channels(given(w).shape[0])
        self._y = self._before = self._dy
        if self._activation is not None:
            rows, columns = given(dy).shape
            self._y = make.tensor(_column(given(y)))
            self._before = make.tensor(_column(Layout("float32", (rows, columns), (columns, 1))))
            self._steps = columns, *self._steps[1:]

    def execute(self, state: Any, arrays: Sequence[Any], lease: Lease | None) -> None:
        kept = state.leased(lease, self.workspace_bytes, ALIGNMENT)
        dy, x, w, y, dx, dw, dbias = (pointer(one) for one in addresses(self.operation, arrays))
        (rows, columns), (_, inner) = given(self.operation.inputs[0]).shape, given(self.operation.inputs[1]).shape
        handle, blas = pointer(state.handle), state.cublas_handle(lease, self._kept)
        [dy_step, x_step, w_step], step = map(ctypes.c_int, self._steps), ctypes.c_int(inner)
        with self._using(arrays, state):
            before = dy
            if self._activation is not None:
                before, ours = pointer(kept), (self._y, y, self._dy, dy, self._y, y)
                call = "cudnnActivationBackward"
                self._call(call, handle, self._activation, ONE, *ours, ZERO, self._before, before)
            if self.operation.outputs[0] is not None:
                extents = inner, rows, columns
                self._multiply(blas, (_AS_IT_IS, _AS_IT_IS), extents, (w, w_step), (before, dy_step), (dx, step))
            extents = inner, columns, rows
            self._multiply(blas, (_AS_IT_IS, _TRANSPOSED), extents, (x, x_step), (before, dy_step), (dw, step))
            self._call("cudnnConvolutionBackwardBias", handle, ONE, self._before, before, ZERO, self._bias, dbias)
