"""The operations by name: what each takes, gives and refuses. The one table that fronts, libraries and docs share.

| name | inputs | outputs | options |
|---|---|---|---|
| ``conv2d`` | x, w, bias? | y | stride, padding, dilation, groups, activation |
| ``conv2d.backward`` | dy, x, w, y? | dx?, dw, dbias | the same |
| ``linear`` | x, w, bias? | y | activation |
| ``linear.backward`` | dy, x, w, y? | dx?, dw, dbias | activation |
| ``matmul`` | a, b | y | |
| ``matmul.backward`` | dy, a, b | da, db | |
| ``relu`` | x | y | |
| ``relu.backward`` | dy, y | dx | |
| ``max_pool2d`` | x | y | window, stride, padding |
| ``max_pool2d.backward`` | dy, x, y | dx | the same |
| ``softmax_cross_entropy`` | logits, labels | loss, dlogits | reduction |

Inputs and outputs with a question mark may be None. Pairs among the options are (height, width).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import array_api_compat.numpy as xp
import numpy as np

from tazza.dnn.checks import (
    check_bias,
    check_conv,
    check_cross_entropy,
    check_dtype,
    check_float,
    check_linear,
    check_matmul,
    check_matmul_backward,
    check_pool,
    check_shape,
)
from tazza.errors import ArgumentError

__all__ = ["OPERATIONS", "Described", "Kind", "Output"]

HostArray = np.ndarray[Any, np.dtype[Any]]
Inputs = Sequence[HostArray | None]


class Output(NamedTuple):
    """An array that an operation makes.

    Attributes:
        shape: its extents.
        like: the input whose dtype it has, and whose order of axes in memory where it has as many.
    """

    shape: tuple[int, ...]
    like: int


class Described(NamedTuple):
    """What checked arguments come to: the options written out, and the outputs (None: not wanted)."""

    options: tuple[Any, ...]
    outputs: tuple[Output | None, ...]


Describe = Callable[[Inputs, tuple[Any, ...], bool], Described]
"""Checks inputs and options as the user gave them; the flag says whether an optional first output is wanted."""


class Kind(NamedTuple):
    """One operation: the parameters of its method of `Dnn`, arrays and options, and what checks them."""

    inputs: tuple[str, ...]
    options: tuple[str, ...]
    describe: Describe


def _given(array: HostArray | None, name: str) -> HostArray:
    if array is None:
        raise ArgumentError.of(name, array, "an array")
    return array


def _upstream(dy: HostArray, y: HostArray | None, x: HostArray, shape: tuple[int, ...], activation: Any) -> None:
    """Check what comes back from above, and the fused result that its activation needs."""
    check_dtype("dy", dy, x)
    check_shape("dy", dy, shape)
    if activation is not None:
        if y is None:
            raise ArgumentError.of("y", y, "the result of the forward call, as there was an activation")
        check_dtype("y", y, x)
        check_shape("y", y, shape)


def _conv2d(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    x, w, bias = inputs
    x, w = _given(x, "x"), _given(w, "w")
    window = check_conv(xp, x, w, *options)
    if bias is not None:
        check_bias(bias, w)
    y = Output((x.shape[0], w.shape[0], *window.output(x.shape[2:])), 0)
    return Described((window.stride, window.padding, window.dilation, *options[3:]), (y,))


def _conv2d_backward(inputs: Inputs, options: tuple[Any, ...], need_dx: bool) -> Described:
    dy, x, w, y = inputs
    dy, x, w = _given(dy, "dy"), _given(x, "x"), _given(w, "w")
    window = check_conv(xp, x, w, *options)
    _upstream(dy, y, x, (x.shape[0], w.shape[0], *window.output(x.shape[2:])), options[4])
    outputs = Output(x.shape, 1) if need_dx else None, Output(w.shape, 2), Output(w.shape[:1], 2)
    return Described((window.stride, window.padding, window.dilation, *options[3:]), outputs)


def _linear(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    x, w, bias = inputs
    x, w = _given(x, "x"), _given(w, "w")
    check_linear(xp, x, w, *options)
    if bias is not None:
        check_bias(bias, w)
    return Described(options, (Output((x.shape[0], w.shape[0]), 0),))


def _linear_backward(inputs: Inputs, options: tuple[Any, ...], need_dx: bool) -> Described:
    dy, x, w, y = inputs
    dy, x, w = _given(dy, "dy"), _given(x, "x"), _given(w, "w")
    check_linear(xp, x, w, *options)
    _upstream(dy, y, x, (x.shape[0], w.shape[0]), options[0])
    return Described(options, (Output(x.shape, 1) if need_dx else None, Output(w.shape, 2), Output(w.shape[:1], 2)))


def _matmul(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    a, b = (_given(array, name) for array, name in zip(inputs, "ab", strict=True))
    check_matmul(xp, a, b)
    try:
        stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        raise ArgumentError.of("b", b.shape, f"leading axes that broadcast with those of {a.shape}") from None
    return Described(options, (Output((*stack, a.shape[-2], b.shape[-1]), 0),))


def _matmul_backward(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    dy, a, b = (_given(array, name) for array, name in zip(inputs, ("dy", "a", "b"), strict=True))
    check_matmul_backward(xp, dy, a, b)
    return Described(options, (Output(a.shape, 1), Output(b.shape, 2)))


def _relu(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    x = _given(inputs[0], "x")
    check_float("x", x, xp)
    return Described(options, (Output(x.shape, 0),))


def _relu_backward(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    dy, y = (_given(array, name) for array, name in zip(inputs, ("dy", "y"), strict=True))
    check_float("y", y, xp)
    check_dtype("dy", dy, y)
    check_shape("dy", dy, y.shape)
    return Described(options, (Output(y.shape, 1),))


def _max_pool2d(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    x = _given(inputs[0], "x")
    window = check_pool(xp, x, *options)
    y = Output((*x.shape[:2], *window.output(x.shape[2:])), 0)
    return Described((window.size, window.stride, window.padding), (y,))


def _max_pool2d_backward(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    dy, x, y = (_given(array, name) for array, name in zip(inputs, ("dy", "x", "y"), strict=True))
    window = check_pool(xp, x, *options)
    shape = (*x.shape[:2], *window.output(x.shape[2:]))
    for name, array in (("dy", dy), ("y", y)):
        check_dtype(name, array, x)
        check_shape(name, array, shape)
    return Described((window.size, window.stride, window.padding), (Output(x.shape, 1),))


def _softmax_cross_entropy(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    logits, labels = _given(inputs[0], "logits"), _given(inputs[1], "labels")
    check_cross_entropy(xp, logits, labels, *options)
    return Described(options, (Output((), 0), Output(logits.shape, 0)))


_CONV = ("stride", "padding", "dilation", "groups", "activation")
_POOL = ("window", "stride", "padding")

OPERATIONS: dict[str, Kind] = {
    "conv2d": Kind(("x", "w", "bias"), _CONV, _conv2d),
    "conv2d.backward": Kind(("dy", "x", "w", "y"), _CONV, _conv2d_backward),
    "linear": Kind(("x", "w", "bias"), ("activation",), _linear),
    "linear.backward": Kind(("dy", "x", "w", "y"), ("activation",), _linear_backward),
    "matmul": Kind(("a", "b"), (), _matmul),
    "matmul.backward": Kind(("dy", "a", "b"), (), _matmul_backward),
    "relu": Kind(("x",), (), _relu),
    "relu.backward": Kind(("dy", "y"), (), _relu_backward),
    "max_pool2d": Kind(("x",), _POOL, _max_pool2d),
    "max_pool2d.backward": Kind(("dy", "x", "y"), _POOL, _max_pool2d_backward),
    "softmax_cross_entropy": Kind(("logits", "labels"), ("reduction",), _softmax_cross_entropy),
}
