"""The operations by name: what each takes, gives and refuses. The one table that fronts, libraries and docs share.

| name | inputs | outputs | options |
|---|---|---|---|
| ``conv2d`` | x, w, bias? | y | stride, padding, dilation, groups, activation |
| ``conv2d.backward`` | dy, x, w, y? | dx?, dw, dbias | the same |
| ``linear`` | x, w, bias? | y | activation |
| ``linear.backward`` | dy, x, w, y? | dx?, dw, dbias | activation |
| ``matmul`` | a, b, bias? | y | activation |
| ``matmul.backward`` | dy, a, b, y? | da, db, dbias | activation |
| ``activate`` | x | y | kind |
| ``activate.backward`` | dy, x?, y? | dx | kind |
| ``max_pool2d`` | x | y | window, stride, padding |
| ``max_pool2d.backward`` | dy, x, y | dx | the same |
| ``avg_pool2d`` | x | y | window, stride, padding, count_padding |
| ``avg_pool2d.backward`` | dy, x | dx | the same |
| ``batch_norm`` | x, gamma, beta | y, mean, variance | epsilon |
| ``batch_norm.backward`` | dy, x, gamma, mean, variance | dx, dgamma, dbeta | epsilon |
| ``batch_norm_inference`` | x, gamma, beta, mean, variance | y | epsilon |
| ``batch_norm_inference.backward`` | dy, x, gamma, mean, variance | dx, dgamma, dbeta | epsilon |
| ``layer_norm`` | x, gamma, beta | y, mean, variance | epsilon |
| ``layer_norm.backward`` | dy, x, gamma, mean, variance | dx, dgamma, dbeta | epsilon |
| ``dropout`` | x, mask | y | rate |
| ``dropout.backward`` | dy, mask | dx | rate |
| ``softmax`` | x | y | |
| ``softmax.backward`` | dy, y | dx | |
| ``softmax_cross_entropy`` | logits, labels | loss, dlogits | reduction |

Inputs and outputs with a question mark may be None. Pairs among the options are (height, width). The operations
behave as the methods of `Dnn` with the same names say; ``activate.backward`` takes what its kind needs, `x` or `y`, and
no notice of the other. One differs: the mask of ``dropout``, of bool, is drawn by the front, so that its bits are the
same whatever the library; where it is False the result is zero, also of a NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import array_api_compat.numpy as xp
import numpy as np

from tazza.dnn.checks import (
    check_activate,
    check_activate_backward,
    check_average_pool,
    check_batch_norm,
    check_bias,
    check_conv,
    check_cross_entropy,
    check_dropout_by,
    check_dtype,
    check_float,
    check_gradient,
    check_layer_norm,
    check_linear,
    check_matmul,
    check_matmul_backward,
    check_pool,
    check_shape,
    check_softmax,
    check_upstream,
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


def _all(inputs: Inputs, *names: str) -> list[HostArray]:
    """The inputs, none of which may be left out."""
    return [_given(array, name) for array, name in zip(inputs, names, strict=True)]


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
    check_upstream(dy, y, x, (x.shape[0], w.shape[0], *window.output(x.shape[2:])), options[4])
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
    check_upstream(dy, y, x, (x.shape[0], w.shape[0]), options[0])
    return Described(options, (Output(x.shape, 1) if need_dx else None, Output(w.shape, 2), Output(w.shape[:1], 2)))


def _matmul(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    a, b, bias = inputs
    a, b = _given(a, "a"), _given(b, "b")
    return Described(options, (Output(check_matmul(xp, a, b, bias, *options), 0),))


def _matmul_backward(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    dy, a, b, y = inputs
    dy, a, b = _given(dy, "dy"), _given(a, "a"), _given(b, "b")
    check_matmul_backward(xp, dy, a, b, y, *options)
    return Described(options, (Output(a.shape, 1), Output(b.shape, 2), Output(b.shape[-1:], 2)))


def _activate(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    x = _given(inputs[0], "x")
    check_activate(*options)
    check_float("x", x, xp)
    return Described(options, (Output(x.shape, 0),))


def _activate_backward(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    (dy, x, y), [kind] = inputs, options
    dy = _given(dy, "dy")
    like = 1 if check_activate_backward(xp, dy, kind, x, y) == "x" else 2
    return Described(options, (Output(dy.shape, like),))


def _max_pool2d(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    x = _given(inputs[0], "x")
    window = check_pool(xp, x, *options)
    y = Output((*x.shape[:2], *window.output(x.shape[2:])), 0)
    return Described((window.size, window.stride, window.padding), (y,))


def _max_pool2d_backward(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    dy, x, y = _all(inputs, "dy", "x", "y")
    window = check_pool(xp, x, *options)
    shape = (*x.shape[:2], *window.output(x.shape[2:]))
    for name, array in (("dy", dy), ("y", y)):
        check_dtype(name, array, x)
        check_shape(name, array, shape)
    return Described((window.size, window.stride, window.padding), (Output(x.shape, 1),))


def _avg_pool2d(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    x = _given(inputs[0], "x")
    window, whole = check_average_pool(xp, x, *options)
    y = Output((*x.shape[:2], *window.output(x.shape[2:])), 0)
    return Described((window.size, window.stride, window.padding, whole), (y,))


def _avg_pool2d_backward(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    dy, x = _all(inputs, "dy", "x")
    window, whole = check_average_pool(xp, x, *options)
    check_gradient(dy, x, (*x.shape[:2], *window.output(x.shape[2:])))
    return Described((window.size, window.stride, window.padding, whole), (Output(x.shape, 1),))


def _batch_norm(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    x, gamma, beta = _all(inputs, "x", "gamma", "beta")
    epsilon = check_batch_norm(xp, x, options[0], statistics=True, gamma=gamma, beta=beta)
    channel = Output(x.shape[1:2], 0)
    return Described((epsilon,), (Output(x.shape, 0), channel, channel))


def _batch_norm_inference(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    x, *others = _all(inputs, "x", "gamma", "beta", "mean", "variance")
    channels = dict(zip(("gamma", "beta", "mean", "variance"), others, strict=True))
    epsilon = check_batch_norm(xp, x, options[0], statistics=False, **channels)
    return Described((epsilon,), (Output(x.shape, 0),))


def _batch_norm_backward(inputs: Inputs, options: tuple[Any, ...], _: bool, statistics: bool = True) -> Described:
    dy, x, *others = _all(inputs, "dy", "x", "gamma", "mean", "variance")
    channels = dict(zip(("gamma", "mean", "variance"), others, strict=True))
    epsilon = check_batch_norm(xp, x, options[0], statistics=statistics, **channels)
    check_gradient(dy, x, x.shape)
    channel = Output(x.shape[1:2], 2)
    return Described((epsilon,), (Output(x.shape, 1), channel, channel))


def _layer_norm(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    x, gamma, beta = _all(inputs, "x", "gamma", "beta")
    epsilon = check_layer_norm(xp, x, gamma, options[0], beta=beta)
    row = Output(x.shape[: x.ndim - gamma.ndim], 0)
    return Described((epsilon,), (Output(x.shape, 0), row, row))


def _layer_norm_backward(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    dy, x, gamma, mean, variance = _all(inputs, "dy", "x", "gamma", "mean", "variance")
    epsilon = check_layer_norm(xp, x, gamma, options[0], mean=mean, variance=variance)
    check_gradient(dy, x, x.shape)
    scale = Output(gamma.shape, 2)
    return Described((epsilon,), (Output(x.shape, 1), scale, scale))


def _dropout(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    x, mask = _all(inputs, "x", "mask")
    return Described((check_dropout_by(xp, "x", x, mask, *options),), (Output(x.shape, 0),))


def _dropout_backward(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    dy, mask = _all(inputs, "dy", "mask")
    return Described((check_dropout_by(xp, "dy", dy, mask, *options),), (Output(dy.shape, 0),))


def _softmax(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    x = _given(inputs[0], "x")
    check_softmax(xp, "x", x)
    return Described(options, (Output(x.shape, 0),))


def _softmax_backward(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    dy, y = _all(inputs, "dy", "y")
    check_softmax(xp, "y", y)
    check_gradient(dy, y, y.shape)
    return Described(options, (Output(y.shape, 1),))


def _softmax_cross_entropy(inputs: Inputs, options: tuple[Any, ...], _: bool) -> Described:
    logits, labels = _given(inputs[0], "logits"), _given(inputs[1], "labels")
    check_cross_entropy(xp, logits, labels, *options)
    return Described(options, (Output((), 0), Output(logits.shape, 0)))


_CONV = ("stride", "padding", "dilation", "groups", "activation")
_POOL = ("window", "stride", "padding")
_AVERAGE = (*_POOL, "count_padding")
_NORM_BACKWARD = ("dy", "x", "gamma", "mean", "variance")

OPERATIONS: dict[str, Kind] = {
    "conv2d": Kind(("x", "w", "bias"), _CONV, _conv2d),
    "conv2d.backward": Kind(("dy", "x", "w", "y"), _CONV, _conv2d_backward),
    "linear": Kind(("x", "w", "bias"), ("activation",), _linear),
    "linear.backward": Kind(("dy", "x", "w", "y"), ("activation",), _linear_backward),
    "matmul": Kind(("a", "b", "bias"), ("activation",), _matmul),
    "matmul.backward": Kind(("dy", "a", "b", "y"), ("activation",), _matmul_backward),
    "activate": Kind(("x",), ("kind",), _activate),
    "activate.backward": Kind(("dy", "x", "y"), ("kind",), _activate_backward),
    "max_pool2d": Kind(("x",), _POOL, _max_pool2d),
    "max_pool2d.backward": Kind(("dy", "x", "y"), _POOL, _max_pool2d_backward),
    "avg_pool2d": Kind(("x",), _AVERAGE, _avg_pool2d),
    "avg_pool2d.backward": Kind(("dy", "x"), _AVERAGE, _avg_pool2d_backward),
    "batch_norm": Kind(("x", "gamma", "beta"), ("epsilon",), _batch_norm),
    "batch_norm.backward": Kind(_NORM_BACKWARD, ("epsilon",), _batch_norm_backward),
    "batch_norm_inference": Kind(("x", "gamma", "beta", "mean", "variance"), ("epsilon",), _batch_norm_inference),
    "batch_norm_inference.backward": Kind(
        _NORM_BACKWARD, ("epsilon",), partial(_batch_norm_backward, statistics=False)
    ),
    "layer_norm": Kind(("x", "gamma", "beta"), ("epsilon",), _layer_norm),
    "layer_norm.backward": Kind(_NORM_BACKWARD, ("epsilon",), _layer_norm_backward),
    "dropout": Kind(("x", "mask"), ("rate",), _dropout),
    "dropout.backward": Kind(("dy", "mask"), ("rate",), _dropout_backward),
    "softmax": Kind(("x",), (), _softmax),
    "softmax.backward": Kind(("dy", "y"), (), _softmax_backward),
    "softmax_cross_entropy": Kind(("logits", "labels"), ("reduction",), _softmax_cross_entropy),
}
