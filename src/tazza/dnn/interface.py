"""What a neural-network library does for a context, whatever the device."""

from __future__ import annotations

import abc
from typing import Any, Literal

from tazza.core.generator import Generator

__all__ = ["Activation", "ActivationKind", "Array", "Dnn", "Pair"]

Array = Any
"""An array of the context's library; float32 or float64 unless said otherwise."""

Pair = int | tuple[int, int]
"""One number for height and width, or one for each."""

Activation = Literal["relu", "sigmoid", "tanh"] | None
"""What a convolution or a product of matrices applies to its result before it returns it."""

ActivationKind = Literal["relu", "sigmoid", "tanh", "gelu", "silu"]
"""What `Dnn.activate` applies to each element."""


class Dnn(abc.ABC):
    """Operations of neural networks, forward and backward.

    Images are logically (N, C, H, W), filters (O, C / groups, KH, KW), whatever their strides. All arrays of a call
    have one dtype, float32 or float64, and lie on one device. Results are fresh arrays; arguments are never changed.
    A backward function takes the gradient `dy` of a loss with respect to the forward result and returns gradients of
    the same loss with respect to the forward arguments.

    Every method raises `ArgumentError` that names the argument where shapes or dtypes do not fit.

    What becomes of NaN and infinite elements is what a method says, with every library. Where it says nothing they are
    the library's: to make them equal too would cost a pass over all elements.

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
    def matmul(self, a: Array, b: Array, bias: Array | None = None, *, activation: Activation = None) -> Array:
        """Multiply matrices: (..., I, K) and (..., K, J) give (..., I, J); leading axes broadcast.

        Args:
            a: (..., I, K).
            b: (..., K, J).
            bias: (J,), added to each row; or None.
            activation: applied to the result.
        """

    @abc.abstractmethod
    def matmul_backward(
        self, dy: Array, a: Array, b: Array, *, y: Array | None = None, activation: Activation = None
    ) -> tuple[Array, Array, Array]:
        """Differentiate `matmul` of two arrays with equal leading axes.

        Args:
            dy: (..., I, J), gradient of the result.
            a: as given to `matmul`; so are `b` and `activation`.
            y: result of `matmul`; needed where there was an activation.

        Returns:
            ``(da, db, dbias)``; `dbias` is the sum of the gradient's rows, of use where there was a bias.
        """

    @abc.abstractmethod
    def activate(self, x: Array, kind: ActivationKind) -> Array:
        """Apply a function to each element of an array of any shape.

        ``"relu"`` is ``maximum(x, 0)``, ``"sigmoid"`` is ``1 / (1 + exp(-x))``, ``"tanh"`` the hyperbolic tangent,
        ``"silu"`` is ``x * sigmoid(x)``, and ``"gelu"`` is ``x * (1 + erf(x / sqrt(2))) / 2``: the exact one, not its
        approximation by tanh. NaN stays NaN. Of infinite elements ``"relu"``, ``"sigmoid"`` and ``"tanh"`` give the
        limits.
        """

    @abc.abstractmethod
    def activate_backward(
        self, dy: Array, kind: ActivationKind, *, x: Array | None = None, y: Array | None = None
    ) -> Array:
        """Differentiate `activate`.

        Args:
            dy: gradient of the result.
            kind: as given to `activate`.
            x: as given to `activate`; needed for ``"gelu"`` and ``"silu"``, else not looked at.
            y: result of `activate`; needed for ``"relu"``, ``"sigmoid"`` and ``"tanh"``, else not looked at.

        Returns:
            `dx`. For ``"relu"`` it is `dy` where `y` is positive, and zero where it is zero or NaN.
        """

    def relu(self, x: Array) -> Array:
        """Return ``activate(x, "relu")``: ``maximum(x, 0)``, of any shape; NaN stays NaN."""
        return self.activate(x, "relu")

    def relu_backward(self, dy: Array, y: Array) -> Array:
        """Return `dy` where the result `y` of `relu` is positive, and zero where it is zero or NaN."""
        return self.activate_backward(dy, "relu", y=y)

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
    def avg_pool2d(
        self,
        x: Array,
        window: Pair,
        *,
        stride: Pair | None = None,
        padding: Pair = 0,
        count_padding: bool | None = None,
    ) -> Array:
        """Take the mean of each window.

        Args:
            x: (N, C, H, W).
            window: height and width of the windows.
            stride: step of the windows; None means `window`.
            padding: zeros at each border, at most half a window.
            count_padding: whether those zeros count, so that each sum is divided by the size of the window; else by
                the number of elements of `x` in it. Has to be said where there is padding.

        Returns:
            (N, C, OH, OW), with the sizes of a convolution.
        """

    @abc.abstractmethod
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
        """Differentiate `avg_pool2d`; of `x` only shape and dtype matter."""

    @abc.abstractmethod
    def batch_norm(self, x: Array, gamma: Array, beta: Array, *, epsilon: float = 1e-5) -> tuple[Array, Array, Array]:
        """Normalise each channel by its own statistics, as in training.

        ``y = gamma * (x - mean) / sqrt(variance + epsilon) + beta``, with the statistics over all axes but the second.

        Args:
            x: (N, C, H, W) or (N, C).
            gamma: (C,), the scale.
            beta: (C,), the shift.
            epsilon: a positive number.

        Returns:
            ``(y, mean, variance)``, the latter (C,): the mean of squared differences, divided by the number of
            elements. Running statistics are the caller's: what they become is the caller's formula.
        """

    @abc.abstractmethod
    def batch_norm_backward(
        self, dy: Array, x: Array, gamma: Array, mean: Array, variance: Array, *, epsilon: float = 1e-5
    ) -> tuple[Array, Array, Array]:
        """Differentiate the `y` of `batch_norm`, whose `mean` and `variance` are given back.

        Returns:
            ``(dx, dgamma, dbeta)``; `dx` includes what goes through the statistics. A loss that depends on the
            returned statistics themselves is not covered.
        """

    @abc.abstractmethod
    def batch_norm_inference(
        self, x: Array, gamma: Array, beta: Array, mean: Array, variance: Array, *, epsilon: float = 1e-5
    ) -> Array:
        """Normalise each channel by given statistics, each (C,); else as `batch_norm`."""

    @abc.abstractmethod
    def batch_norm_inference_backward(
        self, dy: Array, x: Array, gamma: Array, mean: Array, variance: Array, *, epsilon: float = 1e-5
    ) -> tuple[Array, Array, Array]:
        """Differentiate `batch_norm_inference`, its statistics being constants; returns ``(dx, dgamma, dbeta)``."""

    @abc.abstractmethod
    def layer_norm(self, x: Array, gamma: Array, beta: Array, *, epsilon: float = 1e-5) -> tuple[Array, Array, Array]:
        """Normalise over the last axes, as many as `gamma` has.

        ``y = gamma * (x - mean) / sqrt(variance + epsilon) + beta``, with the statistics over those axes.

        Args:
            x: (..., *G).
            gamma: (*G), the scale; one axis or more.
            beta: (*G), the shift.
            epsilon: a positive number.

        Returns:
            ``(y, mean, variance)``, the latter of the axes before, (...); the variance as in `batch_norm`.
        """

    @abc.abstractmethod
    def layer_norm_backward(
        self, dy: Array, x: Array, gamma: Array, mean: Array, variance: Array, *, epsilon: float = 1e-5
    ) -> tuple[Array, Array, Array]:
        """Differentiate the `y` of `layer_norm`; returns ``(dx, dgamma, dbeta)``, as `batch_norm_backward`."""

    @abc.abstractmethod
    def dropout(self, x: Array, rate: float, random: Generator) -> tuple[Array, Array]:
        """Set random elements to zero and scale the others, so that the mean stays.

        One float32 uniform number is drawn for each element, in row-major order, whatever the rate, the dtype and the
        strides of `x`: ``random.random(x.size, dtype="float32")``. An element is kept where its number is at least
        `rate`. So the mask is the same bits on every device and with every library.

        Args:
            x: of any shape.
            rate: share of the elements to drop, in [0, 1).
            random: where the numbers come from, such as ``ctx.random``, which inside a task is the task's own.

        Returns:
            ``(y, mask)``: `y` is ``x * (1 / (1 - rate))`` where the mask, of bool, is True, else zero, whatever `x`
            is there.
        """

    @abc.abstractmethod
    def dropout_backward(self, dy: Array, mask: Array, rate: float) -> Array:
        """Differentiate `dropout`: ``dy * (1 / (1 - rate))`` where the returned mask is True, else zero."""

    @abc.abstractmethod
    def softmax(self, x: Array) -> Array:
        """Return ``exp(x) / sum(exp(x))`` along the last axis of (..., K), from differences to the largest element.

        Elements of minus infinity become zero, as masks need it; a row with a NaN, with plus infinity or of minus
        infinities alone has NaN in it.
        """

    @abc.abstractmethod
    def softmax_backward(self, dy: Array, y: Array) -> Array:
        """Differentiate `softmax`, given its result: ``y * (dy - sum(dy * y))``, the sum along the last axis."""

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
