"""What a neural-network library does for a context, whatever the device."""

from __future__ import annotations

import abc
from typing import Any, Literal

__all__ = ["Activation", "Array", "Dnn", "Pair"]

Array = Any
"""An array of the context's library; float32 or float64 unless said otherwise."""

Pair = int | tuple[int, int]
"""One number for height and width, or one for each."""

Activation = Literal["relu"] | None
"""What a convolution or a linear layer applies to its result before it returns it."""


class Dnn(abc.ABC):
    """Operations of small convolutional networks, forward and backward.

    Images are logically (N, C, H, W), filters (O, C / groups, KH, KW), whatever their strides. All arrays of a call
    have one dtype, float32 or float64, and lie on one device. Results are fresh arrays; arguments are never changed.
    A backward function takes the gradient `dy` of a loss with respect to the forward result and returns gradients of
    the same loss with respect to the forward arguments.

    Every method raises `ArgumentError` that names the argument where shapes or dtypes do not fit.

    Attributes:
        name: the library's name, for reports.
    """

    name: str

    @abc.abstractmethod
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
        """Correlate images with filters.

        With ``g`` the group of ``o``, and ``x`` zero outside its borders::

            y[n, o, i, j] = bias[o] + sum over c, k, l of w[o, c, k, l] * x[n, g * (C / groups) + c,
                                i * stride + k * dilation - padding, j * stride + l * dilation - padding]

        Args:
            x: (N, C, H, W).
            w: (O, C / groups, KH, KW).
            bias: (O,) or None.
            stride: step of the filters.
            padding: zeros at each border.
            dilation: step between the elements of a filter.
            groups: channels are split into so many groups, each with its own O / groups filters.
            activation: applied to the result.

        Returns:
            (N, O, OH, OW) with ``OH = (H + 2 * padding - dilation * (KH - 1) - 1) // stride + 1``.
        """

    @abc.abstractmethod
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
        """Differentiate `conv2d`, given its arguments.

        Args:
            dy: (N, O, OH, OW), gradient of the result.
            x: as given to `conv2d`.
            w: as given to `conv2d`.
            y: result of `conv2d`; needed where there was an activation.
            stride: as given to `conv2d`; so are `padding`, `dilation`, `groups` and `activation`.
            need_dx: False saves the work for `dx`, as in the first layer of a network.

        Returns:
            ``(dx, dw, dbias)``; `dx` is None where it is not needed.
        """

    @abc.abstractmethod
    def linear(self, x: Array, w: Array, bias: Array | None = None, *, activation: Activation = None) -> Array:
        """Return ``x @ w.T + bias``: (N, I), (O, I) and (O,) give (N, O)."""

    @abc.abstractmethod
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
        """Differentiate `linear`; arguments and results as in `conv2d_backward`."""

    @abc.abstractmethod
    def matmul(self, a: Array, b: Array) -> Array:
        """Multiply matrices: (..., I, K) and (..., K, J) give (..., I, J); leading axes broadcast."""

    @abc.abstractmethod
    def matmul_backward(self, dy: Array, a: Array, b: Array) -> tuple[Array, Array]:
        """Differentiate `matmul` of two arrays with equal leading axes; returns ``(da, db)``."""

    @abc.abstractmethod
    def relu(self, x: Array) -> Array:
        """Return ``maximum(x, 0)``, of any shape; NaN stays NaN."""

    @abc.abstractmethod
    def relu_backward(self, dy: Array, y: Array) -> Array:
        """Return `dy` where the result `y` of `relu` is positive, else zero."""

    @abc.abstractmethod
    def max_pool2d(self, x: Array, window: Pair, *, stride: Pair | None = None, padding: Pair = 0) -> Array:
        """Take the largest element of each window.

        Args:
            x: (N, C, H, W).
            window: height and width of the windows.
            stride: step of the windows; None means `window`.
            padding: elements at each border that are smaller than any other; at most half a window.

        Returns:
            (N, C, OH, OW), with the sizes of a convolution.
        """

    @abc.abstractmethod
    def max_pool2d_backward(
        self, dy: Array, x: Array, y: Array, window: Pair, *, stride: Pair | None = None, padding: Pair = 0
    ) -> Array:
        """Differentiate `max_pool2d`: the first largest element of each window, in row order, takes the gradient."""

    @abc.abstractmethod
    def softmax_cross_entropy(
        self, logits: Array, labels: Array, *, reduction: Literal["mean", "sum"] = "mean"
    ) -> tuple[Array, Array]:
        """Return loss and gradient of ``-log(softmax(logits)[label])``.

        Args:
            logits: (N, K).
            labels: (N,) of an integer dtype, each in ``0 ... K - 1`` (unchecked: the host would have to wait).
            reduction: whether the losses of the rows are averaged or summed.

        Returns:
            ``(loss, dlogits)``: a 0-d array, and the gradient of that loss, (N, K).
        """
