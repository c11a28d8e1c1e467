"""The reference implementation: plain Array API code, in the order of the formulas.

Convolutions are matrix products over patches ("im2col": Chellapilla, Puri, Simard, "High performance convolutional
neural networks for document processing", 2006). One matrix product is made per image and group, never over the batch,
so that the result for one image does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, final

from tazza.dnn.checks import (
    Window,
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
from tazza.dnn.interface import Activation, Array, Dnn, Pair
from tazza.errors import ArgumentError

__all__ = ["ReferenceDnn"]


@final
class ReferenceDnn(Dnn):
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
        rows = xp.reshape(dy, (x.shape[0], groups, w.shape[0] // groups, -1))
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

    def matmul(self, a: Array, b: Array) -> Array:
        check_matmul(self._xp, a, b)
        return self._xp.matmul(a, b)

    def matmul_backward(self, dy: Array, a: Array, b: Array) -> tuple[Array, Array]:
        xp = self._xp
        check_matmul_backward(xp, dy, a, b)
        return xp.matmul(dy, xp.matrix_transpose(b)), xp.matmul(xp.matrix_transpose(a), dy)

    def relu(self, x: Array) -> Array:
        check_float("x", x, self._xp)
        return self._xp.maximum(x, self._xp.zeros((), dtype=x.dtype))

    def relu_backward(self, dy: Array, y: Array) -> Array:
        check_float("y", y, self._xp)
        check_dtype("dy", dy, y)
        check_shape("dy", dy, tuple(y.shape))
        return self._xp.where(y > 0, dy, self._xp.zeros((), dtype=y.dtype))

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

    def softmax_cross_entropy(
        self, logits: Array, labels: Array, *, reduction: Literal["mean", "sum"] = "mean"
    ) -> tuple[Array, Array]:
        xp = self._xp
        check_cross_entropy(xp, logits, labels, reduction)
        shifted = logits - xp.max(logits, axis=1, keepdims=True)
        exponentials = xp.exp(shifted)
        total = xp.sum(exponentials, axis=1, keepdims=True)
        classes = xp.arange(logits.shape[1], dtype=labels.dtype)
        chosen = xp.astype(xp.expand_dims(labels, axis=1) == classes, logits.dtype)
        loss = xp.sum(xp.log(total)) - xp.sum(shifted * chosen)
        gradient = exponentials / total - chosen
        scale = 1.0 if reduction == "sum" else 1.0 / max(logits.shape[0], 1)
        return loss * scale, gradient * scale

    # Shared parts --------------------------------------------------------------------------------------------------

    def _finish(self, y: Array, bias: Array | None, w: Array, spread: tuple[int, ...], activation: Activation) -> Array:
        if bias is not None:
            check_bias(bias, w)
            y = y + self._xp.reshape(bias, spread)
        return self.relu(y) if activation == "relu" else y

    def _start_backward(
        self, dy: Array, y: Array | None, x: Array, shape: tuple[int, ...], activation: Activation
    ) -> Array:
        """Check `dy` and take it back through the activation."""
        check_dtype("dy", dy, x)
        check_shape("dy", dy, shape)
        if activation is None:
            return dy
        if y is None:
            raise ArgumentError.of("y", y, "the result of the forward call, as there was an activation")
        check_shape("y", y, shape)
        return self.relu_backward(dy, y)

    def _patches(self, x: Array, window: Window, output: tuple[int, int], groups: int) -> Array:
        """Return (N, groups, C / groups * KH * KW, OH * OW): in each column what one filter position sees."""
        padded = self._pad(x, window, 0.0)
        stack = self._xp.stack([padded[part] for part in _slices(window, output)], axis=2)
        return self._xp.reshape(stack, (x.shape[0], groups, -1, output[0] * output[1]))

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
