"""Checks of shapes and dtypes, shared by every implementation of `Dnn`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, cast

import numpy as np

from tazza.core.generator import Generator
from tazza.dnn.interface import Activation, Array, Pair
from tazza.errors import ArgumentError

__all__ = [
    "FROM_X",
    "Window",
    "check_activate",
    "check_activate_backward",
    "check_activation",
    "check_average_pool",
    "check_batch_norm",
    "check_bias",
    "check_conv",
    "check_cross_entropy",
    "check_dropout",
    "check_dropout_by",
    "check_dtype",
    "check_float",
    "check_gradient",
    "check_layer_norm",
    "check_linear",
    "check_matmul",
    "check_matmul_backward",
    "check_pool",
    "check_shape",
    "check_softmax",
    "check_upstream",
    "pair",
]

_FUSED = ("relu", "sigmoid", "tanh")

FROM_X = ("gelu", "silu")
"""Activations whose gradient follows from what they were given; that of the others follows from their result."""


@dataclass(frozen=True, slots=True)
class Window:
    """How windows or filters slide over images: pairs of (height, width).

    Example:
        >>> Window(size=(3, 3), stride=(2, 2), padding=(1, 1)).output((8, 8))
        (4, 4)
    """

    size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def output(self, image: tuple[int, int]) -> tuple[int, int]:
        """Return how many windows fit vertically and horizontally.

        Raises:
            ArgumentError: not even one does.
        """
        height, width = (
            (extent + 2 * padding - dilation * (size - 1) - 1) // stride + 1
            for extent, size, stride, padding, dilation in zip(
                image, self.size, self.stride, self.padding, self.dilation, strict=True
            )
        )
        if height < 1 or width < 1:
            raise ArgumentError(
                f"x: images of {image[0]} x {image[1]} with padding {self.padding} are smaller than windows of "
                f"{self.size[0]} x {self.size[1]} with dilation {self.dilation}"
            )
        return height, width


def pair(argument: str, value: Pair, *, least: int) -> tuple[int, int]:
    """Return (height, width) of one number or of two, each at least `least`."""
    both: tuple[object, ...] = value if isinstance(value, tuple) else (value, value)
    if len(both) != 2 or not all(isinstance(one, int) and not isinstance(one, bool) and one >= least for one in both):
        raise ArgumentError.of(argument, value, f"an integer of {least} or more, or a pair of them")
    return cast(tuple[int, int], both)


def _dtype(argument: str, array: Array) -> Any:
    dtype = getattr(array, "dtype", None)
    if dtype is None:
        raise ArgumentError.of(argument, array, "an array")
    return dtype


def check_float(argument: str, array: Array, xp: Any) -> None:
    """Refuse what is neither float32 nor float64."""
    dtype = _dtype(argument, array)
    if dtype not in (xp.float32, xp.float64):
        raise ArgumentError.of(argument, dtype, "float32 or float64; convert it with ctx.xp.astype")


def check_dtype(argument: str, array: Array, like: Array) -> None:
    """Refuse a dtype other than that of `like`."""
    dtype = _dtype(argument, array)
    if dtype != like.dtype:
        raise ArgumentError.of(argument, dtype, f"{like.dtype}, the dtype of the first argument")


def check_shape(argument: str, array: Array, expected: tuple[int | None, ...]) -> None:
    """Refuse another shape; None stands for any extent."""
    shape = tuple(array.shape)
    fits = len(shape) == len(expected) and all(
        want is None or extent == want for extent, want in zip(shape, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if want is None else str(want) for want in expected)
        raise ArgumentError.of(argument, shape, f"shape ({wanted})")


def check_activation(activation: Activation) -> None:
    """Refuse what cannot be fused: the name of an activation whose gradient does not follow from its result."""
    if activation is None or (isinstance(activation, str) and activation in _FUSED):
        return
    known = "None, 'relu', 'sigmoid' or 'tanh'"
    if isinstance(activation, str) and activation in FROM_X:
        known += f"; {activation} is not fused, as its gradient needs what it was given: call activate on the result"
    raise ArgumentError.of("activation", activation, known)


def check_bias(bias: Array, w: Array, axis: int = 0) -> None:
    """Refuse a bias that has not one element for each filter or row of `w`, or each of another axis."""
    check_dtype("bias", bias, w)
    check_shape("bias", bias, (w.shape[axis],))


def check_gradient(dy: Array, like: Array, shape: tuple[int, ...]) -> None:
    """Refuse a gradient that has not the dtype and the shape of the forward result."""
    check_dtype("dy", dy, like)
    check_shape("dy", dy, shape)


def check_upstream(dy: Array, y: Array | None, like: Array, shape: tuple[int, ...], activation: Activation) -> None:
    """Check what comes back from above, and the fused result that its activation needs."""
    check_gradient(dy, like, shape)
    if activation is not None:
        if y is None:
            raise ArgumentError.of("y", y, "the result of the forward call, as there was an activation")
        check_dtype("y", y, like)
        check_shape("y", y, shape)


def check_conv(
    xp: Any, x: Array, w: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int, activation: Activation
) -> Window:
    """Return the window of a convolution whose arguments fit."""
    check_float("x", x, xp)
    check_dtype("w", w, x)
    check_shape("x", x, (None, None, None, None))
    check_activation(activation)
    if type(groups) is not int or groups < 1 or x.shape[1] % groups:
        raise ArgumentError.of("groups", groups, f"a divisor of the {x.shape[1]} channels of x")
    check_shape("w", w, (None, x.shape[1] // groups, None, None))
    if w.shape[0] % groups or 0 in w.shape:
        raise ArgumentError.of("w", tuple(w.shape), f"no empty axis, and filters in {groups} groups of equal size")
    return Window(
        size=(w.shape[2], w.shape[3]),
        stride=pair("stride", stride, least=1),
        padding=pair("padding", padding, least=0),
        dilation=pair("dilation", dilation, least=1),
    )


def check_linear(xp: Any, x: Array, w: Array, activation: Activation) -> None:
    """Refuse arguments of a linear layer that do not fit."""
    check_float("x", x, xp)
    check_dtype("w", w, x)
    check_shape("x", x, (None, None))
    check_shape("w", w, (None, x.shape[1]))
    check_activation(activation)


def check_matmul(xp: Any, a: Array, b: Array, bias: Array | None, activation: Activation) -> tuple[int, ...]:
    """Return the shape of a product, or refuse factors, bias and activation that do not fit."""
    _check_factors(xp, a, b)
    if b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ArgumentError.of("b", tuple(b.shape), f"a matrix with as many rows as {tuple(a.shape)} has columns")
    try:
        stack = np.broadcast_shapes(tuple(a.shape[:-2]), tuple(b.shape[:-2]))
    except ValueError:
        wanted = f"leading axes that broadcast with those of {tuple(a.shape)}"
        raise ArgumentError.of("b", tuple(b.shape), wanted) from None
    if bias is not None:
        check_bias(bias, b, -1)
    check_activation(activation)
    return (*stack, a.shape[-2], b.shape[-1])


def check_matmul_backward(xp: Any, dy: Array, a: Array, b: Array, y: Array | None, activation: Activation) -> None:
    """Refuse what is no product's gradient with its factors, of equal leading axes."""
    _check_factors(xp, a, b)
    check_shape("b", b, (*a.shape[:-2], a.shape[-1], None))
    check_activation(activation)
    check_upstream(dy, y, a, (*a.shape[:-1], b.shape[-1]), activation)


