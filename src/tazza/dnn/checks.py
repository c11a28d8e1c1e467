"""Checks of shapes and dtypes, shared by every implementation of `Dnn`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from tazza.dnn.interface import Activation, Array, Pair
from tazza.errors import ArgumentError

__all__ = ["Window", "check_activation", "check_dtype", "check_float", "check_shape", "pair"]


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
