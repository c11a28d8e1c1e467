"""The reference implementation: plain Array API code, in the order of the formulas.

Convolutions are matrix products over patches ("im2col": Chellapilla, Puri, Simard, "High performance convolutional
neural networks for document processing", 2006). One matrix product is made per image and group, never over the batch,
so that the result for one image does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

from tazza.dnn.checks import (
    Window,
    check_average_pool,
    check_bias,
    check_conv,
    check_dtype,
    check_gradient,
    check_linear,
    check_matmul,
    check_matmul_backward,
    check_pool,
    check_shape,
    check_upstream,
)
from tazza.dnn.interface import Activation, Array, Pair
from tazza.dnn.reference_layers import ReferenceLayers

__all__ = ["ReferenceDnn"]


@final
class ReferenceDnn(ReferenceLayers):
    """`Dnn` for any namespace of the Array API standard whose arrays can be written to.

    Args:
        xp: the namespace, for example ``ctx.xp``.

    Example:
        >>> import array_api_compat.numpy as xp
        >>> dnn = ReferenceDnn(xp)
        >>> dnn.conv2d(xp.ones((1, 1, 3, 3)), xp.ones((2, 1, 3, 3)), padding=1).shape
        (1, 2, 3, 3)
    """

    name = "reference"

    def __init__(self, xp: Any) -> None:
        self._xp = xp

    def conv2d(
        self,
        x: Array,
        w: Array,
        bias: Array | None = None,
        *,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        activation: Activation = None,
    ) -> Array:
        window = check_conv(self._xp, x, w, stride, padding, dilation, groups, activation)
        output = window.output(x.shape[2:])
        y = self._xp.matmul(_grouped_filters(self._xp, w, groups), self._patches(x, window, output, groups))
        y = self._xp.reshape(y, (x.shape[0], w.shape[0], *output))
        return self._finish(y, bias, w, (1, -1, 1, 1), activation)

    def conv2d_backward(
        self,
        dy: Array,
        x: Array,
        w: Array,
        *,
        y: Array | None = None,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        activation: Activation = None,
        need_dx: bool = True,
    ) -> tuple[Array | None, Array, Array]:
        xp = self._xp
        window = check_conv(self._xp, x, w, stride, padding, dilation, groups, activation)
        output = window.output(x.shape[2:])
        dy = self._start_backward(dy, y, x, (x.shape[0], w.shape[0], *output), activation)
        rows = xp.reshape(dy, (x.shape[0], groups, w.shape[0] // groups, output[0] * output[1]))
        patches = self._patches(x, window, output, groups)
        dw = xp.sum(xp.matmul(rows, xp.matrix_transpose(patches)), axis=0)
        dbias = xp.sum(dy, axis=(0, 2, 3))
        dx = None
        if need_dx:
            filters = _grouped_filters(xp, w, groups)
            dx = self._add_patches(xp.matmul(xp.matrix_transpose(filters), rows), x, window, output)
        return dx, xp.reshape(dw, w.shape), dbias

    def linear(self, x: Array, w: Array, bias: Array | None = None, *, activation: Activation = None) -> Array:
        check_linear(self._xp, x, w, activation)
        return self._finish(self._xp.matmul(x, w.T), bias, w, (1, -1), activation)

    def linear_backward(
        self,
        dy: Array,
        x: Array,
        w: Array,
        *,
        y: Array | None = None,
        activation: Activation = None,
        need_dx: bool = True,
    ) -> tuple[Array | None, Array, Array]:
        check_linear(self._xp, x, w, activation)
        dy = self._start_backward(dy, y, x, (x.shape[0], w.shape[0]), activation)
        dx = self._xp.matmul(dy, w) if need_dx else None
        return dx, self._xp.matmul(dy.T, x), self._xp.sum(dy, axis=0)

    def matmul(self, a: Array, b: Array, bias: Array | None = None, *, activation: Activation = None) -> Array:
        check_matmul(self._xp, a, b, bias, activation)
        y = self._xp.matmul(a, b)
        return self._activated(y if bias is None else y + bias, activation)

    def matmul_backward(
        self, dy: Array, a: Array, b: Array, *, y: Array | None = None, activation: Activation = None
    ) -> tuple[Array, Array, Array]:
        xp = self._xp
        check_matmul_backward(xp, dy, a, b, y, activation)
        dy = self._before_activation(dy, y, activation)
        dbias = xp.sum(dy, axis=tuple(range(dy.ndim - 1)))
        return xp.matmul(dy, xp.matrix_transpose(b)), xp.matmul(xp.matrix_transpose(a), dy), dbias

    def max_pool2d(self, x: Array, window: Pair, *, stride: Pair | None = None, padding: Pair = 0) -> Array:
        frame = check_pool(self._xp, x, window, stride, padding)
        padded = self._pad(x, frame, -self._xp.inf)
        slices = _slices(frame, frame.output(x.shape[2:]))
        y = self._xp.asarray(padded[next(slices)], copy=True)
        for part in slices:
            y = self._xp.maximum(y, padded[part])
        return y

    def max_pool2d_backward(
        self, dy: Array, x: Array, y: Array, window: Pair, *, stride: Pair | None = None, padding: Pair = 0
    ) -> Array:
        xp = self._xp
        frame = check_pool(self._xp, x, window, stride, padding)
        output = frame.output(x.shape[2:])
        for name, array in (("dy", dy), ("y", y)):
            check_dtype(name, array, x)
            check_shape(name, array, (*x.shape[:2], *output))
        padded = self._pad(x, frame, -xp.inf)
        dx = xp.zeros_like(padded)
        left, zero = dy, xp.zeros((), dtype=x.dtype)
        for part in _slices(frame, output):
            found = padded[part] == y
            dx[part] += xp.where(found, left, zero)
            left = xp.where(found, zero, left)
        return _unpad(xp, dx, frame)

    def avg_pool2d(
        self,
        x: Array,
        window: Pair,
        *,
        stride: Pair | None = None,
        padding: Pair = 0,
        count_padding: bool | None = None,
    ) -> Array:
        frame, whole = check_average_pool(self._xp, x, window, stride, padding, count_padding)
        output = frame.output(x.shape[2:])
        padded = self._pad(x, frame, 0.0)
        slices = _slices(frame, output)
        y = self._xp.asarray(padded[next(slices)], copy=True)
        for part in slices:
            y = y + padded[part]
        return y / self._counts(x, frame, output, whole)

    def avg_pool2d_backward(
        self,
        dy: Array,
        x: Array,
        window: Pair,
        *,
        stride: Pair | None = None,
        padding: Pair = 0,
        count_padding: bool | None = None,
    ) -> Array:
        frame, whole = check_average_pool(self._xp, x, window, stride, padding, count_padding)
        output = frame.output(x.shape[2:])
        check_gradient(dy, x, (*x.shape[:2], *output))
        share = dy / self._counts(x, frame, output, whole)
        dx = self._xp.zeros(_padded_shape(x, frame), dtype=x.dtype)
        for part in _slices(frame, output):
            dx[part] += share
        return _unpad(self._xp, dx, frame)

    # Shared parts --------------------------------------------------------------------------------------------------

    def _finish(self, y: Array, bias: Array | None, w: Array, spread: tuple[int, ...], activation: Activation) -> Array:
        if bias is not None:
            check_bias(bias, w)
            y = y + self._xp.reshape(bias, spread)
        return self._activated(y, activation)

    def _activated(self, y: Array, activation: Activation) -> Array:
        return y if activation is None else self.activate(y, activation)

    def _start_backward(
        self, dy: Array, y: Array | None, x: Array, shape: tuple[int, ...], activation: Activation
    ) -> Array:
        """Check `dy` and take it back through the activation."""
        check_upstream(dy, y, x, shape, activation)
        return self._before_activation(dy, y, activation)

    def _before_activation(self, dy: Array, y: Array | None, activation: Activation) -> Array:
        return dy if activation is None else self.activate_backward(dy, activation, y=y)

    def _counts(self, x: Array, window: Window, output: tuple[int, int], whole: bool) -> Array:
        """Return by how much the sum of each window is divided: a 0-d array, or (OH, OW)."""
        if whole:
            return self._xp.asarray(window.size[0] * window.size[1], dtype=x.dtype)
        rows, columns = (
            [min(first + size, padding + extent) - max(first, padding) for first in range(0, stride * count, stride)]
            for extent, size, stride, padding, count in zip(
                x.shape[2:], window.size, window.stride, window.padding, output, strict=True
            )
        )
        return self._xp.asarray([[row * column for column in columns] for row in rows], dtype=x.dtype)

    def _patches(self, x: Array, window: Window, output: tuple[int, int], groups: int) -> Array:
        """Return (N, groups, C / groups * KH * KW, OH * OW): in each column what one filter position sees."""
        padded = self._pad(x, window, 0.0)
        stack = self._xp.stack([padded[part] for part in _slices(window, output)], axis=2)
        rows = stack.shape[1] * stack.shape[2] // groups
        return self._xp.reshape(stack, (x.shape[0], groups, rows, output[0] * output[1]))

    def _add_patches(self, patches: Array, x: Array, window: Window, output: tuple[int, int]) -> Array:
        """Undo `_patches`: add each element of the patches to where it was seen in the image; (N, C, H, W)."""
        xp = self._xp
        stack = xp.reshape(patches, (*x.shape[:2], window.size[0] * window.size[1], *output))
        dx = xp.zeros(_padded_shape(x, window), dtype=x.dtype)
        for number, part in enumerate(_slices(window, output)):
            dx[part] += stack[:, :, number, :, :]
        return _unpad(xp, dx, window)

    def _pad(self, x: Array, window: Window, value: float) -> Array:
        if window.padding == (0, 0):
            return x
        padded = self._xp.full(_padded_shape(x, window), value, dtype=x.dtype)
        padded[_inside(padded, window)] = x
        return padded


def _grouped_filters(xp: Any, w: Array, groups: int) -> Array:
    """Return (groups, O / groups, C / groups * KH * KW)."""
    return xp.reshape(w, (groups, w.shape[0] // groups, -1))


def _slices(window: Window, output: tuple[int, int]) -> Iterator[tuple[slice, ...]]:
    """Yield, for each element of the window in row order, where in a padded image all windows have it."""
    (stride_y, stride_x), (dilation_y, dilation_x) = window.stride, window.dilation
    for row in range(window.size[0]):
        top = row * dilation_y
        for column in range(window.size[1]):
            left = column * dilation_x
            yield (
                slice(None),
                slice(None),
                slice(top, top + stride_y * (output[0] - 1) + 1, stride_y),
                slice(left, left + stride_x * (output[1] - 1) + 1, stride_x),
            )


def _padded_shape(x: Array, window: Window) -> tuple[int, int, int, int]:
    return (
        x.shape[0],
        x.shape[1],
        x.shape[2] + 2 * window.padding[0],
        x.shape[3] + 2 * window.padding[1],
    )


def _inside(padded: Array, window: Window) -> tuple[slice, ...]:
    """Return where the image lies in its padded form."""
    top, left = window.padding
    return slice(None), slice(None), slice(top, padded.shape[2] - top), slice(left, padded.shape[3] - left)


def _unpad(xp: Any, padded: Array, window: Window) -> Array:
    """Return the image without its border, as an array of its own."""
    if window.padding == (0, 0):
        return padded
    return xp.asarray(padded[_inside(padded, window)], copy=True)