def _check_factors(xp: Any, a: Array, b: Array) -> None:
    check_float("a", a, xp)
    check_dtype("b", b, a)
    if a.ndim < 2:
        raise ArgumentError.of("a", tuple(a.shape), "a matrix or a stack of matrices")


def check_pool(xp: Any, x: Array, window: Pair, stride: Pair | None, padding: Pair) -> Window:
    """Return the window of a pooling whose arguments fit."""
    check_float("x", x, xp)
    check_shape("x", x, (None, None, None, None))
    if 0 in x.shape[2:]:
        raise ArgumentError.of("x", tuple(x.shape), "images of one row and one column or more")
    size = pair("window", window, least=1)
    frame = Window(
        size=size,
        stride=size if stride is None else pair("stride", stride, least=1),
        padding=pair("padding", padding, least=0),
    )
    if any(2 * border > extent for border, extent in zip(frame.padding, size, strict=True)):
        raise ArgumentError.of("padding", padding, f"at most half of the window {size}")
    return frame


def check_cross_entropy(xp: Any, logits: Array, labels: Array, reduction: str) -> None:
    """Refuse logits and labels that do not fit."""
    check_float("logits", logits, xp)
    check_shape("logits", logits, (None, None))
    if logits.shape[1] == 0:
        raise ArgumentError.of("logits", tuple(logits.shape), "one class or more")
    check_shape("labels", labels, (logits.shape[0],))
    if not xp.isdtype(labels.dtype, "integral"):
        raise ArgumentError.of("labels", labels.dtype, "an integer dtype")
    if reduction not in ("mean", "sum"):
        raise ArgumentError.of("reduction", reduction, "'mean' or 'sum'")


