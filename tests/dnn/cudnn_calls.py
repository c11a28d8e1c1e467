"""Convolutions on Buffers through cuDNN's plans, as a function that is launched calls them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_void_p
from typing import Any

import numpy as np

import tazza as tz
from tazza.dnn import Choice, CudnnWrapper, Layout, Operation
from tazza.dnn.operations import OPERATIONS
from tazza.drivers.cuda.libraries import load_library

__all__ = ["added", "backward", "conv2d", "operation", "told_stream"]

Shapes = Sequence[tuple[int, ...] | None]


def _layout(shape: tuple[int, ...] | None) -> Layout | None:
    if shape is None:
        return None
    steps = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    return Layout("float32", shape, tuple(steps))


def operation(name: str, inputs: Shapes, outputs: Shapes, options: tuple[Any, ...] | None = None) -> Operation:
    """An operation on arrays that lie in the order of their axes; the options of a plain convolution by default."""
    plain = ((1, 1), (0, 0), (1, 1), 1, None)
    laid = [tuple(_layout(shape) for shape in shapes) for shapes in (inputs, outputs)]
    return Operation(name, laid[0], laid[1], plain if options is None else options)


def _described(name: str, arrays: Sequence[Any], want: bool = True, **given: Any) -> Operation:
    """Checked and written out by the one table, through stand-ins of the same shapes."""
    phantoms = [None if one is None else np.broadcast_to(np.float32(0), one.shape) for one in arrays]
    options = [given.get(key, default) for key, default in _DEFAULTS.items()]
    told = OPERATIONS[name].describe(phantoms, tuple(options), want)
    outputs = [None if one is None else one.shape for one in told.outputs]
    return operation(name, [None if one is None else tuple(one.shape) for one in arrays], outputs, told.options)


_DEFAULTS: dict[str, Any] = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "activation": None}


def _executed(
    wrapper: CudnnWrapper, described: Operation, arrays: Sequence[Any], choice: Choice, index: int | None
) -> list[Any]:
    here = tz.current()
    plan = wrapper._states.plans.get(repr((described, choice)), lambda: wrapper.library.compile(described, choice))
    made = [None if one is None else here.empty(one.shape, one.dtype) for one in described.outputs]
    with wrapper._states.entered(here.stream, index) as state:
        lease = state.workspace.get(plan.workspace_bytes) if plan.workspace_bytes else None
        try:
            plan.execute(state, [*arrays, *made], lease)
        finally:
            if lease is not None:
                lease.release()
    return made


def conv2d(
    wrapper: CudnnWrapper,
    x: tz.Buffer,
    w: tz.Buffer,
    bias: tz.Buffer | None,
    *,
    choice: Choice | None = None,
    index: int | None = None,
    **options: Any,
) -> Any:
    """``ctx.dnn.conv2d`` on Buffers of the current context."""
    described = _described("conv2d", (x, w, bias), **options)
    return _executed(wrapper, described, (x, w, bias), choice or Choice(), index)[0]


def backward(
    wrapper: CudnnWrapper, dy: tz.Buffer, x: tz.Buffer, w: tz.Buffer, y: tz.Buffer, **options: Any
) -> list[Any]:
    """``ctx.dnn.conv2d_backward`` on Buffers of the current context."""
    arrays = dy, x, w, y if options.get("activation") else None
    return _executed(wrapper, _described("conv2d.backward", arrays, **options), arrays, Choice(), None)


def added(wrapper: CudnnWrapper, a: tz.Buffer, b: tz.Buffer) -> Any:
    """The sum of two Buffers, by cuDNN."""
    here = tz.current()
    assert isinstance(here, tz.CUDAContext)
    total, one = here.empty(a.shape, "float32"), ctypes.byref(ctypes.c_float(1))
    here.copy(total, a)
    dnn, tensor = load_library("cudnn"), c_void_p()
    dnn.call("cudnnCreateTensorDescriptor", ctypes.byref(tensor))
    dnn.call("cudnnSetTensor4dDescriptor", tensor, 0, 0, *a.shape)
    with wrapper.lease() as state, here.cuda_current():
        handle, sums = c_void_p(state.handle), (tensor, c_void_p(b.address), one, tensor, c_void_p(total.address))
        dnn.call("cudnnAddTensor", handle, one, *sums)
    dnn.call("cudnnDestroyTensorDescriptor", tensor)
    return total


def told_stream(ctx: tz.CUDAContext, call: str, handle: int) -> int:
    """The stream that a handle says it is bound to."""
    found = c_void_p()
    with ctx.cuda_current():
        load_library(call[: call.index("Get")]).call(call, c_void_p(handle), ctypes.byref(found))
    return found.value or 0
