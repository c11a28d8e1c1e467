"""Checks of shapes and dtypes, shared by every implementation of `Dnn`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from tazza.dnn.interface import Activation, Array, Pair
from tazza.errors import ArgumentError

__all__ = [
    "Window",
    "check_activation",
    "check_bias",
    "check_conv",
    "check_cross_entropy",
    "check_dtype",
    "check_float",
    "check_linear",
    "check_matmul",
    "check_matmul_backward",
    "check_pool",
    "check_shape",
    "pair",
]


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
    if len(both) != 2 or not all(isinstance(one, int) and one >= least for one in both):
        raise ArgumentError.of(argument, value, f"an integer of {least} or more, or a pair of them")
    return cast(tuple[int, int], both)


def check_float(argument: str, array: Array, xp: Any) -> None:
    """Refuse what is neither float32 nor float64."""
    if array.dtype not in (xp.float32, xp.float64):
        raise ArgumentError.of(argument, array.dtype, "float32 or float64; convert it with ctx.xp.astype")


def check_dtype(argument: str, array: Array, like: Array) -> None:
    """Refuse a dtype other than that of `like`."""
    if array.dtype != like.dtype:
        raise ArgumentError.of(argument, array.dtype, f"{like.dtype}, the dtype of the first argument")


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
    """Refuse the name of an unknown activation."""
    if activation not in (None, "relu"):
        raise ArgumentError.of("activation", activation, "None or 'relu'")


def check_bias(bias: Array, w: Array) -> None:
    """Refuse a bias that has not one element for each filter or row of `w`."""
    check_dtype("bias", bias, w)
    check_shape("bias", bias, (w.shape[0],))


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


def check_matmul(xp: Any, a: Array, b: Array) -> None:
    """Refuse matrices that cannot be multiplied."""
    check_float("a", a, xp)
    check_dtype("b", b, a)
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ArgumentError.of("b", tuple(b.shape), f"a matrix with as many rows as {tuple(a.shape)} has columns")


def check_matmul_backward(xp: Any, dy: Array, a: Array, b: Array) -> None:
    """Refuse what is no product's gradient with its factors, of equal leading axes."""
    check_float("a", a, xp)
    check_dtype("b", b, a)
    check_dtype("dy", dy, a)
    if a.ndim < 2:
        raise ArgumentError.of("a", tuple(a.shape), "a matrix or a stack of matrices")
    check_shape("b", b, (*a.shape[:-2], a.shape[-1], None))
    check_shape("dy", dy, (*a.shape[:-1], b.shape[-1]))


def check_pool(xp: Any, x: Array, window: Pair, stride: Pair | None, padding: Pair) -> Window:
    """Return the window of a pooling whose arguments fit."""
    check_float("x", x, xp)
    check_shape("x", x, (None, None, None, None))
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
    check_shape("labels", labels, (logits.shape[0],))
    if not xp.isdtype(labels.dtype, "integral"):
        raise ArgumentError.of("labels", labels.dtype, "an integer dtype")
    if reduction not in ("mean", "sum"):
        raise ArgumentError.of("reduction", reduction, "'mean' or 'sum'")