def check_average_pool(
    xp: Any, x: Array, window: Pair, stride: Pair | None, padding: Pair, count_padding: bool | None
) -> tuple[Window, bool]:
    """Return the window of an average pooling whose arguments fit, and whether padding counts."""
    frame = check_pool(xp, x, window, stride, padding)
    if count_padding is None and frame.padding == (0, 0):
        count_padding = True
    if type(count_padding) is not bool:
        wanted = "True or False: whether zeros at the borders count, on which libraries differ"
        raise ArgumentError.of("count_padding", count_padding, wanted)
    return frame, count_padding


def check_activate(kind: object) -> None:
    """Refuse the name of an unknown activation."""
    if not isinstance(kind, str) or kind not in _FUSED + FROM_X:
        raise ArgumentError.of("kind", kind, f"one of {', '.join(_FUSED + FROM_X)}")


def check_activate_backward(xp: Any, dy: Array, kind: str, x: Array | None, y: Array | None) -> str:
    """Return which of `x` and `y` the gradient of an activation follows from; it is there and fits."""
    check_activate(kind)
    name, array, what = ("x", x, "was given") if kind in FROM_X else ("y", y, "returned")
    if array is None:
        raise ArgumentError.of(name, array, f"what activate {what}, as the gradient of {kind} follows from it")
    check_float(name, array, xp)
    check_gradient(dy, array, tuple(array.shape))
    return name


def check_softmax(xp: Any, argument: str, array: Array) -> None:
    """Refuse what has no last axis to normalise over."""
    check_float(argument, array, xp)
    if array.ndim < 1 or array.shape[-1] == 0:
        raise ArgumentError.of(argument, tuple(array.shape), "a last axis of one element or more")


def check_batch_norm(xp: Any, x: Array, epsilon: float, *, statistics: bool, **channels: Array) -> float:
    """Return epsilon as a float, where `x` and what has one element for each channel fit.

    Args:
        statistics: whether mean and variance are those of `x`, which then may not be empty.
        channels: the arrays of one element for each channel, by the names of their arguments.
    """
    check_float("x", x, xp)
    if x.ndim not in (2, 4):
        raise ArgumentError.of("x", tuple(x.shape), "shape (any, any) or (any, any, any, any)")
    if statistics and x.shape[1] and 0 in x.shape:
        raise ArgumentError.of("x", tuple(x.shape), "one element or more for each channel, to take statistics of")
    for name, array in channels.items():
        check_dtype(name, array, x)
        check_shape(name, array, (x.shape[1],))
    return _epsilon(epsilon)


def check_layer_norm(xp: Any, x: Array, gamma: Array, epsilon: float, **others: Array) -> float:
    """Return epsilon as a float, where the other arrays of a layer normalisation fit `x`.

    Args:
        others: `beta`, of the shape of gamma, and `mean` and `variance`, of the axes before; by name.
    """
    check_float("x", x, xp)
    check_dtype("gamma", gamma, x)
    shape, count = tuple(x.shape), gamma.ndim
    if count < 1 or count > x.ndim or tuple(gamma.shape) != shape[-count:] or 0 in gamma.shape:
        raise ArgumentError.of("gamma", tuple(gamma.shape), f"the last extents of x, {shape}, one or more, none empty")
    for name, array in others.items():
        check_dtype(name, array, x)
        check_shape(name, array, tuple(gamma.shape) if name == "beta" else shape[:-count])
    return _epsilon(epsilon)


def _epsilon(epsilon: object) -> float:
    if isinstance(epsilon, Real) and not isinstance(epsilon, bool) and 0.0 < float(epsilon) < math.inf:
        return float(epsilon)
    raise ArgumentError.of("epsilon", epsilon, "a positive number, which keeps the root of a variance from zero")


def check_dropout(xp: Any, x: Array, rate: float, random: object) -> float:
    """Return the rate as a float, where the arguments of dropout fit."""
    check_float("x", x, xp)
    if not isinstance(random, Generator):
        raise ArgumentError.of("random", random, "a tazza.Generator, such as ctx.random")
    return _rate(rate)


def check_dropout_by(xp: Any, argument: str, array: Array, mask: Array, rate: float) -> float:
    """Return the rate as a float, where an array, called `argument`, and a mask of dropout fit."""
    check_float(argument, array, xp)
    dtype = _dtype("mask", mask)
    if dtype != xp.bool:
        raise ArgumentError.of("mask", dtype, "bool, as dropout returns it")
    check_shape("mask", mask, tuple(array.shape))
    return _rate(rate)


def _rate(rate: object) -> float:
    if isinstance(rate, Real) and not isinstance(rate, bool) and 0.0 <= float(rate) < 1.0:
        return float(rate)
    raise ArgumentError.of("rate", rate, "a number of [0, 1): the share of elements to drop")
